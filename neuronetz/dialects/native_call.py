"""A request as the upstream will read it: checked against the policy, and written anew (G10).

Every dialect ends here. Ollama's own bodies are checked as they are; those of others are translated first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.call import Reply
from neuronetz.dialects.fields import Wrong
from neuronetz.dialects.ollama_fields import bodies
from neuronetz.dialects.ollama_prompt import entries
from neuronetz.dialects.ollama_reply import NATIVE
from neuronetz.dialects.reply import StreamedReply, WholeReply, Writers
from neuronetz.dialects.transcript import Excerpt, Transcript, labelled
from neuronetz.errors import InvalidRequest

# What a prompt costs besides its text, in tokens: a message's frame, and an image, which the model's
# vision encoder decides (a few hundred to a few thousand; no reader of the request can know).
MESSAGE_TOKENS = 8
IMAGE_TOKENS = 1024


@dataclass(slots=True)
class NativeCall:
    """A body for one of Ollama's endpoints, checked (``dialects.call.Call``).

    ``kind`` is the endpoint's name (``chat``); ``body`` holds the checked fields but for ``model`` and
    ``stream``; ``writers`` write the reply in the caller's dialect. ``optional_think``: a model that cannot
    think is asked without.
    """

    kind: str
    policy: BodyPolicy
    stream: bool
    problem: InvalidRequest | None = None
    model: str | None = None
    prompt_estimate: int = 0
    asked_predict: int | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    writers: Writers = NATIVE
    optional_think: bool = False

    @property
    def generates(self) -> bool:
        """See ``dialects.call.Call``."""
        return _KINDS[self.kind].content is not None

    @property
    def upstream_path(self) -> str:
        """See ``dialects.call.Call``."""
        return f"/api/{self.kind}"

    def fill(self, body: dict[str, Any]) -> None:
        """Take a body with Ollama's fields. Raises ``Wrong``, and ``InvalidRequest`` where no model is named."""
        body = bodies(self.policy)[self.kind](body)
        _check_images(body, self.policy)
        named, alias = body.pop("model", None), body.pop("name", None)
        self.model = named or alias
        if self.model is None:
            raise InvalidRequest("model is required", param="model")
        body.pop("stream", None)
        self.body = body
        kind = _KINDS[self.kind]
        self.prompt_estimate = kind.estimate(body)
        if kind.content is not None:
            # Ollama answers the load form with next to nothing. ``num_predict: 0`` may be no bound to it: it
            # counts as 1 here, which is written into the body wherever a budget or a cap applies.
            loads = not body.get(kind.content)
            self.asked_predict = 1 if loads else _asked_predict(body)

    @property
    def provoking(self) -> bool:
        """See ``dialects.call.Call``."""
        body = self.body
        return any(name in body for name in ("images", "format", "tools", "template", "suffix")) or any(
            "images" in message for message in body.get("messages", ())
        )

    def upstream_body(self, model: str, predict: int | None, *, thinks: bool = True) -> bytes:
        """The body for the upstream. Raises the call's problem if it has one."""
        if self.problem is not None:
            raise self.problem
        body: dict[str, Any] = {"model": model, **self.body}
        if self.generates:
            body["stream"] = self.stream
        if predict is not None and self.generates:
            body["options"] = {**self.body.get("options", {}), "num_predict": predict}
        # Not to think is something that every model can do.
        if self.optional_think and not thinks and body.get("think"):
            del body["think"]
        return msgspec.json.encode(body)

    def reply(self, transcript: Transcript | None = None) -> Reply:
        """A fresh reader of the reply."""
        if self.stream and self.writers.stream is not None:
            writer = self.writers.stream(self.prompt_estimate)
            return StreamedReply(writer, self.prompt_estimate, self.policy.max_line_bytes, transcript)
        return WholeReply(self.writers.whole(), self.prompt_estimate, self.policy.max_reply_bytes, transcript)

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
class _Kind:
    """``content``: the field without which the model is only loaded; None where nothing is generated."""

    estimate: Callable[[Mapping[str, Any]], int]
    content: str | None = None


_KINDS = {
    "chat": _Kind(_chat_estimate, "messages"),
    "generate": _Kind(_generate_estimate, "prompt"),
    "embed": _Kind(_embed_estimate),
    "embeddings": _Kind(_embeddings_estimate),
    "show": _Kind(lambda _: 0),
}


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
