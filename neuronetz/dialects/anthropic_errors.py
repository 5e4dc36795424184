"""Errors in the shape of Anthropic's API."""

from typing import Any

from neuronetz.errors import GatewayError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def anthropic_error(error: GatewayError, request_id: str | None = None) -> dict[str, Any]:
    """The whole object of a reply that is an error; within a stream there is no ``request_id`` in it."""
    kind = _TYPES.get(error.status, "api_error")
    named = {} if request_id is None else {"request_id": request_id}
    return {"type": "error", "error": {"type": kind, "message": error.message}, **named}
