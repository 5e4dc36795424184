"""A front before a real server: it can hold what is said, cut it off, count connections and speak TLS."""

import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio


class Front:
    """A TCP port that passes everything on to a Unix socket, for as long as it is ``open``.

    Commands that begin with what is ``unknown`` reach the server under a name that it does not know.
    """

    def __init__(self, socket_path: str, tls: ssl.SSLContext | None = None) -> None:
        self._socket_path = socket_path
        self._tls = tls
        self._connections: set[trio.CancelScope] = set()
        self.accepted = 0
        self.unknown: bytes | None = None
        self.open = trio.Event()
        self.open.set()
        self.port = 0

    def cut(self) -> None:
        """End all connections, wherever they are."""
        for scope in self._connections:
            scope.cancel()

    async def run(self, task_status: trio.TaskStatus["Front"]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._pass_on, listeners, task_status=_Started(self, task_status))

    async def _pass_on(self, client: Any) -> None:
        self.accepted += 1
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                if self._tls is not None:
                    client = trio.SSLStream(client, self._tls, server_side=True, https_compatible=True)
                server = await trio.open_unix_socket(self._socket_path)
                async with client, server, trio.open_nursery() as nursery:
                    nursery.start_soon(self._copy, client, server, nursery.cancel_scope)
                    nursery.start_soon(self._copy, server, client, nursery.cancel_scope)
            finally:
                self._connections.discard(scope)

    async def _copy(self, source: Any, sink: Any, both: trio.CancelScope) -> None:
        try:
            while data := await source.receive_some(65536):
                await self.open.wait()
                if self.unknown is not None:
                    data = data.replace(self.unknown, self.unknown.swapcase()[::-1])
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        both.cancel()


class _Started:
    def __init__(self, front: Front, status: trio.TaskStatus[Front]) -> None:
        self._front, self._status = front, status

    def started(self, _: object = None) -> None:
        self._status.started(self._front)


@pytest.fixture
async def front(own_valkey: Any, nursery: trio.Nursery) -> Front:
    """A front before ``own_valkey``."""
    return await nursery.start(Front(str(own_valkey.socket_path)).run)


@pytest.fixture
def make_front(own_valkey: Any, nursery: trio.Nursery) -> Callable[..., Awaitable[Front]]:
    async def make(tls: ssl.SSLContext | None = None) -> Front:
        return await nursery.start(Front(str(own_valkey.socket_path), tls).run)

    return make
