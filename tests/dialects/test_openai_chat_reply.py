"""Ollama's chat replies as OpenAI's: the compatibility table, and a stream that adds up to the whole reply."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronetz.dialects.call import Counts, Reply, ReplyState
from neuronetz.errors import UpstreamFailed
from tests.dialects.openai_cases import (
    CREATED,
    DONE,
    HEAD,
    LATER,
    SECRET,
    call,
    counts,
    cut,
    cuts,
    drive,
    events,
    garbage,
    lines,
    reasons,
    texts,
)

PATH = "/v1/chat/completions"
LOGPROBS = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]
TOOL = {"id": "c1", "function": {"index": 0, "name": "f", "arguments": {"a": "\n"}}}
TOLD = {"id": "c1", "index": 0, "type": "function", "function": {"name": "f", "arguments": '{"a": "\\n"}'}}


def reply(*, stream: bool, usage: bool = False) -> Reply:
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    if usage:
        body["stream_options"] = {"include_usage": True}
    return call(PATH, body).reply()


def line(content: str = "", *, done: bool = False, head: dict[str, Any] = HEAD, **more: Any) -> dict[str, Any]:
    outer = {name: more.pop(name) for name in ("logprobs", "done_reason") if name in more}
    outer |= {name: more.pop(name) for name in ("prompt_eval_count", "eval_count") if name in more}
    return {**head, "message": {"role": "assistant", "content": content, **more}, "done": done, **outer}


def whole(**fields: Any) -> dict[str, Any]:
    return json.loads(drive(reply(stream=False), [lines([line(**fields, done=True)])]))


def streamed(*objects: dict[str, Any], usage: bool = False) -> list[Any]:
    reading = reply(stream=True, usage=usage)
    found = events(drive(reading, [lines(list(objects))]))
    assert reading.state is ReplyState.FINISHED
    return found


def choices(found: list[Any]) -> list[Any]:
    return [event["choices"][0] for event in found[:-1]]


def test_a_whole_reply() -> None:
    found = whole(content="hello", done_reason="stop", prompt_eval_count=5, eval_count=2)
    assert found.pop("id").startswith("chatcmpl-")
    assert found == {
        "object": "chat.completion",
        "created": CREATED,
        "model": "tiny",
        "system_fingerprint": "fp_ollama",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


WHOLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "reasoning": (
        {"content": "x", "thinking": "because"},
        {"message": {"role": "assistant", "content": "x", "reasoning": "because"}},
    ),
    "tool calls": (
        {"tool_calls": [TOOL, {**TOOL, "id": "c2"}]},
        {
            "message": {
                "role": "assistant",
                "content": "",
                "tool_calls": [TOLD, {**TOLD, "id": "c2", "index": 1}],
            },
            "finish_reason": "tool_calls",
        },
    ),
    "tool calls null": ({"tool_calls": None}, {}),
    "length": ({"done_reason": "length"}, {"finish_reason": "length"}),
    "length with a tool call stays length": (
        {"tool_calls": [TOOL], "done_reason": "length"},
        {"message": {"role": "assistant", "content": "", "tool_calls": [TOLD]}, "finish_reason": "length"},
    ),
    "no reason is stop": ({"done_reason": ""}, {"finish_reason": "stop"}),
    "an unknown reason passes": ({"done_reason": "odd"}, {"finish_reason": "odd"}),
    "logprobs": ({"logprobs": LOGPROBS}, {"logprobs": {"content": LOGPROBS}}),
    "no logprobs": ({"logprobs": []}, {}),
}


@pytest.mark.parametrize("row", WHOLES)
def test_a_whole_choice(row: str) -> None:
    native, told = WHOLES[row]
    plain = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}
    assert whole(**native)["choices"] == [{**plain, **told}]


def test_a_call_without_an_id_gets_one() -> None:
    [one, two] = whole(tool_calls=[{"function": {"name": "f"}}, {"function": {"name": "f", "arguments": None}}])[
        "choices"
    ][0]["message"]["tool_calls"]
    assert one["id"].startswith("call_")
    assert one["id"] != two["id"]
    assert (one["function"]["arguments"], two["function"]["arguments"]) == ("{}", "{}")


def test_usage_is_what_is_charged_where_the_prompts_count_is_left_out() -> None:
    reading = reply(stream=False)
    found = json.loads(drive(reading, [lines([line("x", done=True, eval_count=2)])]))
    assert reading.counts.prompt > 0
    assert found["usage"]["prompt_tokens"] == reading.counts.prompt
    assert not reading.counts.exact


def test_every_chunk_has_the_id_and_time_of_the_first() -> None:
    found = streamed(line("a"), line("b", head=LATER), line(done=True, head=LATER), usage=True)[:-1]
    heads = [{name: chunk[name] for name in chunk if name not in {"choices", "usage"}} for chunk in found]
    assert heads[0].pop("id").startswith("chatcmpl-")
    assert heads[0] == {
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": "tiny",
        "system_fingerprint": "fp_ollama",
    }
    assert {json.dumps(head) for head in heads[1:]} == {json.dumps({"id": found[0]["id"], **heads[0]})}
    assert streamed(line(done=True))[0]["id"] != found[0]["id"]


def chunk(**delta: Any) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": None}


def finish(reason: str = "stop") -> dict[str, Any]:
    return {"index": 0, "delta": {}, "finish_reason": reason}


FIRST = {"role": "assistant"}
STREAMS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "role in the first delta alone": (
        [line("a"), line("b"), line(done=True)],
        [chunk(**FIRST, content="a"), chunk(content="b"), finish()],
    ),
    "content is there though it is empty": (
        [line("a"), line(""), line(done=True)],
        [chunk(**FIRST, content="a"), chunk(content=""), finish()],
    ),
    "reasoning alone": (
        [line(thinking="t"), line(done=True)],
        [chunk(**FIRST, content="", reasoning="t"), finish()],
    ),
    "reasoning and content are two chunks": (
        [line("a", thinking="t", logprobs=LOGPROBS), line(done=True)],
        [
            {**chunk(**FIRST, reasoning="t"), "logprobs": {"content": LOGPROBS}},
            chunk(content="a"),
            finish(),
        ],
    ),
    "reasoning and tools are two chunks": (
        [line(thinking="t", tool_calls=[TOOL]), line(done=True)],
        [chunk(**FIRST, reasoning="t"), chunk(content="", tool_calls=[TOLD]), finish("tool_calls")],
    ),
    "calls of several lines are numbered on": (
        [line(tool_calls=[TOOL]), line(tool_calls=[{**TOOL, "id": "c2"}]), line(done=True)],
        [
            chunk(**FIRST, content="", tool_calls=[TOLD]),
            chunk(content="", tool_calls=[{**TOLD, "id": "c2", "index": 1}]),
            finish("tool_calls"),
        ],
    ),
    "length with a tool call stays length": (
        [line(tool_calls=[TOOL]), line(done=True, done_reason="length")],
        [chunk(**FIRST, content="", tool_calls=[TOLD]), finish("length")],
    ),
    "an empty last line as the first": ([line(done=True)], [chunk(**FIRST, content=""), finish()]),
    "a last line with content": (
        [line("a"), line("b", done=True)],
        [chunk(**FIRST, content="a"), chunk(content="b"), finish()],
    ),
    "a last line with a tool call": (
        [line("a"), line(done=True, tool_calls=[TOOL])],
        [chunk(**FIRST, content="a"), chunk(content="", tool_calls=[TOLD]), finish("tool_calls")],
    ),
    "an empty last line with logprobs": (
        [line("a"), line(done=True, logprobs=LOGPROBS)],
        [
            chunk(**FIRST, content="a"),
            {**chunk(content=""), "logprobs": {"content": LOGPROBS}},
            finish(),
        ],
    ),
    "no reason is stop": ([line("a"), line(done=True, done_reason="")], [chunk(**FIRST, content="a"), finish()]),
    "an unknown reason passes": (
        [line("a"), line(done=True, done_reason="odd")],
        [chunk(**FIRST, content="a"), finish("odd")],
    ),
}


@pytest.mark.parametrize("row", STREAMS)
def test_a_stream(row: str) -> None:
    native, told = STREAMS[row]
    found = streamed(*native)
    assert choices(found) == told
    assert found[-1] == DONE
    assert not any("usage" in event for event in found[:-1])


def test_include_usage_adds_a_chunk_without_choices() -> None:
    found = streamed(line("a"), line(done=True, prompt_eval_count=5, eval_count=2), usage=True)
    finishing, usage, done = found[-3:]
    assert usage == {
        **finishing,
        "choices": [],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
    assert done == DONE
    assert all("usage" not in event for event in found[:-2])


def test_content_types() -> None:
    assert reply(stream=True).content_type == "text/event-stream"
    assert reply(stream=True).heartbeat == b": keep-alive\n\n"
    assert reply(stream=False).content_type.startswith("application/json")
    assert reply(stream=False).heartbeat == b""


def test_an_error_is_told_in_openais_shape_and_ends_without_done() -> None:
    error = {"message": "upstream failed", "type": "api_error", "param": None, "code": None}
    assert events(reply(stream=True).error_tail(UpstreamFailed())) == [{"error": error}]
    assert json.loads(reply(stream=False).error_tail(UpstreamFailed())) == {"error": error}


logprobs = st.lists(
    st.fixed_dictionaries(
        {
            "token": texts,
            "logprob": st.floats(-9, 0),
            "bytes": st.lists(st.integers(0, 255), max_size=2),
            "top_logprobs": st.just([{"token": "t", "logprob": -1.5, "bytes": None}]) | st.just([]),
        }
    ),
    min_size=1,
    max_size=2,
)
tool_calls = st.lists(
    st.fixed_dictionaries(
        {
            "id": texts,
            "function": st.fixed_dictionaries(
                {"name": texts, "arguments": st.dictionaries(texts, texts | st.integers(-9, 9), max_size=2)},
                optional={"index": st.just(0)},
            ),
        }
    ),
    min_size=1,
    max_size=2,
)
steps = st.fixed_dictionaries(
    {"content": st.just("") | texts},
    optional={"thinking": texts, "tool_calls": tool_calls, "logprobs": logprobs},
)


@st.composite
def completions(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One completion of a model: the lines of its stream, and the object that it is when not streamed."""
    made = draw(st.lists(steps, max_size=5))
    end = {**draw(counts), "done": True, "done_reason": draw(reasons)}
    with_the_end = made and draw(st.booleans())
    stream = [line(**step) for step in (made[:-1] if with_the_end else made)]
    stream.append({**line(**(made[-1] if with_the_end else {}), head=LATER), **end})
    together: dict[str, Any] = {"content": "".join(step["content"] for step in made)}
    for name, start in (("thinking", ""), ("tool_calls", []), ("logprobs", [])):
        total: Any = start
        for step in made:
            total = total + step.get(name, start)
        if total:
            together[name] = total
    return stream, {**line(**together, head=HEAD if len(stream) > 1 else LATER), **end}


