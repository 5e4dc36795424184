"""Ollama's generate replies as OpenAI's completions, whole and streamed (Ollama's ``openai/openai.go``)."""

from typing import Any

from neuronetz.dialects import sse
from neuronetz.dialects.call import Counts
from neuronetz.dialects.openai_reply import FINGERPRINT, JSON, error_event, error_object, usage_of
from neuronetz.dialects.reply import Line, decode_line
from neuronetz.dialects.sse import encode, unique, unix_seconds
from neuronetz.errors import GatewayError

_NO_USAGE = b',"usage":' + encode(usage_of(Counts()))


class CompletionObject:
    """A whole completion; ``model`` is the name that the client asked for, ``echo`` what its text begins with."""

    content_type = JSON

    def __init__(self, model: str, echo: str) -> None:
        self._model = model
        self._echo = echo

    def whole(self, raw: bytes, counts: Counts) -> bytes:
        """See ``dialects.reply.WholeWriter``."""
        reply = decode_line(raw)
        choice = _choice(self._echo + (reply.response or ""), _finish_reason(reply))
        return encode({**_head(self._model, reply), "choices": [choice], "usage": usage_of(counts)})

    def error(self, error: GatewayError) -> bytes:
        """See ``dialects.reply.WholeWriter``."""
        return error_object(error)


class CompletionStream:
    """A completion in chunks, one a line, all of one id and time.

    ``usage``: every chunk has one, all 0 but for that of a chunk of its own at the end.
    """

    content_type = sse.CONTENT_TYPE
    heartbeat = sse.HEARTBEAT

    def __init__(self, model: str, echo: str, *, usage: bool) -> None:
        self._model = model
        self._echo = echo
        self._usage = usage
        self._head = b""

    def line(self, line: Line, raw: bytes) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        return self._chunk(line, None)

    def last(self, line: Line, raw: bytes, counts: Counts) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        ended = self._chunk(line, _finish_reason(line))
        if self._usage:
            ended += self._head + b'[],"usage":' + encode(usage_of(counts)) + b"}\n\n"
        return ended + sse.DONE

    def error(self, error: GatewayError) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        return error_event(error)

    def _chunk(self, line: Line, reason: str | None) -> bytes:
        text = line.response or ""
        if not self._head:
            # Written once: of each chunk only what stands under ``choices`` differs.
            self._head = b"data: " + encode(_head(self._model, line))[:-1] + b',"choices":'
            text = self._echo + text
        usage = _NO_USAGE if self._usage else b""
        return self._head + b"[" + encode(_choice(text, reason)) + b"]" + usage + b"}\n\n"


def _head(model: str, first: Line) -> dict[str, Any]:
    return {
        "id": unique("cmpl-"),
        "object": "text_completion",
        "created": unix_seconds(first.created_at),
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }


def _choice(text: str, reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "finish_reason": reason}


def _finish_reason(line: Line) -> str:
    """Why it ended. A model that was only loaded had nothing to say, which OpenAI has no other word for."""
    reason = line.done_reason or "stop"
    return "stop" if reason in {"load", "unload"} else reason
