"""One listening socket, several workers: the one with the fewest connections takes the next.

Each worker waits on the socket, and a connection wakes them all. Left to themselves, an idle machine's
connections pile up on whoever wakes first: of 50 kept open, 46 on one of two workers were measured, and
25 on each with what is done here. A socket for each worker (``SO_REUSEPORT``) would spread them by their
hash, but a dead worker's share of new connections would then wait in its backlog until it is replaced;
here the others just take them.
"""

import errno
import mmap
import socket
from pathlib import Path

import trio

# How long a worker with more connections than another leaves a new one to it. An idle worker needs about a
# tenth of that; one that has not come by then is busy.
_YIELD_S = 0.001
# The errors of accept(2) that speak of this process or its socket. Any other is the connection's own, which
# is gone with it, or says that somebody else was quicker.
_OURS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EBADF, errno.EINVAL, errno.ENOTSOCK)
)

_NOBODY = -1
_FILE = "connections"


class Load:
    """How many connections each worker has open, in memory that all of them map. Never blocks."""

    def __init__(self, folder: Path, number: int) -> None:
        with (folder / _FILE).open("r+b") as file:
            self._counts = memoryview(mmap.mmap(file.fileno(), 0)).cast("i")
        self._number = number

    @staticmethod
    def prepare(folder: Path, workers: int) -> None:
        """Make the memory for so many workers, none of which runs yet."""
        (folder / _FILE).write_bytes(memoryview(b"\xff" * 4 * workers))

    def tell(self, connections: int | None) -> None:
        """Say how many connections this worker has; None takes it out of the comparison."""
        self._counts[self._number] = _NOBODY if connections is None else connections

    def others_have_less(self) -> bool:
        """Whether another running worker has fewer connections than this one."""
        return any(_NOBODY < count < self._counts[self._number] for count in self._counts)


class SharedListener(trio.abc.Listener[trio.SocketStream]):
    """An inherited listening socket, which other processes accept from too."""

    def __init__(self, descriptor: int, load: Load) -> None:
        self._sock = socket.socket(fileno=descriptor)
        self._sock.set_inheritable(False)
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._sock))
        self._load = load

    @property
    def socket(self) -> trio.socket.SocketType:
        return self._listener.socket

    async def accept(self) -> trio.SocketStream:
        """The next connection that is this worker's to take. When cancelled, none has been taken."""
        while True:
            await trio.lowlevel.wait_readable(self.socket)
            if self._load.others_have_less():
                await trio.sleep(_YIELD_S)
            try:
                # Not Trio's accept: when somebody else was quicker, that would wait, and then take the
                # next one without looking whose turn it is.
                accepted, _ = self._sock.accept()
            except OSError as error:
                if error.errno in _OURS:
                    raise
            else:
                return trio.SocketStream(trio.socket.from_stdlib_socket(accepted))

    async def aclose(self) -> None:
        """Close this process's handle; the socket listens on for whoever else has one."""
        await self._listener.aclose()
