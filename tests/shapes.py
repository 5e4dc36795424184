"""Every inference endpoint of the table, each asked the same thing in its own dialect."""

import json
from typing import Any, NamedTuple

from neuronetz.web.routes import ROUTES, Kind


class Shape(NamedTuple):
    path: str
    stream: bool

    def body(self, prompt: str, **extra: Any) -> dict[str, Any]:
        """A request that gives ``prompt`` to the model."""
        asked = {"stream": self.stream} if self.path in STREAMING else {}
        return {"model": "tiny", **_ASK[self.path](prompt), **asked, **extra}

    def request(self, key: str, prompt: str, **extra: Any) -> bytes:
        """The same, as the bytes of an HTTP request."""
        data = json.dumps(self.body(prompt, **extra)).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data

    @property
    def piece(self) -> bytes:
        """What each piece of a stream holds, among others."""
        return b'"done":false' if self.path.startswith("/api/") else b"data: {"


def _messages(prompt: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}]}


_ASK = {
    "/api/chat": _messages,
    "/api/generate": lambda prompt: {"prompt": prompt},
    "/api/embed": lambda prompt: {"input": prompt},
    "/api/embeddings": lambda prompt: {"prompt": prompt},
    "/v1/chat/completions": _messages,
    "/v1/completions": lambda prompt: {"prompt": prompt},
    "/v1/embeddings": lambda prompt: {"input": prompt},
    "/v1/messages": lambda prompt: {**_messages(prompt), "max_tokens": 100_000},
    "/v1/responses": lambda prompt: {"input": prompt},
}

STREAMING = {
    "/api/chat",
    "/api/generate",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
}

_INFERENCE = [route.path for route in ROUTES if route.kind is Kind.INFERENCE]

STREAMS = [Shape(path, True) for path in _INFERENCE if path in STREAMING]
SHAPES = [*STREAMS, *(Shape(path, False) for path in _INFERENCE)]


def named(shape: Shape) -> str:
    """The shape in a test's name."""
    return f"{shape.path}{' stream' if shape.stream else ''}"
