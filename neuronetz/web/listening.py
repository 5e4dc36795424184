"""A listening socket, from which connections are taken as fast as they come."""

import errno
import socket

import trio

from neuronetz.web.sharing import Load

# Connections that are taken in one turn of the loop. One in each would have the last of a hundred that come
# together wait for a hundred turns, which are long where much is being served; all of them in one would hold up
# what is being served.
_AT_ONCE = 16
# The same where other processes take from the socket too: how many each has is told only once they are served.
_AT_ONCE_SHARED = 4

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
                return trio.SocketStream(trio.socket.from_stdlib_socket(accepted))

    async def _wait(self) -> None:
        await trio.lowlevel.wait_readable(self.socket)
        if self._load is None:
            self._more = _AT_ONCE
            return
        if self._load.others_have_less():
            await trio.sleep(_YIELD_S)
        self._more = _AT_ONCE_SHARED

    async def aclose(self) -> None:
        """Close this process's handle; the socket listens on for whoever else has one."""
        self._more = 0
        await self._listener.aclose()
