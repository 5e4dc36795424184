"""What is changed of hypercorn's own: strict HTTP/1 alone, one timer, a reader that says at once who has left.

``TCPServer``, ``H11Protocol`` and ``TaskGroup`` are its internals: the version is pinned, and
``tests/web/test_server.py`` and ``tests/gateway/test_connections.py`` guard what is used of them.
"""

import math
from typing import Any, cast

import h11
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from neuronetz.web.body import Body
from neuronetz.web.connection import Connection
from neuronetz.web.stream import Stream
from neuronetz.web.strict_http1 import StrictConnection

# How often (seconds) a socket is asked whether its client has left, where the reader does not read on.
_LOOK_S = 0.05

# A body's pieces let others have their turn once in so many: what is received at once may be ten thousand
# chunks of one byte.
_TURN_EVERY = 16


class _Http1(H11Protocol):
    """HTTP/1 alone, strictly read. An Upgrade is ignored, as a server may: HTTP/2 has flow control of its own,
    which no write deadline sees, and h11 stops reading, and so seeing the client leave, while one is pending.
    """

    stream: Stream | None

    def __init__(self, channel: "Channel", nursery: trio.Nursery, *args: Any) -> None:
        super().__init__(*args)
        self.connection = self.strict = StrictConnection(self.config.h11_max_incomplete_size)
        self._channel = channel
        self._nursery = nursery
        self._paused: trio.Event | None = None
        self._pieces = 0

    @property
    def last(self) -> bool:
        """Whether the connection is to be closed behind the request that is being answered."""
        return self.keep_alive_requests >= self.config.keep_alive_max_requests

    async def handle(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self.read(event.data)
        elif isinstance(event, Closed):
            self.close()

    def close(self) -> None:
        """Note that the client is gone, or given up. Where it has left a reply unread, that is told at once."""
        if self.stream is not None:
            self.stream.over(left=True)
            self.stream = None
        # Where requests wait behind one whose client has left, the reader would wait for the reply's end,
        # which nobody tells it of any more: the connection would be held for ever.
        self.strict.abandon()
        self._resume()

    async def read(self, data: bytes) -> bool:
        """Deal with what was received; empty is its end. Returns whether the client is still there."""
        self.strict.receive_data(data)
        return await self.go_on()

    async def go_on(self) -> bool:
        """Deal with what was received and not read yet, as ``read`` does. Cancelled, it may be called anew."""
        while True:
            if self.strict.client_is_waiting_for_100_continue:
                await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))
            try:
                event = self.strict.next_event()
            except h11.RemoteProtocolError as error:
                if self.strict.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                    await self._send_error_response(error.error_status_hint)
                await self.send(Closed())
                return True
            if event is h11.PAUSED:
                if not await self._pause():
                    return False
            elif isinstance(event, h11.Request):
                self._answer(event)
            elif event is h11.NEED_DATA or self.stream is None or isinstance(event, h11.ConnectionClosed):
                return True
            else:
                await self._hand_over(event, self.stream.body)

    async def _hand_over(self, event: h11.Data | h11.EndOfMessage, body: Body) -> None:
        if isinstance(event, h11.EndOfMessage):
            body.end()
            return
        self._pieces += 1
        if (room := body.feed(event.data)) is not None:
            await room.wait()
        elif self._pieces % _TURN_EVERY == 0:
            await trio.lowlevel.checkpoint()

    async def _pause(self) -> bool:
        """Wait until the reply is over. Where a client has sent more behind its request (the next one, a stray
        newline), nobody reads that it leaves: then the socket is asked. Returns whether it is still there.
        """
        self._paused = trio.Event()
        while not self._paused.is_set():
            with trio.move_on_after(_LOOK_S):
                await self._paused.wait()
                break
            if self._channel.stream.left():
                return False
        return True

    def _resume(self) -> None:
        if self._paused is not None:
            self._paused.set()

    def _answer(self, request: h11.Request) -> None:
        self._channel.busy()
        self.stream = Stream(
            self,
            self._channel.stream,
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        self.keep_alive_requests += 1
        self.stream.begin(request, self.connection_state, self._nursery)

    async def _maybe_recycle(self) -> None:
        self.finished()

    def finished(self) -> None:
        """Make the connection ready for its next request, the reply's last byte being written, or close it."""
        if self.stream is not None:
            self.stream.over(left=False)
            self.stream = None
        strict = self.strict
        if not self._channel.draining and strict.our_state is h11.DONE and strict.their_state is h11.DONE:
            strict.start_next_cycle()
            self._resume()
            self._channel.idle()
        else:
            self._channel.hang_up()
            self.close()


class Channel(TCPServer):
    """One connection, without TLS and ALPN. Its reader has a deadline between requests: the only timer."""

    stream: Connection  # type: ignore[assignment]
    protocol: _Http1  # type: ignore[assignment]  # the wrapper would only choose among protocols

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._patience = trio.CancelScope()
        self._idle = False
        self._reading = True

    @property
    def draining(self) -> bool:
        """Whether the server closes its connections as they become idle."""
        return self.context.terminated.is_set()

    async def run(self) -> None:
        sock = self.stream.socket
        try:
            client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
            async with TaskGroup() as group:
                self.protocol = _Http1(
                    self,
                    cast("trio.Nursery", group._nursery),
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
                self.idle()
                await self._read_data()
        except OSError:
            pass
        finally:
            await self._close()

    async def _read_data(self) -> None:
        at_end = False
        while self._reading and not at_end:
            with self._patience:
                await self._read_requests()
                at_end = True
            # Unless a request has come in the very moment in which the patience was at its end.
            at_end = at_end or self._idle
            self._patience = trio.CancelScope()
        if not self._reading:
            await self.stream.aclose()
        self._reading = False
        self.protocol.close()

    async def _read_requests(self) -> None:
        # An end of the patience may have come in between what was received.
        there = await self.protocol.go_on()
        while there:
            try:
                data = await self.stream.receive_some()
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                return
            there = await self.protocol.read(data) and bool(data)

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            try:
                # Nobody's bytes come before these: without a cancellation there is no checkpoint before the write.
                with trio.CancelScope(shield=True):
                    await self.stream.send_all(event.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.protocol.close()
        elif isinstance(event, Closed):
            await self._close()
            self.protocol.close()
        elif isinstance(event, Updated):
            self.idle() if event.idle else self.busy()

    def idle(self) -> None:
        """Wait for the next request, or so long (seconds) as the configuration says."""
        self._idle = True
        wait_s = 0.0 if self.draining else self.config.keep_alive_timeout
        self._patience.deadline = trio.current_time() + wait_s

    def busy(self) -> None:
        """Be patient: a request is being answered."""
        self._idle = False
        self._patience.deadline = math.inf

    def hang_up(self) -> None:
        """Close behind what was written, without waiting for it."""
        self.stream.end()
        if self._reading:
            # The reader closes, in a turn of its own: a client that still sends may lose to the close what it
            # had no time to read.
            self._reading = False
            self._patience.cancel()
        else:
            self.stream.socket.close()

    def drain(self) -> None:
        """Close, if idle; what runs goes on."""
        if self._idle:
            self._patience.cancel()
