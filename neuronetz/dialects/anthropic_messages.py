"""Anthropic's messages: their body as one of ``/api/chat`` (Ollama's ``anthropic/anthropic.go``)."""

from collections.abc import Iterator, Mapping
from typing import Any

from neuronetz.dialects.anthropic_messages_reply import MessageObject, MessageStream
from neuronetz.dialects.fields import (
    ABSENT,
    Check,
    Struct,
    Wrong,
    anything_in_object,
    boolean,
    list_of,
    real,
    text,
    whole,
)
from neuronetz.dialects.ollama_fields import INT32, MOST_MESSAGES, MOST_TOOLS, image, model_name, role, short_text
from neuronetz.dialects.reply import Writers
from neuronetz.dialects.translation import Translation

_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "max": "max", "xhigh": "high"}
_THINKING = {"enabled": True, "disabled": False}

# Fields by their names there, and the options that they are at Ollama.
_OPTIONS = {
    "max_tokens": "num_predict",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop_sequences": "stop",
}


def translate(given: dict[str, Any]) -> Translation:
    """The body for ``/api/chat``. Raises ``Wrong``."""
    body = _BODY(given)
    if not body["messages"]:
        raise Wrong("must not be empty", "messages")
    messages = _Conversation(body["messages"]).translated()
    if not messages:
        # Ollama would take it for a wish to load the model.
        raise Wrong("hold nothing for the model to read", "messages")
    if body.get("system"):
        messages.insert(0, {"role": "system", "content": body["system"]})
    native: dict[str, Any] = {
        **{name: body[name] for name in ("model", "stream") if name in body},
        "messages": messages,
        "options": {option: body[name] for name, option in _OPTIONS.items() if name in body},
        **_think(body),
    }
    tools = [tool for tool in map(_native_tool, body.get("tools", ())) if tool is not None]
    if tools and body.get("tool_choice", {}).get("type") != "none":
        native["tools"] = tools
    model = body.get("model", "")
    writers = Writers(
        whole=lambda: MessageObject(model), stream=lambda prompt_estimate: MessageStream(model, prompt_estimate)
    )
    return Translation(native, writers, optional_think=True)


def _think(body: Mapping[str, Any]) -> dict[str, Any]:
    # What neither is, such as ``adaptive``, leaves it to the effort, and in the end to the model.
    asked: bool | str | None = _THINKING.get(body.get("thinking", {}).get("type", ""))
    if asked is None:
        asked = _EFFORTS.get(body.get("output_config", {}).get("effort", "").strip().lower())
    return {} if asked is None else {"think": asked}


def _native_tool(tool: Mapping[str, Any]) -> dict[str, Any] | None:
    """A tool as Ollama's; None for one of Anthropic's own, which its servers run or its models know by heart.

    Ollama would search the web for ``web_search``, on the account of its host.
    """
    if tool.get("type", "custom") != "custom" and "input_schema" not in tool:
        return None
    function = {
        **{name: tool[name] for name in ("name", "description") if name in tool},
        "parameters": tool.get("input_schema", {"type": "object", "properties": {}}),
    }
    return {"type": "function", "function": function}


def _stop(value: Any) -> Any:
    return list_of(text)(value) or ABSENT


def _source(value: Any) -> str:
    """The base64 of an image, of whatever kind it is said to be: Ollama looks for itself."""
    source = _SOURCE(value)
    if source["type"] != "base64":
        raise Wrong('must be "base64": images are not fetched from elsewhere', "type")
    if "data" not in source:
        raise Wrong("is required", "data")
    return str(source["data"])


def _some_text(value: Any) -> str:
    if not text(value):
        raise Wrong("must not be empty")
    return str(value)


def _name(value: Any) -> str:
    return short_text(_some_text(value))


