"""Typed errors to HTTP, in the caller's dialect. The one place that does so."""

import math

import msgspec

from neuronetz import errors
from neuronetz.dialects.openai_errors import openai_error
from neuronetz.errors import GatewayError
from neuronetz.exchange.delivery import Rendered
from neuronetz.web.routes import Dialect


def render(error: GatewayError, dialect: Dialect) -> Rendered:
    """An error as status, headers and body."""
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
    body = {"error": openai_error(error)} if dialect == "openai" else {"error": error.message}
    return Rendered(error.status, headers, msgspec.json.encode(body))