def put_together(found: list[Any]) -> dict[str, Any]:
    """What a client makes of the events of a stream: the whole completion."""
    *chunks, usage, done = found
    assert done == DONE
    message: dict[str, Any] = {"content": ""}
    probabilities: list[Any] = []
    calls: dict[int, Any] = {}
    for event in chunks:
        [choice] = event["choices"]
        delta = dict(choice["delta"])
        for call_ in delta.pop("tool_calls", []):
            assert call_["index"] not in calls
            calls[call_["index"]] = call_
        for name, text in delta.items():
            message[name] = message.get(name, "") + text
        probabilities += choice.get("logprobs", {"content": []})["content"]
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    choice = {"index": 0, "message": message, "finish_reason": chunks[-1]["choices"][0]["finish_reason"]}
    if probabilities:
        choice["logprobs"] = {"content": probabilities}
    assert [event["choices"][0]["finish_reason"] for event in chunks[:-1]] == [None] * (len(chunks) - 1)
    return {**usage, "id": None, "object": "chat.completion", "choices": [choice]}


@settings(max_examples=200, deadline=None)
@given(completions(), cuts)
def test_a_stream_adds_up_to_the_whole_reply(
    completion: tuple[list[dict[str, Any]], dict[str, Any]], places: list[int]
) -> None:
    stream, native = completion
    at_once, in_pieces = reply(stream=False), reply(stream=True, usage=True)
    expected = json.loads(drive(at_once, [lines([native])]))
    found = events(drive(in_pieces, cut(lines(stream), places)))
    assert put_together(found) == {**expected, "id": None}
    assert in_pieces.counts == at_once.counts


