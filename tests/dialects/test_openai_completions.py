"""OpenAI's completions as Ollama's generate, and its replies: the compatibility table, row by row."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronetz.dialects.call import Reply, ReplyState
from neuronetz.dialects.calls import parse_call
from neuronetz.errors import UpstreamFailed
from tests.dialects.openai_cases import (
    CREATED,
    DONE,
    HEAD,
    LATER,
    POLICY,
    SECRET,
    call,
    counts,
    cut,
    cuts,
    drive,
    events,
    garbage,
    lines,
    problem,
    read_again,
    reasons,
    sent,
    texts,
)

PATH = "/v1/completions"
OPTIONS = {"temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "hi", **fields}


def test_the_least_request() -> None:
    assert sent(PATH, body()) == {
        "model": "installed:latest",
        "prompt": "hi",
        "options": OPTIONS,
        "stream": False,
    }
    assert call(PATH, body()).upstream_path == "/api/generate"


FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "prompt a list of one": ({"prompt": ["hello"]}, {"prompt": "hello"}),
    "prompt empty": ({"prompt": ""}, {"prompt": ""}),
    "prompt null": ({"prompt": None}, {"prompt": ""}),
    "suffix": ({"suffix": "}"}, {"suffix": "}"}),
    "suffix empty": ({"suffix": ""}, {}),
    "stream": ({"stream": True}, {"stream": True}),
    "logprobs is a count": ({"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
    "logprobs 0": ({"logprobs": 0}, {}),
    "n, best_of of 1": ({"n": 1, "best_of": 1}, {}),
    "echo and stream_options are ours": ({"echo": True, "stream_options": {"include_usage": True}}, {}),
    "accepted, not forwarded": ({"user": "u", "logit_bias": {"1": 1}, "raw": True, "system": "x"}, {}),
    "null is absence": (dict.fromkeys(["suffix", "max_tokens", "stop", "logprobs", "echo", "best_of", "n"]), {}),
}


@pytest.mark.parametrize("row", FIELDS)
def test_a_field(row: str) -> None:
    given, native = FIELDS[row]
    assert sent(PATH, body(**given)) == {**sent(PATH, body()), **native}


OPTION_ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "max_tokens": ({"max_tokens": 7}, {"num_predict": 7}),
    "seed": ({"seed": 3}, {"seed": 3}),
    "stop string": ({"stop": "x"}, {"stop": ["x"]}),
    "stop list": ({"stop": ["x", "y"]}, {"stop": ["x", "y"]}),
    "stop: [] sends nothing": ({"stop": []}, {}),
    "temperature 0": ({"temperature": 0}, {"temperature": 0}),
    "top_p": ({"top_p": 0.5}, {"top_p": 0.5}),
    "top_p 0 becomes 1": ({"top_p": 0}, {"top_p": 1.0}),
    "penalties": (
        {"frequency_penalty": 0.5, "presence_penalty": -1},
        {"frequency_penalty": 0.5, "presence_penalty": -1},
    ),
}


@pytest.mark.parametrize("row", OPTION_ROWS)
def test_an_option(row: str) -> None:
    given, native = OPTION_ROWS[row]
    assert sent(PATH, body(**given))["options"] == {**OPTIONS, **native}


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "prompt of several": (body(prompt=["a", "b"]), "prompt", "a list of one string"),
    "prompt of none": (body(prompt=[]), "prompt", "a list of one string"),
    "prompt of tokens": (body(prompt=[1]), "prompt", "a list of one string"),
    "prompts of tokens": (body(prompt=[[1]]), "prompt", "a list of one string"),
    "stop: a non-string": (body(stop=["x", 1]), "stop[1]", "must be a string"),
    "stop a number": (body(stop=1), "stop", "must be a list"),
    "n beyond 1": (body(n=2), "n", "must be 1"),
    "best_of beyond 1": (body(best_of=2), "best_of", "must be 1"),
    "logprobs a boolean": (body(logprobs=True), "logprobs", "whole number"),
    "logprobs beyond 20": (body(logprobs=21), "logprobs", "from 0 to 20"),
    "model absent": ({"prompt": "hi"}, "model", "model is required"),
    "another spelling": (body(PROMPT="x"), "prompt", "spelled exactly"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_a_refusal(row: str) -> None:
    given, param, words = REFUSED[row]
    found = problem(PATH, given)
    assert (found.status, found.param) == (400, param)
    assert words in found.message


plain = st.text(st.characters(codec="utf-8"), max_size=5)
bodies = st.fixed_dictionaries(
    {"model": plain},
    optional={
        "prompt": plain | st.lists(plain, max_size=2) | st.none(),
        "suffix": plain,
        "stream": st.booleans() | st.none(),
        "max_tokens": st.integers(-2, 9) | st.floats(0, 9),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "frequency_penalty": st.floats(-2, 2),
        "seed": st.integers(-9, 9),
        "stop": plain | st.lists(plain | st.integers(), max_size=2),
        "logprobs": st.integers(-1, 21) | st.none(),
        "echo": st.booleans(),
        "n": st.sampled_from([1, 2, None]),
        "best_of": st.sampled_from([1, 2, None]),
    },
)
OLLAMAS = {"model", "prompt", "suffix", "options", "stream", "logprobs", "top_logprobs"}


@settings(max_examples=200, deadline=None)
@given(bodies)
def test_whatever_is_accepted_is_a_body_that_ollama_reads_as_it_stands(given_body: dict[str, Any]) -> None:
    made = parse_call(PATH, json.dumps(given_body).encode(), POLICY)
    if made.problem is not None:
        assert made.problem.status == 400
        return
    upstream = sent(PATH, given_body)
    assert set(upstream) <= OLLAMAS
    assert upstream["stream"] is bool(given_body.get("stream"))
    assert read_again("/api/generate", upstream) == upstream


def reply(*, stream: bool, usage: bool = False, **fields: Any) -> Reply:
    return call(PATH, body(stream=stream, stream_options={"include_usage": usage}, **fields)).reply()


def line(text: str = "", *, done: bool = False, head: dict[str, Any] = HEAD, **more: Any) -> dict[str, Any]:
    return {**head, "response": text, "done": done, **more}


def choice(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"text": text, "index": 0, "finish_reason": reason}


LAST = line(done=True, head=LATER, done_reason="stop", context=[1], prompt_eval_count=5, eval_count=2)


def test_a_whole_reply() -> None:
    native = {
        **LAST,
        **HEAD,
        "response": "hello",
        "thinking": "because",
        "logprobs": [{"token": "a", "logprob": 0}],
    }
    found = json.loads(drive(reply(stream=False), [lines([native])]))
    assert found.pop("id").startswith("cmpl-")
    assert found == {
        "object": "text_completion",
        "created": CREATED,
        "model": "tiny",
        "system_fingerprint": "fp_ollama",
        "choices": [choice("hello", "stop")],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


REASONS = [
    ("stop", "stop"),
    ("length", "length"),
    ("", "stop"),
    ("odd", "odd"),
    ("load", "stop"),
    ("unload", "stop"),
]


@pytest.mark.parametrize(("native", "told"), REASONS)
def test_the_reason(native: str, told: str) -> None:
    data = lines([line("a", done=True, done_reason=native)])
    assert json.loads(drive(reply(stream=False), [data]))["choices"] == [choice("a", told)]
    assert events(drive(reply(stream=True), [data]))[0]["choices"] == [choice("a", told)]


@pytest.mark.parametrize("stream", [True, False])
def test_an_empty_prompt_loads_the_model_and_is_an_empty_completion(stream: bool) -> None:
    asked = call(PATH, body(prompt="", stream=stream, stream_options={"include_usage": True}))
    assert (asked.prompt_estimate, asked.asked_predict) == (0, 1)
    reading = asked.reply()
    found = drive(reading, [lines([line(done=True, done_reason="load")])[:-1]])
    told = events(found)[:-1] if stream else [json.loads(found)]
    assert told[0]["choices"] == [choice("", "stop")]
    assert told[-1]["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert (reading.counts.prompt, reading.counts.completion, reading.counts.exact) == (0, 0, True)


def test_a_stream_is_a_chunk_a_line_of_one_id_and_time() -> None:
    found = events(drive(reply(stream=True), [lines([line("a"), line(thinking="t", head=LATER), LAST])]))
    assert [event["choices"] for event in found[:-1]] == [[choice("a")], [choice("")], [choice("", "stop")]]
    heads = [{name: event[name] for name in event if name != "choices"} for event in found[:-1]]
    assert heads[0] == heads[1] == heads[2]
    assert heads[0].pop("id").startswith("cmpl-")
    assert heads[0] == {
        "object": "text_completion",
        "created": CREATED,
        "model": "tiny",
        "system_fingerprint": "fp_ollama",
    }
    assert found[-1] == DONE


def test_include_usage_puts_a_zero_in_every_chunk_and_the_sum_in_the_last() -> None:
    *chunks, last, done = events(drive(reply(stream=True, usage=True), [lines([line("a"), LAST])]))
    zero = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert [event["usage"] for event in chunks] == [zero, zero]
    assert last == {
        **chunks[0],
        "choices": [],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
    assert done == DONE


def test_echo_begins_with_the_prompt() -> None:
    found = json.loads(drive(reply(stream=False, echo=True), [lines([line(" you", done=True)])]))
    assert found["choices"] == [choice("hi you", "stop")]
    told = events(drive(reply(stream=True, echo=True), [lines([line(" you"), LAST])]))
    assert [event["choices"][0]["text"] for event in told[:-1]] == ["hi you", ""]


def test_an_error_is_told_in_openais_shape_and_ends_without_done() -> None:
    error = {"message": "upstream failed", "type": "api_error", "param": None, "code": None}
    assert events(reply(stream=True).error_tail(UpstreamFailed())) == [{"error": error}]
    assert json.loads(reply(stream=False).error_tail(UpstreamFailed())) == {"error": error}


@st.composite
def completions(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One completion of a model: the lines of its stream, and the object that it is when not streamed."""
    made = draw(st.lists(st.just("") | texts, max_size=5))
    last = draw(st.just("") | texts)
    end = {**draw(counts), "done_reason": draw(reasons | st.just("load"))}
    stream = [*(line(text) for text in made), line(last, done=True, head=LATER, **end)]
    return stream, line("".join(made) + last, done=True, head=HEAD if made else LATER, **end)


