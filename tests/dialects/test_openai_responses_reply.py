"""OpenAI's responses written from Ollama's replies; every event and object as OpenAI's own types have them."""

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.call import Counts, Reply, ReplyState
from neuronetz.dialects.calls import parse_call
from neuronetz.errors import UpstreamFailed

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
POLICY = BodyPolicy()
AT = "2026-01-01T00:00:00.5Z"
LATER = "2026-01-01T00:00:09Z"
SECONDS = 1767225600
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}}
SPACE = {"type": "namespace", "name": "crm", "tools": [TOOL]}


def reply(stream: bool, **fields: Any) -> Reply:
    body = {"model": "asked", "input": "hi", "stream": stream, **fields}
    return parse_call("/v1/responses", json.dumps(body).encode(), POLICY).reply()


def line(content: str = "", thinking: str = "", calls: Any = None, created_at: str = AT, **more: Any) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if thinking:
        message["thinking"] = thinking
    if calls is not None:
        message["tool_calls"] = calls
    fields = {"model": "installed", "created_at": created_at, "message": message, "done": False, **more}
    return json.dumps(fields).encode() + b"\n"


def last(content: str = "", reason: str = "stop", **more: Any) -> bytes:
    counts = {"prompt_eval_count": 3, "eval_count": 4}
    return line(content, created_at=LATER, **more, done=True, done_reason=reason, **counts)


def look(name: str = "look", **arguments: Any) -> dict[str, Any]:
    return {"id": f"call_{name}", "function": {"name": name, "arguments": arguments}}


def events(data: bytes) -> list[dict[str, Any]]:
    """The events of a stream, each checked against OpenAI's types."""
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        name, told = block.split("\n")
        event = json.loads(told.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENTS.validate_python(event)
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def whole(data: bytes, **fields: Any) -> dict[str, Any]:
    read = reply(False, **fields)
    assert read.feed(data) == b""
    told: dict[str, Any] = json.loads(read.eof())
    assert read.state is ReplyState.FINISHED
    Response.model_validate(told, strict=True)
    return told


def streamed(*lines: bytes, **fields: Any) -> list[dict[str, Any]]:
    read = reply(True, **fields)
    out = read.feed(b"".join(lines))
    assert read.state is ReplyState.FINISHED
    assert read.counts == Counts(3, 4, exact=True)
    return events(out)


def anonymous(value: Any) -> Any:
    """A response without what is made anew each time."""
    if isinstance(value, dict):
        return {k: anonymous(v) for k, v in value.items() if k not in {"id", "created_at", "completed_at"}}
    return [anonymous(item) for item in value] if isinstance(value, list) else value


def test_a_whole_reply() -> None:
    told = whole(last("four", thinking="hm", calls=[look(a=1), look("see")]))
    ids = [item.pop("id").split("_")[0] for item in told["output"]]
    assert ids == ["rs", "msg", "fc", "fc"]
    assert told["output"] == [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "hm"},
        {
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "four", "annotations": [], "logprobs": []}],
        },
        {
            "type": "function_call",
            "status": "completed",
            "call_id": "call_look",
            "name": "look",
            "arguments": '{"a": 1}',
        },
        {"type": "function_call", "status": "completed", "call_id": "call_see", "name": "see", "arguments": "{}"},
    ]
    assert told["id"].startswith("resp_")
    assert (told["object"], told["model"], told["status"]) == ("response", "asked", "completed")
    assert (told["created_at"], told["completed_at"]) == (SECONDS + 9, SECONDS + 9)
    assert told["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 7,
    }


