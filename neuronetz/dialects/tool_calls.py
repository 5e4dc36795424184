"""Calls of tools, as a model of Ollama's makes them."""

import msgspec

from neuronetz.dialects.sse import unique


class _Function(msgspec.Struct):
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _Call(msgspec.Struct):
    function: _Function
    id: str = ""


class ToolCall(msgspec.Struct):
    """``arguments`` is a JSON object, as text."""

    id: str
    name: str
    arguments: str


_decode = msgspec.json.Decoder(list[_Call] | None).decode


def read_calls(raw: msgspec.Raw, id_prefix: str = "call_") -> list[ToolCall]:
    """The calls of a line; none where ``raw`` is empty. Raises one of ``dialects.reply.UNREADABLE``.

    Ollama left out the id until lately; a client needs one to answer to, and gets one with ``id_prefix``.
    """
    if not len(raw):
        return []
    return [
        ToolCall(call.id or unique(id_prefix), call.function.name, _object(call.function.arguments))
        for call in _decode(raw) or ()
    ]


def _object(arguments: msgspec.Raw) -> str:
    text = bytes(arguments).decode()
    return "{}" if text == "null" else text