def _blocks_of(kinds: Mapping[str, Struct]) -> Check:
    """A text, or blocks: those of other kinds are left out, whatever they hold. A text counts as one block."""

    def block(value: Any) -> Any:
        check = kinds.get(_TYPED(value)["type"])
        return check(value) if check is not None else None

    blocks = list_of(block)

    def check_content(value: Any) -> list[dict[str, Any]]:
        if type(value) is str:
            return [{"type": "text", "text": value}]
        if type(value) is not list:
            raise Wrong("must be a string or a list of blocks")
        return [found for found in blocks(value) if found is not None]

    return check_content


_TYPED = Struct({"type": text}, required=("type",))
_SOURCE = Struct({"type": text, "data": image}, required=("type",))
_TEXT = Struct({"type": text, "text": text}, required=("text",))
_IMAGE = Struct({"type": text, "source": _source}, required=("source",))
_READABLE = _blocks_of({"text": _TEXT, "image": _IMAGE})
_TEXTS = _blocks_of({"text": _TEXT})
_CONTENT = _blocks_of(
    {
        "text": _TEXT,
        "image": _IMAGE,
        "tool_use": Struct(
            {"type": text, "id": _some_text, "name": _name, "input": anything_in_object}, required=("id", "name")
        ),
        "tool_result": Struct({"type": text, "tool_use_id": text, "content": _READABLE}),
        "thinking": Struct({"type": text, "thinking": text}, required=("thinking",)),
    }
)


def _system(value: Any) -> str:
    return _joined(_TEXTS(value), "text")


def _joined(blocks: list[dict[str, Any]], kind: str) -> str:
    return "".join(block[kind] for block in blocks if block["type"] == kind)


def _images(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    found = [block["source"] for block in blocks if block["type"] == "image"]
    return {"images": found} if found else {}


_BODY = Struct(
    {
        "model": model_name,
        "stream": boolean,
        "max_tokens": whole(1, INT32),
        "messages": list_of(
            Struct({"role": role, "content": _CONTENT}, required=("role", "content")), MOST_MESSAGES
        ),
        "system": _system,
        "temperature": real,
        "top_p": real,
        "top_k": whole(-INT32, INT32),
        "stop_sequences": _stop,
        "thinking": Struct({"type": text}),
        "output_config": Struct({"effort": text}),
        "tools": list_of(
            Struct(
                {"type": text, "name": _name, "description": text, "input_schema": anything_in_object},
                required=("name",),
            ),
            MOST_TOOLS,
        ),
        "tool_choice": Struct({"type": text}),
    },
    required=("model", "max_tokens", "messages"),
)


class _Conversation:
    """The messages of a request on their way to Ollama's: one for each, and one for each result of a tool."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self._messages = messages
        self._tools: dict[str, str] = {}

    def translated(self) -> list[dict[str, Any]]:
        """All messages that hold anything."""
        native: list[dict[str, Any]] = []
        for message in self._messages:
            # What tools answered belongs to what was said before, so it comes before what is said now.
            native += self._results(message["content"])
            native += self._spoken(message["role"], message["content"])
        return native

    def _results(self, blocks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for block in blocks:
            if block["type"] == "tool_result":
                asked = block.get("tool_use_id", "")
                answered = {"tool_name": self._tools.get(asked, ""), "tool_call_id": asked}
                content = block.get("content", [])
                yield {
                    "role": "tool",
                    "content": _joined(content, "text"),
                    **_images(content),
                    **{field: value for field, value in answered.items() if value},
                }

    def _spoken(self, speaker: str, blocks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        calls = [block for block in blocks if block["type"] == "tool_use"]
        self._tools |= {call["id"]: call["name"] for call in calls}
        said: dict[str, Any] = {"content": _joined(blocks, "text"), **_images(blocks)}
        thought = _joined(blocks, "thinking")
        if thought:
            said["thinking"] = thought
        if calls:
            said["tool_calls"] = [_call(call, place) for place, call in enumerate(calls)]
        if any(said.values()):
            yield {"role": speaker, **said}


def _call(block: Mapping[str, Any], place: int) -> dict[str, Any]:
    function = {"index": place, "name": block["name"], "arguments": block.get("input", {})}
    return {"id": block["id"], "function": function}
