"""Replies as Anthropic's messages: exact blocks, one stream of events however the bytes came, no upstream words."""

import json
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz import errors
from neuronetz.dialects import sse
from neuronetz.dialects.anthropic_errors import anthropic_error
from neuronetz.dialects.anthropic_messages_reply import MessageObject, MessageStream
from neuronetz.dialects.call import Counts, ReplyState
from neuronetz.dialects.reply import StreamedReply, WholeReply
from neuronetz.errors import GatewayError, UpstreamFailed

ESTIMATE = 11
SECRET = "secret runner at /root/models"

Event = dict[str, Any]


def reader() -> StreamedReply:
    return StreamedReply(MessageStream("asked", ESTIMATE), ESTIMATE, 10_000)


def line(content: str = "", *, thinking: str = "", calls: Sequence[Any] = (), **more: Any) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = list(calls)
    return json.dumps({"model": "installed", "message": message, "done": False, **more}).encode() + b"\n"


def last(content: str = "", *, reason: str = "stop", **more: Any) -> bytes:
    return line(content, **{"done": True, "done_reason": reason, "prompt_eval_count": 26, "eval_count": 7, **more})


def tool(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"function": {"index": 0, "name": name, "arguments": arguments}, **more}


def read_events(data: bytes) -> list[Event]:
    """The events of a stream; each one's name is its data's type."""
    events = []
    for event in data.decode().split("\n\n")[:-1]:
        name, _, payload = event.partition("\n")
        value = json.loads(payload.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        events.append(value)
    assert data == b"" or data.endswith(b"\n\n")
    return events


def streamed(*parts: bytes) -> list[Event]:
    reply = reader()
    data = b"".join(reply.feed(part) for part in parts)
    assert reply.state is ReplyState.FINISHED
    return read_events(data)


def put_together(events: Sequence[Event]) -> dict[str, Any]:
    """The message that a stream comes to, as Anthropic's clients put it together."""
    start, *blocks, delta, stop = events
    assert [event["type"] for event in (start, delta, stop)] == ["message_start", "message_delta", "message_stop"]
    message: dict[str, Any] = start["message"] | delta["delta"] | {"usage": delta["usage"]}
    while blocks:
        block = blocks[0]["content_block"]
        size = next(place for place, event in enumerate(blocks) if event["type"] == "content_block_stop")
        assert {event["index"] for event in blocks[: size + 1]} == {len(message["content"])}
        deltas = [event["delta"] for event in blocks[1:size]]
        field = "partial_json" if block["type"] == "tool_use" else block["type"]
        kinds = {"partial_json": "input_json_delta"}
        assert {delta["type"] for delta in deltas} == {kinds.get(field, f"{field}_delta")}
        said = "".join(delta[field] for delta in deltas)
        assert block.pop("input", {}) == {}
        message["content"].append(
            {**block, **({"input": json.loads(said)} if kinds.get(field) else {field: said})}
        )
        del blocks[: size + 1]
    return message


def whole(raw: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(MessageObject("asked").whole(raw, Counts(26, 7, exact=True)))
    return found


def test_every_event_of_a_short_stream() -> None:
    start, *events = streamed(line("a", thinking="hm"), line("b"), last())
    identifier = start["message"].pop("id")
    assert identifier.startswith("msg_")
    assert start == {
        "type": "message_start",
        "message": {
            "type": "message",
            "role": "assistant",
            "model": "asked",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": ESTIMATE, "output_tokens": 0},
        },
    }
    assert events == [
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "a"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "b"}},
        {"type": "content_block_stop", "index": 1},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"input_tokens": 26, "output_tokens": 7},
        },
        {"type": "message_stop"},
    ]


def test_a_line_is_passed_on_when_it_comes() -> None:
    reply = reader()
    assert [event["type"] for event in read_events(reply.feed(line("a")))] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
    ]
    assert [event["type"] for event in read_events(reply.feed(line("b")))] == ["content_block_delta"]


