"""What is asked for, and the bytes that the upstream answers with: made once, so that they cost nothing per request."""

import json
from dataclasses import dataclass
from typing import Any

MODEL = "bench:latest"
# The last line of a stream says that it is done; each line before it is a token.
BURST_LINES = 32
PACED_LINES = 21
TOKENS_PER_S = 20.0

_MADE = "2026-01-01T00:00:00.000000000Z"
_HEAD = "HTTP/1.1 200 OK\r\nContent-Type: {}\r\n{}\r\n\r\n"


@dataclass(frozen=True)
class Shape:
    """A request of a kind. ``kind`` stands in the prompt, where the upstream looks for it."""

    name: str
    path: str
    kind: str

    @property
    def paced(self) -> bool:
        return self.kind == "paced"

    @property
    def tokens(self) -> int:
        """Tokens of a reply."""
        return {"whole": BURST_LINES, "burst": BURST_LINES, "paced": PACED_LINES}[self.kind] - 1

    def request(self, key: str | None) -> bytes:
        """The bytes of an HTTP request; a peer without keys gets none."""
        asked = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"bench-{self.kind}"}],
            "stream": self.kind != "whole",
        }
        body = json.dumps(asked).encode()
        allowed = f"Authorization: Bearer {key}\r\n" if key else ""
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: bench\r\n{allowed}Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


WHOLE = Shape("chat", "/api/chat", "whole")
BURST = Shape("chat stream", "/api/chat", "burst")
EVENTS = Shape("openai stream", "/v1/chat/completions", "burst")
PACED = Shape("chat paced", "/api/chat", "paced")
SHAPES = (WHOLE, BURST, EVENTS, PACED)


def sized(value: object) -> bytes:
    """A whole reply of JSON."""
    body = _encode(value)
    return _HEAD.format("application/json", f"Content-Length: {len(body)}").encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = _HEAD.format("application/x-ndjson", "Transfer-Encoding: chunked").encode()
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


def lines(count: int) -> list[bytes]:
    """The chunks of a stream of Ollama's, a line each."""
    return [chunk(_encode(line) + b"\n") for line in (*(count - 1) * [_line(" token")], _last(count - 1))]


def _events() -> bytes:
    shown = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    pieces = [{"index": 0, "delta": {"content": " token"}, "finish_reason": None}] * (BURST_LINES - 1)
    ended = {"index": 0, "delta": {}, "finish_reason": "stop"}
    data = [_encode({**shown, "choices": [choice]}) for choice in (*pieces, ended)]
    return b"".join(chunk(b"data: " + piece + b"\n\n") for piece in (*data, b"[DONE]"))


WHOLE_REPLY = sized(_last(BURST_LINES - 1, " token" * (BURST_LINES - 1)))
BURST_REPLY = STREAM_HEAD + b"".join(lines(BURST_LINES)) + END
EVENTS_REPLY = _HEAD.format("text/event-stream", "Transfer-Encoding: chunked").encode() + _events() + END
TAGS_REPLY = sized({"models": [{"name": MODEL, "model": MODEL, "size": 1, "digest": "0", "details": {}}]})
