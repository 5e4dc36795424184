"""What the tests of OpenAI's dialects share: calls, readers of events, and completions a model might make."""

import json
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import strategies as st

from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.call import Reply, ReplyState
from neuronetz.dialects.calls import parse_call
from neuronetz.dialects.native_call import NativeCall
from neuronetz.errors import InvalidRequest

POLICY = BodyPolicy()
DONE = "[DONE]"


def call(path: str, body: object) -> NativeCall:
    return parse_call(path, json.dumps(body).encode(), POLICY)


def sent(path: str, body: object) -> dict[str, Any]:
    """What goes upstream; raises the body's problem."""
    made = call(path, body)
    return msgspec.json.decode(made.upstream_body("installed:latest", None), type=dict[str, Any])


def problem(path: str, body: object) -> InvalidRequest:
    found = call(path, body).problem
    assert found is not None
    assert "\n" not in found.message
    return found


def read_again(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A body for the upstream, read by the checks of Ollama's own dialect and written once more."""
    made = parse_call(path, json.dumps(body).encode(), POLICY)
    assert made.problem is None, made.problem.message
    return msgspec.json.decode(made.upstream_body("installed:latest", None), type=dict[str, Any])


def events(data: bytes) -> list[Any]:
    """The events of a stream of which each is one line of data, and nothing else is there."""
    if not data:
        return []
    assert data.endswith(b"\n\n")
    found: list[Any] = []
    for event in data[:-2].split(b"\n\n"):
        assert event.startswith(b"data: ")
        assert b"\n" not in event
        assert b"\r" not in event
        text = event.removeprefix(b"data: ")
        found.append(DONE if text == DONE.encode() else json.loads(text))
    return found


def drive(reply: Reply, parts: list[bytes]) -> bytes:
    """Feed the parts, and the end, as the exchange does."""
    out = []
    for part in parts:
        out.append(reply.feed(part))
        if reply.state is not ReplyState.OPEN:
            return b"".join(out)
    return b"".join([*out, reply.eof()])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges)]


def lines(objects: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in objects)


HEAD = {"model": "installed:latest", "created_at": "2026-01-02T03:04:05.678901234Z"}
CREATED = 1767323045
LATER = {"model": "installed:latest", "created_at": "2026-01-02T03:09:09.1Z"}
SECRET = "/root/.ollama secret"

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
counts = st.fixed_dictionaries(
    {}, optional={"prompt_eval_count": st.integers(1, 99), "eval_count": st.integers(1, 99)}
)
reasons = st.sampled_from(["stop", "length", "", "odd"])
cuts = st.lists(st.integers(0, 10_000), max_size=12)
garbage = st.sampled_from(
    [
        json.dumps({"error": SECRET}).encode() + b"\n",
        json.dumps({**HEAD, "done": True, "error": {"message": SECRET}}).encode() + b"\n",
        b"<html>" + SECRET.encode() + b"</html>\n",
        b'{"done":"' + SECRET.encode() + b'"}\n',
        b'{"done":false,"created_at":7,"response":"' + SECRET.encode() + b'"}\n',
        b'{"response":"\xff' + SECRET.encode() + b'"}\n',
        b"[" * 5000 + SECRET.encode() + b"\n",
        b"",
    ]
)
