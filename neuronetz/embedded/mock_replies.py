"""The mock's replies: exact shapes, deterministic words. Pure: time comes in as an argument."""

import hashlib
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

_TEXT = """the quick brown fox jumps over a lazy dog while bright vixens dance and seven wizards quietly mix
potent jugs of liquid amber beneath old stone towers"""
WORDS = _TEXT.split()

EMBEDDING_LENGTH = 8
MOST_DIMENSIONS = 8192
CONTEXT_LENGTH = 8192
# What no client of a gateway may ever read.
SECRET_TEXT = "secret upstream text: runner at /var/lib/ollama/blobs (127.0.0.1:34567) failed"  # noqa: S105
HIDDEN_SYSTEM = "hidden system prompt"

encode = msgspec.json.encode


def word(index: int) -> str:
    """Token ``index`` of any completion."""
    return WORDS[index % len(WORDS)] if index == 0 else " " + WORDS[index % len(WORDS)]


def completion(tokens: int) -> str:
    """The text of a completion of so many tokens."""
    return "".join(word(index) for index in range(tokens))


def prompt_tokens(text: str) -> int:
    """What a prompt costs here: a token for each four characters."""
    return max(1, len(text) // 4)


def normalised(name: str) -> str:
    """A model's full name: ``NAME`` means ``name:latest``."""
    name = name.strip().lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def is_cloud(name: str) -> bool:
    tag = normalised(name).rsplit(":", 1)[-1]
    return tag == "cloud" or tag.endswith("-cloud")


def embeds(name: str) -> bool:
    return "embed" in name


def can_think(name: str) -> bool:
    return "think" in name


def timestamp(now_ns: int) -> str:
    """RFC 3339 in UTC, with nanoseconds."""
    seconds, rest = divmod(now_ns, 1_000_000_000)
    return f"{_second(seconds)}.{rest:09d}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def capabilities(name: str, *, thinks: bool) -> list[str]:
    if embeds(name):
        return ["embedding"]
    return ["completion", "tools", *(["thinking"] if thinks or can_think(name) else [])]


def model_entry(name: str, *, thinks: bool) -> dict[str, Any]:
    """A model as ``/api/tags`` lists it."""
    remote = (
        {"remote_model": name.split(":")[0], "remote_host": "https://ollama.com:443"} if is_cloud(name) else {}
    )
    return {
        "name": name,
        "model": name,
        **remote,
        "modified_at": "2026-01-01T00:00:00.000000000Z",
        "size": 384 if remote else 1_300_000_000,
        "digest": _digest(name),
        "details": _details(name),
        "capabilities": capabilities(name, thinks=thinks),
    }


def running_entry(name: str, now_ns: int, keep_s: float = 300.0) -> dict[str, Any]:
    """A loaded model as ``/api/ps`` lists it."""
    return {
        "name": name,
        "model": name,
        "size": 1_500_000_000,
        "digest": _digest(name),
        "details": _details(name),
        "expires_at": timestamp(now_ns + int(keep_s * 1e9)),
        "size_vram": 1_500_000_000,
        "context_length": CONTEXT_LENGTH,
    }


def show(name: str, *, thinks: bool) -> dict[str, Any]:
    """``/api/show``, with all that a gateway should think twice about."""
    return {
        "license": "MIT",
        "modelfile": f"FROM {name}\nSYSTEM {HIDDEN_SYSTEM}\n",
        "parameters": 'num_ctx 8192\nstop "<|end|>"',
        "template": "{{ .System }} {{ .Prompt }} {{ .Suffix }} {{ .Tools }}",
        "system": HIDDEN_SYSTEM,
        "details": _details(name),
        "messages": [{"role": "user", "content": "hidden example"}],
        "model_info": {
            "general.architecture": "mock",
            "general.basename": name.split(":")[0],
            "mock.context_length": CONTEXT_LENGTH,
            "mock.embedding_length": EMBEDDING_LENGTH,
        },
        "projector_info": {"clip.has_vision_encoder": False},
        "capabilities": capabilities(name, thinks=thinks),
        "modified_at": "2026-01-01T00:00:00.000000000Z",
    }


def embedding(text: str, dimensions: int | None = None) -> list[float]:
    """A unit vector that depends on the text alone. As at Ollama, a model has no more than it has."""
    size = min(dimensions or EMBEDDING_LENGTH, MOST_DIMENSIONS)
    raw: Iterable[int] = hashlib.shake_256(text.encode("utf-8", "replace")).digest(size)
    values = [byte - 127.5 for byte in raw]
    length = sum(value * value for value in values) ** 0.5
    return [round(value / length, 7) for value in values]


def logprob(token: str, index: int, top: int) -> dict[str, Any]:
    """How likely token ``index`` was, with the ``top`` likeliest in its place, itself the first of them."""
    entry = _likelihood(token, index % 7)
    if not top:
        return entry
    others = [_likelihood(word(index + rank), index % 7 + rank) for rank in range(1, top)]
    return {**entry, "top_logprobs": [entry, *others]}


def _likelihood(token: str, eighths: int) -> dict[str, Any]:
    return {"token": token, "logprob": -(eighths + 1) / 8, "bytes": list(token.encode())}


def error(text: str) -> bytes:
    return encode({"error": text})


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _details(name: str) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": "mock",
        "families": ["mock"],
        "parameter_size": "1.2B",
        "quantization_level": "Q4_K_M",
        "context_length": CONTEXT_LENGTH,
        "embedding_length": EMBEDDING_LENGTH,
    }


class Part(msgspec.Struct, kw_only=True):
    """What one line carries of a completion."""

    text: str = ""
    thinking: str = ""
    calls: Sequence[dict[str, Any]] = ()
    logprobs: Sequence[dict[str, Any]] = ()


class Writer:
    """Writes the lines of one completion, of a chat or a generate."""

    def __init__(self, model: str, *, chat: bool, remote: bool = False) -> None:
        self._head: dict[str, Any] = {"model": model}
        if remote:
            self._head |= {"remote_model": model.split(":")[0], "remote_host": "https://ollama.com:443"}
        self._chat = chat

    def line(self, now_ns: int, part: Part) -> bytes:
        """A line of a stream, its newline included."""
        return encode({**self._shaped(now_ns, part), "done": False}) + b"\n"

    def last(self, now_ns: int, reason: str, counts: dict[str, Any], part: Part | None = None) -> bytes:
        """The last line of a stream, or the whole of a reply that is none; a count of 0 is absent."""
        kept = {name: value for name, value in {"done_reason": reason, **counts}.items() if value}
        return encode({**self._shaped(now_ns, part or Part()), "done": True, **kept})

    def _shaped(self, now_ns: int, part: Part) -> dict[str, Any]:
        extra: dict[str, Any] = {"thinking": part.thinking} if part.thinking else {}
        if part.calls:
            extra["tool_calls"] = part.calls
        shaped = {**self._head, "created_at": timestamp(now_ns)}
        if self._chat:
            shaped["message"] = {"role": "assistant", "content": part.text, **extra}
        else:
            shaped |= {"response": part.text, **extra}
        if part.logprobs:
            shaped["logprobs"] = part.logprobs
        return shaped
