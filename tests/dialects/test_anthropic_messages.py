"""Anthropic's bodies: what Ollama is asked for each, what is dropped, what is refused."""

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.calls import parse_call
from neuronetz.dialects.native_call import NativeCall

POLICY = BodyPolicy()
ASKED: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def call(body: object) -> NativeCall:
    return parse_call("/v1/messages", json.dumps(body).encode(), POLICY)


def sent(body: object, *, thinks: bool = True) -> dict[str, Any]:
    parsed = call(body)
    if parsed.problem is not None:
        raise parsed.problem
    return msgspec.json.decode(parsed.upstream_body("installed", None, thinks=thinks), type=dict[str, Any])


def told(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    """The native messages for Anthropic's."""
    found: list[dict[str, Any]] = sent({**ASKED, "messages": list(messages)})["messages"]
    return found


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def use(identifier: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": identifier, "name": name, "input": arguments}


def result(identifier: str, content: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": identifier, "content": content, **more}


def test_the_least_body() -> None:
    assert sent(ASKED) == {
        "model": "installed",
        "stream": False,
        "messages": [{"role": "user", "content": "hello"}],
        "options": {"num_predict": 9},
    }
    parsed = call(ASKED)
    assert (parsed.upstream_path, parsed.model, parsed.stream, parsed.asked_predict) == (
        "/api/chat",
        "m",
        False,
        9,
    )


@pytest.mark.parametrize(
    ("given", "native"),
    [
        ({"stream": True}, {"stream": True}),
        ({"stream": None}, {"stream": False}),
        ({"temperature": 0}, {"options": {"num_predict": 9, "temperature": 0}}),
        ({"top_p": 0.5}, {"options": {"num_predict": 9, "top_p": 0.5}}),
        ({"top_k": 40}, {"options": {"num_predict": 9, "top_k": 40}}),
        ({"stop_sequences": ["a", "b"]}, {"options": {"num_predict": 9, "stop": ["a", "b"]}}),
        ({"stop_sequences": []}, {}),
        ({"temperature": None, "top_p": None, "top_k": None, "stop_sequences": None}, {}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"think": True}),
        ({"thinking": {"type": "disabled"}}, {"think": False}),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, {"think": "low"}),
        ({"thinking": {"type": "enabled"}, "output_config": {"effort": "low"}}, {"think": True}),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, {"think": False}),
        ({"output_config": {"effort": "low"}}, {"think": "low"}),
        ({"output_config": {"effort": "medium"}}, {"think": "medium"}),
        ({"output_config": {"effort": " High "}}, {"think": "high"}),
        ({"output_config": {"effort": "xhigh"}}, {"think": "high"}),
        ({"output_config": {"effort": "max"}}, {"think": "max"}),
        ({"output_config": {"effort": "boundless"}}, {}),
        ({"output_config": {}}, {}),
        ({"metadata": {"user_id": "u"}, "service_tier": "auto", "container": None, "inference_geo": "x"}, {}),
        ({"cache_control": {"type": "ephemeral"}}, {}),
    ],
)
def test_a_field_becomes_what_it_is_at_ollama(given: dict[str, Any], native: dict[str, Any]) -> None:
    assert sent({**ASKED, **given}) == {**sent(ASKED), **native}


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("be brief", "be brief"),
        ([text("be "), text("brief", cache_control={"type": "ephemeral"})], "be brief"),
        ([text("be brief"), {"type": "image", "source": 1}], "be brief"),
    ],
)
def test_the_system_prompt_is_one_message_before_all_others(system: Any, expected: str) -> None:
    assert sent({**ASKED, "system": system})["messages"] == [
        {"role": "system", "content": expected},
        {"role": "user", "content": "hello"},
    ]


@pytest.mark.parametrize("system", [None, "", [], [text("")], [{"type": "unknown"}]])
def test_a_system_prompt_that_says_nothing_is_no_message(system: Any) -> None:
    assert sent({**ASKED, "system": system}) == sent(ASKED)


