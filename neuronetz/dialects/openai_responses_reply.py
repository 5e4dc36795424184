"""Ollama's chat replies as OpenAI's responses: the object, its items, and the writer of whole ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from neuronetz.dialects.call import Counts
from neuronetz.dialects.openai_errors import openai_error
from neuronetz.dialects.reply import Line, Message, decode_line
from neuronetz.dialects.sse import encode, unique, unix_seconds
from neuronetz.dialects.tool_calls import ToolCall, read_calls
from neuronetz.errors import GatewayError

Item = dict[str, Any]

NOTHING = Message()


class ResponseObject:
    """A whole response; ``echo``: what it repeats of the request."""

    content_type = "application/json; charset=utf-8"

    def __init__(self, echo: Mapping[str, Any]) -> None:
        self._echo = echo

    def whole(self, raw: bytes, counts: Counts) -> bytes:
        """See ``dialects.reply.WholeWriter``."""
        reply = decode_line(raw)
        native = reply.message or NOTHING
        output = [call(unique("fc_"), asked) for asked in read_calls(native.tool_calls)]
        if native.content:
            output.insert(0, message(unique("msg_"), native.content))
        if native.thinking:
            output.insert(0, reasoning(unique("rs_"), native.thinking))
        head = {"id": unique("resp_"), "created_at": unix_seconds(reply.created_at)}
        return encode(ended(self._echo, head, reply, output, counts))

    def error(self, error: GatewayError) -> bytes:
        """See ``dialects.reply.WholeWriter``."""
        return encode({"error": openai_error(error)})


def response(
    echo: Mapping[str, Any], head: Mapping[str, Any], status: str, output: Sequence[Item], **more: Any
) -> dict[str, Any]:
    """A response; ``head`` has its ``id`` and ``created_at``, ``more`` what it has besides."""
    return {
        **head,
        "object": "response",
        "status": status,
        **echo,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "output": output,
        "usage": None,
        **more,
    }


def ended(
    echo: Mapping[str, Any], head: Mapping[str, Any], last: Line, output: Sequence[Item], counts: Counts
) -> dict[str, Any]:
    """A response that the model has ended, by itself or at the bound of its tokens."""
    usage = {
        "input_tokens": counts.prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": counts.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts.prompt + counts.completion,
    }
    if not cut(last):
        at = unix_seconds(last.created_at)
        return response(echo, head, "completed", output, completed_at=at, usage=usage)
    reason = {"reason": "max_output_tokens"}
    if output:
        output = [*output[:-1], incomplete(output[-1])]
    return response(echo, head, "incomplete", output, incomplete_details=reason, usage=usage)


def cut(last: Line) -> bool:
    """Whether the model was stopped at the bound of its tokens. Ollama's own layer does not tell."""
    return last.done_reason == "length"


def incomplete(item: Item) -> Item:
    """An item at which the model was stopped: a call is there whole or not at all, a reasoning has no status."""
    return {**item, "status": "incomplete"} if item["type"] == "message" else item


def reasoning(name: str, text: str) -> Item:
    """What the model thought. It is sent back as ``encrypted_content``, which is no more than the text."""
    return {"id": name, "type": "reasoning", "summary": [summary(text)], "encrypted_content": text}


def summary(text: str) -> Item:
    """The one part of a reasoning's summary."""
    return {"type": "summary_text", "text": text}


def message(name: str, text: str) -> Item:
    """What the model said."""
    return {
        "id": name,
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [output_text(text)],
    }


def output_text(text: str) -> Item:
    """The one part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call(name: str, asked: ToolCall) -> Item:
    """A call of one of the client's functions."""
    return {
        "id": name,
        "type": "function_call",
        "status": "completed",
        "call_id": asked.id,
        "name": asked.name,
        "arguments": asked.arguments,
    }
