"""The way to the client and back: the bounded body, the watch for its leaving, the chunks sent to it.

What is sent is written by the task that sends it, within its scopes: whatever cancels the exchange ends a write
too, and a client that does not read holds nothing through it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import trio

from neuronetz.errors import BodyTimeout, BodyTooLarge, ClientDisconnected, ClientStalled, GatewayError

Headers = Sequence[tuple[bytes, bytes]]

# A reply's status and headers, and its body's length where that is known.
Head = tuple[int, Headers, int | None]

# A client that is still sending a body which is refused gets this long (seconds), and this many bytes, to
# read the refusal: a connection that closes over unread data is reset, and the reply lost with it.
_LINGER_S = 1.0
_LINGER_BYTES = 4 * 1024 * 1024


class Body(Protocol):
    """The server's side of a request's body."""

    ended: bool
    dropped: int

    async def take(self) -> bytes | None:
        """The next piece; empty at the end, None where the client left before."""
        ...

    async def news(self) -> bool:
        """Wait until something came; whether there may be more."""
        ...

    def drop(self) -> None:
        """Want nothing more of it."""
        ...


class Line(Protocol):
    """The server's side of one exchange. None of it raises because the client has left."""

    @property
    def body(self) -> Body: ...

    @property
    def stalled(self) -> bool:
        """Whether the client was given up because it took nothing any more."""
        ...

    def watch(self, gone: Callable[[], None] | None) -> None:
        """Have ``gone`` called when the client leaves before its reply's end; at once if it has."""
        ...

    async def write(self, head: Head | None, data: bytes, *, more: bool) -> bool:
        """Write a piece of the reply in one send; whether it was taken. Cancelled while it waits for the
        client, the connection is reset.
        """
        ...

    def write_now(self, data: bytes) -> bool:
        """Write a piece that is neither the first nor the last as far as it goes at once; whether all of it was
        taken. If not, ``catch_up`` must follow.
        """
        ...

    async def catch_up(self) -> bool:
        """Write what ``write_now`` left, as ``write`` does; whether it was taken."""
        ...

    async def offer(self, head: Head | None, data: bytes) -> None:
        """Like ``write`` of a piece that is not the last; cancelled, it is sent ahead of what comes next."""
        ...


class Rendered(NamedTuple):
    """An error made into a reply."""

    status: int
    headers: Headers
    body: bytes


