"""What needs no key: the banner, the health of this process and of what it depends on, the API's document, and
the playground where it is enabled.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from quart import Response
from quart_trio import QuartTrio

from neuronetz.web.openapi.document import encoded
from neuronetz.web.playground import Playground
from neuronetz.web.routes import PLAYGROUND

BANNER = "neuronetz is running"


class Readiness(msgspec.Struct, frozen=True):
    """``status``: ready, degraded (up, but requests that need what is away are refused) or unavailable.

    ``checks`` say ``ok`` or the class of what is wrong, never an address or a text of a store's.
    """

    status: str
    checks: dict[str, str]
    services: dict[str, str]


def make_pages(readiness: Callable[[], Awaitable[Readiness]], playground: Playground | None = None) -> Any:
    """The Quart-Trio application for the pages; without ``playground`` there is none."""
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

    @app.get("/openapi.json")
    async def openapi() -> Response:
        response = Response(encoded(), mimetype="application/json")
        response.headers["cache-control"] = "public, max-age=300"  # it changes with the version alone
        return response

    if playground is not None:

        @app.get(PLAYGROUND.path)
        async def show_playground() -> Response:
            return Response(playground.body, mimetype="text/html", headers=dict(playground.headers))

    @app.after_request
    async def no_store(response: Response) -> Response:
        response.headers.setdefault("cache-control", "no-store")
        return response

    return app


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status=status, mimetype="application/json")
