"""Hypercorn's trio worker, behind listeners of our own.

Hypercorn writes to a client inside a shielded scope without a deadline: a client that stops reading holds
its handler for as long as it likes. So each accepted stream is wrapped in a ``Connection``, which puts a
deadline on every write and can break one off. ``TCPServer`` and ``WorkerContext`` are hypercorn's
internals: the version is pinned, and a test guards what is used of them.
"""

import contextlib
import logging
import math
import select
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from neuronetz.web.sharing import Load, SharedListener

# One write's deadline counts for this many bytes (at most), so that a large reply to a slow but steady
# reader is not mistaken for a stall.
_SLICE_BYTES = 64 * 1024

_IDLE_S = 75.0
_HEADER_BYTES = 64 * 1024

Listener = trio.SocketListener | SharedListener


class CannotListen(OSError):
    """An address is taken, or is none of this host; the message is one line that names it."""


class Connection(trio.abc.HalfCloseableStream):
    """An accepted socket whose writes end: after ``write_timeout_s`` seconds without progress, or on demand.

    A write that was broken off leaves a torn reply, so the connection is then reset, and every further
    write raises ``trio.BrokenResourceError`` at once. ``stalled`` says that the deadline did it.
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
            finally:
                self._writing = None
        if scope.cancelled_caught:
            self._broken = True
            self.stalled = trio.current_time() >= deadline
            self._reset_on_close()
            raise trio.BrokenResourceError("the client does not read")

    def hurry(self, deadline: float) -> None:
        """Give all writes to come no more time than until ``deadline`` (in Trio's clock)."""
        self._write_by = deadline

    def abort_send(self) -> None:
        """Break off the write in progress, if there is one. Never blocks, never raises."""
        if self._writing is not None:
            self._writing.cancel()

    def _reset_on_close(self) -> None:
        with contextlib.suppress(OSError):  # already gone, which is what it is for
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        self.read_from = True
        try:
            return await self._stream.receive_some(max_bytes)
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


class _Http1(H11Protocol):
    """HTTP/1 alone. An Upgrade is ignored, as a server may: HTTP/2 has flow control of its own, which no write
    deadline sees, and h11 stops reading, and so seeing the client leave, while an upgrade is pending.
    """

    async def _check_protocol(self, event: h11.Request) -> None:
        return

    async def _create_stream(self, request: h11.Request) -> None:
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        await super()._create_stream(
            h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        )


class _Channel(TCPServer):
    """One connection, without TLS and ALPN. Its idle timer ends with it: hypercorn's would hold a closed
    connection, socket and all, until it runs out.
    """

    async def run(self) -> None:
        sock = self.stream.socket
        try:
            client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
            async with TaskGroup() as group:
                self._task_group = group
                self.protocol = _Http1(  # type: ignore[assignment]  # the wrapper would only choose among protocols
                    self.app,
                    self.config,
                    self.context,
                    group,
                    ConnectionState(self.state),
                    False,
                    client,
                    server,
                    self.protocol_send,
                )
                await self.idle_task.restart(group, self._idle_timeout)
                await self._read_data()
                await self.idle_task.stop()
        except OSError:
            pass
        finally:
            await self._close()


async def _in_step(app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Call ``app`` with a ``send`` that is done whole or not at all, as far as the application goes.

    Shielded, which costs no time, since hypercorn shields the write itself: a cancellation between two of its
    steps would leave a reply torn, or its connection neither recycled nor closed nor timed.
    """
    body_read = False

    async def next_message() -> Any:
        nonlocal body_read
        message = await receive()
        body_read = body_read or not message.get("more_body", False)
        return message

    async def whole(message: Any) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):
            if body_read or message.get("more_body", False) or message["type"] != "http.response.body":
                await send(message)
                return
            # A reply's end queues behind what is unread of the request, in a queue that may be full.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_discard, receive)
                await send(message)
                nursery.cancel_scope.cancel()

    await app(scope, next_message, whole)


async def _discard(receive: Any) -> None:
    while True:
        await receive()


async def listen(host: str, port: int) -> list[trio.SocketListener]:
    """Bind. Port 0 picks a free one; raises ``CannotListen``."""
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise CannotListen(f"cannot listen on {host} port {port}: {error.strerror or error}") from error


def address_of(host: str, port: int) -> str:
    """The URL under which a listener on ``host`` is reached from this machine."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _configure(listener: Listener, write_timeout_s: float) -> None:
    """Socket options that accepted sockets inherit: a peer that has vanished without a word is found."""
    sock = listener.socket
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_USER_TIMEOUT", int(write_timeout_s * 1000)),
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
            await _in_step(app, scope, receive, send)
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

    def _tell_load(self) -> None:
        if self._load is not None:
            self._load.tell(self.open)

    async def _serve(self, stream: trio.SocketStream) -> None:
        if self.open >= self._limit:
            await trio.aclose_forcefully(stream)
            return
        connection = Connection(stream, self._write_timeout_s)
        state: Any = {"connection": connection}
        self.open += 1
        self._tell_load()
        try:
            await _Channel(self._app, self._config, self._context, state, connection)  # type: ignore[arg-type]
        except Exception:
            # One connection's failure is its own: the server goes on.
            logging.getLogger("neuronetz.server").exception("connection failed")
        finally:
            self.open -= 1
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
    shared: tuple[Sequence[SharedListener], Load] | None = None,
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
