"""Errors in the shape of Anthropic's API."""

from typing import Any

from neuronetz.errors import GatewayError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def anthropic_error(error: GatewayError, request_id: str) -> dict[str, Any]:
    """The whole object of a reply that is an error."""
    kind = _TYPES.get(error.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}
