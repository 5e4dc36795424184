"""What the mock plays for clients of other dialects: calls, thinking, logprobs, structured replies, rare lines."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from neuronetz.embedded.mock_replies import completion, word
from neuronetz.embedded.ollama import MockOllama

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "days"],
}
TOOLS = [
    {"type": "function", "function": {"name": "get-weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "clock"}},
    {"type": "function", "function": {"name": "log.note", "parameters": {"type": "object"}}},
]


@pytest.fixture
async def http(mock_ollama: MockOllama) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=mock_ollama.url, timeout=5) as client:
        yield client


async def chat(http: httpx.AsyncClient, text: str, model: str = "tiny", **fields: Any) -> list[dict[str, Any]]:
    messages = [{"role": "user", "content": text}, *fields.pop("more", [])]
    reply = await http.post("/api/chat", json={"model": model, "messages": messages, **fields})
    assert reply.status_code == 200, reply.text
    return [json.loads(line) for line in reply.text.splitlines()]


def calls_of(line: dict[str, Any]) -> list[tuple[int, str, dict[str, Any]]]:
    functions = [call["function"] for call in line["message"].get("tool_calls", ())]
    return [(function["index"], function["name"], function["arguments"]) for function in functions]


def texts_of(lines: list[dict[str, Any]]) -> list[str]:
    return [line["message"]["content"] for line in lines]


# Tool calls


async def test_the_named_tool_is_called_with_what_its_schema_requires(http: httpx.AsyncClient) -> None:
    *tokens, call, last = await chat(http, "[[tool:get-weather]] [[tokens:3]]", tools=TOOLS)
    assert calls_of(call) == [(0, "get-weather", {"city": "quick", "days": 7})]
    assert (call["message"]["content"], call["done"]) == ("", False)
    assert texts_of(tokens) == [word(index) for index in range(3)]
    assert (last["done_reason"], "tool_calls" in last["message"]) == ("stop", False)
    assert not calls_of((await chat(http, "[[tool:nobody]]", tools=TOOLS))[-2])
    assert not calls_of((await chat(http, "[[tool:clock]]"))[-2])


async def test_tools_are_called_in_parallel_each_by_its_own_index_and_id(http: httpx.AsyncClient) -> None:
    lines = await chat(http, "[[tools:2]]", tools=TOOLS)
    assert [calls_of(line) for line in lines[-3:-1]] == [
        [(0, "get-weather", {"city": "quick", "days": 7})],
        [(1, "clock", {})],
    ]
    [whole] = await chat(http, "[[tools:9]]", tools=TOOLS, stream=False)
    assert [name for _, name, _ in calls_of(whole)] == ["get-weather", "clock", "log.note"]
    assert whole["message"]["content"] == completion(16)
    assert whole["done_reason"] == "stop"
    ids = [call["id"] for line in [*lines[-3:-1], whole] for call in line["message"]["tool_calls"]]
    assert all(name.startswith("call_") for name in ids)
    assert len(set(ids)) == 5


async def test_calls_can_come_in_one_line(http: httpx.AsyncClient) -> None:
    lines = await chat(http, "[[tools:3]] [[together:1]]", tools=TOOLS)
    assert [index for index, _, _ in calls_of(lines[-2])] == [0, 1, 2]
    assert not calls_of(lines[-3])


@pytest.mark.parametrize("marker", ["[[tool:clock]]", "[[tools:2]]", ""])
async def test_a_tool_that_has_answered_is_not_called_again(
    http: httpx.AsyncClient, mock_ollama: MockOllama, marker: str
) -> None:
    mock_ollama.configure(tool_calls=not marker)
    answered = {"role": "tool", "content": "the secret of the tool", "tool_name": "clock"}
    for stream in (True, False):
        lines = await chat(http, marker, tools=TOOLS, stream=stream)
        assert any(map(calls_of, lines))
        lines = await chat(http, marker, tools=TOOLS, stream=stream, more=[answered])
        assert not any(map(calls_of, lines))
        assert "".join(texts_of(lines)) == completion(16)


async def test_generate_knows_no_tools(http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "[[tools:1]]", "tools": TOOLS, "stream": False}
    assert "tool_calls" not in (await http.post("/api/generate", json=body)).json()


# Thinking


@pytest.mark.parametrize(
    ("think", "thoughts"), [(None, 7), (True, 7), ("low", 7), ("max", 7), (False, 0)], ids=str
)
async def test_a_model_that_can_think_does_unless_told_not_to(
    http: httpx.AsyncClient, think: object, thoughts: int
) -> None:
    *tokens, last = await chat(http, "[[think:7]]", "thinker", think=think)
    assert [line["message"].get("thinking", "") for line in tokens] == [*map(word, range(thoughts)), *[""] * 16]
    assert last["eval_count"] == thoughts + 16
    assert "".join(texts_of(tokens)) == completion(16)


async def test_a_model_that_cannot_think_does_not(http: httpx.AsyncClient) -> None:
    [whole] = await chat(http, "[[think:7]]", stream=False)
    assert (whole["eval_count"], "thinking" in whole["message"]) == (16, False)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "think": True}
    reply = await http.post("/api/chat", json=body)
    assert (reply.status_code, reply.text) == (400, '{"error":"\\"tiny\\" does not support thinking"}')
    shown = (await http.post("/api/show", json={"model": "thinker"})).json()
    assert "thinking" in shown["capabilities"]


@pytest.mark.parametrize("thoughts", [1, 4])
async def test_thinking_and_content_can_share_a_line(http: httpx.AsyncClient, thoughts: int) -> None:
    lines = await chat(http, f"[[both:1]] [[think:{thoughts}]] [[tokens:2]]", "thinker", logprobs=True)
    shared = lines[thoughts - 1]
    assert shared["message"] == {"role": "assistant", "content": word(0), "thinking": word(thoughts - 1)}
    assert [entry["token"] for entry in shared["logprobs"]] == [word(0)]
    assert (len(lines), lines[-1]["eval_count"]) == (thoughts + 2, thoughts + 2)
    [whole] = await chat(http, f"[[both:1]] [[think:{thoughts}]]", "thinker", stream=False)
    assert (whole["message"]["thinking"], whole["message"]["content"]) == (completion(thoughts), completion(16))
    without = await chat(http, "[[both:1]]", "thinker", think=False)
    assert not any("thinking" in line["message"] for line in without)
    cut = await chat(http, "[[both:1]] [[think:4]]", "thinker", options={"num_predict": 4})
    assert [line["message"].get("thinking", "") for line in cut] == [*map(word, range(4)), ""]


# Logprobs


@pytest.mark.parametrize(("path", "field"), [("/api/chat", "messages"), ("/api/generate", "prompt")])
@pytest.mark.parametrize("top", [None, 0, 1, 20])
async def test_logprobs_come_with_each_content_line(
    http: httpx.AsyncClient, path: str, field: str, top: int | None
) -> None:
    prompt = "hello" if field == "prompt" else [{"role": "user", "content": "hello"}]
    body = {"model": "thinker", field: prompt, "logprobs": True, "top_logprobs": top}
    *lines, last = [json.loads(line) for line in (await http.post(path, json=body)).text.splitlines()]
    thoughts, tokens = lines[:4], lines[4:]
    assert not any("logprobs" in line for line in [*thoughts, last])
    whole = (await http.post(path, json=body | {"stream": False})).json()
    assert whole["logprobs"] == [entry for line in tokens for entry in line["logprobs"]]
    entries = whole["logprobs"]
    assert [entry["token"] for entry in entries] == [word(index) for index in range(16)]
    for entry in entries:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert entry["logprob"] < 0
        likeliest = entry.pop("top_logprobs", [])
        assert len(likeliest) == (top or 0)
        assert not likeliest or likeliest[0] == entry
        assert likeliest == sorted(likeliest, key=lambda each: -each["logprob"])


async def test_there_are_no_logprobs_unless_asked_for(http: httpx.AsyncClient) -> None:
    lines = await chat(http, "[[lastlogprobs:1]]", top_logprobs=3)
    assert not any("logprobs" in line for line in lines)


async def test_the_last_line_can_carry_logprobs_alone(http: httpx.AsyncClient) -> None:
    lines = await chat(http, "[[lastlogprobs:1]] [[tokens:2]]", logprobs=True)
    assert [len(line["logprobs"]) for line in lines] == [1, 1, 1]
    assert (lines[-1]["done"], lines[-1]["message"]["content"]) == (True, "")
    [whole] = await chat(http, "[[lastlogprobs:1]] [[tokens:2]]", logprobs=True, stream=False)
    assert whole["logprobs"] == [line["logprobs"][0] for line in lines]


# Structured replies


@pytest.mark.parametrize(
    ("form", "value"), [("json", {"answer": "quick"}), (WEATHER, {"city": "quick", "days": 7}), ({}, "quick")]
)
async def test_a_structured_reply_is_json_over_several_lines(
    http: httpx.AsyncClient, form: object, value: object
) -> None:
    *tokens, last = await chat(http, "[[tokens:1]]", format=form)
    assert len(tokens) > 1
    assert json.loads("".join(texts_of(tokens))) == value
    assert (last["eval_count"], last["done_reason"]) == (len(tokens), "stop")
    [whole] = await chat(http, "", "thinker", format=form, stream=False)
    assert json.loads(whole["message"]["content"]) == value
    assert whole["message"]["thinking"] == completion(4)


async def test_a_structured_reply_is_cut_by_num_predict(http: httpx.AsyncClient) -> None:
    *tokens, last = await chat(http, "x", format="json", options={"num_predict": 2})
    assert (len(tokens), last["eval_count"], last["done_reason"]) == (2, 2, "length")
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads("".join(texts_of(tokens)))


# The last line


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("reason", "shown"), [("length", "length"), ("load", "load"), ("absent", None)])
async def test_the_reason_on_demand(http: httpx.AsyncClient, reason: str, shown: str | None, stream: bool) -> None:
    last = (await chat(http, f"[[reason:{reason}]] [[tools:1]]", tools=TOOLS, stream=stream))[-1]
    assert last.get("done_reason") == shown
    assert (last["done"], last["eval_count"]) == (True, 16)


async def test_content_can_come_with_the_last_line(http: httpx.AsyncClient) -> None:
    lines = await chat(http, "[[lastcontent:1]] [[tokens:3]]", logprobs=True)
    assert texts_of(lines) == [word(index) for index in range(3)]
    assert [entry["token"] for entry in lines[-1]["logprobs"]] == [word(2)]
    assert lines[-1]["eval_count"] == 3
    [whole] = await chat(http, "[[lastcontent:1]] [[tokens:3]]", stream=False)
    assert whole["message"]["content"] == completion(3)
    [only] = await chat(http, "[[lastcontent:1]] [[both:1]] [[think:1]] [[tokens:1]]", "thinker")
    assert (only["done"], only["message"]["content"], only["message"]["thinking"]) == (True, word(0), word(0))
    thoughts = await chat(http, "[[lastcontent:1]]", "thinker", options={"num_predict": 4})
    assert (len(thoughts), thoughts[-1]["message"]["content"]) == (5, "")


async def test_a_marker_of_the_wrong_type_is_refused(http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "[[tools:many]]"}
    assert (await http.post("/api/generate", json=body)).status_code == 400
