"""OpenAI's chat completions: their body as one of ``/api/chat`` (Ollama's ``openai/openai.go``)."""

from collections.abc import Mapping
from typing import Any

from neuronetz.dialects.call_arguments import ArgumentsReader
from neuronetz.dialects.fields import (
    Struct,
    Wrong,
    anything,
    anything_in_object,
    boolean,
    list_of,
    text,
    whole,
)
from neuronetz.dialects.ollama_fields import MOST_MESSAGES, MOST_TOOLS, image, role, short_text
from neuronetz.dialects.openai_chat_reply import ChatObject, ChatStream
from neuronetz.dialects.openai_fields import (
    MODEL_AND_STREAM,
    SAMPLING,
    effort,
    image_uri,
    one,
    predict,
    sampling,
    stop,
)
from neuronetz.dialects.reply import Writers
from neuronetz.dialects.translation import Translation
from neuronetz.errors import InvalidRequest

# Ollama's layer sends these where the client sends nothing: OpenAI's defaults, which are not Ollama's.
_DEFAULTS = {"temperature": 1.0, "top_p": 1.0}


def translate(given: dict[str, Any]) -> Translation:
    """The body for ``/api/chat``. Raises ``Wrong`` and ``InvalidRequest``."""
    body = _BODY(given)
    messages = body.get("messages")
    if not messages:
        raise InvalidRequest("[] is too short - 'messages'", param="messages")
    options = sampling(body, _DEFAULTS)
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if limit is not None:
        options["num_predict"] = limit
    if "stop" in body:
        options["stop"] = body["stop"]
    native: dict[str, Any] = {
        **{name: body[name] for name in ("model", "stream", "logprobs", "top_logprobs") if name in body},
        "messages": _Conversation(messages).translated(),
        "options": options,
        **_thinking(body),
        **_format(body.get("response_format", {})),
    }
    if "tools" in body and body.get("tool_choice") != "none":
        native["tools"] = body["tools"]
    usage = body.get("stream_options", {}).get("include_usage", False)
    model = body.get("model", "")
    return Translation(
        native, Writers(whole=lambda: ChatObject(model), stream=lambda _: ChatStream(model, usage=usage))
    )


def _thinking(body: Mapping[str, Any]) -> dict[str, Any]:
    # An object that is there counts alone, an empty one too.
    asked = body["reasoning"].get("effort") if "reasoning" in body else body.get("reasoning_effort")
    return {} if asked is None else {"think": asked}


def _format(asked: Mapping[str, Any]) -> dict[str, Any]:
    kind = asked.get("type", "").strip().lower()
    if kind == "json_object":
        return {"format": "json"}
    schema = asked.get("json_schema", {}).get("schema")
    return {"format": schema} if kind == "json_schema" and schema is not None else {}


def _content(value: Any) -> Any:
    if type(value) is str:
        return value
    if type(value) is list:
        return _parts(value)
    raise Wrong("invalid message format: must be a string or a list of parts")


_parts = list_of(
    Struct(
        {"type": text, "text": text, "image_url": anything, "input_audio": Struct({"data": image}, ("data",))},
        required=("type",),
    )
)

_BODY = Struct(
    {
        **MODEL_AND_STREAM,
        **SAMPLING,
        "messages": list_of(
            Struct(
                {
                    "role": role,
                    "content": _content,
                    "reasoning": text,
                    "name": short_text,
                    "tool_call_id": short_text,
                    "tool_calls": list_of(
                        Struct(
                            {
                                "id": text,
                                "type": anything,
                                "function": Struct({"name": short_text, "arguments": text}, required=("name",)),
                            },
                            required=("function",),
                        ),
                        MOST_TOOLS,
                    ),
                },
                required=("role",),
            ),
            MOST_MESSAGES,
        ),
        "max_tokens": predict,
        "max_completion_tokens": predict,
        "stop": stop,
        "response_format": Struct({"type": text, "json_schema": Struct({"schema": anything_in_object})}),
        "reasoning": Struct({"effort": effort}),
        "reasoning_effort": effort,
        "tools": anything,
        "tool_choice": anything,
        "logprobs": boolean,
        "top_logprobs": whole(0, 20),
        "stream_options": Struct({"include_usage": boolean}),
        "n": one,
    }
)


class _Conversation:
    """The messages of a request on their way to Ollama's: one for each part of a content."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self._messages = messages
        self._tools: dict[str, str] = {}
        self._arguments = ArgumentsReader()

    def translated(self) -> list[dict[str, Any]]:
        """All messages. Raises ``Wrong``."""
        native: list[dict[str, Any]] = []
        for index, message in enumerate(self._messages):
            try:
                native += self._message(message)
            except Wrong as wrong:
                raise wrong.within(f"[{index}]").within("messages") from None
        return native

    def _message(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        calls = self._calls(message.get("tool_calls", ()))
        content = message.get("content")
        if content is None:
            if "tool_calls" not in message:
                raise Wrong("invalid message format: is required", "content")
            content = ""
        # Ollama passes ``developer`` on; hardly a model's template knows it.
        role = "system" if message["role"] == "developer" else message["role"]
        head = {"role": role, **(self._answered(message) if role == "tool" else {})}
        if isinstance(content, str):
            native = [{**head, "content": content}]
        else:
            native = [{**head, **_part(part, place)} for place, part in enumerate(content)]
        if not native:
            native = [{**head, "content": ""}]
        if calls:
            native[-1]["tool_calls"] = calls
        if "reasoning" in message:
            native[-1]["thinking"] = message["reasoning"]
        return native

    def _calls(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        native: list[dict[str, Any]] = []
        for place, call in enumerate(calls):
            function = call["function"]
            try:
                arguments = self._arguments.read(function.get("arguments", ""))
            except Wrong as wrong:
                raise wrong.within(f"tool_calls[{place}].function.arguments") from None
            native.append({"function": {"index": 0, "name": function["name"], "arguments": arguments}})
            if call.get("id"):
                native[-1]["id"] = call["id"]
                self._tools[call["id"]] = function["name"]
        return native

    def _answered(self, message: dict[str, Any]) -> dict[str, str]:
        """Which call a tool's message answers."""
        asked = message.get("tool_call_id", "")
        name = message.get("name") or self._tools.get(asked, "")
        answered = {"tool_name": name, "tool_call_id": asked}
        return {field: value for field, value in answered.items() if value}


def _part(part: Mapping[str, Any], place: int) -> dict[str, Any]:
    kind = part["type"]
    where = f"content[{place}]"
    if kind == "text" and "text" in part:
        return {"content": part["text"]}
    if kind == "image_url" and "image_url" in part:
        given = part["image_url"]
        if type(given) is dict:
            given = given.get("url")
        try:
            return {"images": [image_uri(given)]}
        except Wrong as wrong:
            raise wrong.within(f"{where}.image_url") from None
    if kind == "input_audio" and "input_audio" in part:
        return {"images": [part["input_audio"]["data"]]}
    raise Wrong("invalid message format", where)
