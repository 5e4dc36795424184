"""Ollama's own Python client, pointed at the gateway."""

import asyncio
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
import trio
from pydantic import BaseModel

from tests.clients.threads import in_asyncio, in_thread
from tests.clients.upstream import last_body

QUESTION = [{"role": "user", "content": "tell me of rivers"}]


@pytest.fixture
def client(gateway: Any, key: str) -> Iterator[ollama.Client]:
    client = ollama.Client(host=gateway.base_url, headers={"Authorization": f"Bearer {key}"})
    yield client
    client._client.close()


async def test_list_and_show(client: ollama.Client) -> None:
    listed = await in_thread(client.list)
    assert "tiny:latest" in {model.model for model in listed.models}
    shown = await in_thread(lambda: client.show("tiny"))
    assert shown.details is not None


async def test_chat_streamed_and_whole(client: ollama.Client) -> None:
    parts = await in_thread(lambda: list(client.chat("tiny", QUESTION, stream=True)))
    assert parts[-1].done
    assert parts[-1].eval_count == 16
    whole = await in_thread(lambda: client.chat("tiny", QUESTION))
    assert whole.message.content == "".join(part.message.content or "" for part in parts)


async def test_generate_streamed_and_whole(client: ollama.Client) -> None:
    parts = await in_thread(lambda: list(client.generate("tiny", "rivers", stream=True)))
    whole = await in_thread(lambda: client.generate("tiny", "rivers"))
    assert whole.response == "".join(part.response for part in parts)
    assert whole.done_reason == "stop"


async def test_embed(client: ollama.Client) -> None:
    reply = await in_thread(lambda: client.embed("embed", ["one", "two"]))
    assert len(reply.embeddings) == 2
    old = await in_thread(lambda: client.embeddings("embed", "one"))
    assert len(old.embedding) == len(reply.embeddings[0])


async def test_ps(client: ollama.Client) -> None:
    await in_thread(lambda: client.generate("tiny", "rivers"))
    running = await in_thread(client.ps)
    assert {model.model for model in running.models} == {"tiny:latest"}


@pytest.mark.parametrize("stream", [False, True])
async def test_pull_is_a_response_error_403(client: ollama.Client, stream: bool) -> None:
    def pull() -> None:
        answer = client.pull("tiny", stream=stream)
        if stream:
            list(answer)

    with pytest.raises(ollama.ResponseError) as refused:
        await in_thread(pull)
    assert refused.value.status_code == 403


async def test_an_error_in_mid_stream_is_raised(client: ollama.Client) -> None:
    broken = [{"role": "user", "content": "[[fail:error_line]]"}]
    with pytest.raises(ollama.ResponseError, match="upstream failed"):
        await in_thread(lambda: list(client.chat("tiny", broken, stream=True)))


async def test_a_client_that_drops_its_stream_stops_the_model(
    client: ollama.Client, mock_ollama: Any, books: Any
) -> None:
    def taste() -> None:
        long = [{"role": "user", "content": "[[tokens:1000]] [[tps:50]]"}]
        stream = client.chat("tiny", long, stream=True)
        next(stream)
        stream.close()

    await in_thread(taste)
    with trio.fail_after(1):
        await mock_ollama.stats.wait_for(lambda stats: stats.aborted == 1)
    await books.settled()
    [row] = await books.rows(1)
    assert row["outcome"] == "client_disconnected"


def weather(place: str, days: int) -> str:
    """The weather.

    Args:
        place: where
        days: from today
    """
    return f"rain at {place} in {days} days"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_function_is_a_tool_and_answers(client: ollama.Client, mock_ollama: Any, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "[[tool:weather]]"}]

    def ask() -> list[ollama.ChatResponse]:
        reply = client.chat("tiny", messages, tools=[weather], stream=stream)
        return list(reply) if stream else [reply]

    parts = await in_thread(ask)
    [call] = [call for part in parts for call in part.message.tool_calls or ()]
    assert call.function.name == "weather"
    messages.append(ollama.Message(role="assistant", tool_calls=[call]))
    messages.append({"role": "tool", "tool_name": "weather", "content": weather(**call.function.arguments)})
    answer = "".join(part.message.content or "" for part in await in_thread(ask))
    assert answer
    assert last_body(mock_ollama)["messages"][-1]["content"] == "rain at quick in 7 days"


