"""Typed errors to HTTP, in the caller's dialect. The one place that does so."""

import math

import msgspec

from neuronetz import errors
from neuronetz.errors import GatewayError
from neuronetz.exchange.delivery import Rendered
from neuronetz.web.routes import Dialect

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}

_CODES: dict[type[GatewayError], str] = {
    errors.Unauthenticated: "invalid_api_key",
    errors.KeyRevoked: "invalid_api_key",
    errors.RateLimited: "rate_limit_exceeded",
    errors.ConcurrencyLimited: "rate_limit_exceeded",
    errors.BudgetExhausted: "insufficient_quota",
    errors.BudgetReserved: "rate_limit_exceeded",
    errors.ModelDenied: "model_not_available",
}


def openai_error(error: GatewayError) -> dict[str, object]:
    """The error object of OpenAI's API."""
    kind = (
        "insufficient_quota"
        if isinstance(error, errors.BudgetExhausted) and not error.retryable
        else _TYPES.get(error.status, "api_error")
    )
    return {
        "message": error.message,
        "type": kind,
        "param": getattr(error, "param", None),
        "code": _CODES.get(type(error)),
    }


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
