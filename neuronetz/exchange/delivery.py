"""The way to the client and back: the bounded body, the watch for its leaving, the chunks sent to it.

An ASGI server's ``send`` cannot be cancelled while the client does not read (hypercorn shields it). Two
things end it all the same: the connection's own write deadline, and ``watch``, which breaks off the write
in progress as soon as the exchange is cancelled, so that nobody holds a slot through it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import trio

from neuronetz.errors import BodyTimeout, BodyTooLarge, ClientDisconnected, ClientStalled, GatewayError

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

# A client that is still sending a body which is refused gets this long (seconds), and this many bytes, to
# read the refusal: a connection that closes over unread data is reset, and the reply lost with it.
_LINGER_S = 1.0
_LINGER_BYTES = 4 * 1024 * 1024

# How often (seconds) a socket is asked whether its client has left, where the server does not look.
_LOOK_S = 0.05


class Connection(Protocol):
    """What the server's connection lets a delivery know and do."""

    stalled: bool
    read_from: bool

    def left(self) -> bool: ...

    def abort_send(self) -> None: ...

    def hurry(self, deadline: float) -> None: ...


class Rendered(NamedTuple):
    """An error made into a reply."""

    status: int
    headers: Headers
    body: bytes


class Delivery:
    """One reply on its way. ``started`` once its headers were sent, ``ended`` once its last byte was.

    ``render`` makes a reply of an error, in the caller's dialect; ``headers`` go on every reply.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send,
        connection: Connection,
        render: Callable[[GatewayError], Rendered],
        headers: Headers,
    ) -> None:
        self._receive = receive
        self._send = send
        self._connection = connection
        self._render = render
        self._headers = list(headers)
        self._body_read = False
        self._sending = False
        self._sent_at = 0.0
        self._beating: trio.Event | None = None
        self.started = False
        self.ended = False

    def add_headers(self, headers: Mapping[str, str]) -> None:
        """Have these headers on the reply too."""
        self._headers.extend((name.encode(), value.encode()) for name, value in headers.items())

    async def body(self, content_length: int | None, limit: int, timeout_s: float) -> bytes:
        """The whole request body: at most ``limit`` bytes, within ``timeout_s`` seconds.

        Raises ``BodyTooLarge``, ``BodyTimeout`` or ``ClientDisconnected``.
        """
        if content_length is not None and content_length > limit:
            raise BodyTooLarge
        # Not a list of the parts: a client may send it in chunks of two bytes, and each would be an object.
        body = bytearray()
        try:
            with trio.fail_after(timeout_s):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnected
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise BodyTooLarge
                    if not message.get("more_body", False):
                        self._body_read = True
                        return bytes(body)
        except trio.TooSlowError:
            self._body_read = True  # it is too late for the rest of it
            raise BodyTimeout from None

    async def watch(self, gone: Callable[[GatewayError], None]) -> None:
        """Call ``gone`` when the client leaves; runs until cancelled.

        When cancelled, it breaks off a write that is in progress, whatever the server shields.
        """
        try:
            while True:
                message = await self._next()
                if message["type"] == "http.disconnect":
                    # The server says the same once the reply's last byte was sent. Cancelled for that, it
                    # could neither close the connection nor make it ready for the next request.
                    if not self.ended:
                        gone(ClientStalled() if self._connection.stalled else ClientDisconnected())
                    await trio.sleep_forever()
                elif not message.get("more_body", False):
                    self._body_read = True
        finally:
            self._connection.abort_send()

    async def _next(self) -> Message:
        """The server's next message. It does not read on behind a request, so where a client has sent more
        (the next request, a stray newline) it would not see it leave: then the socket is asked.
        """
        while self._body_read and not self._connection.read_from:
            if self._connection.left():
                return {"type": "http.disconnect"}
            with trio.move_on_after(_LOOK_S):
                return await self._receive()
        return await self._receive()

    async def keep_alive(self, headers: Headers, comment: bytes, every_s: float) -> None:
        """Send ``comment`` whenever nothing was sent for ``every_s`` seconds; runs until cancelled.

        The first one starts the reply, with ``headers``. What is on its way when this is cancelled is sent to
        its end, and whatever else is to be sent waits for that. No comment comes in between the parts of a
        reply's start or end, nor after it.
        """
        self._sent_at = trio.current_time()
        while not self.ended:
            await trio.sleep_until(self._sent_at + every_s)
            if self._sending:
                # A write that does not get through is the write deadline's business.
                self._sent_at = trio.current_time()
            elif trio.current_time() >= self._sent_at + every_s and not self.ended:
                await self._beat(headers, comment)

    async def _beat(self, headers: Headers, comment: bytes) -> None:
        self._beating = trio.Event()
        try:
            # What cancelled this at the moment of its waking may count on nothing being started any more.
            await trio.lowlevel.checkpoint_if_cancelled()
            if not self.started:
                await self._send(self._head(200, headers))
                self.started = True
            await self._send({"type": "http.response.body", "body": comment, "more_body": True})
        finally:
            self._sent_at = trio.current_time()
            self._beating.set()
            self._beating = None

    async def quiet(self) -> None:
        """Wait for a comment that is being sent, to be sure of what has ``started``."""
        while self._beating is not None:
            await self._beating.wait()

    async def start(self, status: int, headers: Headers) -> None:
        """Send the status line and headers, unless a comment has done so."""
        await self.quiet()
        if not self.started:
            await self._put(self._head(status, headers))
            self.started = True

    def _head(self, status: int, headers: Headers) -> Message:
        return {"type": "http.response.start", "status": status, "headers": [*headers, *self._headers]}

    async def _put(self, message: Message) -> None:
        """Hand a message to the server. No comment begins meanwhile: it would come in between."""
        self._sending = True
        try:
            await self._send(message)
        finally:
            self._sending = False
            self._sent_at = trio.current_time()

    async def send(self, chunk: bytes) -> None:
        """Send a chunk; returns when the server has taken it, which is when the client's window allows."""
        await self.quiet()
        await self._put({"type": "http.response.body", "body": chunk, "more_body": True})

    async def finish(self, chunk: bytes = b"", taken: Callable[[], None] | None = None) -> None:
        """Send the last chunk and end the reply.

        ``taken`` is called once the server has taken the chunk. That this call is cancelled does not say
        otherwise: of every reply that has ended, the server says that its client is gone.
        """
        await self.quiet()
        self.ended = True
        if taken is not None and chunk:
            await self.send(chunk)
            taken()
            chunk = b""
        await self._put({"type": "http.response.body", "body": chunk, "more_body": False})

    async def whole(
        self, status: int, headers: Headers, body: bytes, taken: Callable[[], None] | None = None
    ) -> None:
        """Send a reply of known length; ``taken`` as for ``finish``."""
        if not self._body_read:
            await self._linger()
        await self.start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.finish(body, taken)

    def hurry(self, deadline: float) -> None:
        """Give what is still to be sent no more time than until ``deadline``, however full the client's window."""
        self._connection.hurry(deadline)

    async def refuse(self, error: GatewayError) -> None:
        """Send an error as the whole reply."""
        rendered = self._render(error)
        await self.whole(rendered.status, rendered.headers, rendered.body)

    async def _linger(self) -> None:
        size = 0
        # Of a clean-up's time, the reply needs its half.
        left_s = trio.current_effective_deadline() - trio.current_time()
        with trio.move_on_after(min(_LINGER_S, max(0.0, left_s / 2))):
            while size < _LINGER_BYTES:
                message = await self._receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    self._body_read = True
                    return
