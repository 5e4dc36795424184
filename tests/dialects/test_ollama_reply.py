"""Replies of Ollama's dialect: unchanged bytes, exact ends, honest counts, and no upstream words on failure."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.dialects.call import Counts, Reply, ReplyState
from neuronetz.dialects.ollama_reply import NativeLines, NativeObject
from neuronetz.dialects.reply import StreamedReply, WholeReply
from neuronetz.errors import UpstreamFailed

ESTIMATE = 11


def stream(limit: int = 10_000) -> StreamedReply:
    return StreamedReply(NativeLines(), ESTIMATE, limit)


def whole(limit: int = 10_000) -> WholeReply:
    return WholeReply(NativeObject(), ESTIMATE, limit)


def line(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}, separators=(",", ":")).encode() + b"\n"


def chat(content: str, **more: Any) -> bytes:
    return line(message={"role": "assistant", "content": content}, done=False, **more)


def last(**more: Any) -> bytes:
    return line(message={"role": "assistant", "content": ""}, done=True, done_reason="stop", **more)


def drive(reply: Reply, parts: list[bytes]) -> bytes:
    """Feed the parts, and the end, as the exchange does."""
    out = []
    for part in parts:
        out.append(reply.feed(part))
        if reply.state is not ReplyState.OPEN:
            return b"".join(out)
    return b"".join([*out, reply.eof()])


def test_a_stream_passes_unchanged_and_ends_with_the_reported_counts() -> None:
    lines = [chat("a"), chat("b"), last(prompt_eval_count=26, eval_count=2)]
    reply = stream()
    for number, data in enumerate(lines[:2], 1):
        assert reply.feed(data) == data
        assert reply.state is ReplyState.OPEN
        assert reply.counts == Counts(ESTIMATE, number, exact=False)
    assert reply.feed(lines[2]) == lines[2]
    assert reply.state is ReplyState.FINISHED
    assert reply.counts == Counts(26, 2, exact=True)
    assert reply.feed(b"more") == reply.eof() == b""
    assert reply.state is ReplyState.FINISHED


def test_lines_that_arrive_together_leave_together() -> None:
    data = chat("a") + chat("b") + chat("c")
    assert stream().feed(data) == data


def test_a_partial_line_is_held_back_until_its_newline() -> None:
    data = chat("a") + chat("b")
    reply = stream()
    assert reply.feed(data[:-5]) == chat("a")
    assert reply.counts.completion == 1
    assert reply.feed(data[-5:-1]) == b""
    assert reply.feed(b"\n") == chat("b")


def test_what_follows_the_last_line_is_not_passed_on() -> None:
    end = last(eval_count=1, prompt_eval_count=1)
    assert stream().feed(end + chat("more") + b"garbage") == end


@pytest.mark.parametrize(
    "end",
    [
        b'{"done":true,"prompt_eval_count":3,"eval_count":4}\n',
        b'{ "done" : true , "prompt_eval_count" : 3, "eval_count":4 }\n',
        b'{"d\\u006fne":true,"prompt_eval_count":3,"eval_count":4}\n',
        b'{"eval_count":4,"prompt_eval_count":3,"done":\ttrue}\r\n',
    ],
)
def test_the_last_line_is_known_in_any_spelling(end: bytes) -> None:
    reply = stream()
    assert reply.feed(end) == end
    assert (reply.state, reply.counts) == (ReplyState.FINISHED, Counts(3, 4, exact=True))


@pytest.mark.parametrize(
    "fields",
    [
        {"message": {"content": '"error":"x","done":true'}},
        {"message": {"content": "", "tool_calls": [{"function": {"arguments": {"done": True, "error": "x"}}}]}},
        {"message": {"content": "", "tool_calls": [{"function": {"arguments": {"done": False}}}]}},
        {"response": '{"done":true}\n{"error":"x"}\n'},
        {"error": None},
        {"remote": 1},
    ],
)
def test_words_inside_a_line_neither_end_nor_fail_it(fields: dict[str, Any]) -> None:
    data = line(done=False, **fields)
    reply = stream()
    assert reply.feed(data) == data
    assert reply.state is ReplyState.OPEN


def test_done_inside_a_tool_call_does_not_hide_the_end() -> None:
    end = line(message={"tool_calls": [{"function": {"arguments": {"done": False}}}]}, done=True)
    reply = stream()
    assert reply.feed(end) == end
    assert reply.state is ReplyState.FINISHED


@pytest.mark.parametrize(
    ("reported", "counts"),
    [
        ({}, Counts(ESTIMATE, 0, exact=False)),
        ({"eval_count": 9}, Counts(ESTIMATE, 9, exact=False)),
        ({"prompt_eval_count": 5}, Counts(5, 0, exact=True)),
        ({"prompt_eval_count": 0, "eval_count": 9}, Counts(ESTIMATE, 9, exact=False)),
        ({"prompt_eval_count": -1, "eval_count": -5}, Counts(ESTIMATE, 0, exact=False)),
        ({"done_reason": "load"}, Counts(0, 0, exact=True)),
        ({"done_reason": "unload"}, Counts(0, 0, exact=True)),
    ],
)
@pytest.mark.parametrize("make", [stream, whole])
def test_absent_counts(make: Callable[[], Reply], reported: dict[str, Any], counts: Counts) -> None:
    reply = make()
    drive(reply, [line(done=True, **reported)])
    assert (reply.state, reply.counts) == (ReplyState.FINISHED, counts)


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"message": {"content": "x"}}, 1),
        ({"message": {"content": "", "thinking": "x"}}, 1),
        (
            {
                "message": {
                    "content": "",
                    "tool_calls": [{"function": {"name": "f", "arguments": {"a": "x" * 100}}}],
                }
            },
            37,
        ),
        ({"response": "x"}, 1),
        ({"response": "", "thinking": "x"}, 1),
        ({"message": {"content": ""}}, 0),
        ({"message": None}, 0),
        ({"response": "", "logprobs": [{"token": "x"}]}, 0),
    ],
)
def test_delivered_lines_are_counted_by_their_content(fields: dict[str, Any], tokens: int) -> None:
    reply = stream()
    reply.feed(line(done=False, **fields))
    assert reply.counts == Counts(ESTIMATE, tokens, exact=False)


@pytest.mark.parametrize(
    "bad",
    [
        b'{"error":"llama runner at /root/.ollama crashed"}\n',
        b'{ "error" : {"message": "x"} }\n',
        b'{"done":false,"error":""}\n',
        b"<html>502</html>\n",
        b'{"model":"m","message":{"content":"a"},"done":fal\n',
        b"{oops}\n",
        b"[]\n",
        b"null\n",
        b'{"done":"true"}\n',
        b'{"message":"x"}\n',
        b"{} {}\n",
        b"[" * 5000 + b"\n",
        b'{"x":' + b"[" * 5000 + b"\n",
        b'{"response":"\xff"}\n',
    ],
)
def test_an_error_or_garbage_fails_the_stream_and_is_not_passed_on(bad: bytes) -> None:
    reply = stream()
    assert reply.feed(chat("a") + bad + chat("b")) == chat("a")
    assert reply.state is ReplyState.FAILED
    assert reply.counts == Counts(ESTIMATE, 1, exact=False)
    assert reply.feed(last()) == reply.eof() == b""


@pytest.mark.parametrize("tail", [b"", b'{"model":"m","mess', chat("b")[:-1], b'{"error":"x"}', b'{"done":tr'])
def test_an_end_without_done_fails_the_stream(tail: bytes) -> None:
    reply = stream()
    assert reply.feed(chat("a") + tail) == chat("a")
    assert reply.eof() == b""
    assert reply.state is ReplyState.FAILED


def test_the_last_line_needs_no_newline() -> None:
    end = line(done=True, done_reason="load")[:-1]
    reply = stream()
    assert reply.feed(end) == b""
    assert reply.eof() == end
    assert reply.state is ReplyState.FINISHED


def test_an_empty_reply_is_a_failure() -> None:
    for reply in (stream(), whole()):
        assert reply.eof() == b""
        assert reply.state is ReplyState.FAILED


def test_a_line_beyond_the_limit_fails_the_stream() -> None:
    reply = stream(limit=200)
    assert reply.feed(chat("a") + chat("x" * 300)) == chat("a")
    assert reply.state is ReplyState.FAILED


def test_blank_lines_are_left_out() -> None:
    assert stream().feed(b"\n" + chat("a") + b"\r\n  \n" + chat("b")) == chat("a") + chat("b")


@pytest.mark.parametrize("make", [stream, whole])
def test_where_a_remote_model_runs_is_not_told(make: Callable[[], Reply]) -> None:
    reply = make()
    remote = {"remote_model": "gpt", "remote_host": "https://ollama.com:443"}
    out = drive(
        reply, [line(**remote, response="\u00e9", created_at="2026-01-01T00:00:00Z", done=True, eval_count=3)]
    )
    assert json.loads(out) == {
        "model": "m",
        "response": "\u00e9",
        "created_at": "2026-01-01T00:00:00Z",
        "done": True,
        "eval_count": 3,
    }
    assert out.endswith(b"\n")


def test_errors_end_a_reply_in_ollamas_shape() -> None:
    error = UpstreamFailed()
    assert stream().error_tail(error) == b'{"error":"upstream failed"}\n'
    assert whole().error_tail(error) == b'{"error":"upstream failed"}'


def test_a_whole_reply_comes_out_unchanged_at_its_end() -> None:
    body = line(message={"content": "a b"}, done=True, prompt_eval_count=3, eval_count=4)
    reply = whole()
    assert reply.feed(body[:10]) == reply.feed(body[10:]) == b""
    assert reply.counts == Counts(ESTIMATE, 0, exact=False)
    assert reply.eof() == body
    assert (reply.state, reply.counts) == (ReplyState.FINISHED, Counts(3, 4, exact=True))


def test_embeddings_count_the_prompt_alone_and_the_legacy_ones_the_estimate() -> None:
    reply = whole()
    drive(reply, [b'{"model":"m","embeddings":[[0.1,-2e-3]],"prompt_eval_count":8}'])
    assert reply.counts == Counts(8, 0, exact=True)
    reply = whole()
    drive(reply, [b'{"embedding":[0.1]}'])
    assert reply.counts == Counts(ESTIMATE, 0, exact=False)


@pytest.mark.parametrize(
    "bad",
    [
        b'{"error":"secret"}',
        b"[]",
        b"{",
        b"{} {}",
        b"<html>",
        b"null",
        b'{"a":' * 5000,
        b'{"x":"' + b"y" * 20_000 + b'"}',
    ],
)
def test_a_whole_reply_that_is_none_fails_and_is_not_passed_on(bad: bytes) -> None:
    reply = whole()
    assert drive(reply, [bad]) == b""
    assert reply.state is ReplyState.FAILED
    assert reply.counts == Counts(ESTIMATE, 0, exact=False)


pieces = st.sampled_from(
    [
        chat("a"),
        chat("\u00e9\n"),
        chat("x" * 90),
        line(response="b", done=False),
        b"\n",
        b"{oops}\n",
        b'{"error":"x"}\n',
    ]
)
ends = st.sampled_from(
    [
        b"",
        last(),
        last(eval_count=5, prompt_eval_count=6),
        last()[:-1],
        b'{"don',
        last(remote_host="h"),
        last() + chat("z"),
    ]
)


@pytest.mark.parametrize("make", [lambda: stream(150), whole])
@given(parts=st.lists(pieces, max_size=6), end=ends, places=st.lists(st.integers(0, 10_000), max_size=12))
def test_any_cut_of_the_bytes_gives_the_same_output_and_counts(
    make: Callable[[], Reply], parts: list[bytes], end: bytes, places: list[int]
) -> None:
    data = b"".join(parts) + end
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    one, many = make(), make()
    expected = drive(one, [data])
    got = drive(many, [data[start:stop] for start, stop in pairwise(edges)])
    assert (got, many.state, many.counts) == (expected, one.state, one.counts)
    assert b"oops" not in got
    assert b"error" not in got
