"""LangChain's classes for OpenAI, pointed at the gateway. Imported when they are first needed: it takes seconds."""

import importlib
from typing import Any

import openai
import pytest
import tiktoken
from pydantic import BaseModel

from neuronetz.embedded.mock_replies import embedding
from tests.clients.threads import in_asyncio, in_thread
from tests.clients.upstream import last_body


class River(BaseModel):
    """A river."""

    name: str
    length_km: int


def weather(place: str) -> str:
    """The weather at a place."""
    return f"rain at {place}"


@pytest.fixture(scope="module")
def langchain() -> Any:
    return importlib.import_module("langchain_openai")


@pytest.fixture
def place(gateway: Any, key: str) -> dict[str, Any]:
    return {"base_url": f"{gateway.base_url}/v1", "api_key": key, "max_retries": 0}


@pytest.fixture
def chat(langchain: Any, place: dict[str, Any]) -> Any:
    return langchain.ChatOpenAI(model="tiny", **place)


async def test_a_chat_whole_and_streamed(chat: Any) -> None:
    whole = await in_thread(lambda: chat.invoke("tell me of rivers"))
    assert whole.content
    assert whole.usage_metadata["output_tokens"] == 16
    assert whole.response_metadata["finish_reason"] == "stop"
    parts = await in_thread(lambda: list(chat.stream("tell me of rivers", stream_usage=True)))
    assert "".join(part.content for part in parts) == whole.content
    assert [part.usage_metadata for part in parts if part.usage_metadata] == [whole.usage_metadata]


async def test_a_chat_in_asyncio(langchain: Any, place: dict[str, Any]) -> None:
    async def ask() -> tuple[Any, list[Any]]:
        async with openai.DefaultAsyncHttpxClient() as http:
            chat = langchain.ChatOpenAI(model="tiny", http_async_client=http, **place)
            return await chat.ainvoke("rivers"), [part async for part in chat.astream("rivers")]

    whole, parts = await in_asyncio(ask)
    assert "".join(part.content for part in parts) == whole.content


async def test_a_chat_by_the_responses_api(langchain: Any, place: dict[str, Any], books: Any) -> None:
    chat = langchain.ChatOpenAI(model="tiny", use_responses_api=True, **place)
    whole = await in_thread(lambda: chat.invoke("rivers"))
    parts = await in_thread(lambda: list(chat.stream("rivers")))
    assert whole.text
    assert "".join(part.text for part in parts) == whole.text
    assert {row["endpoint"] for row in await books.rows(2)} == {"/v1/responses"}


async def test_tools_go_round(chat: Any, mock_ollama: Any) -> None:
    bound = chat.bind_tools([weather])
    messages: list[Any] = [{"role": "user", "content": "[[tool:weather]]"}]
    said = await in_thread(lambda: bound.invoke(messages))
    [call] = said.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"place": "quick"})
    messages += [said, {"role": "tool", "tool_call_id": call["id"], "content": weather(**call["args"])}]
    answer = await in_thread(lambda: bound.invoke(messages))
    assert answer.content
    assert not answer.tool_calls
    assert last_body(mock_ollama)["messages"][-1] == {
        "role": "tool",
        "content": "rain at quick",
        "tool_name": "weather",
        "tool_call_id": call["id"],
    }


async def test_calls_are_put_together_from_a_stream(chat: Any) -> None:
    bound = chat.bind_tools([weather])
    parts = await in_thread(lambda: list(bound.stream("[[tool:weather]]")))
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("weather", {"place": "quick"})]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output(chat: Any, method: str) -> None:
    structured = chat.with_structured_output(River, method=method)
    assert await in_thread(lambda: structured.invoke("[[tool:River]]")) == River(name="quick", length_km=7)


async def test_embeddings_of_texts(langchain: Any, place: dict[str, Any]) -> None:
    embeddings = langchain.OpenAIEmbeddings(model="embed", check_embedding_ctx_length=False, **place)
    vectors = await in_thread(lambda: embeddings.embed_documents(["one", "two"]))
    assert vectors == [pytest.approx(embedding(text), abs=1e-7) for text in ("one", "two")]


async def test_embeddings_of_tokens_are_refused_in_words(
    langchain: Any, place: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LangChain's default: it counts tokens itself, and sends the numbers that OpenAI's models have for them."""
    bytewise = tiktoken.Encoding(
        "bytewise", pat_str=".", mergeable_ranks={bytes([byte]): byte for byte in range(256)}, special_tokens={}
    )
    # The true ones are downloaded when they are first used.
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda _: bytewise)
    embeddings = langchain.OpenAIEmbeddings(model="embed", **place)
    with pytest.raises(openai.BadRequestError, match="must be a string or a list of strings") as refused:
        await in_thread(lambda: embeddings.embed_documents(["one"]))
    assert refused.value.param == "input"


async def test_errors_are_openais(langchain: Any, place: dict[str, Any]) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        await in_thread(lambda: langchain.ChatOpenAI(model="ghost", **place).invoke("hello"))
    with pytest.raises(openai.AuthenticationError):
        await in_thread(
            lambda: langchain.ChatOpenAI(model="tiny", **{**place, "api_key": "wrong"}).invoke("hello")
        )
