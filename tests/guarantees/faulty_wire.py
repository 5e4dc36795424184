"""A wire between the gateway and a store that fails on demand, at the very call that a test names."""

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import trio

Dial = Callable[[], Awaitable[trio.SocketStream]]


@dataclass(eq=False)
class _Connection:
    near: trio.SocketStream
    far: trio.SocketStream
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    lossy: bool = False


class FaultyWire:
    """Passes bytes on, unless told otherwise. Nothing here waits for time to pass.

    ``hold`` stops the next question that says a word; ``held`` is set once it came. Then one of: ``go`` passes it
    on; ``lose_answer`` passes it on and cuts the connection in place of the answer; ``stall`` lets nothing through
    on any connection; ``refuse`` cuts all connections and resets new ones. ``heal`` ends a stall and a refusal:
    what was stalled then arrives late, as it may.
    """

    def __init__(self, dial: Dial) -> None:
        self.port = 0
        self.held = trio.Event()
        self._dial = dial
        self._word: bytes | None = None
        self._holding: _Connection | None = None
        self._passed = trio.Event()
        self._flowing = trio.Event()
        self._flowing.set()
        self._refusing = False
        self._connections: set[_Connection] = set()

    def hold(self, word: bytes) -> None:
        self._word = word
        self.held, self._passed = trio.Event(), trio.Event()

    def go(self) -> None:
        self._word = None
        self._passed.set()

    def lose_answer(self) -> None:
        if self._holding is not None:
            self._holding.lossy = True
        self.go()

    def stall(self) -> None:
        self._flowing = trio.Event()
        self.go()

    def refuse(self) -> None:
        self._refusing = True
        self.cut()

    def cut(self) -> None:
        """Cut all connections; new ones are taken."""
        for connection in self._connections:
            connection.scope.cancel()

    def heal(self) -> None:
        self._refusing = False
        self._flowing.set()
        self.go()

    async def serve(self, task_status: trio.TaskStatus["FaultyWire"] = trio.TASK_STATUS_IGNORED) -> None:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            task_status.started(self)
            await trio.serve_listeners(self._serve, [listener], handler_nursery=nursery)

    async def _serve(self, near: trio.SocketStream) -> None:
        if self._refusing:
            near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            near.socket.close()
            return
        async with near, await self._dial() as far:
            connection = _Connection(near, far)
            self._connections.add(connection)
            try:
                with connection.scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._pass_on, near, far, connection, self._asked)
                        nursery.start_soon(self._pass_on, far, near, connection, self._answered)
            finally:
                self._connections.discard(connection)

    async def _pass_on(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        connection: _Connection,
        look: Callable[[_Connection, bytes], Awaitable[None]],
    ) -> None:
        try:
            while data := await source.receive_some(65536):
                await look(connection, bytes(data))
                await self._flowing.wait()
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        connection.scope.cancel()

    async def _asked(self, connection: _Connection, data: bytes) -> None:
        if self._word is not None and self._word in data:
            self._word = None
            self._holding = connection
            self.held.set()
            await self._passed.wait()

    async def _answered(self, connection: _Connection, _: bytes) -> None:
        if connection.lossy:
            connection.scope.cancel()
            await trio.sleep_forever()


@asynccontextmanager
async def wires(database_url: str, redis_url: str) -> AsyncIterator[tuple[FaultyWire, str, FaultyWire, str]]:
    """A wire to each store, with the URL that leads through it. Both URLs are those of the tests' own servers."""
    database, cache = urlsplit(database_url), urlsplit(redis_url)
    options = parse_qs(database.query)
    postgres = FaultyWire(_unix(f"{options['host'][0]}/.s.PGSQL.{options['port'][0]}"))
    redis = FaultyWire(_unix(unquote(cache.path)))
    async with trio.open_nursery() as nursery:
        await nursery.start(postgres.serve)
        await nursery.start(redis.serve)
        yield (
            postgres,
            f"postgresql://postgres@127.0.0.1:{postgres.port}{database.path}?sslmode=disable",
            redis,
            f"redis://127.0.0.1:{redis.port}/{parse_qs(cache.query)['db'][0]}",
        )
        nursery.cancel_scope.cancel()


def _unix(path: str) -> Dial:
    async def dial() -> Any:
        return await trio.open_unix_socket(path)

    return dial