def test_a_call_of_a_tool_is_a_block_of_its_own() -> None:
    events = streamed(line("a"), line(calls=[tool("f", {"x": "é"}, id="call_1"), tool("g", None)]), last("b"))
    assert [event["index"] for event in events if event["type"] == "content_block_start"] == [0, 1, 2, 3]
    first, second = (
        event["content_block"] for event in events if event.get("content_block", {}).get("type") == "tool_use"
    )
    assert first == {"type": "tool_use", "id": "call_1", "name": "f", "input": {}}
    assert second["id"].startswith("toolu_")
    message = put_together(events)
    assert [block["type"] for block in message["content"]] == ["text", "tool_use", "tool_use", "text"]
    assert [block["input"] for block in message["content"][1:3]] == [{"x": "é"}, {}]
    assert message["stop_reason"] == "tool_use"


def test_a_line_of_many_calls_takes_no_more_than_linear_time() -> None:
    reply = StreamedReply(MessageStream("asked", ESTIMATE), ESTIMATE, 2_000_000)
    started = time.process_time()
    events = reply.feed(line(calls=[tool("f", {})] * 20_000))
    assert time.process_time() - started < 2.0
    assert events.count(b"event: content_block_start") == 20_000


@pytest.mark.parametrize(
    ("lines", "kinds"),
    [
        ([last()], []),
        ([last("a")], ["text"]),
        ([line(), line(""), last()], []),
        ([line(thinking="x"), last()], ["thinking"]),
        ([line(thinking="x"), line(thinking="y"), line("a"), last()], ["thinking", "text"]),
        (
            [line("a"), line(thinking="x"), line("b", thinking="y"), last("c")],
            ["text", "thinking", "text"],
        ),
        ([line(thinking="x", calls=[tool("f", {})]), last()], ["thinking", "tool_use"]),
        ([line(calls=[tool("f", {})]), line(calls=[tool("f", {})]), last()], ["tool_use", "tool_use"]),
        ([line("a", thinking="x", calls=[tool("f", {})]), last()], ["thinking", "text", "tool_use"]),
        ([line("a"), last(calls=[tool("f", {})])], ["text", "tool_use"]),
        ([line("a", message=None), last()], []),
    ],
)
def test_blocks_come_in_the_order_of_their_content(lines: list[bytes], kinds: list[str]) -> None:
    assert [block["type"] for block in put_together(streamed(*lines))["content"]] == kinds


@pytest.mark.parametrize(
    ("reason", "called", "expected"),
    [
        ("stop", False, "end_turn"),
        ("length", False, "max_tokens"),
        ("", False, "end_turn"),
        ("unheard-of", False, "end_turn"),
        ("stop", True, "tool_use"),
        ("length", True, "tool_use"),
    ],
)
def test_stop_reasons(reason: str, called: bool, expected: str) -> None:
    end = last("a", reason=reason, calls=[tool("f", {})] if called else [])
    assert put_together(streamed(end))["stop_reason"] == expected
    assert whole(end)["stop_reason"] == expected


def test_a_whole_message() -> None:
    message = whole(last("a", thinking="hm", calls=[tool("f", {"x": [1, None]}, id="call_1"), tool("g", {})]))
    assert message.pop("id").startswith("msg_")
    assert message["content"].pop()["id"].startswith("toolu_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "asked",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "a"},
            {"type": "tool_use", "id": "call_1", "name": "f", "input": {"x": [1, None]}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 26, "output_tokens": 7},
    }


def test_a_whole_message_of_nothing_has_no_blocks() -> None:
    assert whole(last())["content"] == []


def test_usage_is_what_is_charged() -> None:
    end = line("a", done=True, eval_count=3)
    assert put_together(streamed(end))["usage"] == {"input_tokens": ESTIMATE, "output_tokens": 3}
    reply = WholeReply(MessageObject("asked"), ESTIMATE, 10_000)
    reply.feed(end)
    assert json.loads(reply.eof())["usage"] == {"input_tokens": ESTIMATE, "output_tokens": 3}
    assert reply.counts == Counts(ESTIMATE, 3)