@pytest.mark.parametrize(
    ("messages", "native"),
    [
        pytest.param(
            [user(text("one "), text("two", cache_control={"type": "ephemeral"}))],
            [{"role": "user", "content": "one two"}],
            id="texts are joined",
        ),
        pytest.param(
            [user(text("look: "), IMAGE, text("there"), IMAGE)],
            [{"role": "user", "content": "look: there", "images": ["AAAA", "AAAA"]}],
            id="images go with the text",
        ),
        pytest.param(
            [user({"type": "image", "source": {"type": "base64", "data": "AAAA"}})],
            [{"role": "user", "content": "", "images": ["AAAA"]}],
            id="an image alone, of no media type",
        ),
        pytest.param(
            [assistant({"type": "thinking", "thinking": "hm", "signature": "x"}, text("yes")), user(text("why"))],
            [{"role": "assistant", "content": "yes", "thinking": "hm"}, {"role": "user", "content": "why"}],
            id="thinking",
        ),
        pytest.param(
            [
                assistant(
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "server_tool_use", "id": 5, "name": None},
                    {"type": "web_search_tool_result", "content": {"error": 1}},
                    {"type": "unknown", "text": 1},
                    text("yes"),
                )
            ],
            [{"role": "assistant", "content": "yes"}],
            id="other blocks are dropped, whatever they hold",
        ),
        pytest.param(
            [user(text("hello")), assistant({"type": "unknown"}), user(text(""))],
            [{"role": "user", "content": "hello"}],
            id="a message that is left with nothing is none",
        ),
        pytest.param(
            [assistant(text("look"), use("t1", "weather", city="Bern"), use("t2", "time"))],
            [
                {
                    "role": "assistant",
                    "content": "look",
                    "tool_calls": [
                        {"id": "t1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Bern"}}},
                        {"id": "t2", "function": {"index": 1, "name": "time", "arguments": {}}},
                    ],
                }
            ],
            id="calls of tools",
        ),
        pytest.param(
            [assistant({"type": "tool_use", "id": "t", "name": "time"})],
            [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"id": "t", "function": {"index": 0, "name": "time", "arguments": {}}}],
                }
            ],
            id="a call without input",
        ),
        pytest.param([{"role": "USER", "content": "hello"}], [{"role": "user", "content": "hello"}], id="role"),
    ],
)
def test_a_message_becomes_one_of_ollamas(messages: list[Any], native: list[Any]) -> None:
    assert told(*messages) == native


def test_results_of_tools_come_before_the_text_of_their_message_and_know_whose_they_are() -> None:
    asked = assistant(use("t1", "weather", city="Bern"), use("t2", "time"))
    answers = user(
        text("and now?"),
        result("t2", "noon"),
        result("t1", [text("sun"), IMAGE, text("ny"), {"type": "search_result", "source": 1}]),
        result("t1", is_error=True),
        result("t9", "whose?"),
        {"type": "tool_result"},
    )
    assert told(asked, answers)[1:] == [
        {"role": "tool", "content": "noon", "tool_name": "time", "tool_call_id": "t2"},
        {
            "role": "tool",
            "content": "sunny",
            "images": ["AAAA"],
            "tool_name": "weather",
            "tool_call_id": "t1",
        },
        {"role": "tool", "content": "", "tool_name": "weather", "tool_call_id": "t1"},
        {"role": "tool", "content": "whose?", "tool_call_id": "t9"},
        {"role": "tool", "content": ""},
        {"role": "user", "content": "and now?"},
    ]


def test_an_id_that_is_used_again_means_the_last_call() -> None:
    messages = told(assistant(use("t", "old")), assistant(use("t", "new")), user(result("t", "x")))
    assert messages[-1]["tool_name"] == "new"


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": fields}


@pytest.mark.parametrize(
    ("tools", "native"),
    [
        (
            [{"name": "weather", "description": "of a city", "input_schema": SCHEMA}],
            [function(name="weather", description="of a city", parameters=SCHEMA)],
        ),
        (
            [{"type": "custom", "name": "a", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}],
            [function(name="a", parameters=SCHEMA)],
        ),
        ([{"name": "a"}], [function(name="a", parameters={"type": "object", "properties": {}})]),
        (
            [
                {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
                {"name": "a", "input_schema": SCHEMA},
                {"type": "bash_20250124", "name": "bash"},
            ],
            [function(name="a", parameters=SCHEMA)],
        ),
        (
            [{"type": "web_search_20250305", "name": "web_search", "input_schema": SCHEMA}],
            [function(name="web_search", parameters=SCHEMA)],
        ),
    ],
)
def test_tools(tools: list[Any], native: list[Any]) -> None:
    assert sent({**ASKED, "tools": tools})["tools"] == native


@pytest.mark.parametrize(
    "given",
    [
        {"tools": []},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"name": "a", "input_schema": SCHEMA}], "tool_choice": {"type": "none"}},
    ],
)
def test_where_no_tool_is_left_there_are_none(given: dict[str, Any]) -> None:
    assert sent({**ASKED, **given}) == sent(ASKED)


