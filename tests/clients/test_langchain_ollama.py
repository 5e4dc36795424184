"""LangChain's classes for Ollama, pointed at the gateway. Imported when they are first needed: it takes seconds."""

import importlib
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
from pydantic import BaseModel

from neuronetz.embedded.mock_replies import embedding
from tests.clients.threads import in_asyncio, in_thread


class River(BaseModel):
    """A river."""

    name: str
    length_km: int


def weather(place: str) -> str:
    """The weather at a place."""
    return f"rain at {place}"


@pytest.fixture(scope="module")
def langchain() -> Any:
    return importlib.import_module("langchain_ollama")


@pytest.fixture
def place(gateway: Any, key: str) -> dict[str, Any]:
    """The key goes as a header: Ollama's own client knows no other way."""
    return {"base_url": gateway.base_url, "client_kwargs": {"headers": {"Authorization": f"Bearer {key}"}}}


@pytest.fixture
def chat(langchain: Any, place: dict[str, Any]) -> Iterator[Any]:
    chat = langchain.ChatOllama(model="tiny", **place)
    yield chat
    chat._client._client.close()


async def test_a_chat_whole_and_streamed(chat: Any) -> None:
    whole = await in_thread(lambda: chat.invoke("tell me of rivers"))
    assert whole.content
    assert whole.usage_metadata["output_tokens"] == 16
    parts = await in_thread(lambda: list(chat.stream("tell me of rivers")))
    assert "".join(part.content for part in parts) == whole.content


async def test_a_chat_in_asyncio(langchain: Any, place: dict[str, Any]) -> None:
    async def ask() -> tuple[Any, list[Any]]:
        chat = langchain.ChatOllama(model="tiny", **place)
        answers = await chat.ainvoke("rivers"), [part async for part in chat.astream("rivers")]
        await chat._async_client._client.aclose()
        chat._client._client.close()
        return answers

    whole, parts = await in_asyncio(ask)
    assert "".join(part.content for part in parts) == whole.content


async def test_tools_go_round(chat: Any) -> None:
    bound = chat.bind_tools([weather])
    messages: list[Any] = [{"role": "user", "content": "[[tool:weather]]"}]
    said = await in_thread(lambda: bound.invoke(messages))
    [call] = said.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"place": "quick"})
    messages += [said, {"role": "tool", "tool_call_id": call["id"], "content": weather(**call["args"])}]
    answer = await in_thread(lambda: bound.invoke(messages))
    assert answer.content
    assert not answer.tool_calls


async def test_structured_output(chat: Any) -> None:
    structured = chat.with_structured_output(River, method="json_schema")
    assert await in_thread(lambda: structured.invoke("a river")) == River(name="quick", length_km=7)


async def test_reasoning(langchain: Any, place: dict[str, Any]) -> None:
    thinker = langchain.ChatOllama(model="thinker", reasoning=True, **place)
    said = await in_thread(lambda: thinker.invoke("rivers"))
    assert said.additional_kwargs["reasoning_content"] == "the quick brown fox"
    thinker._client._client.close()


async def test_embeddings(langchain: Any, place: dict[str, Any]) -> None:
    embeddings = langchain.OllamaEmbeddings(model="embed", **place)
    vectors = await in_thread(lambda: embeddings.embed_documents(["one", "two"]))
    assert vectors == [embedding("one"), embedding("two")]
    embeddings._client._client.close()


async def test_errors_are_ollamas(langchain: Any, place: dict[str, Any]) -> None:
    ghost = langchain.ChatOllama(model="ghost", **place)
    with pytest.raises(ollama.ResponseError) as refused:
        await in_thread(lambda: ghost.invoke("hello"))
    assert refused.value.status_code == 403
    ghost._client._client.close()
