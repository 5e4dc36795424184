"""``python -m tests.bench.upstream``: a very cheap Ollama, which answers with bytes that were made before.

It prints its port. ``GET /bench/streams`` says how many paced streams it is at. It checks nothing: what asks is
one of the peers.
"""

import asyncio
import re
import sys

from tests.bench.shapes import (
    BURST_REPLY,
    END,
    EVENTS_REPLY,
    PACED_LINES,
    STREAM_HEAD,
    TAGS_REPLY,
    TOKENS_PER_S,
    WHOLE_REPLY,
    lines,
    sized,
)

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PACED = lines(PACED_LINES)
_EVERY_S = 1 / TOKENS_PER_S
_BACKLOG = 2048
# Streams that began together do not tick together.
_SPREAD = 0.618


class Connection(asyncio.Protocol):
    """A client's connection, kept alive; one request at a time."""

    streams = 0
    begun = 0

    def __init__(self) -> None:
        self._read = b""
        self._next: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next is not None:
            self._next.cancel()
            Connection.streams -= 1

    def data_received(self, data: bytes) -> None:
        self._read += data
        end = self._read.find(b"\r\n\r\n")
        if end < 0:
            return
        found = _LENGTH.search(self._read, 0, end)
        whole = end + 4 + (int(found[1]) if found else 0)
        if len(self._read) >= whole:
            request, self._read = self._read[:whole], self._read[whole:]
            self._answer(request, end)

    def _answer(self, request: bytes, end: int) -> None:
        path = request[: request.index(b"\r\n")].split(b" ")[1]
        if path == b"/api/tags":
            self._transport.write(TAGS_REPLY)
        elif path == b"/bench/streams":
            self._transport.write(sized(Connection.streams))
        elif path.startswith(b"/v1/"):
            self._transport.write(EVENTS_REPLY)
        elif request.find(b"bench-burst", end) > 0:
            self._transport.write(BURST_REPLY)
        elif request.find(b"bench-paced", end) > 0:
            self._begin()
        else:
            self._transport.write(WHOLE_REPLY)

    def _begin(self) -> None:
        Connection.streams += 1
        Connection.begun += 1
        self._transport.write(STREAM_HEAD + _PACED[0])
        loop = asyncio.get_running_loop()
        first = loop.time() + _EVERY_S * (0.5 + Connection.begun * _SPREAD % 1)
        self._next = loop.call_at(first, self._tick, loop, first, 1)

    def _tick(self, loop: asyncio.AbstractEventLoop, now: float, index: int) -> None:
        if index == PACED_LINES - 1:
            self._transport.write(_PACED[index] + END)
            self._next = None
            Connection.streams -= 1
        else:
            self._transport.write(_PACED[index])
            self._next = loop.call_at(now + _EVERY_S, self._tick, loop, now + _EVERY_S, index + 1)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=_BACKLOG)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
