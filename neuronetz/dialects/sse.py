"""Server-sent events, as OpenAI's and Anthropic's clients read them."""

import secrets
from datetime import datetime
from typing import Any

import msgspec

CONTENT_TYPE = "text/event-stream"

HEARTBEAT = b": keep-alive\n\n"
"""A comment. Clients skip it; intermediaries see that the connection lives."""

DONE = b"data: [DONE]\n\n"

encode = msgspec.json.encode


def data(value: Any) -> bytes:
    """An event that has no name."""
    return b"data: " + encode(value) + b"\n\n"


def event(name: str, value: Any) -> bytes:
    """An event with a name."""
    return b"event: " + name.encode() + b"\ndata: " + encode(value) + b"\n\n"


def unique(prefix: str) -> str:
    """An identifier that nobody can guess and that occurs once: ``chatcmpl-…``."""
    return prefix + secrets.token_hex(12)


def unix_seconds(created_at: str) -> int:
    """Ollama's ``created_at`` as OpenAI's ``created``; 0 for what is no time."""
    try:
        return int(datetime.fromisoformat(created_at).timestamp())
    except (ValueError, OverflowError):
        return 0