@pytest.mark.parametrize("choice", [{"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "a"}, None])
def test_any_other_choice_of_a_tool_is_the_models(choice: Any) -> None:
    body = {**ASKED, "tools": [{"name": "a", "input_schema": SCHEMA}]}
    assert sent({**body, "tool_choice": choice}) == sent(body)


@pytest.mark.parametrize(
    ("given", "think"),
    [
        ({"thinking": {"type": "enabled"}}, None),
        ({"output_config": {"effort": "high"}}, None),
        ({"thinking": {"type": "disabled"}}, False),
        ({}, None),
    ],
)
def test_a_model_that_cannot_think_is_not_asked_to(given: dict[str, Any], think: Any) -> None:
    assert sent({**ASKED, **given}, thinks=False).get("think") is think


def test_other_dialects_ask_it_all_the_same() -> None:
    body = {"model": "m", "messages": ASKED["messages"], "think": True}
    parsed = parse_call("/api/chat", json.dumps(body).encode(), POLICY)
    assert b'"think":true' in parsed.upstream_body("m", None, thinks=False)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"model": None}, "model"),
        ({"model": " "}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": [user()], "system": "be brief"}, "messages"),
        ({"messages": [user({"text": "x"})]}, "messages[0].content[0].type"),
        ({"messages": [user(text("x"), {"type": "text"})]}, "messages[0].content[1].text"),
        ({"messages": [user({"type": "image"})]}, "messages[0].content[0].source"),
        (
            {"messages": [user({"type": "image", "source": {"type": "url", "url": "https://x.org/a.png"}})]},
            "messages[0].content[0].source.type",
        ),
        (
            {"messages": [user({"type": "image", "source": {"type": "base64"}})]},
            "messages[0].content[0].source.data",
        ),
        (
            {"messages": [user({"type": "image", "source": {"type": "base64", "data": "?"}})]},
            "messages[0].content[0].source.data",
        ),
        (
            {"messages": [user(result("t", [{"type": "image", "source": {"type": "url"}}]))]},
            "messages[0].content[0].content[0].source.type",
        ),
        ({"messages": [user(result("t", 5))]}, "messages[0].content[0].content"),
        ({"messages": [assistant({"type": "tool_use", "name": "a"})]}, "messages[0].content[0].id"),
        ({"messages": [assistant({"type": "tool_use", "id": "t"})]}, "messages[0].content[0].name"),
        ({"messages": [assistant(use("", "a"))]}, "messages[0].content[0].id"),
        ({"messages": [assistant(use("t", ""))]}, "messages[0].content[0].name"),
        # Every result of the call would repeat it.
        ({"messages": [assistant(use("t", "a" * 257))]}, "messages[0].content[0].name"),
        ({"messages": [{"role": "u" * 257, "content": "a"}]}, "messages[0].role"),
        (
            {"messages": [assistant({"type": "tool_use", "id": "t", "name": "a", "input": "{}"})]},
            "messages[0].content[0].input",
        ),
        ({"messages": [assistant({"type": "thinking"})]}, "messages[0].content[0].thinking"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "text"}]}, "system[0].text"),
        ({"stream": "yes"}, "stream"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": 0.5}, "top_k"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [5]}, "stop_sequences[0]"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"input_schema": SCHEMA}]}, "tools[0].name"),
        ({"tools": [{"name": "a", "input_schema": "x"}]}, "tools[0].input_schema"),
        ({"thinking": True}, "thinking"),
        ({"output_config": {"effort": 5}}, "output_config.effort"),
        ({"tool_choice": "none"}, "tool_choice"),
        ({"MAX_tokens": 5}, "max_tokens"),
    ],
)
def test_what_is_wrong_is_refused_by_the_name_of_its_field(given: dict[str, Any], param: str) -> None:
    problem = call({**ASKED, **given}).problem
    assert problem is not None
    assert problem.param == param
    assert "\n" not in problem.message
    assert "x.org" not in problem.message


def test_what_a_refused_body_names_is_on_record() -> None:
    parsed = call({**ASKED, "stream": True, "max_tokens": 0})
    assert parsed.problem is not None
    assert (parsed.model, parsed.stream) == ("m", True)


def test_images_count_together_wherever_they_stand() -> None:
    many = [IMAGE] * POLICY.max_images
    assert call({**ASKED, "messages": [user(*many)]}).problem is None
    problem = call({**ASKED, "messages": [user(*many[1:], result("t", [IMAGE, IMAGE]))]}).problem
    assert problem is not None
    assert problem.param == "images"


