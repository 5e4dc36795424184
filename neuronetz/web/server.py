"""Hypercorn's trio worker, behind listeners of our own: each accepted stream is wrapped in a ``Connection``.

``WorkerContext`` is one of hypercorn's internals: the version is pinned, and a test guards what is used.
"""

import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from neuronetz.web.connection import Connection
from neuronetz.web.http1 import Channel
from neuronetz.web.listening import Listener
from neuronetz.web.sharing import Load

_IDLE_S = 75.0

# A peer that acknowledges nothing any more is given up by the system so much later (seconds) than the write
# deadline: on a busy machine both clocks may be due at once, and only the deadline knows what it means.
VANISHED_S = 5.0
_HEADER_BYTES = 64 * 1024


class CannotListen(OSError):
    """An address is taken, or is none of this host; the message is one line that names it."""


async def listen(host: str, port: int) -> list[Listener]:
    """Bind. Port 0 picks a free one; raises ``CannotListen``."""
    try:
        bound = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise CannotListen(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return [Listener(socket.socket(fileno=each.socket.detach())) for each in bound]


def address_of(host: str, port: int) -> str:
    """The URL under which a listener on ``host`` is reached from this machine."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _configure(listener: Listener, write_timeout_s: float) -> None:
    """Socket options that accepted sockets inherit: a peer that has vanished without a word is found."""
    sock = listener.socket
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_USER_TIMEOUT", int((write_timeout_s + VANISHED_S) * 1000)),
        ("TCP_KEEPIDLE", 30),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


class Server:
    """A running HTTP server. ``port`` is the one that was bound; ``open`` counts its connections."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        app: Any,
        write_timeout_s: float,
        limit: int,
        load: Load | None = None,
    ) -> None:
        self._listeners = listeners
        self._load = load
        self._app = ASGIWrapper(partial(self._call, app))
        self._calls = 0
        self._channels: set[Channel] = set()
        self._idle = trio.Event()
        self._write_timeout_s = write_timeout_s
        self._limit = limit
        self.open = 0
        self._context = WorkerContext(None)
        self._accepting = trio.CancelScope()
        self._config = Config()
        self._config.errorlog = logging.getLogger("neuronetz.hypercorn")
        self._config.accesslog = None
        self._config.include_server_header = False
        self._config.keep_alive_timeout = _IDLE_S
        self._config.keep_alive_max_requests = 1_000_000
        self._config.h11_max_incomplete_size = _HEADER_BYTES
        address = listeners[0].socket.getsockname()
        self.port: int = address[1]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept and serve until ``stop_accepting`` was called and the last connection is gone, or cancelled."""
        async with trio.open_nursery() as connections:
            with self._accepting:
                self._tell_load()
                task_status.started()
                await trio.serve_listeners(self._serve, list(self._listeners), handler_nursery=connections)

    async def _call(self, app: Any, scope: Any, receive: Any, send: Any) -> None:
        self._calls += 1
        try:
            await app(scope, receive, send)
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no request is being served."""
        while self._calls:
            self._idle = trio.Event()
            await self._idle.wait()

    async def stop_accepting(self) -> None:
        """Close the listeners, and connections as they become idle; requests under way go on."""
        self._accepting.cancel()
        if self._load is not None:
            self._load.tell(None)
            self._load = None
        for listener in self._listeners:
            await listener.aclose()
        await self._context.terminated.set()
        for channel in self._channels:
            channel.drain()

    def _tell_load(self) -> None:
        if self._load is not None:
            self._load.tell(self.open)

    async def _serve(self, stream: trio.SocketStream) -> None:
        if self.open >= self._limit:
            self._tell_load()
            await trio.aclose_forcefully(stream)
            return
        connection = Connection(stream, self._write_timeout_s)
        self.open += 1
        self._tell_load()
        channel = Channel(self._app, self._config, self._context, {}, connection)
        self._channels.add(channel)
        try:
            await channel
        except* Exception:
            # One connection's failure is its own: the server goes on, and where it ends in the same moment, it
            # does not end with this.
            logging.getLogger("neuronetz.server").exception("connection failed")
        finally:
            self.open -= 1
            self._channels.discard(channel)
            self._tell_load()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 0.5):
                await connection.aclose()


@contextlib.asynccontextmanager
async def open_server(
    app: Callable[..., Any],
    host: str,
    port: int,
    *,
    write_timeout_s: float,
    max_connections: int,
    shared: tuple[Sequence[Listener], Load] | None = None,
) -> AsyncIterator[Server]:
    """Bind, serve, and on leaving cut what is left. Port 0 picks a free one; raises ``CannotListen``.

    ``shared``: inherited listeners to serve instead of binding, and the load to tell of.
    """
    listeners, load = shared if shared is not None else (await listen(host, port), None)
    for listener in listeners:
        _configure(listener, write_timeout_s)
    server = Server(listeners, app, write_timeout_s, max_connections, load)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()