@settings(max_examples=150, deadline=None)
@given(completions(), cuts, st.booleans())
def test_a_stream_adds_up_to_the_whole_reply(
    completion: tuple[list[dict[str, Any]], dict[str, Any]], places: list[int], echo: bool
) -> None:
    stream, native = completion
    at_once, in_pieces = reply(stream=False, echo=echo), reply(stream=True, usage=True, echo=echo)
    expected = json.loads(drive(at_once, [lines([native])]))
    *chunks, usage, done = events(drive(in_pieces, cut(lines(stream), places)))
    text = "".join(event["choices"][0]["text"] for event in chunks)
    *before, reason = (event["choices"][0]["finish_reason"] for event in chunks)
    assert set(before) <= {None}
    assert {**usage, "choices": [choice(text, reason)], "id": None} == {**expected, "id": None}
    assert done == DONE
    assert in_pieces.counts == at_once.counts


@settings(max_examples=150, deadline=None)
@given(completions(), garbage, st.integers(0, 9), cuts)
def test_a_failure_at_any_point_leaves_what_came_before_and_ends_in_an_error(
    completion: tuple[list[dict[str, Any]], dict[str, Any]], bad: bytes, place: int, places: list[int]
) -> None:
    before = completion[0][:-1][:place]
    failed = reply(stream=True)
    found = drive(failed, cut(lines(before) + bad, places))
    assert failed.state is ReplyState.FAILED
    *told, error = events(found + failed.error_tail(UpstreamFailed()))
    assert [event["choices"] for event in told] == [[choice(native["response"])] for native in before]
    assert error["error"]["message"] == "upstream failed"
    assert SECRET not in json.dumps(told, ensure_ascii=False)
