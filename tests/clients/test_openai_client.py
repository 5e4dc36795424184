"""OpenAI's own Python client, pointed at the gateway."""

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import trio

QUESTION: Any = [{"role": "user", "content": "tell me of rivers"}]


@pytest.fixture
def client(gateway: Any, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key) as client:
        yield client


async def in_thread(call: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(call)


async def test_chat_streamed_and_whole(client: openai.OpenAI) -> None:
    whole = await in_thread(lambda: client.chat.completions.create(model="tiny", messages=QUESTION))
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == 16

    def streamed() -> list[Any]:
        options: Any = {"include_usage": True}
        return list(
            client.chat.completions.create(model="tiny", messages=QUESTION, stream=True, stream_options=options)
        )

    chunks = await in_thread(streamed)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:-1]] == ["stop"]
