"""OpenAI's chat requests as Ollama's: the compatibility table, row by row."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronetz.dialects.calls import parse_call
from tests.dialects.openai_cases import POLICY, call, problem, read_again, sent

PATH = "/v1/chat/completions"
ASK = [{"role": "user", "content": "hi"}]
IMAGE = base64.b64encode(b"an image").decode()
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":[1]}'}}
NATIVE_CALL = {"id": "c1", "function": {"index": 0, "name": "f", "arguments": {"a": [1]}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": ASK, **fields}


def with_messages(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"model": "tiny", "messages": list(messages)}


def test_the_least_request() -> None:
    assert sent(PATH, body()) == {
        "model": "installed:latest",
        "messages": ASK,
        "options": {"temperature": 1.0, "top_p": 1.0},
        "stream": False,
    }
    assert call(PATH, body()).upstream_path == "/api/chat"


FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "stream": ({"stream": True}, {"stream": True}),
    "stream null": ({"stream": None}, {"stream": False}),
    "response_format json_object": ({"response_format": {"type": "json_object"}}, {"format": "json"}),
    "response_format trimmed and lowered": ({"response_format": {"type": " JSON_Object "}}, {"format": "json"}),
    "response_format json_schema": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "strict": True, "schema": SCHEMA},
            }
        },
        {"format": SCHEMA},
    ),
    "response_format json_schema without a schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
        {},
    ),
    "response_format text": ({"response_format": {"type": "text"}}, {}),
    "response_format unknown": ({"response_format": {"type": "grammar"}}, {}),
    "reasoning_effort none": ({"reasoning_effort": "none"}, {"think": False}),
    "reasoning_effort minimal": ({"reasoning_effort": "minimal"}, {"think": "low"}),
    "reasoning_effort low": ({"reasoning_effort": "low"}, {"think": "low"}),
    "reasoning_effort medium": ({"reasoning_effort": "medium"}, {"think": "medium"}),
    "reasoning_effort high": ({"reasoning_effort": "high"}, {"think": "high"}),
    "reasoning_effort max": ({"reasoning_effort": "max"}, {"think": "max"}),
    "reasoning_effort xhigh": ({"reasoning_effort": "xhigh"}, {"think": "max"}),
    "reasoning_effort ultra": ({"reasoning_effort": "ultra"}, {"think": "max"}),
    "reasoning_effort empty": ({"reasoning_effort": ""}, {}),
    "reasoning.effort": ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, {"think": "low"}),
    "reasoning empty shadows reasoning_effort": ({"reasoning": {}, "reasoning_effort": "high"}, {}),
    "reasoning null does not": ({"reasoning": None, "reasoning_effort": "high"}, {"think": "high"}),
    "tools": ({"tools": [TOOL]}, {"tools": [TOOL]}),
    "tool_choice none drops the tools": ({"tools": [TOOL], "tool_choice": "none"}, {}),
    "tool_choice auto": ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TOOL]}),
    "tool_choice of a function": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tools": [TOOL]},
    ),
    "logprobs, top_logprobs": ({"logprobs": True, "top_logprobs": 20}, {"logprobs": True, "top_logprobs": 20}),
    "n of 1": ({"n": 1}, {}),
    "stream_options is ours": ({"stream_options": {"include_usage": True}}, {}),
    "accepted, not forwarded": (
        {
            "user": "u",
            "metadata": {"a": 1},
            "store": True,
            "logit_bias": {"1": 1},
            "parallel_tool_calls": False,
            "service_tier": "auto",
        },
        {},
    ),
    "unknown": ({"keep_alive": 0, "_debug_render_only": True, "verbosity": "low"}, {}),
    "null is absence": (
        dict.fromkeys(["max_tokens", "temperature", "stop", "tools", "response_format", "n", "stream_options"]),
        {},
    ),
}


@pytest.mark.parametrize("row", FIELDS)
def test_a_field(row: str) -> None:
    given, native = FIELDS[row]
    assert sent(PATH, body(**given)) == {**sent(PATH, body()), **native}


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "max_tokens": ({"max_tokens": 7}, {"num_predict": 7}),
    "max_completion_tokens": ({"max_completion_tokens": 8}, {"num_predict": 8}),
    "max_completion_tokens wins": ({"max_tokens": 7, "max_completion_tokens": 8}, {"num_predict": 8}),
    "temperature 0": ({"temperature": 0}, {"temperature": 0}),
    "temperature": ({"temperature": 0.25}, {"temperature": 0.25}),
    "top_p 0 stays 0": ({"top_p": 0}, {"top_p": 0}),
    "top_p": ({"top_p": 0.5}, {"top_p": 0.5}),
    "seed": ({"seed": -3}, {"seed": -3}),
    "penalties": (
        {"frequency_penalty": 0.5, "presence_penalty": -1},
        {"frequency_penalty": 0.5, "presence_penalty": -1},
    ),
    "stop string": ({"stop": "x"}, {"stop": ["x"]}),
    "stop list": ({"stop": ["x", "y"]}, {"stop": ["x", "y"]}),
    "stop: non-strings are dropped": ({"stop": ["x", 1, None, "y"]}, {"stop": ["x", "y"]}),
    "stop: [] sends nothing": ({"stop": []}, {}),
}


@pytest.mark.parametrize("row", OPTIONS)
def test_an_option(row: str) -> None:
    given, native = OPTIONS[row]
    assert sent(PATH, body(**given))["options"] == {"temperature": 1.0, "top_p": 1.0, **native}


def test_the_asked_bound_is_what_is_reserved() -> None:
    assert call(PATH, body(max_completion_tokens=8, max_tokens=7)).asked_predict == 8
    assert call(PATH, body()).asked_predict is None


MESSAGES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "content string": ([{"role": "user", "content": "x"}], [{"role": "user", "content": "x"}]),
    "role in any case": ([{"role": "User", "content": "x"}], [{"role": "user", "content": "x"}]),
    "role developer": ([{"role": "developer", "content": "x"}], [{"role": "system", "content": "x"}]),
    "one message per part": (
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    ),
    "image_url object": (
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "a"},
                    {
                        "type": "image_url",
                        "image_url": {"url": f"data:image/png;base64,{IMAGE}", "detail": "low"},
                    },
                ],
            }
        ],
        [{"role": "user", "content": "a"}, {"role": "user", "images": [IMAGE]}],
    ),
    "image_url bare string": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": f"data:image/jpeg;base64,{IMAGE}"}]}],
        [{"role": "user", "images": [IMAGE]}],
    ),
    **{
        f"image_url {kind or 'without a type'}": (
            [{"role": "user", "content": [{"type": "image_url", "image_url": f"data:{kind};base64,{IMAGE}"}]}],
            [{"role": "user", "images": [IMAGE]}],
        )
        for kind in ("image/jpg", "image/webp", "")
    },
    "input_audio": (
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": IMAGE, "format": "wav"}}]}],
        [{"role": "user", "images": [IMAGE]}],
    ),
    "content null with tool_calls": (
        [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
        [{"role": "assistant", "content": "", "tool_calls": [NATIVE_CALL]}],
    ),
    "content null with no tool_calls in the list": (
        [{"role": "assistant", "content": None, "tool_calls": []}],
        [{"role": "assistant", "content": ""}],
    ),
    "reasoning": (
        [{"role": "assistant", "content": "x", "reasoning": "because"}],
        [{"role": "assistant", "content": "x", "thinking": "because"}],
    ),
    "calls and thinking go to the last part": (
        [
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "reasoning": "because",
                "tool_calls": [CALL],
            }
        ],
        [
            {"role": "assistant", "content": "a"},
            {"role": "assistant", "content": "b", "thinking": "because", "tool_calls": [NATIVE_CALL]},
        ],
    ),
    "several calls have the index 0": (
        [{"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "c2"}]}],
        [{"role": "assistant", "content": "", "tool_calls": [NATIVE_CALL, {**NATIVE_CALL, "id": "c2"}]}],
    ),
    "arguments blank or absent": (
        [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "f", "arguments": " "}}, {"function": {"name": "g"}}],
            }
        ],
        [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"function": {"index": 0, "name": "f", "arguments": {}}},
                    {"function": {"index": 0, "name": "g", "arguments": {}}},
                ],
            }
        ],
    ),
    "tool with a name": (
        [{"role": "tool", "content": "4", "name": "g", "tool_call_id": "c1"}],
        [{"role": "tool", "content": "4", "tool_name": "g", "tool_call_id": "c1"}],
    ),
    "tool looked up by tool_call_id": (
        [
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ],
        [
            {"role": "assistant", "content": "", "tool_calls": [NATIVE_CALL]},
            {"role": "tool", "content": "4", "tool_name": "f", "tool_call_id": "c1"},
        ],
    ),
    "tool looked up: the last one wins": (
        [
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "function": {"name": "g", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ],
        [
            {"role": "assistant", "content": "", "tool_calls": [NATIVE_CALL]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "c1", "function": {"index": 0, "name": "g", "arguments": {}}}],
            },
            {"role": "tool", "content": "4", "tool_name": "g", "tool_call_id": "c1"},
        ],
    ),
    "tool of a call that is not there": (
        [{"role": "tool", "content": "4", "tool_call_id": "c9"}],
        [{"role": "tool", "content": "4", "tool_call_id": "c9"}],
    ),
    "a call without an id names no tool": (
        [
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
            {"role": "tool", "content": "4"},
        ],
        [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"index": 0, "name": "f", "arguments": {}}}],
            },
            {"role": "tool", "content": "4"},
        ],
    ),
    "tool with content parts keeps what it answers": (
        [
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": [{"type": "text", "text": "4"}], "tool_call_id": "c1"},
        ],
        [
            {"role": "assistant", "content": "", "tool_calls": [NATIVE_CALL]},
            {"role": "tool", "content": "4", "tool_name": "f", "tool_call_id": "c1"},
        ],
    ),
    "name of another role": (
        [{"role": "user", "content": "x", "name": "ada"}],
        [{"role": "user", "content": "x"}],
    ),
}


@pytest.mark.parametrize("row", MESSAGES)
def test_messages(row: str) -> None:
    given, native = MESSAGES[row]
    assert sent(PATH, with_messages(*given))["messages"] == native


def part(**fields: Any) -> dict[str, Any]:
    return with_messages({"role": "user", "content": [fields]})


REFUSED: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "messages empty": (body(messages=[]), "messages", "[] is too short - 'messages'"),
    "messages absent": ({"model": "tiny"}, "messages", "[] is too short - 'messages'"),
    "model absent": ({"messages": ASK}, "model", "model is required"),
    "n beyond 1": (body(n=2), "n", "must be 1"),
    "n of 0": (body(n=0), "n", "must be 1"),
    "content null": (
        with_messages({"role": "user", "content": None}),
        "messages[0].content",
        "invalid message format",
    ),
    "content absent": (with_messages({"role": "user"}), "messages[0].content", "invalid message format"),
    "content a number": (
        with_messages({"role": "user", "content": 1}),
        "messages[0].content",
        "invalid message format",
    ),
    "part unknown": (part(type="file", file={}), "messages[0].content[0]", "invalid message format"),
    "part without its text": (part(type="text"), "messages[0].content[0]", "invalid message format"),
    "image of http": (
        part(type="image_url", image_url={"url": "https://example.com/a.png"}),
        "messages[0].content[0].image_url",
        "not fetched",
    ),
    "image of another type": (
        part(type="image_url", image_url=f"data:image/gif;base64,{IMAGE}"),
        "messages[0].content[0].image_url",
        "invalid image input",
    ),
    "image that is no base64": (
        part(type="image_url", image_url="data:image/png;base64,%%"),
        "messages[0].content[0].image_url",
        "base64",
    ),
    "image_url without url": (
        part(type="image_url", image_url={}),
        "messages[0].content[0].image_url",
        "must be a string",
    ),
    # With each part of a content they would be sent once more.
    "long id of a call": (
        with_messages({"role": "tool", "tool_call_id": "x" * 257, "content": "a"}),
        "messages[0].tool_call_id",
        "at most 256",
    ),
    "long name of a tool": (
        with_messages({"role": "tool", "name": "x" * 257, "content": "a"}),
        "messages[0].name",
        "at most 256",
    ),
    "long role": (with_messages({"role": "x" * 257, "content": "a"}), "messages[0].role", "at most 256"),
    "input_audio that is no base64": (
        part(type="input_audio", input_audio={"data": "%"}),
        "messages[0].content[0].input_audio.data",
        "base64",
    ),
    **{
        f"arguments {arguments!r}": (
            with_messages(
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
            ),
            "messages[0].tool_calls[0].function.arguments",
            "invalid tool call arguments",
        )
        for arguments in ("{", "[]", "1", '{"a":1,"a":2}', "null")
    },
    "reasoning_effort unknown": (body(reasoning_effort="huge"), "reasoning_effort", "must be one of"),
    "reasoning.effort unknown": (body(reasoning={"effort": "huge"}), "reasoning.effort", "must be one of"),
    "top_logprobs beyond 20": (body(top_logprobs=21), "top_logprobs", "from 0 to 20"),
    "top_logprobs below 0": (body(top_logprobs=-1), "top_logprobs", "from 0 to 20"),
    "stop a number": (body(stop=1), "stop", "must be a string"),
    "temperature a string": (body(temperature="hot"), "temperature", "must be a number"),
    "stream a string": (body(stream="yes"), "stream", "must be true or false"),
    "tools of a wrong shape": (
        body(tools=[{"function": {"name": 1}}]),
        "tools[0].function.name",
        "must be a string",
    ),
    "another spelling": (body(Messages=ASK), "messages", "spelled exactly"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_a_refusal(row: str) -> None:
    given, param, words = REFUSED[row]
    found = problem(PATH, given)
    assert (found.status, found.param) == (400, param)
    assert words in found.message


def test_arguments_are_bounded_together() -> None:
    heavy = {"function": {"name": "f", "arguments": json.dumps({"a": [0] * 150_000})}}
    found = problem(PATH, with_messages({"role": "assistant", "tool_calls": [heavy, heavy]}))
    assert "too many values" in found.message


def test_a_body_of_many_parts_does_not_grow_much() -> None:
    long = "x" * 256
    parts = [{"type": "text", "text": "a"}] * 9_999
    given = with_messages({"role": "tool", "name": long, "tool_call_id": long, "content": parts})
    assert 5_000_000 < len(call(PATH, given).upstream_body("tiny", None)) < 8_000_000


texts = st.text(st.characters(codec="utf-8"), max_size=5)
arguments = st.dictionaries(texts, st.integers(-5, 5) | texts | st.lists(st.booleans(), max_size=2), max_size=2)
tool_calls = st.lists(
    st.fixed_dictionaries(
        {
            "function": st.fixed_dictionaries(
                {"name": texts},
                optional={"arguments": arguments.map(json.dumps) | st.sampled_from(["", "x", "[]"])},
            )
        },
        optional={"id": texts, "type": st.just("function")},
    ),
    max_size=2,
)
parts = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": texts}),
    st.fixed_dictionaries(
        {
            "type": st.just("image_url"),
            "image_url": st.sampled_from(
                [f"data:image/png;base64,{IMAGE}", {"url": f"data:;base64,{IMAGE}"}, "http://x"]
            ),
        }
    ),
    st.fixed_dictionaries({"type": st.just("input_audio"), "input_audio": st.just({"data": IMAGE})}),
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "System", "assistant", "tool", "developer"])},
    optional={
        "content": st.none() | texts | st.lists(parts, max_size=3),
        "reasoning": texts,
        "name": texts,
        "tool_call_id": texts,
        "tool_calls": tool_calls,
    },
)
bodies = st.fixed_dictionaries(
    {"model": texts, "messages": st.lists(messages, max_size=4)},
    optional={
        "stream": st.booleans() | st.none(),
        "stream_options": st.just({"include_usage": True}) | st.none(),
        "max_tokens": st.integers(-2, 9) | st.none(),
        "max_completion_tokens": st.integers(-2, 9) | st.floats(0, 9),
        "temperature": st.floats(0, 2) | st.integers(0, 2),
        "top_p": st.floats(0, 1),
        "seed": st.integers(-9, 9),
        "stop": texts | st.lists(texts | st.integers(), max_size=2),
        "response_format": st.fixed_dictionaries(
            {"type": st.sampled_from(["text", "json_object", "json_schema"])},
            optional={"json_schema": st.fixed_dictionaries({}, optional={"schema": arguments})},
        ),
        "reasoning": st.fixed_dictionaries({}, optional={"effort": st.sampled_from(["low", "none", "", "x"])}),
        "reasoning_effort": st.sampled_from(["minimal", "ultra", ""]),
        "tools": st.lists(st.just(TOOL), max_size=2),
        "tool_choice": st.sampled_from(["none", "auto"]),
        "logprobs": st.booleans(),
        "top_logprobs": st.integers(-1, 21),
        "n": st.sampled_from([1, 2, None]),
        "user": texts,
    },
)
OLLAMAS = {"model", "messages", "options", "stream", "format", "think", "tools", "logprobs", "top_logprobs"}


@settings(max_examples=300, deadline=None)
@given(bodies)
def test_whatever_is_accepted_is_a_body_that_ollama_reads_as_it_stands(given_body: dict[str, Any]) -> None:
    made = parse_call(PATH, json.dumps(given_body).encode(), POLICY)
    if made.problem is not None:
        assert made.problem.status == 400
        return
    upstream = sent(PATH, given_body)
    assert set(upstream) <= OLLAMAS
    assert upstream["messages"]
    assert upstream["stream"] is bool(given_body.get("stream"))
    assert read_again("/api/chat", upstream) == upstream
