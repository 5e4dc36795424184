"""What needs no key: the banner, and the health of this process and of what it depends on."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from quart import Response
from quart_trio import QuartTrio

BANNER = "neuronetz is running"


class Readiness(msgspec.Struct, frozen=True):
    """``status``: ready, degraded (up, but requests that need what is away are refused) or unavailable.

    ``checks`` say ``ok`` or the class of what is wrong, never an address or a text of a store's.
    """

    status: str
    checks: dict[str, str]
    services: dict[str, str]


def make_pages(readiness: Callable[[], Awaitable[Readiness]]) -> Any:
    """The Quart-Trio application for the pages."""
    app = QuartTrio("neuronetz")

    @app.get("/")
    async def banner() -> Response:
        return Response(BANNER, mimetype="text/plain")

    @app.get("/healthz")
    async def healthz() -> Response:
        return _json({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        state = await readiness()
        return _json(msgspec.to_builtins(state), 503 if state.status == "unavailable" else 200)

    @app.after_request
    async def no_store(response: Response) -> Response:
        response.headers["cache-control"] = "no-store"
        return response

    return app


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status=status, mimetype="application/json")
