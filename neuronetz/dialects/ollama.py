"""Ollama's own dialect: request bodies checked, and written anew for the upstream (G10)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from neuronetz.dialects import json_body
from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.call import Reply
from neuronetz.dialects.fields import Wrong
from neuronetz.dialects.ollama_fields import bodies, model_name
from neuronetz.dialects.ollama_prompt import entries
from neuronetz.dialects.ollama_reply import NativeStream, NativeWhole
from neuronetz.dialects.transcript import Excerpt, Transcript, labelled
from neuronetz.errors import InvalidRequest, NotFound

__all__ = ["BodyPolicy", "NativeCall", "parse_call"]

# What a prompt costs besides its text, in tokens: a message's frame, and an image, which the model's
# vision encoder decides (a few hundred to a few thousand; no reader of the request can know).
MESSAGE_TOKENS = 8
IMAGE_TOKENS = 1024


@dataclass(slots=True)
class NativeCall:
    """A body of one of Ollama's endpoints, checked (``dialects.call.Call``).

    ``body`` holds the checked fields but for ``model`` and ``stream``.
    """

    problem: InvalidRequest | None
    model: str | None
    stream: bool
    generates: bool
    prompt_estimate: int
    asked_predict: int | None
    upstream_path: str
    body: Mapping[str, Any]
    policy: BodyPolicy
    streams: bool

    @property
    def provoking(self) -> bool:
        """See ``dialects.call.Call``."""
        body = self.body
        return any(name in body for name in ("images", "format", "tools", "template", "suffix")) or any(
            "images" in message for message in body.get("messages", ())
        )

    def upstream_body(self, model: str, predict: int | None) -> bytes:
        """The body for the upstream. Raises the call's problem if it has one."""
        if self.problem is not None:
            raise self.problem
        body: dict[str, Any] = {"model": model, **self.body}
        if self.streams:
            body["stream"] = self.stream
        if predict is not None and self.generates:
            body["options"] = {**self.body.get("options", {}), "num_predict": predict}
        return msgspec.json.encode(body)

    def reply(self, transcript: Transcript | None = None) -> Reply:
        """A fresh reader of the reply."""
        if self.stream:
            return NativeStream(self.prompt_estimate, self.policy.max_line_bytes, transcript)
        return NativeWhole(self.prompt_estimate, self.policy.max_reply_bytes, transcript)

    def prompt_text(self, limit_bytes: int) -> Excerpt:
        """See ``dialects.call.Call``."""
        return labelled(entries(self.body), limit_bytes)


def _chat_estimate(body: Mapping[str, Any]) -> int:
    messages = body.get("messages")
    if not messages:
        return 0
    return sum(map(_message_estimate, messages)) + _json_tokens(body, "tools") + _json_tokens(body, "format")


def _message_estimate(message: Mapping[str, Any]) -> int:
    return (
        MESSAGE_TOKENS
        + _tokens(message.get("content", ""))
        + _tokens(message.get("thinking", ""))
        + _tokens(message.get("tool_name", ""))
        + _json_tokens(message, "tool_calls")
        + IMAGE_TOKENS * len(message.get("images", ()))
    )


def _generate_estimate(body: Mapping[str, Any]) -> int:
    if not body.get("prompt"):
        return 0
    texts = sum(_tokens(body.get(name, "")) for name in ("prompt", "suffix", "system", "template"))
    images = IMAGE_TOKENS * len(body.get("images", ()))
    return 2 * MESSAGE_TOKENS + texts + len(body.get("context", ())) + images + _json_tokens(body, "format")


def _embed_estimate(body: Mapping[str, Any]) -> int:
    given = body.get("input", "")
    texts = [given] if isinstance(given, str) else given
    return sum(2 + _tokens(text) for text in texts if text)


def _embeddings_estimate(body: Mapping[str, Any]) -> int:
    return _embed_estimate({"input": body.get("prompt", "")})


