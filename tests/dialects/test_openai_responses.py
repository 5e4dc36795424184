"""OpenAI's responses as bodies of ``/api/chat``: each field, each kind of item, and what is refused."""

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.calls import parse_call
from neuronetz.dialects.native_call import NativeCall

POLICY = BodyPolicy()
PIXEL = "iVBORw0KGgo="
URI = f"data:image/png;base64,{PIXEL}"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def parsed(**fields: Any) -> NativeCall:
    return parse_call("/v1/responses", json.dumps({"model": "m", "input": "hi", **fields}).encode(), POLICY)


def native(**fields: Any) -> dict[str, Any]:
    sent: dict[str, Any] = msgspec.json.decode(parsed(**fields).upstream_body("installed", None))
    return sent


def messages(given: Any) -> Any:
    return native(input=given)["messages"]


def refusal(**fields: Any) -> tuple[str | None, str]:
    problem = parsed(**fields).problem
    assert problem is not None
    return problem.param, problem.message


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def call(call_id: str, name: str = "look", arguments: str = '{"a":1}', **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, **more}


def native_call(call_id: str, index: int = 0, name: str = "look", **arguments: Any) -> dict[str, Any]:
    return {"id": call_id, "function": {"index": index, "name": name, "arguments": arguments}}


def test_a_text_makes_a_body_with_openais_defaults() -> None:
    assert native() == {
        "model": "installed",
        "messages": [{"role": "user", "content": "hi"}],
        "options": {"temperature": 1.0},
        "stream": False,
    }
    assert native(stream=True)["stream"] is True
    assert parsed().upstream_path == "/api/chat"


@pytest.mark.parametrize(
    ("field", "value", "options"),
    [
        ("temperature", 0, {"temperature": 0}),
        ("top_p", 0.5, {"temperature": 1.0, "top_p": 0.5}),
        ("max_output_tokens", 7, {"temperature": 1.0, "num_predict": 7}),
        ("max_output_tokens", None, {"temperature": 1.0}),
    ],
)
def test_options(field: str, value: Any, options: dict[str, Any]) -> None:
    assert native(**{field: value})["options"] == options


def test_the_bound_of_tokens_is_known_to_the_budget() -> None:
    assert parsed(max_output_tokens=7).asked_predict == 7


@pytest.mark.parametrize(
    ("asked", "think"),
    [("none", False), ("minimal", "low"), ("low", "low"), ("high", "high"), ("max", "max"), ("xhigh", "max")],
)
def test_effort(asked: str, think: Any) -> None:
    assert native(reasoning={"effort": asked, "summary": "auto"})["think"] == think


