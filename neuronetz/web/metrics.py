"""The Prometheus endpoint, a listener of its own on loopback.

It is no path of the main listener guarded by the peer's address: behind a proxy every peer is local.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from neuronetz.web.asgi import Receive, Send


class MetricsPage:
    """An ASGI application that answers ``GET /metrics`` with ``exposition()`` and nothing else."""

    def __init__(self, exposition: Callable[[], Awaitable[bytes]]) -> None:
        self._exposition = exposition

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        found = scope["method"] in ("GET", "HEAD") and scope["path"] == "/metrics"
        body = await self._exposition() if found else b"not found\n"
        kind = CONTENT_TYPE_LATEST if found else "text/plain"
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200 if found else 404, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
