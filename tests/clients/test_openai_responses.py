"""OpenAI's own Python client on ``/v1/responses``."""

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pydantic
import pytest
import trio

ASK: dict[str, Any] = {"model": "tiny", "input": "tell me of rivers"}
LOOK: Any = {
    "type": "function",
    "name": "look",
    "description": "Look at a place.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    "strict": False,
}


@pytest.fixture
def client(gateway: Any, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
        yield client


async def in_thread(call: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(call)


async def test_streamed_and_whole(client: openai.OpenAI) -> None:
    whole = await in_thread(lambda: client.responses.create(**ASK))
    assert (whole.status, whole.model, whole.usage.output_tokens) == ("completed", "tiny", 16)
    events = await in_thread(lambda: list(client.responses.create(**ASK, stream=True)))
    final = events[-1].response
    assert final.output_text == whole.output_text
    assert final.usage == whole.usage
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text


async def test_the_stream_helper_follows_reasoning_and_text(client: openai.OpenAI, mock_ollama: Any) -> None:
    mock_ollama.configure(thinking=True)

    def followed() -> Any:
        with client.responses.stream(**ASK, reasoning={"effort": "low"}) as stream:
            return [event.type for event in stream], stream.get_final_response()

    kinds, final = await in_thread(followed)
    assert "response.reasoning_summary_text.delta" in kinds
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert final.output[0].summary[0].text == final.output[0].encrypted_content
    assert final.output_text
    assert final.reasoning.effort == "low"


async def test_a_tool_is_called_and_answered(client: openai.OpenAI, mock_ollama: Any) -> None:
    mock_ollama.configure(tool_calls=True, thinking=True)
    asked: list[Any] = [{"role": "user", "content": "look at the river"}]

    def called() -> Any:
        with client.responses.stream(model="tiny", input=asked, tools=[LOOK]) as stream:
            return stream.get_final_response()

    first = await in_thread(called)
    call = next(item for item in first.output if item.type == "function_call")
    assert (call.name, call.status) == ("look", "completed")
    mock_ollama.configure(tool_calls=False)
    asked += [item.to_dict() for item in first.output]
    asked.append({"type": "function_call_output", "call_id": call.call_id, "output": "water"})
    second = await in_thread(lambda: client.responses.create(model="tiny", input=asked, tools=[LOOK]))
    assert second.status == "completed"
    seen = next(seen for seen in reversed(mock_ollama.stats.last) if seen.path == "/api/chat").json()
    _, assistant, tool = seen["messages"]
    assert assistant["thinking"] == first.output[0].encrypted_content
    assert assistant["content"] == first.output_text
    assert assistant["tool_calls"][0]["id"] == call.call_id
    assert tool == {"role": "tool", "content": "water", "tool_name": "look", "tool_call_id": call.call_id}


class Look(pydantic.BaseModel):
    """Look at a place."""

    place: str = ""


async def test_parse_gives_a_tools_arguments_as_a_model(client: openai.OpenAI, mock_ollama: Any) -> None:
    mock_ollama.configure(tool_calls=True)
    tool = openai.pydantic_function_tool(Look)["function"]
    tools: Any = [{"type": "function", **tool, "strict": True}]
    parsed = await in_thread(lambda: client.responses.parse(**ASK, tools=tools))
    call = next(item for item in parsed.output if item.type == "function_call")
    assert call.name == "Look"
    assert isinstance(call.parsed_arguments, dict)


async def test_parse_gives_the_answer_as_a_model(client: openai.OpenAI, mock_ollama: Any) -> None:
    parsed = await in_thread(lambda: client.responses.parse(**ASK, text_format=Look))
    assert isinstance(parsed.output_parsed, Look)
    seen = next(seen for seen in reversed(mock_ollama.stats.last) if seen.path == "/api/chat").json()
    assert seen["format"]["properties"]["place"]["type"] == "string"


async def test_a_cut_reply_is_known_as_such(client: openai.OpenAI) -> None:
    whole = await in_thread(lambda: client.responses.create(**ASK, max_output_tokens=3))
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    events = await in_thread(lambda: list(client.responses.create(**ASK, max_output_tokens=3, stream=True)))
    assert events[-1].type == "response.incomplete"


async def test_a_failure_in_mid_stream_raises(client: openai.OpenAI, mock_ollama: Any) -> None:
    mock_ollama.configure(fail="error_line")
    with pytest.raises(openai.APIError, match="upstream failed"):
        await in_thread(lambda: list(client.responses.create(**ASK, stream=True)))

    def helped() -> Any:
        with client.responses.stream(**ASK) as stream:
            return stream.get_final_response()

    with pytest.raises(openai.APIError, match="upstream failed"):
        await in_thread(helped)


async def test_a_refusal_is_the_clients_exception(client: openai.OpenAI) -> None:
    reference: Any = [{"type": "item_reference", "id": "msg_1"}]
    with pytest.raises(openai.BadRequestError, match="nothing is stored") as caught:
        await in_thread(lambda: client.responses.create(model="tiny", input=reference))
    assert caught.value.param == "input[0].type"


async def test_the_async_client(gateway: Any, key: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key) as client:
        whole = await client.responses.create(**ASK)
        async with client.responses.stream(**ASK) as stream:
            final = await stream.get_final_response()
        assert final.output_text == whole.output_text


async def test_a_client_that_leaves_in_mid_stream_frees_its_slot(
    client: openai.OpenAI, mock_ollama: Any, books: Any
) -> None:
    mock_ollama.configure(tokens=1000, tokens_per_second=50)

    def left() -> None:
        with client.responses.create(**ASK, stream=True) as stream:
            for event in stream:
                if event.type == "response.output_text.delta":
                    return

    await in_thread(left)
    await books.settled(within_s=1)
    [row] = await books.rows(1)
    assert row["outcome"] == "client_disconnected"
    assert 0 < row["completion_tokens"] < 1000
