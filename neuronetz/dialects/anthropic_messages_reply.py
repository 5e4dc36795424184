"""Ollama's chat replies as Anthropic's messages, whole and streamed (Ollama's ``anthropic/anthropic.go``)."""

from typing import Any

import msgspec

from neuronetz.dialects import sse
from neuronetz.dialects.anthropic_errors import anthropic_error
from neuronetz.dialects.call import Counts
from neuronetz.dialects.reply import Line, Message, decode_line
from neuronetz.dialects.sse import encode, unique
from neuronetz.dialects.tool_calls import ToolCall, read_calls
from neuronetz.errors import GatewayError

_NOTHING = Message()
_CALL_ID = "toolu_"
_STOP_REASONS = {"length": "max_tokens"}

# How a block begins, by its kind. Nobody signs what a model of Ollama's thought, but clients want the field.
_EMPTY: dict[str, dict[str, Any]] = {
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
    "text": {"type": "text", "text": ""},
}


class MessageObject:
    """A whole message; ``model`` is the name that the client asked for."""

    content_type = "application/json; charset=utf-8"

    def __init__(self, model: str) -> None:
        self._model = model

    def whole(self, raw: bytes, counts: Counts) -> bytes:
        """See ``dialects.reply.WholeWriter``."""
        reply = decode_line(raw)
        native = reply.message or _NOTHING
        calls = read_calls(native.tool_calls, _CALL_ID)
        content = [
            {**_EMPTY[kind], kind: said}
            for kind, said in (("thinking", native.thinking), ("text", native.content))
            if said
        ]
        content += [{**_tool_use(call), "input": msgspec.Raw(call.arguments.encode())} for call in calls]
        reason = _stop_reason(reply, called=bool(calls))
        return encode(_message(self._model, content, reason, _usage(counts.prompt, counts.completion)))

    def error(self, error: GatewayError) -> bytes:
        """See ``dialects.reply.WholeWriter``."""
        return encode(anthropic_error(error))


class MessageStream:
    """A message in events: blocks in the order in which their content comes, one after the other.

    Until the end ``prompt_estimate`` stands for the tokens of the prompt.
    """

    content_type = sse.CONTENT_TYPE
    heartbeat = sse.HEARTBEAT

    def __init__(self, model: str, prompt_estimate: int) -> None:
        self._model = model
        self._prompt_estimate = prompt_estimate
        self._begun = False
        self._called = False
        self._index = -1
        self._kind: str | None = None
        self._delta = b""

    def line(self, line: Line, raw: bytes) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        message = line.message or _NOTHING
        calls = read_calls(message.tool_calls, _CALL_ID)
        events = [b"" if self._begun else self._begin()]
        if message.thinking:
            events.append(self._piece("thinking", message.thinking))
        if message.content:
            events.append(self._piece("text", message.content))
        # Joined once: a line may hold many calls.
        events += map(self._call, calls)
        return b"".join(events)

    def last(self, line: Line, raw: bytes, counts: Counts) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        events = self.line(line, raw) + self._close()
        ending = {"stop_reason": _stop_reason(line, called=self._called), "stop_sequence": None}
        usage = _usage(counts.prompt, counts.completion)
        return events + _event("message_delta", delta=ending, usage=usage) + _event("message_stop")

    def error(self, error: GatewayError) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        return sse.event("error", anthropic_error(error))

    def _begin(self) -> bytes:
        self._begun = True
        message = _message(self._model, [], None, _usage(self._prompt_estimate, 0))
        return _event("message_start", message=message)

    def _piece(self, kind: str, text: str) -> bytes:
        opened = b"" if kind == self._kind else self._open(kind, _EMPTY[kind], f"{kind}_delta", kind)
        return opened + self._delta + encode(text) + b"}}\n\n"

    def _call(self, call: ToolCall) -> bytes:
        self._called = True
        opened = self._open("tool_use", {**_tool_use(call), "input": {}}, "input_json_delta", "partial_json")
        return opened + self._delta + encode(call.arguments) + b"}}\n\n" + self._close()

    def _open(self, kind: str, block: dict[str, Any], delta: str, field: str) -> bytes:
        closed = self._close()
        self._kind = kind
        self._index += 1
        # Written once: of a block's deltas only the text differs.
        head = encode({"type": "content_block_delta", "index": self._index, "delta": {"type": delta}})
        self._delta = b"event: content_block_delta\ndata: " + head[:-2] + b',"' + field.encode() + b'":'
        return closed + _event("content_block_start", index=self._index, content_block=block)

    def _close(self) -> bytes:
        if self._kind is None:
            return b""
        self._kind = None
        return _event("content_block_stop", index=self._index)


def _event(name: str, **fields: Any) -> bytes:
    return sse.event(name, {"type": name, **fields})


def _message(
    model: str, content: list[dict[str, Any]], stop_reason: str | None, usage: dict[str, int]
) -> dict[str, Any]:
    return {
        "id": unique("msg_"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": usage,
    }


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"input_tokens": prompt, "output_tokens": completion}


def _stop_reason(line: Line, *, called: bool) -> str:
    """Why it ended. Ollama does not tell a sequence that the client set from the end of a turn."""
    return "tool_use" if called else _STOP_REASONS.get(line.done_reason or "", "end_turn")


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name}
