"""A cheap client in a closed loop: each connection asks again once its reply has ended, until the time is up; then the replies under way are
read to their end, so that whoever counts a server's work before and after counts whole requests. It looks at no more of
a reply than it must: the status, the first byte of the body, and where the reply ends.
"""

import re
import select
import socket
import time
from collections import deque
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_END = b"0\r\n\r\n"
_READ_BYTES = 262_144
GIVE_UP_S = 60.0


class Connection:
    """A connection and the reply that it waits for; times are ``time.perf_counter``'s."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self.asked_at = 0.0
        self._connect()

    def _connect(self) -> None:
        self.sock = socket.create_connection(("127.0.0.1", self._port), timeout=GIVE_UP_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.closes = False

    def again(self) -> None:
        """A new connection in this one's place."""
        self.sock.close()
        self._connect()

    def ask(self) -> None:
        """Send the request, which finds room at once. Raises ``OSError``."""
        self._head, self._tail, self._missing = b"", b"", -1
        self.status = ""
        self.first_at = 0.0
        self.asked_at = time.perf_counter()
        self.sock.sendall(self._request)

    def read(self) -> bool:
        """Take what has come; whether the reply has ended. Raises ``OSError`` where the connection has."""
        data = self.sock.recv(_READ_BYTES)
        if not data:
            raise ConnectionResetError
        if not self.status:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return False
            self.status = self._head[9:12].decode("ascii", "replace")
            found = _LENGTH.search(self._head, 0, end + 2)
            self._missing = int(found[1]) if found else -1
            self.closes = _CLOSES.search(self._head, 0, end + 2) is not None
            data = self._head[end + 4 :]
        if data and not self.first_at:
            self.first_at = time.perf_counter()
        if self._missing >= 0:
            self._missing -= len(data)
            return self._missing <= 0
        self._tail = (self._tail + data)[-len(_END) :]
        return self._tail == _END


class Load:
    """Connections that ask for so many seconds; their first requests are spread over ``spread_s``."""

    def __init__(self, port: int, request: bytes, clients: int, spread_s: float = 0.0) -> None:
        made = [Connection(port, request) for _ in range(clients)]
        self._connections = {connection.sock.fileno(): connection for connection in made}
        self._first = deque((index * spread_s / clients, connection) for index, connection in enumerate(made))
        self._poll = select.epoll()
        for number in self._connections:
            self._poll.register(number, select.EPOLLIN)
        self._until = 0.0
        self.waits: list[float] = []
        self.failures: dict[str, int] = {}

    def run(self, seconds: float) -> float:
        """How long it took until the last reply had ended."""
        began = time.perf_counter()
        self._until = began + seconds
        while self._connections and time.perf_counter() < self._until + GIVE_UP_S:
            wait = self._begin(time.perf_counter() - began)
            for number, _ in self._poll.poll(wait):
                self._readable(number)
        for _ in self._connections:
            self._failed("silent")
        return time.perf_counter() - began

    def _begin(self, passed_s: float) -> float:
        """Ask for the first time where it is due; seconds until the next is."""
        while self._first and self._first[0][0] <= passed_s:
            self._first.popleft()[1].ask()
        return self._first[0][0] - passed_s if self._first else 1.0

    def _readable(self, number: int) -> None:
        connection = self._connections[number]
        try:
            if not connection.read():
                return
            if connection.status == "200":
                self.waits.append(connection.first_at - connection.asked_at)
            else:
                self._failed(connection.status)
        except OSError:
            connection.closes = True
            self._failed("closed")
        self._go_on(number, connection)

    def _go_on(self, number: int, connection: Connection) -> None:
        if time.perf_counter() >= self._until:
            del self._connections[number]
            connection.sock.close()
            return
        if connection.closes:
            del self._connections[number]
            connection.again()
            self._connections[connection.sock.fileno()] = connection
            self._poll.register(connection.sock.fileno(), select.EPOLLIN)
        connection.ask()

    def _failed(self, why: str) -> None:
        self.failures[why] = self.failures.get(why, 0) + 1


def measure(port: int, request: bytes, clients: int, seconds: float, spread_s: float) -> dict[str, Any]:
    """Replies, failures by kind, seconds, CPU seconds of ours, waits for the first byte in seconds."""
    load = Load(port, request, clients, spread_s)
    cpu = time.process_time()
    took = load.run(seconds)
    return {
        "replies": len(load.waits),
        "failures": load.failures,
        "seconds": took,
        "cpu_s": time.process_time() - cpu,
        "p50_s": share(load.waits, 0.50),
        "p99_s": share(load.waits, 0.99),
    }


def share(values: list[float], part: float) -> float:
    """The value that so large a part is not above; 0 where there is none."""
    ordered = sorted(values) or [0.0]
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def leave(port: int, request: bytes, clients: int) -> dict[str, Any]:
    """All read the first byte of a stream, then all leave at once: how many did."""
    connections = [Connection(port, request) for _ in range(clients)]
    for connection in connections:
        connection.ask()
    for connection in connections:
        while not connection.first_at and not connection.read():
            pass
    for connection in connections:
        connection.sock.close()
    return {"left": sum(connection.status == "200" for connection in connections)}
