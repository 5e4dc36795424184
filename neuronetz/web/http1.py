"""What is changed of hypercorn's own: strict HTTP/1 alone, timers that end with their connection, whole sends.

``TCPServer``, ``H11Protocol`` and ``TaskGroup`` are its internals: the version is pinned, and
``tests/web/test_server.py`` and ``tests/gateway/test_connections.py`` guard what is used of them.
"""

from typing import Any

import h11
import trio
from hypercorn.events import Closed, Event, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from neuronetz.web.strict_http1 import StrictConnection


class _Http1(H11Protocol):
    """HTTP/1 alone, strictly read. An Upgrade is ignored, as a server may: HTTP/2 has flow control of its own,
    which no write deadline sees, and h11 stops reading, and so seeing the client leave, while one is pending.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection = self._strict = StrictConnection(self.config.h11_max_incomplete_size)

    async def handle(self, event: Event) -> None:
        await super().handle(event)
        if isinstance(event, Closed):
            # Where requests wait behind one whose client has left, the reader would wait for the reply's end,
            # which nobody tells it of any more: the connection would be held for ever.
            self._strict.abandon()
            await self.can_read.set()

    async def _check_protocol(self, event: h11.Request) -> None:
        return

    async def _create_stream(self, request: h11.Request) -> None:
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        await super()._create_stream(
            h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        )


class Channel(TCPServer):
    """One connection, without TLS and ALPN. Its idle timer ends with it: hypercorn's would hold a closed
    connection, socket and all, until it runs out.
    """

    _over = False

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
                self._over = True
                await self.idle_task.stop()
        except OSError:
            pass
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        # A reply may end after its connection did; what is gone is not idle, and has no timer.
        if not (self._over and isinstance(event, Updated)):
            await super().protocol_send(event)


async def in_step(app: Any, scope: Any, receive: Any, send: Any) -> None:
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
