"""What the mock has seen: counts, the last requests as they came, and a way to wait for a change."""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from neuronetz.embedded.mock_http import HttpRequest

LAST_REQUESTS = 20


class SeenRequest(msgspec.Struct, frozen=True):
    """A request as it was received."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, decoded. Raises ``msgspec.DecodeError``."""
        return msgspec.json.decode(self.body)


class MockStats:
    """Counts of this mock's life. ``connections``: accepted so far.

    ``open``: inference requests in progress; each ends as ``finished``, ``aborted`` (its client left or the
    mock was stopped) or ``failed`` (refused, or made to fail). ``tokens``: tokens generated. ``requests``:
    requests by path, all of them. ``last``: the last 20 requests, newest last.
    """

    def __init__(self) -> None:
        self.connections = 0
        self.open = 0
        self.finished = 0
        self.aborted = 0
        self.failed = 0
        self.tokens = 0
        self.requests: Counter[str] = Counter()
        self.last: deque[SeenRequest] = deque(maxlen=LAST_REQUESTS)
        self._change: trio.Event | None = None

    def note(self, request: HttpRequest) -> None:
        """Count a request that arrived."""
        self.requests[request.path] += 1
        self.last.append(SeenRequest(request.method, request.path, request.headers, request.body))
        self.changed()

    def changed(self) -> None:
        """Wake those who wait for a condition."""
        if self._change is not None:
            self._change.set()
            self._change = None

    async def wait_for(self, condition: Callable[["MockStats"], bool]) -> None:
        """Wait until ``condition`` holds; it is looked at after each change. Put a deadline around it."""
        while not condition(self):
            if self._change is None:
                self._change = trio.Event()
            await self._change.wait()

    def as_dict(self) -> dict[str, Any]:
        """The stats as ``/_mock/stats`` shows them."""
        return {
            "connections": self.connections,
            "open": self.open,
            "finished": self.finished,
            "aborted": self.aborted,
            "failed": self.failed,
            "tokens": self.tokens,
            "requests": dict(self.requests),
            "last": [
                {
                    "method": seen.method,
                    "path": seen.path,
                    "headers": seen.headers,
                    "body": seen.body.decode("utf-8", "replace"),
                }
                for seen in self.last
            ],
        }
