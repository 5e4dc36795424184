"""The ``input`` of OpenAI's responses as Ollama's messages."""

from collections.abc import Mapping
from typing import Any

from neuronetz.dialects.call_arguments import ArgumentsReader
from neuronetz.dialects.fields import ABSENT, Struct, Wrong, anything_in_object, list_of, text
from neuronetz.dialects.ollama_fields import MOST_MESSAGES, role, short_text
from neuronetz.dialects.openai_fields import image_uri


def qualified(namespace: str, name: str) -> str:
    """A function of a namespace, by the name that the model knows it by."""
    start = f"{namespace}."
    return name if not namespace or name.startswith(start) else start + name


def given_input(value: Any) -> Any:
    """A text, or items: each with its ``type``, and only what matters of it."""
    if type(value) is str:
        return value
    if type(value) is list:
        return _items(value)
    raise Wrong("must be a string or a list of items")


class Conversation:
    """The items of an input on their way to Ollama's messages."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._thoughts: list[str] = []
        self._tools: dict[str, str] = {}
        self._arguments = ArgumentsReader()

    def translated(self, instructions: str, given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
        """All messages. Raises ``Wrong``."""
        if instructions:
            self._messages.append({"role": "system", "content": instructions})
        if isinstance(given, str):
            return self._messages + ([{"role": "user", "content": given}] if given else [])
        for index, item in enumerate(given):
            try:
                self._add(item)
            except Wrong as wrong:
                raise wrong.within(f"[{index}]").within("input") from None
        if self._thoughts:
            self._say({})
        for message in self._messages:
            if "thinking" in message:
                message["thinking"] = "".join(message["thinking"])
        return self._messages

    def _add(self, item: Mapping[str, Any]) -> None:
        match item["type"]:
            case "message":
                # Hardly a model's template knows ``developer``.
                speaker = "system" if item["role"] == "developer" else item["role"]
                if speaker == "assistant":
                    self._say(item["content"])
                else:
                    self._messages.append({"role": speaker, "content": "", **item["content"]})
            case "function_call":
                self._call(item)
            case "function_call_output":
                asked = item["call_id"]
                named = {"tool_name": self._tools[asked]} if asked in self._tools else {}
                self._messages.append(
                    {"role": "tool", "content": "", **item.get("output", {}), **named, "tool_call_id": asked}
                )
            case "reasoning":
                if item["thinking"]:
                    self._thoughts.append(item["thinking"])

    def _say(self, content: Mapping[str, Any]) -> None:
        self._messages.append({"role": "assistant", "content": "", **content})
        self._think()

    def _call(self, item: Mapping[str, Any]) -> None:
        if not self._messages or self._messages[-1]["role"] != "assistant":
            self._say({})
        self._think()
        calls = self._messages[-1].setdefault("tool_calls", [])
        name = qualified(item.get("namespace", ""), item["name"])
        try:
            arguments = self._arguments.read(item.get("arguments", ""))
        except Wrong as wrong:
            raise wrong.within("arguments") from None
        function = {"index": len(calls), "name": name, "arguments": arguments}
        calls.append({"id": item["call_id"], "function": function})
        self._tools[item["call_id"]] = name

    def _think(self) -> None:
        """Give the thoughts that came before to the assistant's message that stands last.

        They are joined at the end: a text that grows by each of thousands takes time by the square of them.
        """
        if self._thoughts:
            self._messages[-1].setdefault("thinking", []).extend(self._thoughts)
            self._thoughts.clear()


def _content(value: Any) -> dict[str, Any]:
    """The parts of one message, joined: its ``content``, and ``images`` where there are any."""
    if type(value) is str:
        return {"content": value}
    if type(value) is not list:
        raise Wrong("must be a string or a list of parts")
    parts = _parts(value)
    images = [part["image"] for part in parts if "image" in part]
    joined: dict[str, Any] = {"content": "".join(part.get("text", "") for part in parts)}
    return joined | ({"images": images} if images else {})


def _part(value: Any) -> dict[str, Any]:
    part = _PART(value)
    match part["type"]:
        case "input_text" | "output_text" | "text":
            return {"text": part.get("text", "")}
        case "refusal":
            # What the model said then, whatever it is called now.
            return {"text": part.get("refusal", "")}
        case "input_image":
            if "image_url" not in part:
                raise Wrong("is required: files are not stored here", "image_url")
            return {"image": part["image_url"]}
        case "input_file":
            raise Wrong("file inputs are not supported", "type")
    raise Wrong("unknown type of content", "type")


def _thoughts(value: Any) -> dict[str, Any]:
    """A reasoning item. What OpenAI encrypts is plain text here; the summary holds the same text."""
    item = _REASONING(value)
    thinking = item.get("encrypted_content") or _joined(item, "content") or _joined(item, "summary")
    return {"type": "reasoning", "thinking": thinking}


def _joined(item: Mapping[str, Any], name: str) -> str:
    return "".join(part.get("text", "") for part in item.get(name, ()))


def _item(value: Any) -> Any:
    item = anything_in_object(value)
    kind = item.get("type") or ("message" if "role" in item else None)
    match kind:
        case "message" | "function_call" | "function_call_output":
            return {**_ITEMS[kind](item), "type": kind}
        case "reasoning":
            return _thoughts(item)
        case "web_search_call":
            return ABSENT
        case "item_reference":
            raise Wrong("item references are not supported: nothing is stored here, send the item itself", "type")
        case None:
            raise Wrong("is required", "type")
    raise Wrong("unknown type of item", "type")


def _items(value: list[Any]) -> list[Any]:
    return [item for item in _all_items(value) if item is not ABSENT]


_parts = list_of(_part)
_all_items = list_of(_item, MOST_MESSAGES)
_texts = list_of(Struct({"type": text, "text": text}))

_PART = Struct({"type": text, "text": text, "refusal": text, "image_url": image_uri}, required=("type",))
_REASONING = Struct({"type": text, "encrypted_content": text, "content": _texts, "summary": _texts})
_ITEMS = {
    "message": Struct({"type": text, "role": role, "content": _content}, required=("role", "content")),
    "function_call": Struct(
        {"type": text, "call_id": text, "name": short_text, "namespace": short_text, "arguments": text},
        required=("call_id", "name"),
    ),
    "function_call_output": Struct({"type": text, "call_id": text, "output": _content}, required=("call_id",)),
}