@pytest.mark.parametrize(
    ("asked", "echoed"),
    [
        ({}, {"store": False, "truncation": "disabled", "previous_response_id": None, "tools": [], "metadata": {}}),
        ({}, {"temperature": 1.0, "top_p": 1.0, "parallel_tool_calls": True, "max_output_tokens": None}),
        ({}, {"instructions": None, "tool_choice": "auto", "text": {"format": {"type": "text"}}, "error": None}),
        ({}, {"reasoning": {"effort": None, "summary": None}}),
        ({"store": True, "previous_response_id": "resp_1"}, {"store": False, "previous_response_id": None}),
        ({"instructions": "be brief"}, {"instructions": "be brief"}),
        ({"temperature": 0.5, "top_p": 0.25}, {"temperature": 0.5, "top_p": 0.25}),
        ({"max_output_tokens": 9, "parallel_tool_calls": False}, {"max_output_tokens": 9, "parallel_tool_calls": False}),
        ({"metadata": {"a": "b"}}, {"metadata": {"a": "b"}}),
        ({"reasoning": {"effort": "minimal", "summary": "auto"}}, {"reasoning": {"effort": "minimal", "summary": "auto"}}),
        ({"reasoning": {"effort": "low", "summary": "odd"}}, {"reasoning": {"effort": "low", "summary": None}}),
        ({"tool_choice": "none", "tools": [TOOL]}, {"tool_choice": "none"}),
        ({"tool_choice": {"type": "function", "name": "look"}}, {"tool_choice": {"type": "function", "name": "look"}}),
        ({"tool_choice": "odd"}, {"tool_choice": "auto"}),
        ({"tools": [{"type": "web_search"}, TOOL]}, {"tools": [{**TOOL, "description": None, "strict": None}]}),
        (
            {"tools": [SPACE]},
            {"tools": [{**SPACE, "description": "", "tools": [{**TOOL, "description": None, "strict": None}]}]},
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}},
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}},
        ),
        ({"text": {"format": {"type": "json_object"}}}, {"text": {"format": {"type": "json_object"}}}),
    ],
)  # fmt: skip
def test_what_a_response_repeats_of_its_request(asked: dict[str, Any], echoed: dict[str, Any]) -> None:
    told = whole(last("a"), **asked)
    assert {name: told[name] for name in echoed} == echoed
    for event in streamed(line("a"), last(), **asked):
        if "response" in event:
            assert {name: event["response"][name] for name in echoed} == echoed


def test_the_events_of_a_stream() -> None:
    told = streamed(
        line(thinking="h"), line(thinking="m"), line("fo"), line("ur"), line(calls=[look(a=1)]), last()
    )
    assert [event["type"].removeprefix("response.") for event in told] == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    final = told[-1]["response"]
    assert {event["response"]["id"] for event in told if "response" in event} == {final["id"]}
    assert {event["response"]["created_at"] for event in told if "response" in event} == {SECONDS}
    assert final["completed_at"] == SECONDS + 9
    for event in told:
        if "item_id" in event:
            assert event["item_id"] == final["output"][event["output_index"]]["id"]
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert done == final["output"]
    added = [event["item"] for event in told if event["type"] == "response.output_item.added"]
    assert [item["id"] for item in added] == [item["id"] for item in done]
    assert told[0]["response"]["status"] == told[1]["response"]["status"] == "in_progress"
    assert told[0]["response"]["usage"] is None


def test_what_comes_out_of_order_makes_items_of_its_own() -> None:
    told = streamed(line("a"), line(thinking="hm"), line("b", calls=[look()]), line("c"), last())
    kinds = [item["type"] for item in told[-1]["response"]["output"]]
    assert kinds == ["message", "reasoning", "message", "function_call", "message"]


def test_a_line_of_many_calls_takes_no_more_than_linear_time() -> None:
    read = reply(True)
    started = time.process_time()
    told = read.feed(line(calls=[look()] * 20_000))
    assert time.process_time() - started < 3.0
    assert told.count(b"event: response.function_call_arguments.done") == 20_000


def test_a_call_without_an_id_gets_one_that_stays() -> None:
    told = streamed(line(calls=[{"function": {"name": "look", "arguments": None}}]), last())
    ids = {event["item"]["call_id"] for event in told if "item" in event}
    assert len(ids) == 1
    assert ids.pop().startswith("call_")
    assert told[-1]["response"]["output"][0]["arguments"] == "{}"


def test_a_cut_reply_is_incomplete() -> None:
    told = streamed(line("a"), last("b", reason="length"))
    assert told[-1]["type"] == "response.incomplete"
    done = next(event["item"] for event in told if event["type"] == "response.output_item.done")
    for response in (told[-1]["response"], whole(last("ab", reason="length"))):
        assert (response["status"], response["completed_at"]) == ("incomplete", None)
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert anonymous(response["output"]) == anonymous([done])
        assert response["output"][0]["status"] == "incomplete"
        assert response["usage"]["output_tokens"] == 4


def test_a_call_is_whole_and_a_reasoning_has_no_status_even_where_the_reply_was_cut() -> None:
    assert whole(last(reason="length", calls=[look()]))["output"][0]["status"] == "completed"
    told = streamed(line(thinking="h"), last(reason="length"))
    assert "status" not in told[-1]["response"]["output"][0]


def test_an_empty_reply_has_no_items() -> None:
    assert whole(last())["output"] == []
    assert [event["type"] for event in streamed(last())] == [
        "response.created",
        "response.in_progress",
        "response.completed",
    ]


