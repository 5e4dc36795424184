"""Every endpoint that takes a body, and the one way to a checked call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from neuronetz.dialects import (
    anthropic_messages,
    json_body,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
)
from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.fields import Wrong
from neuronetz.dialects.native_call import NativeCall
from neuronetz.dialects.ollama_fields import model_name
from neuronetz.dialects.translation import Translation
from neuronetz.errors import InvalidRequest, NotFound


@dataclass(frozen=True)
class _Endpoint:
    """``kind``: Ollama's endpoint that serves it. ``streams``: unless asked not to; None: never.

    ``translate`` makes of a decoded body one with Ollama's fields, and the writers of its replies.
    """

    kind: str
    streams: bool | None
    translate: Callable[[dict[str, Any]], Translation] | None = None


_ENDPOINTS: dict[str, _Endpoint] = {
    "/api/chat": _Endpoint("chat", True),
    "/api/generate": _Endpoint("generate", True),
    "/api/embed": _Endpoint("embed", None),
    "/api/embeddings": _Endpoint("embeddings", None),
    "/api/show": _Endpoint("show", None),
    "/v1/chat/completions": _Endpoint("chat", False, openai_chat.translate),
    "/v1/completions": _Endpoint("generate", False, openai_completions.translate),
    "/v1/embeddings": _Endpoint("embed", None, openai_embeddings.translate),
    "/v1/responses": _Endpoint("chat", False, openai_responses.translate),
    "/v1/messages": _Endpoint("chat", False, anthropic_messages.translate),
}

ENDPOINTS = tuple(_ENDPOINTS)


def parse_call(endpoint: str, data: bytes, policy: BodyPolicy) -> NativeCall:
    """The call that ``data`` makes to ``endpoint``, a path such as ``/api/chat``.

    A body that is not acceptable makes a call with ``problem`` set, and with ``model`` and ``stream`` as
    far as they could be read. Raises ``NotFound`` for an endpoint that takes no body here.
    """
    row = _ENDPOINTS.get(endpoint)
    if row is None:
        raise NotFound
    call = NativeCall(row.kind, policy, stream=bool(row.streams))
    try:
        _fill(call, row, data)
    except Wrong as wrong:
        message = f"{wrong.path} {wrong.reason}" if wrong.path else wrong.reason
        call.problem = InvalidRequest(message, param=wrong.path or None)
    except InvalidRequest as problem:
        call.problem = problem
    except RecursionError:
        call.problem = InvalidRequest("body is nested too deeply")
    return call


def _fill(call: NativeCall, row: _Endpoint, data: bytes) -> None:
    given = json_body.read(data, max_depth=call.policy.max_depth, max_values=call.policy.max_values)
    _note_what_it_names(call, row, given)
    if row.translate is None:
        call.fill(given)
        return
    translation = row.translate(given)
    call.writers = translation.writers
    call.optional_think = translation.optional_think
    call.fill(translation.body)


def _note_what_it_names(call: NativeCall, row: _Endpoint, given: Mapping[str, Any]) -> None:
    """Read what the audit row says even of a body that is refused."""
    if row.streams is not None and type(given.get("stream")) is bool:
        call.stream = given["stream"]
    for name in ("model", "name") if row.kind == "show" else ("model",):
        try:
            asked = model_name(given[name])
        except (KeyError, Wrong):
            continue
        if type(asked) is str:
            call.model = asked
            return
