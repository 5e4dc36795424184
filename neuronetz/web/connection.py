"""A client's connection, whose writes always end.

Hypercorn writes inside a shielded scope without a deadline: a client that stops reading would hold its
handler for as long as it likes.
"""

import contextlib
import errno
import math
import select
import socket
import struct

import trio

# One write's deadline counts for this many bytes (at most), so that a large reply to a slow but steady
# reader is not mistaken for a stall.
_SLICE_BYTES = 64 * 1024


class Connection(trio.abc.HalfCloseableStream):
    """An accepted socket whose writes end: after ``write_timeout_s`` seconds without progress, or on demand.

    A write that was broken off leaves a torn reply, so the connection is reset at once: whoever reads from it
    gets ``trio.ClosedResourceError``, and every further write raises ``trio.BrokenResourceError``. ``stalled``
    says that the deadline did it, ours or the system's.
    """

    def __init__(self, stream: trio.SocketStream, write_timeout_s: float) -> None:
        self._stream = stream
        self._write_timeout_s = write_timeout_s
        self._writing: trio.CancelScope | None = None
        self._broken = False
        self._write_by = math.inf
        self.stalled = False
        self.read_from = False

    @property
    def socket(self) -> trio.socket.SocketType:
        return self._stream.socket

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._broken:
            raise trio.BrokenResourceError("nothing more can be written")
        with memoryview(data) as view:
            for start in range(0, len(view), _SLICE_BYTES):
                await self._send_slice(view[start : start + _SLICE_BYTES])

    async def _send_slice(self, piece: memoryview) -> None:
        deadline = min(trio.current_time() + self._write_timeout_s, self._write_by)
        with trio.CancelScope(deadline=deadline) as scope:
            self._writing = scope
            try:
                await self._stream.send_all(piece)
            except trio.BrokenResourceError as error:
                self._note(error)
                raise
            finally:
                self._writing = None
        if scope.cancelled_caught:
            self._broken = True
            self.stalled = trio.current_time() >= deadline
            self._reset()
            raise trio.BrokenResourceError("the client does not read")

    def _note(self, error: trio.BrokenResourceError) -> None:
        """The system gives up a client that takes nothing by a clock of its own (``TCP_USER_TIMEOUT``)."""
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ETIMEDOUT:
            self.stalled = True

    def hurry(self, deadline: float) -> None:
        """Give all writes to come no more time than until ``deadline`` (in Trio's clock)."""
        self._write_by = deadline

    def abort_send(self) -> None:
        """Break off the write in progress, if there is one. Never blocks, never raises."""
        if self._writing is not None:
            self._writing.cancel()

    def _reset(self) -> None:
        with contextlib.suppress(OSError):  # already gone, which is what it is for
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Left to the server, it would stay open for as long as the client likes: the server waits for the
        # client's next word once the application has ended.
        self.socket.close()

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        self.read_from = True
        try:
            return await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError as error:
            self._note(error)
            raise
        finally:
            self.read_from = False

    def left(self) -> bool:
        """Whether the client closed its side, asked of the socket itself, whatever lies unread before that."""
        try:
            poll = select.poll()
            poll.register(self.socket.fileno(), getattr(select, "POLLRDHUP", 0))
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True

    async def send_eof(self) -> None:
        if self._broken:
            raise trio.BrokenResourceError("nothing more can be written")
        if self._writing is not None:
            raise trio.BusyResourceError("a write is in progress")
        # Not the stream's own: it would hold off a write of another task for a moment, with an error that
        # the server does not expect.
        self._broken = True
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError("the client is gone") from error
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await self._stream.aclose()
