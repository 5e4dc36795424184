"""Connections to one upstream, kept for a while after a reply, so that the next request finds one."""

from collections import deque
from types import TracebackType
from typing import Self

import trio

from neuronetz.upstream.reply import BrokenReply, ReplyReader
from neuronetz.upstream.wire import Origin, Wire, connect

# Above this a copy of the body costs more than a system call.
_ONE_SEND_BYTES = 64 * 1024


class Connection:
    """A connection that carries one request at a time."""

    __slots__ = ("_reader", "_sent", "_wire", "idle_until")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._reader = ReplyReader()
        self._sent = True
        self.idle_until = 0.0

    @property
    def status(self) -> int:
        return self._reader.status

    @property
    def complete(self) -> bool:
        """The reply has been received to its end; some of it may wait to be read."""
        return self._reader.complete

    @property
    def ready(self) -> bool:
        """``read`` has something to give, or the end to tell, without asking the network."""
        reader = self._reader
        return reader.has_body or (reader.complete and not reader.broken)

    @property
    def reusable(self) -> bool:
        return self._sent and self._reader.reusable

    def silent(self) -> bool:
        """Nothing came while nobody asked. Looks at the socket."""
        return self._wire.silent()

    async def ask(self, head: bytes, body: bytes) -> None:
        """Send a request, receive the head of its reply.

        Raises ``BrokenReply`` and ``OSError``; then, or when cancelled, the connection must be closed.
        """
        reader = self._reader
        reader.begin()
        try:
            if len(body) <= _ONE_SEND_BYTES:
                await self._wire.send(head + body)
            else:
                await self._wire.send(head)
                await self._wire.send(body)
        except OSError:
            # An upstream that refuses early closes early: what it had to say may still be there.
            self._sent = False
        while not reader.status:
            reader.feed(await self._wire.receive())
            if reader.broken and not reader.status:
                raise BrokenReply

    async def read(self) -> bytes:
        """All of the body that one read of the network brings; empty at its end.

        A checkpoint whenever the network is asked. Raises ``BrokenReply`` and ``OSError``. When cancelled,
        nothing is lost.
        """
        reader = self._reader
        while not reader.has_body:
            if reader.broken:
                raise BrokenReply
            if reader.complete:
                return b""
            reader.feed(await self._wire.receive())
        return reader.take()

    def close(self) -> None:
        """Close at once, which makes Ollama stop."""
        self._wire.close()
        self._reader.close()


class Pool:
    """The connections to one origin. It bounds those that are idle, not those in use.

    ``connect_timeout_s`` bounds a new connection, TLS included. Idle ones are kept for ``idle_s`` seconds, at
    most ``idle_limit`` of them; those whose time is over are closed whenever the pool is touched. As a context
    manager it closes all of them at its end.
    """

    def __init__(
        self, origin: Origin, *, connect_timeout_s: float, idle_limit: int = 64, idle_s: float = 30.0
    ) -> None:
        self._origin = origin
        self._connect_timeout_s = connect_timeout_s
        self._idle_limit = idle_limit
        self._idle_s = idle_s
        # The one that was used last stands at the right, and serves first: so that the others can expire.
        self._idle: deque[Connection] = deque()
        self._closed = False
        self.in_use: set[Connection] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._closed = True
        self.close_idle()

    @property
    def idle(self) -> int:
        """How many connections wait for a request."""
        return len(self._idle)

    def close_idle(self) -> None:
        """Close what waits for a request, at once; connections in use are left alone."""
        while self._idle:
            self._idle.pop().close()

    async def ask(self, head: bytes, body: bytes = b"") -> Connection:
        """Send a request; the connection, with the head of its reply received. ``release`` it at once after.

        A request is sent once: one that finds its connection closed under it fails, since nobody knows what
        the upstream did with it. Raises ``BrokenReply`` and ``OSError``; then, or when cancelled, the
        connection is closed.
        """
        connection = self._take() or Connection(await connect(self._origin, self._connect_timeout_s))
        self.in_use.add(connection)
        try:
            await connection.ask(head, body)
        except BaseException:
            self.in_use.discard(connection)
            connection.close()
            raise
        return connection

    def release(self, connection: Connection) -> None:
        """Give a connection back: kept if it can carry another request, or else closed, at once."""
        self.in_use.discard(connection)
        if self._closed or not connection.reusable:
            connection.close()
            return
        now = trio.current_time()
        connection.idle_until = now + self._idle_s
        self._idle.append(connection)
        self._expire(now)
        while len(self._idle) > self._idle_limit:
            self._idle.popleft().close()

    def _take(self) -> Connection | None:
        self._expire(trio.current_time())
        while self._idle:
            connection = self._idle.pop()
            if connection.silent():
                return connection
            connection.close()
        return None

    def _expire(self, now: float) -> None:
        while self._idle and self._idle[0].idle_until <= now:
            self._idle.popleft().close()