@pytest.mark.parametrize("asked", [None, {}, {"effort": None}, {"effort": ""}, {"summary": "auto"}])
def test_no_effort_leaves_thinking_to_the_model(asked: Any) -> None:
    assert "think" not in native(reasoning=asked)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}, SCHEMA),
        ({"type": " JSON_Schema ", "schema": SCHEMA}, SCHEMA),
        ({"type": "json_object"}, "json"),
        ({"type": "text"}, None),
        ({"type": "other"}, None),
        (None, None),
    ],
)
def test_format(asked: Any, expected: Any) -> None:
    assert native(text={"format": asked}).get("format") == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([user()], [{"role": "user", "content": ""}]),
        ([{"type": "message", "role": "user", "content": "a"}], [{"role": "user", "content": "a"}]),
        ([{"role": "developer", "content": "a"}], [{"role": "system", "content": "a"}]),
        (
            [user({"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"})],
            [{"role": "user", "content": "ab"}],
        ),
        (
            [
                user(
                    {"type": "input_image", "image_url": URI, "detail": "auto"},
                    {"type": "input_text", "text": "b"},
                )
            ],
            [{"role": "user", "content": "b", "images": [PIXEL]}],
        ),
        (
            [
                {
                    "type": "message",
                    "id": "msg_1",
                    "status": "completed",
                    "role": "assistant",
                    "content": [
                        {"type": "output_text", "text": "a", "annotations": [], "logprobs": []},
                        {"type": "refusal", "refusal": "b"},
                    ],
                }
            ],
            [{"role": "assistant", "content": "ab"}],
        ),
        (
            [{"role": "assistant", "content": "a"}, call("1"), call("2")],
            [
                {
                    "role": "assistant",
                    "content": "a",
                    "tool_calls": [native_call("1", a=1), native_call("2", 1, a=1)],
                }
            ],
        ),
        (
            [{"role": "user", "content": "a"}, call("1", arguments="")],
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "", "tool_calls": [native_call("1")]},
            ],
        ),
        (
            [call("1", "get", namespace="crm"), {"type": "function_call_output", "call_id": "1", "output": "x"}],
            [
                {"role": "assistant", "content": "", "tool_calls": [native_call("1", name="crm.get", a=1)]},
                {"role": "tool", "content": "x", "tool_name": "crm.get", "tool_call_id": "1"},
            ],
        ),
        (
            [
                {
                    "type": "function_call_output",
                    "call_id": "unknown",
                    "output": [
                        {"type": "input_text", "text": "x"},
                        {"type": "output_text", "text": "y"},
                        {"type": "input_image", "image_url": URI},
                    ],
                }
            ],
            [{"role": "tool", "content": "xy", "images": [PIXEL], "tool_call_id": "unknown"}],
        ),
        (
            [
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "hm"},
                {"role": "assistant", "content": "a"},
            ],
            [{"role": "assistant", "content": "a", "thinking": "hm"}],
        ),
        (
            [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}, call("1")],
            [{"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [native_call("1", a=1)]}],
        ),
        (
            [
                {"role": "user", "content": "a"},
                {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}], "summary": []},
            ],
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "thinking": "hm"}],
        ),
        (
            [
                {"role": "user", "content": "a"},
                {"type": "web_search_call", "id": "ws_1", "action": {"query": "x"}},
            ],
            [{"role": "user", "content": "a"}],
        ),
    ],
)
def test_items(given: list[Any], expected: list[Any]) -> None:
    assert messages(given) == expected


def test_thoughts_in_many_items_are_joined_in_no_more_than_linear_time() -> None:
    thought = {"type": "reasoning", "encrypted_content": "x" * 1600}
    started = time.process_time()
    [last] = messages([thought] * 9_999)
    assert time.process_time() - started < 2.0
    assert last == {"role": "assistant", "content": "", "thinking": "x" * 1600 * 9_999}


def test_instructions_come_first() -> None:
    assert native(instructions="be brief")["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]


FLAT = {"type": "function", "name": "look", "description": "d", "parameters": SCHEMA, "strict": True}
NESTED = {"type": "function", "function": {"name": "look", "description": "d", "parameters": SCHEMA}}


def test_tools() -> None:
    space = {
        "type": "namespace",
        "name": "crm",
        "description": "d",
        "tools": [
            {"type": "function", "name": "get", "parameters": None},
            {"type": "function", "name": "crm.put"},
            {"type": "custom", "name": "free"},
        ],
    }
    assert native(tools=[FLAT])["tools"] == [NESTED]
    assert native(tools=[FLAT], tool_choice="required")["tools"] == [NESTED]
    assert "tools" not in native(tools=[FLAT], tool_choice="none")
    expanded = native(tools=[space])["tools"]
    assert [tool["function"] for tool in expanded] == [{"name": "crm.get"}, {"name": "crm.put"}]


@pytest.mark.parametrize(
    "kind",
    [
        "web_search",
        "web_search_preview",
        "file_search",
        "computer_use_preview",
        "code_interpreter",
        "image_generation",
        "mcp",
        "local_shell",
        "shell",
        "apply_patch",
        "custom",
    ],
)
def test_what_openai_would_run_is_left_out(kind: str) -> None:
    tool = {"type": kind, "name": "web_search", "server_url": "https://example.com", "authorization": "token"}
    assert native(tools=[tool, FLAT])["tools"] == [NESTED]
    assert "tools" not in native(tools=[tool])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": 1}, "input"),
        ({"input": [1]}, "input[0]"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": "message", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [user({"type": "input_file", "file_id": "x"})]}, "input[0].content[0].type"),
        ({"input": [user({"type": "input_audio"})]}, "input[0].content[0].type"),
        ({"input": [user({"text": "a"})]}, "input[0].content[0].type"),
        ({"input": [user({"type": "input_image", "file_id": "x"})]}, "input[0].content[0].image_url"),
        (
            {"input": [user({"type": "input_image", "image_url": "https://example.com/a.png"})]},
            "input[0].content[0].image_url",
        ),
        ({"input": [call("1", arguments="[]")]}, "input[0].arguments"),
        ({"input": [call("1", name="x" * 257)]}, "input[0].name"),
        ({"input": [{"type": "function_call_output", "output": "a"}]}, "input[0].call_id"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "namespace", "name": "x"}]}, "tools[0].tools"),
        ({"tools": [{"type": "namespace", "name": "x" * 257, "tools": []}]}, "tools[0].name"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"reasoning": {"effort": "enormous"}}, "reasoning.effort"),
        ({"max_output_tokens": "7"}, "max_output_tokens"),
        ({"metadata": {"a": 1}}, "metadata.*"),
        ({"Input": "smuggled"}, "input"),
        ({"model": None}, "model"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields)[0] == param