def without_ids(found: list[Any]) -> str:
    return json.dumps([event if event == DONE else {**event, "id": None} for event in found])


@settings(max_examples=200, deadline=None)
@given(completions(), cuts)
def test_any_cut_of_the_bytes_gives_the_same_events(
    completion: tuple[list[dict[str, Any]], dict[str, Any]], places: list[int]
) -> None:
    data = lines(completion[0])
    one, many = reply(stream=True), reply(stream=True)
    expected, found = drive(one, [data]), drive(many, cut(data, places))
    assert without_ids(events(found)) == without_ids(events(expected))
    assert (many.state, many.counts) == (one.state, one.counts)


@settings(max_examples=200, deadline=None)
@given(completions(), garbage, st.integers(0, 9), cuts)
def test_a_failure_at_any_point_leaves_what_came_before_and_ends_in_an_error(
    completion: tuple[list[dict[str, Any]], dict[str, Any]], bad: bytes, place: int, places: list[int]
) -> None:
    before = completion[0][:-1][:place]
    failed, good = reply(stream=True), reply(stream=True)
    found = drive(failed, cut(lines(before) + bad, places))
    assert failed.state is ReplyState.FAILED
    told = events(found + failed.error_tail(UpstreamFailed()))
    expected = events(good.feed(lines(before)))
    assert without_ids(told[:-1]) == without_ids(expected)
    assert told[-1]["error"]["message"] == "upstream failed"
    assert DONE not in told
    assert SECRET not in json.dumps(told, ensure_ascii=False)


@pytest.mark.parametrize("bad", [{"tool_calls": "x"}, {"tool_calls": [{}]}, {"logprobs": [1]}])
def test_what_cannot_be_translated_is_a_failure(bad: dict[str, Any]) -> None:
    for data in (lines([line("a"), line("b", **bad)]), lines([line("a"), line(done=True, **bad)])):
        reading = reply(stream=True)
        assert [event["choices"] for event in events(reading.feed(data))] == [[chunk(**FIRST, content="a")]]
        assert reading.state is ReplyState.FAILED
    reading = reply(stream=False)
    assert drive(reading, [lines([line(done=True, **bad)])]) == b""
    assert reading.state is ReplyState.FAILED
    assert reading.counts == Counts(reading.counts.prompt, 0)
