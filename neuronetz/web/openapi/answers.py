"""What any request may be answered with besides its reply: refusals by status, in each dialect, and headers."""

from typing import Any

from neuronetz.web.openapi.shapes import TEXT, TOKENS, Schema, constant, ref, reply, said
from neuronetz.web.routes import Dialect

ERROR_SCHEMAS: dict[Dialect, str] = {
    "ollama": "OllamaError",
    "openai": "OpenAIError",
    "anthropic": "AnthropicError",
}

ERRORS: dict[str, Schema] = {
    "OllamaError": reply({"error": said(TEXT, "One line for people.")}),
    "OpenAIError": reply(
        {
            "error": reply(
                {
                    "message": TEXT,
                    "type": TEXT,
                    "param": said({"type": ["string", "null"]}, "The field that is wrong."),
                    "code": {"type": ["string", "null"]},
                }
            )
        }
    ),
    "AnthropicError": reply(
        {
            "type": constant("error"),
            "error": reply({"type": TEXT, "message": TEXT}),
            "request_id": TEXT,
        },
        ("request_id",),
    ),
}


def _header(description: str, schema: Schema = TEXT, **more: Any) -> dict[str, Any]:
    return {"description": description, "schema": schema, **more}


_QUOTAS = {
    f"x-ratelimit-{fact}-{kind}": _header(
        f"{meaning} of the tightest limit on {kind}, where there is one.", schema
    )
    for kind in ("requests", "tokens")
    for fact, meaning, schema in (
        ("limit", "The size", TOKENS),
        ("remaining", "What is left", TOKENS),
        ("reset", "When it is whole again, as 12s,", {"type": "string", "pattern": "^[0-9]+s$"}),
    )
}

HEADERS: dict[str, dict[str, Any]] = {
    "x-request-id": _header(
        "The request's id, as in the audit log.", {"type": "string", "format": "uuid"}, required=True
    ),
    "retry-after": _header("Seconds until another try may help.", {"type": "integer", "minimum": 1}),
    "x-should-retry": _header("false where another try cannot help.", constant("false")),
    "www-authenticate": _header("The scheme.", TEXT, required=True),
    "allow": _header("The methods that the path takes.", TEXT, required=True),
    **_QUOTAS,
}

QUOTA_HEADERS = tuple(_QUOTAS)

_WHEN = {
    400: "The body is not one that this endpoint takes, or the model cannot do what it asks for.",
    401: "No valid key. Every cause gives the same answer.",
    403: "The model is not available for this key: not installed and not permitted are one answer.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body's content encoding is not one that is read.",
    429: "A limit: requests in 60 seconds, requests at once, or the token budget.",
    500: "An error of the gateway's own.",
    502: "The upstream failed.",
    503: "A store, the upstream or the gateway is not available for now, or the model's queue is full.",
    504: "The upstream did not answer in time, or the request took longer than allowed.",
}

_READ = (401, 429, 500, 502, 503, 504)
_OF_A_MODEL = (403,)
_OF_A_BODY = (400, 408, 413, 415)


def refusals(dialect: Dialect, *, model: bool, has_body: bool) -> dict[str, Any]:
    """The responses other than the reply of an endpoint that needs a key."""
    statuses = sorted(_READ + (_OF_A_MODEL if model else ()) + (_OF_A_BODY if has_body else ()))
    return {str(status): _refusal(status, dialect) for status in statuses}


def headers(*more: str) -> dict[str, Any]:
    """References to headers of ``components``; ``x-request-id`` is always there."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("x-request-id", *more)}


def _refusal(status: int, dialect: Dialect) -> dict[str, Any]:
    if status == 401:
        extra: tuple[str, ...] = ("www-authenticate",)
    elif status == 429:
        extra = ("retry-after", "x-should-retry", *QUOTA_HEADERS)
    else:
        extra = ("retry-after", "x-should-retry", *QUOTA_HEADERS) if status >= 500 else QUOTA_HEADERS
    return {
        "description": _WHEN[status],
        "headers": headers(*extra),
        "content": {"application/json": {"schema": ref(ERROR_SCHEMAS[dialect])}},
    }