def test_a_reference_is_told_why_it_cannot_be_followed() -> None:
    assert "nothing is stored here" in refusal(input=[{"type": "item_reference", "id": "msg_1"}])[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"store": True},
        {"background": True},
        {"include": ["reasoning.encrypted_content"]},
        {"truncation": "auto"},
    ],
)
def test_what_changes_nothing(fields: dict[str, Any]) -> None:
    assert native(**fields) == native()


texts = st.text(max_size=6)
ids = st.sampled_from(["1", "2", "3"])
parts = st.one_of(
    st.builds(lambda t: {"type": "input_text", "text": t}, texts),
    st.builds(lambda t: {"type": "output_text", "text": t, "annotations": []}, texts),
    st.just({"type": "input_image", "image_url": URI}),
)
contents = texts | st.lists(parts, max_size=3)
items = st.one_of(
    st.builds(
        lambda r, c: {"role": r, "content": c},
        st.sampled_from(["user", "assistant", "system", "developer"]),
        contents,
    ),
    st.builds(lambda i, a: call(i, arguments=json.dumps(a)), ids, st.dictionaries(texts, texts, max_size=2)),
    st.builds(lambda i, c: {"type": "function_call_output", "call_id": i, "output": c}, ids, contents),
    st.builds(lambda t: {"type": "reasoning", "summary": [], "encrypted_content": t}, texts),
)
bodies = st.fixed_dictionaries(
    {"input": st.lists(items, max_size=6)},
    optional={
        "instructions": texts,
        "temperature": st.floats(0, 2),
        "max_output_tokens": st.integers(1, 99),
        "reasoning": st.fixed_dictionaries({"effort": st.sampled_from(["none", "low", "high"])}),
        "text": st.just({"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}),
        "tools": st.lists(st.sampled_from([FLAT, {"type": "web_search"}]), max_size=2),
        "stream": st.booleans(),
        "metadata": st.dictionaries(texts, texts, max_size=1),
    },
)


@settings(max_examples=150, deadline=None)
@given(bodies)
def test_what_is_sent_is_itself_a_body_that_ollama_takes(body: dict[str, Any]) -> None:
    made = parsed(**body)
    if made.problem is not None:
        assert made.problem.param in {"input", "images"}
        return
    sent = made.upstream_body("installed", 5)
    again = parse_call("/api/chat", sent, POLICY)
    assert again.problem is None
    assert msgspec.json.decode(again.upstream_body("installed", 5)) == msgspec.json.decode(sent)
    assert again.prompt_estimate == made.prompt_estimate


@settings(max_examples=150, deadline=None)
@given(st.lists(items, max_size=8))
def test_no_words_are_lost_or_made_up(given_items: list[Any]) -> None:
    made = parsed(input=given_items)
    if made.problem is not None:
        return
    said, thought, called = "", "", 0
    for item in given_items:
        content = item.get("content", item.get("output", ""))
        said += content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        thought += item.get("encrypted_content", "")
        called += item.get("type") == "function_call"
    sent = msgspec.json.decode(made.upstream_body("m", None))["messages"]
    assert "".join(message["content"] for message in sent) == said
    assert "".join(message.get("thinking", "") for message in sent) == thought
    assert sum(len(message.get("tool_calls", ())) for message in sent) == called
