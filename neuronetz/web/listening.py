"""A listening socket, from which connections are taken as fast as they come."""

import errno
import socket

import trio

from neuronetz.web.sharing import Load

# Connections that are taken in one turn of the loop. One in each would have the last of a hundred that come
# together wait for a hundred turns, which are long where much is being served; all of them in one would hold up
# what is being served.
_AT_ONCE = 16

# How long a worker with more connections than another leaves a new one to it. An idle worker needs about a
# tenth of that; one that has not come by then is busy.
_YIELD_S = 0.001

# The errors of accept(2) that speak of this process or its socket. Any other is the connection's own, which
# is gone with it, or says that somebody else was quicker.
_OURS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EBADF, errno.EINVAL, errno.ENOTSOCK)
)


class Listener(trio.abc.Listener[trio.SocketStream]):
    """A listening socket, which other processes may accept from too; ``load`` then says how many connections each
    of them has.
    """

    def __init__(self, listening: socket.socket, load: Load | None = None) -> None:
        listening.set_inheritable(False)
        self._sock = listening
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        self._load = load
        self._more = 0

    @property
    def socket(self) -> trio.socket.SocketType:
        return self._listener.socket

    async def accept(self) -> trio.SocketStream:
        """The next connection that is this process's to take. When cancelled, none has been taken.

        Not a checkpoint each time, but once in a few: what has come together is taken together.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if not self._more:
                await self._wait()
                # What cancels this may have come while it was being woken: then it is others' to take.
                await trio.lowlevel.checkpoint_if_cancelled()
            self._more -= 1
            try:
                # Not Trio's accept: when somebody else was quicker, that would wait, and then take the
                # next one without looking whose turn it is.
                accepted, _ = self._sock.accept()
            except OSError as error:
                self._more = 0
                if error.errno in _OURS:
                    raise
            else:
                self._count()
                return trio.SocketStream(trio.socket.from_stdlib_socket(accepted))

    async def _wait(self) -> None:
        await trio.lowlevel.wait_readable(self.socket)
        if self._load is not None and self._load.others_have_less():
            await trio.sleep(_YIELD_S)
        self._more = _AT_ONCE

    def _count(self) -> None:
        """Tell of it now, since it is served only in the next turn, and leave the next one to whoever has less."""
        if self._load is not None:
            self._load.tell_of_another()
            if self._load.others_have_less():
                self._more = 0

    async def aclose(self) -> None:
        """Close this process's handle; the socket listens on for whoever else has one."""
        self._more = 0
        await self._listener.aclose()