def test_ids_differ() -> None:
    assert whole(last())["id"] != whole(last())["id"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidRequest(), "invalid_request_error"),
        (errors.Unauthenticated(), "authentication_error"),
        (errors.KeyRevoked(), "authentication_error"),
        (errors.ModelDenied(), "permission_error"),
        (errors.NotFound(), "not_found_error"),
        (errors.BodyTooLarge(), "request_too_large"),
        (errors.RateLimited(), "rate_limit_error"),
        (errors.BudgetExhausted(), "rate_limit_error"),
        (errors.UpstreamBusy(), "overloaded_error"),
        (errors.ShuttingDown(), "overloaded_error"),
        (errors.UpstreamFailed(), "api_error"),
        (errors.UpstreamTimeout(), "api_error"),
        (GatewayError(), "api_error"),
    ],
)
def test_errors_have_a_type_by_their_status(error: GatewayError, kind: str) -> None:
    expected = {"type": "error", "error": {"type": kind, "message": error.message}}
    assert anthropic_error(error) == expected
    assert anthropic_error(error, "r") == {**expected, "request_id": "r"}
    assert MessageStream("m", 1).error(error) == sse.event("error", expected)
    assert json.loads(MessageObject("m").error(error)) == expected


lines_of_a_stream = st.lists(
    st.builds(
        line,
        st.text(max_size=4),
        thinking=st.text(max_size=4),
        calls=st.lists(
            st.builds(
                tool, st.just("f"), st.dictionaries(st.text(max_size=3), st.integers(0, 9)), id=st.just("t")
            ),
            max_size=2,
        ),
    ),
    max_size=5,
)
cuts = st.lists(st.integers(0, 2000), max_size=6)


def in_parts(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


def same(events: list[Event]) -> list[Event]:
    """Events without the message's id, which no two messages share."""
    events[0]["message"]["id"] = "msg_"
    return events


@given(lines_of_a_stream, cuts)
def test_any_split_of_the_upstreams_bytes_gives_the_same_events(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join([*lines, last("end")])
    assert same(streamed(*in_parts(data, cuts))) == same(streamed(data))


@given(lines_of_a_stream, st.text(max_size=4))
def test_a_stream_comes_to_the_same_as_the_whole_reply(lines: list[bytes], ending: str) -> None:
    messages = [json.loads(part)["message"] for part in (*lines, last(ending))]
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    one = whole(
        last(
            "".join(message["content"] for message in messages),
            thinking="".join(message.get("thinking", "") for message in messages),
            calls=calls,
        )
    )
    many = put_together(streamed(*lines, last(ending)))
    assert many.keys() == one.keys()
    for field in ("model", "stop_reason", "stop_sequence", "usage"):
        assert many[field] == one[field]
    for kind in ("text", "thinking"):
        assert "".join(block[kind] for block in many["content"] if block["type"] == kind) == "".join(
            block[kind] for block in one["content"] if block["type"] == kind
        )
    assert [block for block in many["content"] if block["type"] == "tool_use"] == [
        block for block in one["content"] if block["type"] == "tool_use"
    ]


BAD = [
    json.dumps({"error": SECRET}).encode() + b"\n",
    f"<html>{SECRET}</html>\n".encode(),
    json.dumps({"message": {"content": SECRET, "tool_calls": SECRET}}).encode() + b"\n",
    json.dumps({"message": {"content": SECRET, "tool_calls": [{"id": SECRET}]}}).encode() + b"\n",
    json.dumps({"message": {"content": SECRET, "tool_calls": [SECRET]}, "done": True}).encode() + b"\n",
    json.dumps({"message": SECRET, "done": True}).encode() + b"\n",
]


@given(lines_of_a_stream, st.sampled_from(BAD), cuts)
def test_a_stream_that_fails_leaks_nothing_and_ends_in_an_error(
    lines: list[bytes], bad: bytes, cuts: list[int]
) -> None:
    reply = reader()
    data = b"".join(reply.feed(part) for part in in_parts(b"".join([*lines, bad, last("more")]), cuts))
    assert reply.state is ReplyState.FAILED
    data += reply.eof() + reply.error_tail(UpstreamFailed())
    assert SECRET.encode() not in data
    *before, failed = read_events(data)
    assert failed == {"type": "error", "error": {"type": "api_error", "message": "upstream failed"}}
    assert not {"message_delta", "message_stop", "error"} & {event["type"] for event in before}


@pytest.mark.parametrize("bad", BAD)
def test_a_whole_reply_that_fails_leaks_nothing(bad: bytes) -> None:
    reply = WholeReply(MessageObject("asked"), ESTIMATE, 10_000)
    reply.feed(bad)
    assert reply.eof() == b""
    assert reply.state is ReplyState.FAILED
