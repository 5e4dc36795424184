"""An OpenAI client that leaves, in each way it can: the model stops, the slot is free, one row tells of it."""

import asyncio
from contextlib import suppress
from typing import Any

import openai
import pytest
import trio

from tests.clients.threads import in_asyncio, in_thread

LONG: Any = [{"role": "user", "content": "[[tokens:1000]] [[tps:50]]"}]
SILENT: Any = [{"role": "user", "content": "[[ttft:60]]"}]


async def nothing_is_left(mock: Any, books: Any, *, aborted: int = 1) -> None:
    with trio.fail_after(2):
        await mock.stats.wait_for(lambda stats: stats.aborted == aborted and stats.open == 0)
    await books.settled()
    rows = await books.rows(aborted)
    assert {row["outcome"] for row in rows} == {"client_disconnected"}


async def test_a_stream_that_is_closed(openai_client: openai.OpenAI, mock_ollama: Any, books: Any) -> None:
    def taste() -> None:
        stream = openai_client.chat.completions.create(model="tiny", messages=LONG, stream=True)
        next(iter(stream))
        stream.close()

    await in_thread(taste)
    await nothing_is_left(mock_ollama, books)


async def test_a_stream_helper_that_is_left_early(
    openai_client: openai.OpenAI, mock_ollama: Any, books: Any
) -> None:
    def taste() -> None:
        with openai_client.chat.completions.stream(model="tiny", messages=LONG) as stream:
            next(iter(stream))

    await in_thread(taste)
    await nothing_is_left(mock_ollama, books)


@pytest.mark.parametrize("how", ["close", "break", "cancel"])
async def test_an_async_stream(gateway: Any, key: str, mock_ollama: Any, books: Any, how: str) -> None:
    """The client itself stays open until the model has stopped: closing it would end all that it has."""
    token = trio.lowlevel.current_trio_token()

    async def model_stopped() -> None:
        with trio.fail_after(5):
            await mock_ollama.stats.wait_for(lambda stats: stats.aborted == 1)

    async def taste() -> None:
        async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
            stream = await client.chat.completions.create(model="tiny", messages=LONG, stream=True)
            if how == "close":
                await anext(aiter(stream))
                await stream.close()
            elif how == "break":
                async with stream:
                    async for _ in stream:
                        break
            else:
                await _cancel_reading(stream)
            await asyncio.to_thread(trio.from_thread.run, model_stopped, trio_token=token)

    await in_asyncio(taste)
    await nothing_is_left(mock_ollama, books)


async def _cancel_reading(stream: Any) -> None:
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in stream:
            begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_whole_reply_that_is_cancelled(gateway: Any, key: str, mock_ollama: Any, books: Any) -> None:
    token = trio.lowlevel.current_trio_token()

    async def model_asked() -> None:
        with trio.fail_after(5):
            await mock_ollama.stats.wait_for(lambda stats: stats.open == 1)

    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
            task = asyncio.create_task(client.chat.completions.create(model="tiny", messages=SILENT))
            await asyncio.to_thread(trio.from_thread.run, model_asked, trio_token=token)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    await in_asyncio(ask)
    await nothing_is_left(mock_ollama, books)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_whose_patience_ends(
    openai_client: openai.OpenAI, mock_ollama: Any, books: Any, stream: Any
) -> None:
    hasty = openai_client.with_options(timeout=0.6)
    with pytest.raises(openai.APITimeoutError):
        await in_thread(lambda: hasty.chat.completions.create(model="tiny", messages=SILENT, stream=stream))
    await nothing_is_left(mock_ollama, books)


async def test_each_new_try_finds_the_slot_free(gateway: Any, make_key: Any, mock_ollama: Any, books: Any) -> None:
    narrow = await make_key("narrow", concurrency=1)
    with (
        openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=narrow, timeout=0.6, max_retries=1) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        await in_thread(lambda: client.chat.completions.create(model="tiny", messages=SILENT))
    await nothing_is_left(mock_ollama, books, aborted=2)


async def test_silence_in_mid_stream_ends_a_clients_patience(
    openai_client: openai.OpenAI, mock_ollama: Any, books: Any
) -> None:
    def ask() -> int:
        hasty = openai_client.with_options(timeout=0.6)
        stalled: Any = [{"role": "user", "content": "[[fail:stall_stream]] [[after:2]]"}]
        read = 0
        try:
            for _ in hasty.chat.completions.create(model="tiny", messages=stalled, stream=True):
                read += 1
        except openai.APIConnectionError:
            return read
        raise AssertionError("the stream ended")

    assert await in_thread(ask) == 2
    await nothing_is_left(mock_ollama, books)
