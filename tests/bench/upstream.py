"""``python -m tests.bench.upstream``: a very cheap Ollama, which answers with bytes that were made before.

It prints its port. It speaks OpenAI's dialect too, for peers that do not translate. ``GET /bench/streams`` says how
many streams it is at, and by how many seconds the paced ones were behind at most since the last time it was asked: where
that is much, it is the machine that is too slow, not what lies between. ``GET /bench/end`` breaks off those that a peer
has left behind, which would be a load on all that is measured after it. It checks nothing: what asks is one of the peers.
"""

import asyncio
import re
import sys
import time
from typing import ClassVar

from tests.bench.shapes import OLLAMA, OPENAI, TAGS_REPLY, TOKENS_PER_S, Dialect, sized

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ASKED = re.compile(rb"bench-(whole|burst|paced|idle)-(\d+)\.")
_BACKLOG = 4096
# A turn is the time between two tokens of a stream; those of one slot are sent together.
_SLOTS = 50
_SLOT_S = 1 / TOKENS_PER_S / _SLOTS
# Streams that began together do not tick together.
_SPREAD = 0.618
_BURST = {OLLAMA: OLLAMA.burst, OPENAI: OPENAI.burst}


class Pace:
    """Gives all paced streams a token each turn; one timer for all, and one line for all of a slot."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._slots: list[set[Connection]] = [set() for _ in range(_SLOTS)]
        self._at = 0
        self._due = 0.0
        self._begun = 0
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self.behind_s = 0.0

    def add(self, stream: "Connection") -> int:
        """The slot that it is in."""
        self._begun += 1
        slot = int(self._begun * _SPREAD % 1 * _SLOTS)
        self._slots[slot].add(stream)
        self._count += 1
        if self._timer is None:
            self._due = self._loop.time() + _SLOT_S
            self._timer = self._loop.call_at(self._due, self._tick)
        return slot

    def remove(self, stream: "Connection", slot: int) -> None:
        self._slots[slot].discard(stream)
        self._count -= 1

    def _tick(self) -> None:
        now = self._loop.time()
        self.behind_s = max(self.behind_s, now - self._due)
        while self._count and self._due <= now:
            if streams := list(self._slots[self._at]):
                sent_at = time.monotonic_ns() // 1000
                lines = {dialect: dialect.stamped(sent_at) for dialect in (OLLAMA, OPENAI)}
                for stream in streams:
                    stream.tick(lines)
            self._at = (self._at + 1) % _SLOTS
            self._due += _SLOT_S
        self._timer = self._loop.call_at(self._due, self._tick) if self._count else None


class Connection(asyncio.Protocol):
    """A client's connection, kept alive; one request at a time."""

    streams: ClassVar[set["Connection"]] = set()

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._read = b""
        self._slot: int | None = None
        self._missing = 0
        self._dialect = OLLAMA
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

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
        asked = _ASKED.search(request, end)
        self._dialect = OPENAI if path.startswith(b"/v1/") else OLLAMA
        if path == b"/bench/streams":
            self._transport.write(sized({"streams": len(Connection.streams), "behind_s": self._pace.behind_s}))
            self._pace.behind_s = 0.0
        elif path == b"/bench/end":
            self._transport.write(sized({"ended": len(Connection.streams)}))
            for stream in list(Connection.streams):
                stream.abort()
        elif asked is None:
            self._transport.write(TAGS_REPLY)
        elif asked[1] == b"whole":
            self._transport.write(self._dialect.whole)
        elif asked[1] == b"burst":
            self._transport.write(_BURST[self._dialect])
        else:
            self._begin(silent=asked[1] == b"idle", lines=int(asked[2]))

    def _begin(self, *, silent: bool, lines: int) -> None:
        Connection.streams.add(self)
        self._missing = lines - 1
        self._transport.write(self._dialect.head + self._dialect.stamped(time.monotonic_ns() // 1000))
        if not silent:
            self._slot = self._pace.add(self)

    def tick(self, lines: dict[Dialect, bytes]) -> None:
        self._missing -= 1
        if self._missing:
            self._transport.write(lines[self._dialect])
        else:
            self._transport.write(self._dialect.last)
            self._end()

    def abort(self) -> None:
        """Break the stream off."""
        self._end()
        self._transport.abort()

    def _end(self) -> None:
        Connection.streams.discard(self)
        if self._slot is not None:
            self._pace.remove(self, self._slot)
            self._slot = None


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    pace = Pace()
    server = await loop.create_server(lambda: Connection(pace), "127.0.0.1", 0, backlog=_BACKLOG)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