words = st.text(max_size=12)
names = st.text(min_size=1, max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
text_blocks = st.builds(text, words)
image_blocks = st.binary(max_size=9).map(
    lambda data: {"type": "image", "source": {"type": "base64", "data": base64.b64encode(data).decode()}}
)
readable = words | st.lists(text_blocks | image_blocks, max_size=2)
blocks = (
    text_blocks
    | image_blocks
    | st.fixed_dictionaries(
        {
            "type": st.just("tool_use"),
            "id": names,
            "name": names,
            "input": st.dictionaries(words, values, max_size=2),
        }
    )
    | st.fixed_dictionaries(
        {"type": st.just("tool_result"), "tool_use_id": names},
        optional={"content": readable, "is_error": st.booleans()},
    )
    | st.fixed_dictionaries({"type": st.just("thinking"), "thinking": words, "signature": words})
    | st.fixed_dictionaries({"type": st.sampled_from(["redacted_thinking", "unknown"]), "data": values})
)
requests = st.fixed_dictionaries(
    {
        "model": st.just("m"),
        "max_tokens": st.integers(1, 9),
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant"]), "content": words | st.lists(blocks, max_size=3)}
            ),
            max_size=3,
        ).map(lambda messages: [{"role": "user", "content": "hello"}, *messages]),
    },
    optional={
        "system": words | st.lists(text_blocks, max_size=2),
        "stream": st.booleans(),
        "temperature": st.floats(0, 1),
        "top_p": st.floats(0, 1),
        "top_k": st.integers(0, 99),
        "stop_sequences": st.lists(words, max_size=2),
        "thinking": st.sampled_from([{"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}]),
        "output_config": st.sampled_from([{"effort": "low"}, {"effort": "xhigh"}, {}]),
        "tools": st.lists(
            st.sampled_from([{"name": "a", "input_schema": SCHEMA}, {"type": "web_fetch_20250910", "name": "b"}]),
            max_size=2,
        ),
        "tool_choice": st.sampled_from([{"type": "auto"}, {"type": "none"}]),
        "metadata": st.just({"user_id": "u"}),
    },
)


@settings(max_examples=200, deadline=None)
@given(requests, st.booleans())
def test_a_good_request_is_a_body_that_ollamas_own_door_takes_unchanged(
    body: dict[str, Any], thinks: bool
) -> None:
    images = json.dumps(body).count('"image"')
    parsed = call(body)
    if images > POLICY.max_images:
        assert parsed.problem is not None
        return
    assert parsed.problem is None
    data = parsed.upstream_body("m", None, thinks=thinks)
    native = parse_call("/api/chat", data, POLICY)
    assert native.problem is None
    assert json.loads(native.upstream_body("m", None)) == json.loads(data)
    assert (native.stream, native.asked_predict) == (body.get("stream", False), body["max_tokens"])
    assert thinks or json.loads(data).get("think", False) is False
    said = "".join(
        block["text"]
        for message in body["messages"]
        for block in ([text(message["content"])] if isinstance(message["content"], str) else message["content"])
        if block["type"] == "text"
    )
    heard = "".join(
        message["content"] for message in json.loads(data)["messages"] if message["role"] in {"user", "assistant"}
    )
    assert heard == said


odd_blocks = st.dictionaries(
    st.sampled_from(
        ["text", "source", "id", "name", "input", "tool_use_id", "content", "thinking", "Text", "data"]
    ),
    values | st.just("AAAA"),
    max_size=4,
).flatmap(
    lambda fields: st.sampled_from(["text", "image", "tool_use", "tool_result", "thinking", "x", None, 5]).map(
        lambda kind: {"type": kind, **fields}
    )
)
odd_requests = st.dictionaries(
    st.sampled_from(
        ["system", "tools", "thinking", "output_config", "tool_choice", "stream", "top_k", "metadata"]
    ),
    values | st.lists(odd_blocks, max_size=2),
    max_size=3,
).flatmap(
    lambda fields: st.lists(odd_blocks | values, max_size=3).map(
        lambda content: {**ASKED, **fields, "messages": [{"role": "user", "content": content}]}
    )
)


@settings(max_examples=300, deadline=None)
@given(odd_requests)
def test_any_request_is_refused_or_is_one_that_ollamas_own_door_takes(body: dict[str, Any]) -> None:
    parsed = call(body)
    if parsed.problem is None:
        assert parse_call("/api/chat", parsed.upstream_body("m", None), POLICY).problem is None
