"""Replies hold all that OpenAI's own types require. Its client does not look; other languages' clients do."""

from typing import Any

import openai
import pydantic
import pytest
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.clients.threads import in_thread

WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "called": {"tools": [WEATHER], "messages": [{"role": "user", "content": "[[tool:weather]]"}]},
    "reasoned": {"model": "thinker"},
    "likely": {"logprobs": True, "top_logprobs": 2},
    "cut short": {"max_tokens": 2},
}
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


def complete(kind: type[pydantic.BaseModel], text: str) -> None:
    """Fails unless ``text`` is a full ``kind``: the client's own types let a wrong field pass in silence."""
    kind.model_validate_json(text)


def events(create: Any, body: dict[str, Any]) -> list[str]:
    """The data of a stream's events, but for the last, which says that it is done."""
    with create(**body, stream=True, stream_options={"include_usage": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        *found, last = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert last == "[DONE]"
    return found


def test_the_check_tells_what_is_missing() -> None:
    with pytest.raises(pydantic.ValidationError):
        complete(ChatCompletion, '{"id": "chatcmpl-1", "object": "chat.completion", "choices": []}')


@pytest.mark.parametrize("chat", CHATS)
async def test_chats(openai_client: openai.OpenAI, chat: str) -> None:
    body = ASK | CHATS[chat]
    chats = openai_client.chat.completions
    whole = await in_thread(lambda: chats.with_raw_response.create(**body))
    complete(ChatCompletion, whole.text)
    for event in await in_thread(lambda: events(chats.with_streaming_response.create, body)):
        complete(ChatCompletionChunk, event)


async def test_completions(openai_client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": "tiny", "prompt": "hello"}
    completions = openai_client.completions
    whole = await in_thread(lambda: completions.with_raw_response.create(**body))
    complete(Completion, whole.text)
    for event in await in_thread(lambda: events(completions.with_streaming_response.create, body)):
        # Null before the last is what OpenAI sends too, though its type knows whole replies alone.
        complete(Completion, event.replace('"finish_reason":null', '"finish_reason":"stop"'))


async def test_embeddings_and_models(openai_client: openai.OpenAI) -> None:
    embedded = await in_thread(
        lambda: openai_client.embeddings.with_raw_response.create(
            model="embed", input=["one"], encoding_format="float"
        )
    )
    complete(CreateEmbeddingResponse, embedded.text)
    found = await in_thread(lambda: openai_client.models.with_raw_response.retrieve("acme/other"))
    complete(Model, found.text)