@pytest.mark.parametrize("think", [True, "low", False])
async def test_thinking_comes_apart_from_the_answer(client: ollama.Client, mock_ollama: Any, think: Any) -> None:
    whole = await in_thread(lambda: client.chat("thinker", QUESTION, think=think))
    assert last_body(mock_ollama)["think"] == think
    assert bool(whole.message.thinking) is bool(think)
    parts = await in_thread(lambda: list(client.chat("thinker", QUESTION, think=think, stream=True)))
    assert "".join(part.message.thinking or "" for part in parts) == (whole.message.thinking or "")
    assert "".join(part.message.content or "" for part in parts) == whole.message.content


class River(BaseModel):
    name: str
    length_km: int


async def test_a_format_makes_an_object_of_the_reply(client: ollama.Client) -> None:
    reply = await in_thread(lambda: client.chat("tiny", QUESTION, format=River.model_json_schema()))
    assert River.model_validate_json(reply.message.content or "") == River(name="quick", length_km=7)
    generated = await in_thread(lambda: client.generate("tiny", "rivers", format="json"))
    assert generated.response == '{"answer": "quick"}'


async def test_logprobs(client: ollama.Client) -> None:
    reply = await in_thread(lambda: client.chat("tiny", QUESTION, logprobs=True, top_logprobs=2))
    assert "".join(entry.token for entry in reply.logprobs or ()) == reply.message.content


async def test_options_and_a_wrong_one(client: ollama.Client) -> None:
    reply = await in_thread(lambda: client.chat("tiny", QUESTION, options={"num_predict": 3, "num_ctx": 2048}))
    assert (reply.eval_count, reply.done_reason) == (3, "length")
    with pytest.raises(ollama.ResponseError) as refused:
        await in_thread(lambda: client.chat("tiny", QUESTION, options={"temperature": "hot"}))
    assert refused.value.status_code == 400
    assert "options.temperature" in refused.value.error


async def test_a_wrong_key_and_a_model_out_of_reach(client: ollama.Client, gateway: Any) -> None:
    with pytest.raises(ollama.ResponseError) as denied:
        await in_thread(lambda: client.chat("ghost", QUESTION))
    assert denied.value.status_code == 403
    stranger = ollama.Client(host=gateway.base_url, headers={"Authorization": "Bearer wrong"})
    with pytest.raises(ollama.ResponseError) as refused:
        await in_thread(stranger.list)
    assert refused.value.status_code == 401
    stranger._client.close()


async def test_the_clients_own_variable_for_a_key(gateway: Any, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", key)
    monkeypatch.setenv("OLLAMA_HOST", gateway.base_url)
    client = ollama.Client()
    reply = await in_thread(lambda: client.chat("tiny", QUESTION))
    assert reply.done
    client._client.close()


async def test_the_async_client(gateway: Any, key: str, mock_ollama: Any, books: Any) -> None:
    token = trio.lowlevel.current_trio_token()

    async def model_stopped() -> None:
        with trio.fail_after(5):
            await mock_ollama.stats.wait_for(lambda stats: stats.aborted == 1)

    async def ask() -> tuple[Any, list[Any]]:
        client = ollama.AsyncClient(host=gateway.base_url, headers={"Authorization": f"Bearer {key}"})
        whole = await client.chat("tiny", QUESTION)
        parts = [part async for part in await client.chat("tiny", QUESTION, stream=True)]
        embedded = await client.embed("embed", "one")
        assert len(embedded.embeddings) == 1
        long = [{"role": "user", "content": "[[tokens:1000]] [[tps:50]]"}]
        stream = await client.chat("tiny", long, stream=True)
        await anext(stream)
        await stream.aclose()
        await asyncio.to_thread(trio.from_thread.run, model_stopped, trio_token=token)
        await client._client.aclose()
        return whole, parts

    whole, parts = await in_asyncio(ask)
    assert "".join(part.message.content for part in parts) == whole.message.content
    await books.settled()
    rows = await books.rows(4)
    assert [row["outcome"] for row in rows] == ["completed"] * 3 + ["client_disconnected"]
