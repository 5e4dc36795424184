"""A client's connection, whose writes always end.

Most writes fit into what the system buffers for the client, and are one system call then. Only those that do
not are waited for.
"""

import contextlib
import errno
import os
import select
import socket
import struct

import trio

# One write's deadline counts for this many bytes (at most), so that a large reply to a slow but steady
# reader is not mistaken for a stall.
_SLICE_BYTES = 64 * 1024

_READ_BYTES = 64 * 1024

# Writes that did not have to wait let others have their turn once in so many.
_TURN_EVERY = 16


class Connection(trio.abc.HalfCloseableStream):
    """An accepted socket whose writes end: after ``write_timeout_s`` seconds without progress, or cancelled.

    A write that was broken off leaves a torn reply, so the connection is reset at once: whoever reads from it
    gets ``trio.ClosedResourceError``, and every further write raises ``trio.BrokenResourceError``. ``stalled``
    says that the deadline did it, ours or the system's. Writes of several tasks come one after the other.
    """

    def __init__(self, stream: trio.SocketStream, write_timeout_s: float) -> None:
        self.socket = stream.socket
        self._write_timeout_s = write_timeout_s
        self._turn = trio.Lock()
        self._owed = bytearray()
        self._in_a_row = 0
        self._broken = False
        self.stalled = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write. A cancellation is noticed before anything is written, or breaks off what has to wait."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._broken:
            # Or else who goes on writing would hold up the task that is to stop it.
            await trio.lowlevel.checkpoint()
        if self.put(data):
            self._in_a_row += 1
            if self._in_a_row >= _TURN_EVERY:
                self._in_a_row = 0
                # After the write and not before: nobody's bytes may come in between.
                await trio.lowlevel.cancel_shielded_checkpoint()
            return
        await self.send_owed()

    async def send_owed(self) -> None:
        """Write what ``put`` left over. Cancelled before it is through, the connection is reset."""
        try:
            await self._flush()
        finally:
            if self._owed and not self._broken:
                self._tear()

    async def offer(self, data: bytes) -> None:
        """Write what may get through later: cancelled, it stays to be written before whatever comes next."""
        if not self.put(data):
            await self._flush()

    def put(self, data: bytes | bytearray | memoryview) -> bool:
        """Write what can be written at once, and owe the rest; whether there is none.

        Raises ``trio.BrokenResourceError``. Who calls it must let others have their turn often enough.
        """
        if self._broken:
            raise trio.BrokenResourceError("nothing more can be written")
        sent = 0 if self._owed or self._turn.locked() else self._write(data)
        if sent == len(data):
            return True
        with memoryview(data) as view:
            self._owed += view[sent:]
        return False

    async def _flush(self) -> None:
        """Write what is owed, at the client's pace."""
        self._in_a_row = 0
        async with self._turn:
            with trio.CancelScope(deadline=trio.current_time() + self._write_timeout_s) as scope:
                got_through = 0
                while self._owed:
                    await self._writable()
                    with memoryview(self._owed) as view:
                        sent = self._write(view[:_SLICE_BYTES])
                    del self._owed[:sent]
                    got_through += sent
                    if got_through >= _SLICE_BYTES:
                        got_through = 0
                        scope.deadline = trio.current_time() + self._write_timeout_s
        if scope.cancelled_caught:
            self.stalled = True
            self._tear()
        if self._broken:
            raise trio.BrokenResourceError("the client does not read")

    async def _writable(self) -> None:
        if self._broken:
            raise trio.BrokenResourceError("nothing more can be written")
        await trio.lowlevel.wait_writable(self.socket)

    def _write(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return os.write(self.socket.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._broken = True
            self._note(error)
            raise trio.BrokenResourceError("the client is gone") from error

    def _note(self, error: OSError) -> None:
        """The system gives up a client that takes nothing by a clock of its own (``TCP_USER_TIMEOUT``)."""
        if error.errno == errno.ETIMEDOUT:
            self.stalled = True

    def _tear(self) -> None:
        self._broken = True
        with contextlib.suppress(OSError):  # already gone, which is what it is for
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Left to the server, it would stay open for as long as the client likes: the server waits for the
        # client's next word once the application has ended.
        self.socket.close()

    async def wait_send_all_might_not_block(self) -> None:
        await self._writable()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while True:
            if self.socket.fileno() < 0:
                raise trio.ClosedResourceError("this connection was closed")
            await trio.lowlevel.wait_readable(self.socket)
            try:
                return os.read(self.socket.fileno(), max_bytes or _READ_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                self._note(error)
                raise trio.BrokenResourceError("the client is gone") from error

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
        if self._turn.locked():
            raise trio.BusyResourceError("a write is in progress")
        self._broken = True
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError("the client is gone") from error
        await trio.lowlevel.checkpoint()

    def end(self) -> None:
        """Write nothing more: the client reads the end. Never blocks, never raises."""
        self._broken = True
        with contextlib.suppress(OSError):  # the client was faster
            self.socket.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        self._broken = True
        self.socket.close()
        await trio.lowlevel.checkpoint()
