"""The front door: pages to Quart-Trio, everything else to an exchange.

The proxy path is a plain ASGI callable and no Quart view: between a view's return and its body's iteration
lies a gap in which a cancellation would leak what the view acquired.
"""

import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

import structlog

from neuronetz.errors import GatewayError, Unauthenticated, Unavailable
from neuronetz.exchange.delivery import Delivery, Line
from neuronetz.exchange.exchange import Exchange, Rooms
from neuronetz.exchange.request import Request
from neuronetz.web.forwarded import HEADER, Networks, client_address
from neuronetz.web.replies import identified, render
from neuronetz.web.routes import Kind, Match, match

log = structlog.get_logger("neuronetz.web")

Scope = dict[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Pages = Callable[[Scope, Receive, Send], Awaitable[None]]


class FrontDoor:
    """The ASGI application. ``pages`` is the Quart-Trio application that serves what needs no key, the
    playground among it where the settings enable that.

    ``trusted``: the proxies whose word is taken for a client's address.
    """

    def __init__(self, rooms: Rooms, pages: Pages, trusted: Networks = ()) -> None:
        self._rooms = rooms
        self._pages = pages
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Nothing but a cancellation leaves it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            return
        path = path_of(scope["raw_path"].decode("ascii"))
        found = match(scope["method"], path, playground=self._rooms.settings.playground_enabled)
        if found.route is not None and found.route.kind is Kind.PAGE and found.refusal is None:
            await self._pages({**scope, "path": path}, receive, partial(_send_with_id, send))
            return
        request = _request(scope, found, self._trusted)
        # Not by ASGI's messages: a reply's parts go out together, and what ends the request ends its writes.
        line: Line = scope["state"]["line"]
        delivery = Delivery(
            line,
            partial(render, dialect=found.dialect, request_id=request.id),
            identified(request.id, found.dialect),
        )
        try:
            await Exchange(self._rooms, request, delivery).run()
        except GatewayError as error:
            await self._refuse_stranger(error, request, delivery)
        except Exception:
            # Reached only when a part of the exchange that cannot fail has failed: its client was
            # answered where that was possible, and its row is on its way.
            log.exception("front_door.failed", request_id=request.id)
            if not delivery.started:
                await delivery.refuse(GatewayError())

    async def _refuse_stranger(self, error: GatewayError, request: Request, delivery: Delivery) -> None:
        """Before there is a key there is no row to write: count it, say it in the log, answer."""
        if isinstance(error, Unauthenticated):
            self._rooms.metrics.unauthenticated.inc()
        log.info(
            "request.refused",
            request_id=request.id,
            outcome=error.outcome,
            status=error.status,
            client=request.client_ip,
            dependency=error.dependency if isinstance(error, Unavailable) else None,
            reason=getattr(error.__cause__, "reason", None),
        )
        await delivery.refuse(error)


def path_of(target: str) -> str:
    """The decoded path of a request line that may name the whole URL (RFC 9112, 3.2.2).

    What is encoded is decoded last: it must not become the scheme, or the end of the host.
    """
    if target.startswith(("http://", "https://")):
        target = "/" + target.split("://", 1)[1].partition("/")[2]
    return unquote(target)


async def _send_with_id(send: Send, message: Message) -> None:
    """Pages bear a request id like every other reply."""
    if message["type"] == "http.response.start":
        message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id().encode())]}
    await send(message)


def request_id() -> str:
    """A random UUID (RFC 9562, version 4)."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _authorization(authorizations: list[bytes], keys: list[bytes]) -> str | None:
    """The only Authorization header's value; without one, the only ``x-api-key``'s, as if it stood there."""
    given = authorizations or [b"Bearer " + key for key in keys]
    return given[0].decode("latin-1") if len(given) == 1 else None


def _request(scope: Scope, found: Match, trusted: Networks) -> Request:
    length: int | None = None
    encoding: str | None = None
    forwarded: list[bytes] = []
    authorizations: list[bytes] = []
    keys: list[bytes] = []
    for name, value in scope["headers"]:
        if name == b"content-length":
            length = int(value) if value.isdigit() else None
        elif name == b"content-encoding":
            codings = value.decode("latin-1").strip().lower()
            encoding = codings if encoding is None else f"{encoding}, {codings}"
        elif name == HEADER:
            forwarded.append(value)
        elif name == b"authorization":
            authorizations.append(value)
        elif name == b"x-api-key":
            keys.append(value)
    route = found.route
    return Request(
        id=request_id(),
        action=route.action if route is not None else "",
        endpoint=found.endpoint,
        dialect=found.dialect,
        authorization=_authorization(authorizations, keys),
        content_length=length,
        content_encoding=encoding,
        client_ip=client_address(scope["client"][0] if scope.get("client") else None, forwarded, trusted),
        has_body=route is not None and route.has_body,
        inference=route is not None and route.kind is Kind.INFERENCE and found.refusal is None,
        refusal=found.refusal,
        argument=found.argument,
    )
