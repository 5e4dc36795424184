"""Tools by OpenAI's own client: called, called in parallel, put together from a stream, and answered."""

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field

from tests.clients.threads import in_thread
from tests.clients.upstream import last_body


class Weather(BaseModel):
    """The weather at a place."""

    place: str
    days: int
    unit: str | None = Field(default=None, description="of temperature")


def tool(name: str, **properties: str) -> Any:
    schema = {
        "type": "object",
        "properties": {field: {"type": kind} for field, kind in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": name, "parameters": schema, "strict": True},
    }


TOOLS: Any = [tool("weather", place="string", days="integer"), tool("tides", harbour="string")]


def asked(text: str) -> Any:
    return [{"role": "user", "content": text}]


async def test_a_call_and_its_answer_go_round(openai_client: openai.OpenAI, mock_ollama: Any) -> None:
    messages = asked("[[tool:weather]] the weather?")
    first = await in_thread(
        lambda: openai_client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    )
    assert first.choices[0].finish_reason == "tool_calls"
    message = first.choices[0].message
    [call] = message.tool_calls or ()
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"place": "quick", "days": 7}
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    second = await in_thread(
        lambda: openai_client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    )
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content
    _, said, answer = last_body(mock_ollama)["messages"]
    assert said["tool_calls"] == [
        {"id": call.id, "function": {"index": 0, "name": "weather", "arguments": {"place": "quick", "days": 7}}}
    ]
    assert answer == {"role": "tool", "content": "rain", "tool_name": "weather", "tool_call_id": call.id}


@pytest.mark.parametrize("together", [0, 1])
async def test_parallel_calls_are_told_apart_whole_and_streamed(
    openai_client: openai.OpenAI, together: int
) -> None:
    messages = asked(f"[[tools:2]] [[together:{together}]]")
    whole = await in_thread(
        lambda: openai_client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    )

    def streamed() -> tuple[list[Any], Any]:
        with openai_client.chat.completions.stream(model="tiny", messages=messages, tools=TOOLS) as stream:
            events = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
            return events, stream.get_final_completion()

    events, final = await in_thread(streamed)
    for completion in (whole, final):
        calls = completion.choices[0].message.tool_calls
        assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
            ("weather", {"place": "quick", "days": 7}),
            ("tides", {"harbour": "quick"}),
        ]
        assert len({call.id for call in calls}) == 2
        assert completion.choices[0].finish_reason == "tool_calls"
    assert [(event.index, event.name) for event in events] == [(0, "weather"), (1, "tides")]


async def test_a_call_is_put_together_from_bare_chunks(openai_client: openai.OpenAI) -> None:
    """As most applications do it: by index, names and arguments appended."""

    def ask() -> tuple[dict[int, dict[str, str]], list[str | None]]:
        calls: dict[int, dict[str, str]] = {}
        reasons = []
        stream = openai_client.chat.completions.create(
            model="tiny", messages=asked("[[tools:2]]"), tools=TOOLS, stream=True
        )
        for chunk in stream:
            reasons.append(chunk.choices[0].finish_reason)
            for piece in chunk.choices[0].delta.tool_calls or ():
                call = calls.setdefault(piece.index, {"id": "", "name": "", "arguments": ""})
                call["id"] += piece.id or ""
                call["name"] += piece.function.name or ""
                call["arguments"] += piece.function.arguments or ""
        return calls, reasons

    calls, reasons = await in_thread(ask)
    assert [calls[index]["name"] for index in (0, 1)] == ["weather", "tides"]
    assert json.loads(calls[0]["arguments"]) == {"place": "quick", "days": 7}
    assert reasons[-1] == "tool_calls"
    assert set(reasons[:-1]) == {None}


async def test_parse_reads_a_tools_arguments(openai_client: openai.OpenAI) -> None:
    reply = await in_thread(
        lambda: openai_client.chat.completions.parse(
            model="tiny",
            messages=asked("[[tool:Weather]]"),
            tools=[openai.pydantic_function_tool(Weather)],
            tool_choice="required",
        )
    )
    [call] = reply.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == Weather(place="quick", days=7, unit="quick")


async def test_arguments_that_are_no_object_are_a_bad_request(openai_client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{not json"}}
    messages: Any = [
        *asked("the weather?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    with pytest.raises(openai.BadRequestError) as refused:
        await in_thread(
            lambda: openai_client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
        )
    assert refused.value.param == "messages[1].tool_calls[0].function.arguments"


async def test_a_message_kept_with_all_its_nulls_goes_back(openai_client: openai.OpenAI, mock_ollama: Any) -> None:
    """As applications keep it: the whole object, and the tool's answer in parts."""
    messages = asked("[[tool:tides]]")
    first = await in_thread(
        lambda: openai_client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    )
    kept = first.choices[0].message.model_dump()
    assert kept["refusal"] is None
    parts = [{"type": "text", "text": "high"}, {"type": "text", "text": "at noon"}]
    messages += [kept, {"role": "tool", "tool_call_id": kept["tool_calls"][0]["id"], "content": parts}]
    second = await in_thread(
        lambda: openai_client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    )
    assert second.choices[0].finish_reason == "stop"
    answers = last_body(mock_ollama)["messages"][2:]
    assert [(answer["tool_name"], answer["content"]) for answer in answers] == [
        ("tides", "high"),
        ("tides", "at noon"),
    ]
