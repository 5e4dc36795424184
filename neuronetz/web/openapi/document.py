"""The document, made of the endpoint table: what does not stand there is not in it."""

from functools import lru_cache
from typing import Any

import msgspec

from neuronetz import __version__
from neuronetz.web.openapi.answers import ERRORS, HEADERS, QUOTA_HEADERS, headers, refusals
from neuronetz.web.openapi.anthropic_schemas import ANTHROPIC
from neuronetz.web.openapi.ollama_schemas import OLLAMA
from neuronetz.web.openapi.openai_schemas import OPENAI
from neuronetz.web.openapi.operations import EVENTS, NDJSON, OPERATIONS, Operation
from neuronetz.web.openapi.responses_schemas import RESPONSES
from neuronetz.web.openapi.shapes import MODEL, OBJECT, SHARED, TEXT, ref, reply, said
from neuronetz.web.routes import ROUTES, Kind, Route, match

_ABOUT = (
    "A gateway in front of Ollama. Paths under /api speak Ollama's dialect, those under /v1 OpenAI's and "
    "Anthropic's, errors included. Refusals come in one order: 401, 429, 403 (model), then 400, 413, 415 (body). "
    "What is not listed here is a 404 or, where it would change the host, a 403; it never goes upstream. "
    "Bodies are JSON, at most 64 levels deep, with integers of 64 bits and without duplicate keys; a key that "
    "differs from a known field only in case is refused."
)

_PAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "/": ("banner", "That the gateway runs, in words", {"text/plain": {"schema": TEXT}}),
    "/healthz": (
        "healthz",
        "That the process answers",
        {"application/json": {"schema": reply({"status": TEXT})}},
    ),
    "/readyz": ("readyz", "Whether requests can be served", {"application/json": {"schema": ref("Readiness")}}),
    "/openapi.json": ("openapi", "This document", {"application/json": {"schema": OBJECT}}),
}

_READINESS = reply(
    {
        "status": said(TEXT, "ready, degraded or unavailable."),
        "checks": said(OBJECT, "ok, or the class of what is wrong."),
        "services": OBJECT,
    }
)


@lru_cache(maxsize=1)
def encoded() -> bytes:
    """The document as JSON; made when it is first asked for."""
    return msgspec.json.encode(document())


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document of all routes of the table."""
    paths: dict[str, Any] = {}
    for route in ROUTES:
        path = paths.setdefault(route.path, {})
        if "{model}" in route.path:
            path["parameters"] = [_MODEL_IN_PATH]
        for method in route.methods:
            path[method.lower()] = _operation(route, method)
    schemas = {**SHARED, **OLLAMA, **OPENAI, **RESPONSES, **ANTHROPIC, **ERRORS, "Readiness": _READINESS}
    return {
        "openapi": "3.1.0",
        "info": {"title": "neuronetz", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "headers": HEADERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A key as the operator made it."},
                "apiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "The same key, as Anthropic's clients send it. A bearer counts before it.",
                },
            },
        },
    }


# OpenAPI 3.1 has no word for what a stream's pieces are: ``x-itemSchema`` is what 3.2 calls ``itemSchema``.
_STREAMS = {NDJSON: TEXT, EVENTS: reply({"event": TEXT, "data": TEXT}, ("event",))}

_MODEL_IN_PATH = {
    "name": "model",
    "in": "path",
    "required": True,
    "schema": MODEL,
    "description": "Its slashes may be written as they are, or as %2F.",
}


def _operation(route: Route, method: str) -> dict[str, Any]:
    if route.kind is Kind.PAGE:
        return _page(route, method)
    about = OPERATIONS[route.path]
    body = _request_body(about)
    return {
        "operationId": _name(about.name, method),
        "summary": about.summary,
        **({"description": about.description} if about.description else {}),
        "tags": [match(route.methods[0], route.path).dialect],
        "security": [{"bearer": []}, {"apiKey": []}],
        **({"requestBody": body} if body else {}),
        "responses": _responses(route, about, method),
    }


def _page(route: Route, method: str) -> dict[str, Any]:
    name, summary, content = _PAGES[route.path]
    replies = {"200": {"description": summary, "headers": headers(), "content": content}}
    if route.path == "/readyz":
        replies["503"] = {"description": "Unavailable", "headers": headers(), "content": content}
    return {
        "operationId": _name(name, method),
        "summary": summary,
        "tags": ["pages"],
        "security": [],
        "responses": _as_answered(replies, method),
    }


def _name(name: str, method: str) -> str:
    # Twice in the document, and an operation's id is to be one of its kind.
    return f"{name}Head" if method == "HEAD" else name


def _request_body(about: Operation) -> dict[str, Any]:
    if not about.takes:
        return {}
    media = {"schema": ref(about.takes), "example": about.example}
    return {
        "required": True,
        "description": "It is read as JSON, whatever its content type. Content-Encoding may be identity or zstd.",
        "content": {"application/json": media},
    }


def _responses(route: Route, about: Operation, method: str) -> dict[str, Any]:
    dialect = match(route.methods[0], route.path).dialect
    content: dict[str, Any] = {"application/json": {"schema": ref(about.gives)}}
    if about.stream:
        content[about.stream] = {
            "schema": said(_STREAMS[about.stream], f"Each line, or each event's data, is a {about.item}."),
            "x-itemSchema": ref(about.item),
        }
    replies = {
        "200": {"description": about.summary, "headers": headers(*QUOTA_HEADERS), "content": content},
        **refusals(dialect, model=about.model, has_body=route.has_body),
    }
    return _as_answered(replies, method)


def _as_answered(replies: dict[str, Any], method: str) -> dict[str, Any]:
    """The replies to a HEAD are those to a GET without their bodies."""
    if method != "HEAD":
        return replies
    return {
        status: {name: value for name, value in reply.items() if name != "content"}
        for status, reply in replies.items()
    }
