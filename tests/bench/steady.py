"""An open loop: so many requests a second, whatever the server does, for as long as is asked."""

import select
import time
from typing import Any

from tests.bench.load import GIVE_UP_S, Connection

# A server may close what has been idle.
_IDLE_S = 1.0


class Steady:
    """Connections that wait for something to ask, and those that wait for a reply."""

    def __init__(self, port: int, request: bytes, connections: int) -> None:
        self._free = [Connection(port, request) for _ in range(connections)]
        self._busy: dict[int, Connection] = {}
        self._poll = select.epoll()
        self.replies = 0
        self.skipped = 0
        self.failures: dict[str, int] = {}

    def run(self, rate: float, seconds: float) -> None:
        began = time.perf_counter()
        asked, until = 0, began + seconds
        while (now := time.perf_counter()) < until:
            while asked < int((now - began) * rate):
                asked += 1
                self._ask(now)
            self._read(max(0.0, min(1.0, began + (asked + 1) / rate - now)))
        while self._busy and time.perf_counter() < until + GIVE_UP_S:
            self._read(1.0)
        for connection in (*self._free, *self._busy.values()):
            connection.sock.close()
        if self._busy:
            self.failures["silent"] = len(self._busy)

    def _ask(self, now: float) -> None:
        if not self._free:
            self.skipped += 1
            return
        connection = self._free.pop()
        if connection.closes or now - connection.asked_at > _IDLE_S:
            connection.again()
        connection.ask()
        self._busy[connection.sock.fileno()] = connection
        self._poll.register(connection.sock.fileno(), select.EPOLLIN)

    def _read(self, wait_s: float) -> None:
        for number, _ in self._poll.poll(wait_s):
            connection = self._busy[number]
            try:
                if not connection.read():
                    continue
                status = connection.status
            except OSError:
                connection.closes = True
                status = "closed"
            if status == "200":
                self.replies += 1
            else:
                self.failures[status] = self.failures.get(status, 0) + 1
            self._poll.unregister(number)
            self._free.append(self._busy.pop(number))


def steady(port: int, request: bytes, connections: int, rate: float, seconds: float) -> dict[str, Any]:
    """Replies, failures by kind, and how many requests could not be asked in time since all connections were busy."""
    loop = Steady(port, request, connections)
    loop.run(rate, seconds)
    return {"replies": loop.replies, "failures": loop.failures, "skipped": loop.skipped}
