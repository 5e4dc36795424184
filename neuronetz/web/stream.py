"""One request on a connection and the reply to it, either as ASGI has it or written directly.

``HTTPStream`` and ``_handle`` are hypercorn's internals, guarded as ``http1.py`` says.
"""

from collections.abc import Callable, Sequence
from time import time
from typing import Any, Protocol
from urllib.parse import unquote

import h11
import trio
from hypercorn.protocol.events import Event
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.trio.task_group import _handle

from neuronetz.web.body import Body
from neuronetz.web.connection import Connection
from neuronetz.web.head import date_line, header_lines
from neuronetz.web.strict_http1 import Framing, StrictConnection

Headers = Sequence[tuple[bytes, bytes]]
Head = tuple[int, Headers, int | None]

_ASGI = {"spec_version": "2.1", "version": "3.0"}
_LAST_CHUNK = b"0\r\n\r\n"


class Owner(Protocol):
    """The protocol whose stream this is."""

    strict: StrictConnection

    @property
    def last(self) -> bool: ...

    def finished(self) -> None: ...

    def close(self) -> None: ...


class Stream(HTTPStream):
    """A request whose reply is given to ``send``, as ASGI has it, or written by ``write``: never by both.

    In the scope's state it is the ``line``. ``stalled``: the client takes nothing any more.
    """

    def __init__(self, owner: Owner, connection: Connection, *args: Any) -> None:
        super().__init__(*args)
        self.body = Body()
        self._owner = owner
        self._connection = connection
        self._framing: Framing | None = None
        self._unsaid: int | None = None
        self._gone: Callable[[], None] | None = None
        self._asked_to_the_end = False

    def begin(self, request: h11.Request, state: dict[str, Any], nursery: trio.Nursery) -> None:
        """Have the application called, in a task of its own, once the reader has handed over what it has."""
        self.start_time = time()
        path, _, query = request.target.partition(b"?")
        scope: Any = {
            "type": "http",
            "http_version": request.http_version.decode(),
            "asgi": _ASGI,
            "method": request.method.decode("ascii"),
            "scheme": self.scheme,
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": self.config.root_path,
            "headers": [header for header in request.headers if header[0] != b"upgrade"],
            "client": self.client,
            "server": self.server,
            "state": {**state, "line": self},
            "extensions": {},
        }
        self.scope = scope
        nursery.start_soon(
            _handle,
            self.app,
            self.config,
            scope,
            self.receive,
            self.send_in_step,
            trio.to_thread.run_sync,
            trio.from_thread.run,
        )

    @property
    def stalled(self) -> bool:
        return self._connection.stalled

    def watch(self, gone: Callable[[], None] | None) -> None:
        """Have ``gone`` called, from any task, when the client leaves before its reply's end; at once if it has.

        What is not taken of the body by now is dropped.
        """
        self._gone = gone
        self.body.drop()
        if self.closed:
            self._tell_gone()

    def _tell_gone(self) -> None:
        gone, self._gone = self._gone, None
        if gone is not None:
            gone()

    async def handle(self, event: Event) -> None:
        raise NotImplementedError("the reader calls what it has to say")

    def over(self, *, left: bool) -> None:
        """Note that the reply has ended, or the connection before that (``left``)."""
        self.closed = True
        if not left:
            self._gone = None
        self.body.close()
        self._tell_gone()

    async def write(self, head: Head | None, data: bytes, *, more: bool) -> bool:
        """Write a piece of the reply, the first with its ``head``, the last without ``more``, in one send.

        Whether it was taken: what is written to a client that has left is not, and raises nothing. Cancelled
        before anything was written, it may be called anew; later, the connection is reset.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        framed = self._frame(head, data, more=more)
        if framed is None:
            await trio.lowlevel.checkpoint()
            return False
        try:
            if framed:
                await self._connection.send_all(framed)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._owner.close()
            return False
        if not more:
            self.state = ASGIHTTPState.CLOSED
            self._owner.strict.end_reply()
            self._owner.finished()
        return True

    def write_now(self, data: bytes) -> bool:
        """Write a piece that is neither the first nor the last as far as it goes at once; whether all of it was
        taken. If not, ``catch_up`` must follow.
        """
        framed = self._frame(None, data, more=True)
        try:
            return not framed or self._connection.put(framed)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._owner.close()
            return False

    async def catch_up(self) -> bool:
        """Write what ``write_now`` left, as ``write`` does; whether it was taken."""
        try:
            await self._connection.send_owed()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._owner.close()
            return False
        return True

    async def offer(self, head: Head | None, data: bytes) -> None:
        """Like ``write`` of a piece that is not the last; cancelled, it is sent ahead of what comes next."""
        framed = self._frame(head, data, more=True)
        try:
            if framed:
                await self._connection.offer(framed)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._owner.close()

    def _frame(self, head: Head | None, data: bytes, *, more: bool) -> bytes | None:
        """The piece as it goes on the wire; None where the server has answered, or given up, by itself."""
        if self.state is ASGIHTTPState.CLOSED:
            raise RuntimeError("the reply has ended")
        start = b"" if head is None else self._begin(*head)
        framing = self._framing
        if framing is None:
            # The server's own answer to what it cannot read may still be on its way.
            if self.closed or self._owner.strict.their_state is h11.ERROR:
                return None
            raise RuntimeError("a reply begins with its head")
        if self._unsaid is not None:
            self._unsaid -= len(data)
            if self._unsaid < 0 or (self._unsaid and not more):
                raise RuntimeError("not the length that the head tells")
        if framing.bodyless:
            return start
        if framing.chunked:
            chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            return b"".join((start, chunk, b"" if more else _LAST_CHUNK))
        return start + data

    def _begin(self, status: int, headers: Headers, length: int | None) -> bytes:
        lines = header_lines(headers)
        try:
            self._framing = self._owner.strict.begin_reply(status, length, last=self._owner.last)
        except h11.LocalProtocolError:
            if self._owner.strict.their_state is not h11.ERROR:
                raise
            return b""
        self.state = ASGIHTTPState.RESPONSE
        self._unsaid = length
        return b"HTTP/1.1 %d \r\n%b%b%b\r\n" % (status, lines, date_line(), self._framing.lines)

    async def receive(self) -> Any:
        """The next message of the request, as ASGI has it."""
        if self._asked_to_the_end:
            await self.body.wait_closed()
            return {"type": "http.disconnect"}
        data = await self.body.take()
        if data is None:
            return {"type": "http.disconnect"}
        self._asked_to_the_end = self.body.ended
        return {"type": "http.request", "body": data, "more_body": not self.body.ended}

    async def send_in_step(self, message: Any) -> None:
        """``app_send``, done whole or not at all, as far as the application goes.

        A cancellation between two of its steps would leave a reply torn, or its connection neither recycled
        nor closed nor timed. Its writes have their deadline.
        """
        if message is None and self.closed:
            return
        # Of an application that was cancelled, too: its request was not answered, and the connection says so.
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):
            await self.app_send(message)
