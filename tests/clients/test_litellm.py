"""LiteLLM as a client of the gateway, by both of its doors. Imported when it is first needed: it takes seconds."""

import importlib
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from neuronetz.embedded.mock_replies import embedding
from tests.clients.threads import in_asyncio, in_thread

QUESTION: Any = [{"role": "user", "content": "tell me of rivers"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


@pytest.fixture(scope="module")
def library() -> Any:
    """The library, kept from fetching the prices of models, as it otherwise does when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        return importlib.import_module("litellm")


@pytest.fixture
def litellm(library: Any) -> Iterator[Any]:
    """The library. It keeps its clients open for ever, so they are closed here."""
    yield library
    kept = library.in_memory_llm_clients_cache
    for client in kept.cache_dict.values():
        if isinstance(client, openai.OpenAI | library.HTTPHandler):
            client.close()
    kept.flush_cache()


@pytest.fixture
def openai_door(gateway: Any, key: str) -> dict[str, Any]:
    return {"model": "openai/tiny", "api_base": f"{gateway.base_url}/v1", "api_key": key, "max_retries": 0}


@pytest.fixture
def doors(openai_door: dict[str, Any], gateway: Any, key: str) -> dict[str, dict[str, Any]]:
    """Where a chat may be asked for, and how."""
    return {
        "openai": openai_door,
        "ollama": {"model": "ollama_chat/tiny", "api_base": gateway.base_url, "api_key": key},
    }


@pytest.mark.parametrize("door", ["openai", "ollama"])
async def test_a_chat_whole_and_streamed(litellm: Any, doors: Any, door: str) -> None:
    place = doors[door]
    whole = await in_thread(lambda: litellm.completion(messages=QUESTION, **place))
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == 16
    parts = await in_thread(lambda: list(litellm.completion(messages=QUESTION, stream=True, **place)))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert parts[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("door", ["openai", "ollama"])
async def test_a_chat_in_asyncio(litellm: Any, doors: Any, door: str) -> None:
    place = doors[door]

    async def ask() -> tuple[Any, list[Any]]:
        whole = await litellm.acompletion(messages=QUESTION, **place)
        stream = await litellm.acompletion(messages=QUESTION, stream=True, **place)
        parts = [part async for part in stream]
        await litellm.close_litellm_async_clients()
        return whole, parts

    whole, parts = await in_asyncio(ask)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content


@pytest.mark.parametrize("door", ["openai", "ollama"])
async def test_a_tool_is_called(litellm: Any, doors: Any, door: str) -> None:
    place = doors[door]
    asked = [{"role": "user", "content": "[[tool:weather]]"}]
    reply = await in_thread(lambda: litellm.completion(messages=asked, tools=[TOOL], **place))
    assert reply.choices[0].finish_reason == "tool_calls"
    [call] = reply.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"place": "quick"})


async def test_a_key_in_a_header_is_as_good(litellm: Any, doors: Any, key: str) -> None:
    place = doors["ollama"] | {"api_key": None, "headers": {"Authorization": f"Bearer {key}"}}
    reply = await in_thread(lambda: litellm.completion(messages=QUESTION, **place))
    assert reply.choices[0].finish_reason == "stop"


async def test_reasoning_is_told_apart(litellm: Any, openai_door: dict[str, Any]) -> None:
    place = openai_door | {"model": "openai/thinker"}
    reply = await in_thread(lambda: litellm.completion(messages=QUESTION, **place))
    assert reply.choices[0].message.reasoning_content == "the quick brown fox"


async def test_embeddings(litellm: Any, openai_door: dict[str, Any]) -> None:
    place = openai_door | {"model": "openai/embed"}
    reply = await in_thread(lambda: litellm.embedding(input=["one"], **place))
    assert reply.data[0]["embedding"] == pytest.approx(embedding("one"), abs=1e-7)


async def test_errors_have_their_classes(litellm: Any, openai_door: dict[str, Any]) -> None:
    for wrong, kind, status in (
        ({"api_key": "wrong"}, litellm.AuthenticationError, 401),
        ({"model": "openai/ghost"}, litellm.APIError, 403),
        ({"n": 2}, litellm.BadRequestError, 400),
    ):
        place = openai_door | wrong
        with pytest.raises(kind) as refused:
            await in_thread(lambda place=place: litellm.completion(messages=QUESTION, **place))
        assert refused.value.status_code == status


async def test_an_error_in_mid_stream_is_raised(litellm: Any, openai_door: dict[str, Any]) -> None:
    broken = [{"role": "user", "content": "[[fail:error_line]]"}]
    with pytest.raises(litellm.exceptions.MidStreamFallbackError, match="upstream failed"):
        await in_thread(lambda: list(litellm.completion(messages=broken, stream=True, **openai_door)))