def test_a_failure_is_told_to_those_who_read_on_and_to_those_who_do_not() -> None:
    read = reply(True)
    out = read.feed(line(thinking="hm") + line("fo") + line("u"))
    told = events(out + read.error_tail(UpstreamFailed()))
    error, failed = told[-2:]
    assert (error["type"], error["message"]) == ("error", "upstream failed")
    assert error["error"] == {"message": "upstream failed", "type": "api_error", "param": None, "code": None}
    assert failed["type"] == "response.failed"
    response = failed["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "upstream failed"}
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    assert response["output"][1]["status"] == "incomplete"
    assert response["output"][1]["content"][0]["text"] == "fou"
    assert response["id"] == told[0]["response"]["id"]


def test_a_failure_before_the_first_line_is_a_response_too() -> None:
    told = events(reply(True).error_tail(UpstreamFailed()))
    assert [event["type"] for event in told] == [
        "response.created",
        "response.in_progress",
        "error",
        "response.failed",
    ]
    assert told[-1]["response"]["output"] == []


def test_an_error_as_a_whole_reply() -> None:
    assert json.loads(reply(False).error_tail(UpstreamFailed()))["error"]["type"] == "api_error"


@pytest.mark.parametrize(
    "bad",
    [
        b'{"error":"secret runner at /root/.ollama"}\n',
        b"secret\n",
        b'{"message":{"content":"secret","tool_calls":[{"function":"secret"}]}}\n',
        b'{"message":{"content":"secret","tool_calls":{"secret":1}},"done":true}\n',
        b'{"message":{"content":"secret","tool_calls":[{}]}}\n',
    ],
)
def test_a_line_that_fails_leaks_nothing_and_breaks_no_numbering(bad: bytes) -> None:
    read = reply(True)
    out = read.feed(line("a") + bad + last("secret"))
    assert read.state is ReplyState.FAILED
    out += read.eof() + read.error_tail(UpstreamFailed())
    assert b"secret" not in out
    assert events(out)[-1]["type"] == "response.failed"
    read = reply(False)
    assert read.feed(bad) + read.eof() == b""
    assert read.state is ReplyState.FAILED


texts = st.text(min_size=1, max_size=4)
calls = st.lists(st.builds(lambda a: look(**a), st.dictionaries(st.sampled_from("ab"), texts)), max_size=2)
lines = st.one_of(
    st.builds(lambda t: line(thinking=t), texts),
    st.builds(lambda t: line(t), texts),
    st.builds(lambda t, u, c: line(t, thinking=u, calls=c), texts, texts, calls),
    st.just(b"\n"),
    st.just(line()),
)
ends = st.sampled_from([last(), last("z"), last(reason="length"), last()[:-1], b'{"error":"x"}\n', b"oops\n", b""])


@settings(max_examples=100, deadline=None)
@given(st.lists(lines, max_size=5), ends, st.lists(st.integers(0, 10_000), max_size=8))
def test_any_cut_of_the_bytes_gives_the_same_events(parts: list[bytes], end: bytes, places: list[int]) -> None:
    data = b"".join(parts) + end
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]

    def drive(pieces: list[bytes]) -> Any:
        read = reply(True)
        out = b"".join(map(read.feed, pieces)) + read.eof()
        if read.state is not ReplyState.FINISHED:
            out += read.error_tail(UpstreamFailed())
        told = events(out)
        names: dict[str, str] = {}
        for event in told:
            for value in (event.get("item", {}).get("id"), event.get("response", {}).get("id")):
                names.setdefault(value, f"{len(names)}")
            event["item_id"] = names.get(event.get("item_id", ""))
        return anonymous(told), read.state, read.counts

    assert drive([data[start:stop] for start, stop in pairwise(edges)]) == drive([data])


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, max_size=3), st.lists(texts, max_size=3), calls, st.sampled_from(["stop", "length"]))
def test_a_stream_comes_to_what_the_whole_reply_is(
    thoughts: list[str], words: list[str], asked: list[Any], reason: str
) -> None:
    parts = [*(line(thinking=text) for text in thoughts), *map(line, words), *(line(calls=[one]) for one in asked)]
    told = streamed(*parts, last(reason=reason))
    expected = whole(last("".join(words), reason, thinking="".join(thoughts), calls=asked))
    assert anonymous(told[-1]["response"]) == anonymous(expected)
    for kind, text in (("reasoning_summary_text", "".join(thoughts)), ("output_text", "".join(words))):
        deltas = [event["delta"] for event in told if event["type"] == f"response.{kind}.delta"]
        assert "".join(deltas) == text
        done = [event["text"] for event in told if event["type"] == f"response.{kind}.done"]
        assert done == ([text] if text else [])
