"""Whatever the upstream sends, cut anywhere: the client reads whole events or lines, and none of an error's words."""

import json
from typing import Any

from hypothesis import strategies as st

from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.call import Reply, ReplyState
from neuronetz.dialects.calls import parse_call
from neuronetz.dialects.reply import MOST_TOKENS
from neuronetz.dialects.transcript import Transcript
from neuronetz.errors import UpstreamFailed
from tests.fuzz.examples import cuts, fuzzed, mangled
from tests.shapes import SHAPES, Shape

SECRET = "upstream's own words"
_numbers = st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, 2**31, 2**53, 2**63 - 1])
_texts = st.text(max_size=6) | st.sampled_from(["", "a", "data: x\n\n", "\n", "\u2028", "\x00", "event: error"])
_times = st.sampled_from(
    ["2026-01-01T00:00:00Z", "", "0001-01-01T00:00:00", "9999-12-31T23:59:59Z", "now", "\u0661"]
)
_arguments = st.sampled_from([{}, {"a": [1.5, None]}, "text", None, 7, {"a": "\ud800"}])
_call = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({}, optional={"name": _texts, "arguments": _arguments})},
    optional={"id": _texts},
)
_logprobs = st.lists(
    st.fixed_dictionaries({}, optional={"token": _texts, "logprob": st.floats(), "bytes": st.none()})
)
_message = st.fixed_dictionaries(
    {},
    optional={
        "role": _texts,
        "content": st.none() | _texts,
        "thinking": st.none() | _texts,
        "tool_calls": st.none() | st.lists(_call, max_size=3),
    },
)
_fields: dict[str, st.SearchStrategy[Any]] = {
    "created_at": _times,
    "message": st.none() | _message,
    "response": _texts,
    "thinking": _texts,
    "done_reason": st.sampled_from(["stop", "length", "load", "unload", "", None]) | _texts,
    "prompt_eval_count": _numbers,
    "eval_count": _numbers,
    "logprobs": st.none() | _logprobs,
    "remote_host": st.none() | _texts,
    "embedding": st.lists(st.floats(-1, 1), max_size=3),
    "embeddings": st.lists(st.lists(st.floats(-1, 1), max_size=3), max_size=2) | _texts,
    "model": _texts,
}
_line = st.fixed_dictionaries({"done": st.booleans()}, optional=_fields)
_error = st.fixed_dictionaries({"error": st.just(SECRET) | st.just({"message": SECRET})}, optional=_fields)
_lines = st.lists(st.one_of(_line, _line, _line, _line, _error), max_size=8).map(
    lambda lines: b"".join(json.dumps(line).encode() + b"\n" for line in lines)
)
_shapes = st.sampled_from(SHAPES)


@fuzzed(shape=_shapes, parts=cuts(_lines))
def test_a_stream_of_lines_becomes_a_whole_reply_without_the_upstreams_words(
    shape: Shape, parts: list[bytes]
) -> None:
    assert SECRET.encode() not in _hold(shape, parts)


@fuzzed(shape=_shapes, parts=cuts(mangled(_lines)))
def test_a_mangled_stream_becomes_a_whole_reply(shape: Shape, parts: list[bytes]) -> None:
    _hold(shape, parts)


@fuzzed(shape=_shapes, parts=cuts(st.binary(max_size=200)))
def test_bytes_at_random_become_a_whole_reply(shape: Shape, parts: list[bytes]) -> None:
    _hold(shape, parts)


def _hold(shape: Shape, parts: list[bytes]) -> bytes:
    call = parse_call(shape.path, json.dumps(shape.body("rivers")).encode(), BodyPolicy())
    transcript = Transcript(40)
    reply = call.reply(transcript)
    out = _drive(reply, parts)
    if reply.state is ReplyState.FAILED:
        out += reply.error_tail(UpstreamFailed())
    assert 0 <= reply.counts.prompt <= MOST_TOKENS
    assert 0 <= reply.counts.completion <= MOST_TOKENS
    _check(reply.content_type, out)
    return out


def _drive(reply: Reply, parts: list[bytes]) -> bytes:
    out = b""
    for part in parts:
        out += reply.feed(part)
    out += reply.eof()
    assert reply.state in (ReplyState.FINISHED, ReplyState.FAILED)
    # What comes late is for nobody.
    assert reply.feed(b'{"done":true}\n') + reply.eof() == b""
    return out


def _check(content_type: str, out: bytes) -> None:
    if content_type.startswith("text/event-stream"):
        assert out.endswith(b"\n\n")
        for event in out.removesuffix(b"\n\n").split(b"\n\n"):
            _check_event(event)
    elif content_type.startswith("application/x-ndjson"):
        for line in out.split(b"\n"):
            assert line.strip() == b"" or isinstance(json.loads(line), dict)
    else:
        assert isinstance(json.loads(out), dict)


def _check_event(event: bytes) -> None:
    *named, data = event.split(b"\n")
    assert [line.split(b": ")[0] for line in named] in ([], [b"event"])
    assert data.startswith(b"data: ")
    assert data == b"data: [DONE]" or isinstance(json.loads(data[6:]), dict)
