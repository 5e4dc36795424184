"""Streams that last, and how late their tokens are: each says when the upstream sent it, by a clock that all share."""

import re
import select
import time
from typing import Any

from tests.bench.load import Connection, share
from tests.bench.shapes import TOKENS_PER_S

_STAMP = re.compile(rb"@(\d{15})@")
_STAMP_BYTES = 17
_FINE = b"HTTP/1.1 200"
# So few at a time that their beginning disturbs those that are there already as little as may be.
_TOGETHER = 16
_STEP_S = 0.1


class Stream(Connection):
    """A stream under way; it keeps what may be the beginning of a time that comes in two pieces."""

    def __init__(self, port: int, request: bytes) -> None:
        super().__init__(port, request)
        self._rest = b""
        self.latest_us = 0
        self.ended = False

    def times(self) -> list[int]:
        """When what has come was sent, in microseconds of the monotonic clock.

        Raises ``OSError`` where it has ended, or was refused.
        """
        data = self.sock.recv(65536)
        if not data or not (self.latest_us or self._rest or data.startswith(_FINE)):
            raise ConnectionResetError
        data = self._rest + data
        end, found = 0, []
        for stamp in _STAMP.finditer(data):
            found.append(int(stamp[1]))
            end = stamp.end()
        self._rest = data[max(end, len(data) - _STAMP_BYTES + 1) :]
        if found:
            self.latest_us = found[-1]
        return found


class Streams:
    """The streams that are held now."""

    def __init__(self) -> None:
        self._streams: dict[int, Stream] = {}
        self._poll = select.epoll()

    def open(self, port: int, request: bytes, count: int, within_s: float) -> dict[str, Any]:
        """Add streams, and read all the while; how many are open now. Fewer than asked where the time was up."""
        until = time.monotonic() + within_s
        while count > 0 and time.monotonic() < until:
            new = [Stream(port, request) for _ in range(min(_TOGETHER, count))]
            count -= len(new)
            for stream in new:
                self._streams[stream.sock.fileno()] = stream
                self._poll.register(stream.sock.fileno(), select.EPOLLIN)
                stream.ask()
            while any(not stream.latest_us and not stream.ended for stream in new) and time.monotonic() < until:
                self._read(_STEP_S)
        return {"open": sum(bool(stream.latest_us) for stream in self._streams.values())}

    def watch(self, seconds: float, late_s: float) -> dict[str, Any]:
        """Read for so long: tokens, how many came later than ``late_s`` after they were sent, how late in seconds.

        ``silent`` are streams of which nothing has come that was sent within the last turn or so; ``ended`` those that
        are gone. Tokens that were sent before the time are not counted.
        """
        cpu, began = time.process_time(), time.monotonic()
        lateness: list[float] = []
        while (left := began + seconds - time.monotonic()) > 0:
            lateness += self._read(min(_STEP_S, left), since_us=int(began * 1e6))
        oldest_us = 1e6 * (time.monotonic() - 1 / TOKENS_PER_S - late_s)
        return {
            "tokens": len(lateness),
            "late": sum(value > late_s for value in lateness),
            "silent": sum(stream.latest_us < oldest_us for stream in self._streams.values()),
            "ended": sum(stream.ended for stream in self._streams.values()),
            "cpu_s": time.process_time() - cpu,
            "p50_s": share(lateness, 0.50),
            "p99_s": share(lateness, 0.99),
            "max_s": max(lateness, default=0.0),
        }

    def close(self) -> dict[str, Any]:
        """Leave all of them at once."""
        closed = len(self._streams)
        for number, stream in self._streams.items():
            if not stream.ended:
                self._poll.unregister(number)
            stream.sock.close()
        self._streams.clear()
        return {"closed": closed}

    def _read(self, wait_s: float, since_us: int = 0) -> list[float]:
        """How late each token was, in seconds, of those that were sent since."""
        lateness = []
        for number, _ in self._poll.poll(wait_s):
            stream = self._streams[number]
            try:
                sent = stream.times()
            except OSError:
                stream.ended = True
                self._poll.unregister(number)
                continue
            now_us = time.monotonic() * 1e6
            lateness += [(now_us - at) / 1e6 for at in sent if at >= since_us]
        return lateness
