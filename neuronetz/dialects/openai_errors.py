"""Errors in the shape of OpenAI's API."""

from typing import Any

from neuronetz import errors
from neuronetz.errors import GatewayError

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


def openai_error(error: GatewayError) -> dict[str, Any]:
    """The object that stands under ``error``."""
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
