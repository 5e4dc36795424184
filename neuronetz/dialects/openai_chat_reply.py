"""Ollama's chat replies as OpenAI's chat completions, whole and streamed (Ollama's ``openai/openai.go``)."""

from typing import Any

import msgspec

from neuronetz.dialects import sse
from neuronetz.dialects.call import Counts
from neuronetz.dialects.openai_reply import FINGERPRINT, JSON, error_event, error_object, usage_of
from neuronetz.dialects.reply import Line, Message, decode_line
from neuronetz.dialects.sse import encode, unique, unix_seconds
from neuronetz.dialects.tool_calls import ToolCall, read_calls
from neuronetz.errors import GatewayError

_NOTHING = Message()


class ChatObject:
    """A whole chat completion; ``model`` is the name that the client asked for."""

    content_type = JSON

    def __init__(self, model: str) -> None:
        self._model = model

    def whole(self, raw: bytes, counts: Counts) -> bytes:
        """See ``dialects.reply.WholeWriter``."""
        reply = decode_line(raw)
        native = reply.message or _NOTHING
        calls = read_calls(native.tool_calls)
        message: dict[str, Any] = {"role": "assistant", "content": native.content or ""}
        if native.thinking:
            message["reasoning"] = native.thinking
        if calls:
            message["tool_calls"] = [_call(call, place) for place, call in enumerate(calls)]
        choice = {"index": 0, "message": message, "finish_reason": finish_reason(reply, called=bool(calls))}
        return encode(
            {
                "id": unique("chatcmpl-"),
                "object": "chat.completion",
                "created": unix_seconds(reply.created_at),
                "model": self._model,
                "system_fingerprint": FINGERPRINT,
                "choices": [{**choice, **_logprobs(reply.logprobs)}],
                "usage": usage_of(counts),
            }
        )

    def error(self, error: GatewayError) -> bytes:
        """See ``dialects.reply.WholeWriter``."""
        return error_object(error)


class ChatStream:
    """A chat completion in chunks, all of one id and time; ``usage``: told in a chunk of its own at the end."""

    content_type = sse.CONTENT_TYPE
    heartbeat = sse.HEARTBEAT

    def __init__(self, model: str, *, usage: bool) -> None:
        self._model = model
        self._usage = usage
        self._id = unique("chatcmpl-")
        self._head = b""
        self._first = True
        self._calls = 0

    def line(self, line: Line, raw: bytes) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        if self._first:
            self._begin(line)
        message = line.message or _NOTHING
        extra = _logprobs(line.logprobs)
        calls = read_calls(message.tool_calls)
        thinking, content = message.thinking, message.content or ""
        chunks = b""
        if thinking and (content or calls):
            chunks = self._chunk({"reasoning": thinking}, extra)
            thinking, extra = None, {}
        delta: dict[str, Any] = {"content": content}
        if thinking:
            delta["reasoning"] = thinking
        if calls:
            delta["tool_calls"] = [_call(call, self._calls + place) for place, call in enumerate(calls)]
            self._calls += len(calls)
        return chunks + self._chunk(delta, extra)

    def last(self, line: Line, raw: bytes, counts: Counts) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        message = line.message or _NOTHING
        told = message.content or message.thinking or read_calls(message.tool_calls) or _logprobs(line.logprobs)
        ended = self.line(line, raw) if told or self._first else b""
        reason = finish_reason(line, called=self._calls > 0)
        ended += self._head + b'[{"index":0,"delta":{},"finish_reason":' + encode(reason) + b"}]}\n\n"
        if self._usage:
            ended += self._head + b'[],"usage":' + encode(usage_of(counts)) + b"}\n\n"
        return ended + sse.DONE

    def error(self, error: GatewayError) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        return error_event(error)

    def _begin(self, line: Line) -> None:
        # Written once: of each chunk only what stands under ``choices`` differs.
        head = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": unix_seconds(line.created_at),
            "model": self._model,
            "system_fingerprint": FINGERPRINT,
        }
        self._head = b"data: " + encode(head)[:-1] + b',"choices":'

    def _chunk(self, delta: dict[str, Any], extra: dict[str, Any]) -> bytes:
        if self._first:
            self._first = False
            delta = {"role": "assistant", **delta}
        choice = {"index": 0, "delta": delta, "finish_reason": None, **extra}
        return self._head + b"[" + encode(choice) + b"]}\n\n"


def finish_reason(line: Line, *, called: bool) -> str:
    """Why it ended. A call of a tool is a reason of its own, but not where the model was cut short."""
    reason = line.done_reason or "stop"
    return "tool_calls" if called and reason == "stop" else reason


def _call(call: ToolCall, index: int) -> dict[str, Any]:
    # Numbered here: clients put a call's pieces together by its index, and older Ollamas say 0 for all.
    return {
        "id": call.id,
        "index": index,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


class _TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Logprob(_TopLogprob):
    top_logprobs: list[_TopLogprob] = []


_decode_logprobs = msgspec.json.Decoder(list[_Logprob] | None).decode


def _logprobs(raw: msgspec.Raw) -> dict[str, Any]:
    """``logprobs`` of a choice, where there are any."""
    found = _decode_logprobs(raw) if len(raw) else None
    return {"logprobs": {"content": found}} if found else {}
