"""Typed errors to HTTP, in the caller's dialect. The one place that does so."""

import math

import msgspec

from neuronetz import errors
from neuronetz.dialects.anthropic_errors import anthropic_error
from neuronetz.dialects.openai_errors import openai_error
from neuronetz.errors import GatewayError
from neuronetz.exchange.delivery import Headers, Rendered
from neuronetz.web.routes import Dialect


def identified(request_id: str, dialect: Dialect) -> Headers:
    """The headers that name a request on its reply, where clients of the dialect look for them."""
    name = request_id.encode()
    return (
        [(b"x-request-id", name), (b"request-id", name)] if dialect == "anthropic" else [(b"x-request-id", name)]
    )


def render(error: GatewayError, dialect: Dialect, request_id: str) -> Rendered:
    """An error as status, headers and body; ``identified`` are not among the headers."""
    headers: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json; charset=utf-8")]
    if error.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="neuronetz"'))
    if error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after))).encode()))
    if not error.retryable:
        headers.append((b"x-should-retry", b"false"))
    if isinstance(error, errors.MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allow).encode()))
    headers.extend((name.encode(), value.encode()) for name, value in error.headers.items())
    return Rendered(error.status, headers, msgspec.json.encode(_body(error, dialect, request_id)))


def _body(error: GatewayError, dialect: Dialect, request_id: str) -> dict[str, object]:
    if dialect == "anthropic":
        return anthropic_error(error, request_id)
    return {"error": openai_error(error) if dialect == "openai" else error.message}
