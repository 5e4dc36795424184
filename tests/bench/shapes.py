"""What is asked for, and the bytes that the upstream answers with: made once, so that they cost nothing per request."""

import json
from dataclasses import dataclass
from typing import Any

MODEL = "bench:latest"
# The last line of a stream says that it is done; each line before it is a token.
LINES = 33
ENDLESS = 1_000_000
TOKENS_PER_S = 20.0
# Of the time in a paced line: microseconds of CLOCK_MONOTONIC, which all processes of a machine share.
STAMP = b"@%015d@"
_BLANK = "@000000000000000@"

_MADE = "2026-01-01T00:00:00.000000000Z"
_HEAD = "HTTP/1.1 200 OK\r\nContent-Type: {}\r\n{}\r\n\r\n"


@dataclass(frozen=True)
class Shape:
    """A request of a kind: ``whole``, ``burst``, ``paced``, or ``idle`` (silent after one line).

    Kind and number of lines stand in the prompt, where the upstream looks for them.
    """

    name: str
    path: str
    kind: str
    lines: int = LINES

    @property
    def paced(self) -> bool:
        return self.kind == "paced"

    @property
    def openai(self) -> bool:
        return self.path.startswith("/v1/")

    @property
    def tokens(self) -> int:
        """Tokens of a reply."""
        return self.lines - 1

    @property
    def takes_s(self) -> float:
        """How long the upstream takes for a reply."""
        return self.lines / TOKENS_PER_S if self.paced else 0.0

    def request(self, key: str | None, headers: tuple[str, ...] = ()) -> bytes:
        """The bytes of an HTTP request; a peer without keys gets none."""
        asked = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"bench-{self.kind}-{self.lines}."}],
            "stream": self.kind != "whole",
        }
        body = json.dumps(asked).encode()
        lines = (
            f"POST {self.path} HTTP/1.1",
            "Host: bench",
            *((f"Authorization: Bearer {key}",) if key else ()),
            *headers,
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        )
        return "\r\n".join((*lines, "", "")).encode() + body


_OLLAMA, _OPENAI = "/api/chat", "/v1/chat/completions"
WHOLE = Shape("chat", _OLLAMA, "whole")
BURST = Shape("chat stream", _OLLAMA, "burst")
PACED = Shape("chat paced", _OLLAMA, "paced")
OPENAI_WHOLE = Shape("openai chat", _OPENAI, "whole")
OPENAI_BURST = Shape("openai stream", _OPENAI, "burst")
OPENAI_PACED = Shape("openai paced", _OPENAI, "paced")
SHAPES = (WHOLE, BURST, OPENAI_WHOLE, OPENAI_BURST, PACED, OPENAI_PACED)
# Streams that last: what is measured is not their beginning.
HELD = Shape("streams held", _OLLAMA, "paced", ENDLESS)
OPENAI_HELD = Shape("streams held", _OPENAI, "paced", ENDLESS)
IDLE = Shape("idle streams", _OLLAMA, "idle")
OPENAI_IDLE = Shape("idle streams", _OPENAI, "idle")


def sized(value: object) -> bytes:
    """A whole reply of JSON."""
    body = _encode(value)
    return _HEAD.format("application/json", f"Content-Length: {len(body)}").encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


END = b"0\r\n\r\n"


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _line(content: str, **more: object) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"model": MODEL, "created_at": _MADE, "message": message, "done": False, **more}


def _last(tokens: int, content: str = "") -> dict[str, Any]:
    durations = {"total_duration": 1_000_000, "load_duration": 1000, "prompt_eval_duration": 1000}
    counts = {"prompt_eval_count": 8, "eval_count": tokens, "eval_duration": 1_000_000}
    return _line(content, done=True, done_reason="stop", **durations, **counts)


def _openai(shown: str, **choice: object) -> dict[str, Any]:
    choices = [{"index": 0, "finish_reason": None, **choice}]
    return {"id": "chatcmpl-1", "object": shown, "created": 1, "model": MODEL, "choices": choices}


def _event(data: bytes) -> bytes:
    return chunk(b"data: " + data + b"\n\n")


@dataclass(frozen=True, eq=False)
class Dialect:
    """What the upstream says in a dialect. ``line`` is a token's chunk, with room for its time between two ``@``."""

    whole: bytes
    head: bytes
    line: bytes
    last: bytes

    @property
    def burst(self) -> bytes:
        return self.head + (LINES - 1) * self.line + self.last

    def stamped(self, microseconds: int) -> bytes:
        """A token's chunk that says when it was sent."""
        return self.line.replace(_BLANK.encode(), STAMP % microseconds)


_TOKENS = LINES - 1
_TEXT = " token"
OLLAMA = Dialect(
    whole=sized(_last(_TOKENS, _TEXT * _TOKENS)),
    head=_HEAD.format("application/x-ndjson", "Transfer-Encoding: chunked").encode(),
    line=chunk(_encode(_line(f"{_TEXT} {_BLANK}")) + b"\n"),
    last=chunk(_encode(_last(_TOKENS)) + b"\n") + END,
)
_USAGE = {"prompt_tokens": 8, "completion_tokens": _TOKENS, "total_tokens": 8 + _TOKENS}
_MESSAGE = {"role": "assistant", "content": _TEXT * _TOKENS}
_CHUNK = "chat.completion.chunk"
OPENAI = Dialect(
    whole=sized(_openai("chat.completion", message=_MESSAGE, finish_reason="stop") | {"usage": _USAGE}),
    head=_HEAD.format("text/event-stream", "Transfer-Encoding: chunked").encode(),
    line=_event(_encode(_openai(_CHUNK, delta={"content": f"{_TEXT} {_BLANK}"}))),
    last=_event(_encode(_openai(_CHUNK, delta={}, finish_reason="stop"))) + _event(b"[DONE]") + END,
)
TAGS_REPLY = sized({"models": [{"name": MODEL, "model": MODEL, "size": 1, "digest": "0", "details": {}}]})