class Delivery:
    """One reply on its way. ``started`` once its headers were sent, ``ended`` once its last byte was.

    ``render`` makes a reply of an error, in the caller's dialect; ``headers`` go on every reply.
    """

    def __init__(self, line: Line, render: Callable[[GatewayError], Rendered], headers: Headers) -> None:
        self._line = line
        self._render = render
        self._headers = list(headers)
        self._head: Head | None = None
        self._late = False
        self._sending = False
        self._beats = False
        self._sent_at = 0.0
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
        if self._line.body.ended:
            # All of it is here already, as nearly every one is: there is nothing to wait for.
            whole = await self._line.body.take() or b""
            if len(whole) > limit:
                raise BodyTooLarge
            return whole
        source = self._line.body
        # Not a list of the parts: a client may send it in chunks of two bytes, and each would be an object.
        body = bytearray()
        try:
            with trio.fail_after(timeout_s):
                while True:
                    part = await source.take()
                    if part is None:
                        raise ClientDisconnected
                    body += part
                    if len(body) > limit:
                        raise BodyTooLarge
                    if source.ended:
                        return bytes(body)
        except trio.TooSlowError:
            self._late = True
            raise BodyTimeout from None

    def watch(self, gone: Callable[[GatewayError], None]) -> None:
        """Have ``gone`` called when the client leaves, from whichever task learns of it; at once if it has.

        What is not read of the body by now is dropped.
        """

        def left() -> None:
            # Once the reply's last bytes are being sent, there is nothing more to stop.
            if not self.ended:
                gone(ClientStalled() if self._line.stalled else ClientDisconnected())

        self._line.watch(left)

    def unwatch(self) -> None:
        """Have nobody told any more."""
        self._line.watch(None)

    async def keep_alive(self, headers: Headers, comment: bytes, every_s: float) -> None:
        """Send ``comment`` whenever nothing was sent for ``every_s`` seconds; runs until cancelled.

        The first one starts the reply, with ``headers``. What does not get through before this is cancelled is
        sent ahead of what comes next. No comment comes in between the parts of a reply, nor after it.
        """
        self._beats = True
        self._sent_at = trio.current_time()
        while not self.ended:
            await trio.sleep_until(self._sent_at + every_s)
            if self._sending:
                # A write that does not get through is the write deadline's business.
                self._sent_at = trio.current_time()
            elif trio.current_time() >= self._sent_at + every_s and not self.ended:
                # What cancelled this at the moment of its waking may count on nothing being started any more.
                await trio.lowlevel.checkpoint_if_cancelled()
                await self._beat(headers, comment)

    async def _beat(self, headers: Headers, comment: bytes) -> None:
        head = None if self.started else self._with_head(200, headers, None)
        # Before it is written, since it stays to be written should this be cancelled.
        self.started = True
        try:
            await self._line.offer(head, comment)
        finally:
            self._sent_at = trio.current_time()

    async def start(self, status: int, headers: Headers) -> None:
        """Have the status line and headers sent together with what is sent next, unless a comment has been."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._head = self._with_head(status, headers, None)

    def _with_head(self, status: int, headers: Headers, length: int | None) -> Head:
        return status, [*headers, *self._headers], length

    async def _put(self, data: bytes, *, more: bool) -> bool:
        """Hand a piece to the server, with the head if that is due. No comment begins meanwhile."""
        # Before anything is noted as started: what is cancelled here may still be answered otherwise.
        await trio.lowlevel.checkpoint_if_cancelled()
        head = None if self.started else self._head
        self._sending = self.started = True
        try:
            return await self._line.write(head, data, more=more)
        finally:
            self._sending = False
            self._sent_at = trio.current_time()

    async def send(self, chunk: bytes) -> None:
        """Send a chunk; returns when the server has taken it, which is when the client's window allows."""
        if not await self._put(chunk, more=True):
            # The watch has stopped the exchange: nothing may count as sent.
            await trio.lowlevel.checkpoint_if_cancelled()

    def send_now(self, chunk: bytes) -> bool:
        """Send a chunk of a reply that has begun, if the client's window has room; whether all of it was taken.

        If not, ``catch_up`` must follow. It is no checkpoint: the caller's reads are. Most chunks go this way, at
        a fraction of what ``send`` costs.
        """
        if self._beats:
            self._sent_at = trio.current_time()
        return self._line.write_now(chunk)

    async def catch_up(self) -> None:
        """Send what ``send_now`` left; returns, or is cancelled, as ``send``."""
        self._sending = True
        try:
            taken = await self._line.catch_up()
        finally:
            self._sending = False
            self._sent_at = trio.current_time()
        if not taken:
            await trio.lowlevel.checkpoint_if_cancelled()

    async def finish(self, chunk: bytes = b"", taken: Callable[[], None] | None = None) -> None:
        """Send the last chunk and end the reply, in one.

        ``taken`` is called once the server has taken the chunk, without a checkpoint in between.
        """
        self.ended = True
        if await self._put(chunk, more=False) and taken is not None and chunk:
            taken()

    async def whole(
        self, status: int, headers: Headers, body: bytes, taken: Callable[[], None] | None = None
    ) -> None:
        """Send a reply of known length in one; ``taken`` as for ``finish``."""
        if not (self._line.body.ended or self._late):
            await self._linger()
        if not self.started:
            self._head = self._with_head(status, headers, len(body))
        await self.finish(body, taken)

    async def refuse(self, error: GatewayError) -> None:
        """Send an error as the whole reply."""
        rendered = self._render(error)
        await self.whole(rendered.status, rendered.headers, rendered.body)

    async def _linger(self) -> None:
        body = self._line.body
        body.drop()
        enough = body.dropped + _LINGER_BYTES
        # Of a clean-up's time, the reply needs its half.
        left_s = trio.current_effective_deadline() - trio.current_time()
        with trio.move_on_after(min(_LINGER_S, max(0.0, left_s / 2))):
            while body.dropped < enough and await body.news():
                pass
