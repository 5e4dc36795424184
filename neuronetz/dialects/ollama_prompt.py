"""What a checked body of Ollama's dialect asks the model, as labelled texts for the prompt log."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

# A role is the client's text: what is no plain word could pass for more than one.
_NOT_PLAIN = re.compile(r"[^a-z0-9_-]")
_ROLE_LENGTH = 32


def entries(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Labels and texts in the order in which the model reads them; nothing where it is asked nothing.

    Images are told by number and size, the tokens of an earlier reply by number, tools by name.
    """
    if body.get("messages"):
        yield from _tools(body)
        for message in body["messages"]:
            yield from _message(message)
    elif body.get("input"):
        given = body["input"]
        yield from (("input", text) for text in ([given] if isinstance(given, str) else given))
    elif body.get("prompt"):
        if body.get("context"):
            yield "context", f"{len(body['context'])} tokens"
        for name in ("system", "template"):
            if body.get(name):
                yield name, body[name]
        yield f"prompt{_images(body)}", body["prompt"]
        if body.get("suffix"):
            yield "suffix", body["suffix"]


def _message(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    role = _NOT_PLAIN.sub("?", message["role"][:_ROLE_LENGTH])
    if message.get("thinking"):
        yield f"{role} thinking", message["thinking"]
    yield f"{role}{_images(message)}", message.get("content", "")
    if message.get("tool_calls"):
        yield f"{role} tool_calls", msgspec.json.encode(message["tool_calls"]).decode()


def _tools(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names = [tool.get("function", {}).get("name", "?") for tool in body.get("tools", ())]
    if names:
        yield "tools", ", ".join(names)


def _images(holder: Mapping[str, Any]) -> str:
    images: Sequence[str] = holder.get("images", ())
    if not images:
        return ""
    size = sum(len(image) * 3 // 4 - image[-2:].count("=") for image in images)
    return f" ({len(images)} image{'s' if len(images) > 1 else ''}, {size} bytes)"