def _tokens(text: str) -> int:
    """About four bytes of UTF-8 make a token, rounded up."""
    return (len(text if text.isascii() else text.encode()) + 3) // 4


def _json_tokens(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    return 0 if value is None else (len(msgspec.json.encode(value)) + 3) // 4


@dataclass(frozen=True)
class _Endpoint:
    """``content``: the field without which the model is only loaded. ``streams``: unless asked not to."""

    estimate: Callable[[Mapping[str, Any]], int]
    content: str | None
    streams: bool


_ENDPOINTS = {
    "chat": _Endpoint(_chat_estimate, "messages", True),
    "generate": _Endpoint(_generate_estimate, "prompt", True),
    "embed": _Endpoint(_embed_estimate, None, False),
    "embeddings": _Endpoint(_embeddings_estimate, None, False),
    "show": _Endpoint(lambda _: 0, None, False),
}


def parse_call(endpoint: str, data: bytes, policy: BodyPolicy) -> NativeCall:
    """The call that ``data`` makes to ``endpoint``: the path (``/api/chat``) or its last part (``chat``).

    A body that is not acceptable makes a call with ``problem`` set, and with ``model`` and ``stream`` as
    far as they could be read. Raises ``NotFound`` for an endpoint that takes no body here.
    """
    kind = endpoint.removeprefix("/api/")
    row = _ENDPOINTS.get(kind)
    if row is None:
        raise NotFound
    call = NativeCall(
        problem=None,
        model=None,
        stream=row.streams,
        generates=row.streams,
        prompt_estimate=0,
        asked_predict=None,
        upstream_path=f"/api/{kind}",
        body={},
        policy=policy,
        streams=row.streams,
    )
    try:
        _fill(call, kind, row, data)
    except InvalidRequest as problem:
        call.problem = problem
    except RecursionError:
        call.problem = InvalidRequest("body is nested too deeply")
    return call


def _fill(call: NativeCall, kind: str, row: _Endpoint, data: bytes) -> None:
    given = json_body.read(data, max_depth=call.policy.max_depth, max_values=call.policy.max_values)
    _note_what_it_names(call, kind, given)
    try:
        body = bodies(call.policy)[kind](given)
        _check_images(body, call.policy)
    except Wrong as wrong:
        message = f"{wrong.path} {wrong.reason}" if wrong.path else wrong.reason
        raise InvalidRequest(message, param=wrong.path or None) from None
    named, alias = body.pop("model", None), body.pop("name", None)
    call.model = named or alias
    if call.model is None:
        raise InvalidRequest("model is required", param="model")
    body.pop("stream", None)
    call.body = body
    call.prompt_estimate = row.estimate(body)
    if row.content is not None:
        # Ollama answers the load form, and ``num_predict: 0``, with next to nothing.
        loads = not body.get(row.content)
        call.asked_predict = 1 if loads else _asked_predict(body)


def _note_what_it_names(call: NativeCall, kind: str, given: Mapping[str, Any]) -> None:
    """Read what the audit row says even of a body that is refused."""
    if call.streams and type(given.get("stream")) is bool:
        call.stream = given["stream"]
    for name in ("model", "name") if kind == "show" else ("model",):
        try:
            asked = model_name(given[name])
        except (KeyError, Wrong):
            continue
        if type(asked) is str:
            call.model = asked
            return


def _asked_predict(body: Mapping[str, Any]) -> int | None:
    asked: int | None = body.get("options", {}).get("num_predict")
    return None if asked is None or asked < 0 else max(asked, 1)


def _check_images(body: Mapping[str, Any], policy: BodyPolicy) -> None:
    images = list(body.get("images", ()))
    for message in body.get("messages", ()):
        images += message.get("images", ())
    if len(images) > policy.max_images:
        raise Wrong(f"must be at most {policy.max_images} in a request", "images")
    if sum(map(len, images)) * 3 // 4 > policy.max_image_bytes:
        raise Wrong("are too large together", "images")
