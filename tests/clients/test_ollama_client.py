"""Ollama's own Python client, pointed at the gateway."""

from collections.abc import Callable, Iterator
from typing import Any

import ollama
import pytest
import trio

QUESTION = [{"role": "user", "content": "tell me of rivers"}]


@pytest.fixture
def client(gateway: Any, key: str) -> Iterator[ollama.Client]:
    client = ollama.Client(host=gateway.base_url, headers={"Authorization": f"Bearer {key}"})
    yield client
    client._client.close()


async def in_thread(call: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(call)


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
