"""What OpenAI's client makes of a refusal: which exception, which code, and whether it tries again."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import openai
import pytest
import trio

from neuronetz.access.keys import PREFIX_LENGTH, generate
from tests.clients.threads import in_asyncio, in_thread


def say(text: str) -> Any:
    return [{"role": "user", "content": text}]


def chat(client: openai.OpenAI, text: str = "hello", **more: Any) -> Any:
    return client.chat.completions.create(model=more.pop("model", "tiny"), messages=say(text), **more)


@pytest.fixture
def client_of(gateway: Any) -> Callable[..., openai.OpenAI]:
    """A client of a key; options as for ``openai.OpenAI``."""

    def make(key: str, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, **{"max_retries": 0, **options})

    return make


@pytest.mark.parametrize("well_formed", [False, True])
async def test_a_wrong_key_is_an_authentication_error(client_of: Any, well_formed: bool) -> None:
    with (
        client_of(generate().text if well_formed else "sk-nonsense") as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        await in_thread(lambda: chat(client))
    assert refused.value.code == "invalid_api_key"
    assert refused.value.request_id


async def test_a_model_out_of_reach_is_permission_denied(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError) as refused:
        await in_thread(lambda: chat(openai_client, model="gpt-4o"))
    assert (refused.value.code, refused.value.type) == ("model_not_available", "permission_error")
    assert refused.value.request_id == refused.value.response.headers["x-request-id"]


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.files.list(),
        lambda client: client.images.generate(prompt="a river"),
        lambda client: client.moderations.create(input="a river"),
        lambda client: client.chat.completions.retrieve("chatcmpl-1"),
    ],
    ids=["files", "images", "moderations", "stored chats"],
)
async def test_what_is_not_here_is_not_found(openai_client: openai.OpenAI, call: Any) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await in_thread(lambda: call(openai_client))
    assert refused.value.type == "not_found_error"
    assert refused.value.request_id


async def test_a_method_that_is_not_allowed_is_a_status_error(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await in_thread(lambda: openai_client.models.delete("tiny"))
    assert (refused.value.status_code, refused.value.type) == (405, "invalid_request_error")


async def test_no_messages_are_a_bad_request(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await in_thread(lambda: openai_client.chat.completions.create(model="tiny", messages=[]))
    assert refused.value.param == "messages"


async def test_a_rate_limit_says_when_to_come_again(client_of: Any, make_key: Any) -> None:
    with client_of(await make_key("limited", rpm=1)) as client:
        await in_thread(lambda: chat(client))
        with pytest.raises(openai.RateLimitError) as refused:
            await in_thread(lambda: chat(client))
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    headers = refused.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 61
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in headers


async def test_a_limit_that_passes_is_waited_out(
    client_of: Any, make_key: Any, gateway: Any, mock_ollama: Any, books: Any
) -> None:
    narrow = await make_key("narrow", concurrency=1)
    replies: list[Any] = []
    held = trio.CancelScope()

    async def hold() -> None:
        body = {"model": "tiny", "messages": say("[[ttft:60]]")}
        with held:
            async with httpx.AsyncClient(trust_env=False, timeout=60) as other:
                await other.post(
                    f"{gateway.base_url}/v1/chat/completions",
                    json=body,
                    headers={"authorization": f"Bearer {narrow}"},
                )

    async def retry() -> None:
        with client_of(narrow, max_retries=2) as client:
            replies.append(await in_thread(lambda: chat(client)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        with trio.fail_after(5):
            await mock_ollama.stats.wait_for(lambda stats: stats.open == 1)
        nursery.start_soon(retry)
        [refused] = await books.rows(1)
        held.cancel()
    assert refused["outcome"] == "concurrency_limited"
    assert replies[0].choices[0].finish_reason == "stop"
    rows = await books.rows(3)
    assert [row["outcome"] for row in rows] == ["client_disconnected", "concurrency_limited", "completed"]
    assert rows[2]["started_at"] - rows[1]["started_at"] >= timedelta(seconds=0.9)


async def test_a_spent_budget_is_asked_of_once(client_of: Any, make_key: Any, books: Any) -> None:
    poor = await make_key("poor", budget_tokens=10, budget_period="month")
    with client_of(poor, max_retries=2) as client, pytest.raises(openai.RateLimitError) as refused:
        await in_thread(lambda: chat(client, max_completion_tokens=500))
    assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")
    assert refused.value.response.headers["x-should-retry"] == "false"
    [row] = await books.rows(1)
    assert row["outcome"] == "budget_exhausted"


async def test_a_failing_upstream_is_tried_three_times(client_of: Any, key: str, books: Any) -> None:
    with client_of(key, max_retries=2) as client, pytest.raises(openai.InternalServerError) as failed:
        await in_thread(lambda: chat(client, "[[fail:refuse]]"))
    assert failed.value.status_code == 502
    assert failed.value.type == "api_error"
    rows = await books.rows(3)
    assert {row["outcome"] for row in rows} == {"upstream_error"}


async def test_a_failure_before_the_first_chunk_has_its_status(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        await in_thread(lambda: chat(openai_client, "[[fail:500]]", stream=True))
    assert failed.value.status_code == 502
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize("failure", ["error_line", "garbage", "eof", "reset"])
async def test_an_error_in_mid_stream_is_raised(openai_client: openai.OpenAI, books: Any, failure: str) -> None:
    read: list[str] = []

    def ask() -> None:
        for chunk in chat(openai_client, f"[[fail:{failure}]] [[after:4]]", stream=True):
            read.append(chunk.choices[0].delta.content)

    with pytest.raises(openai.APIError, match="upstream failed") as failed:
        await in_thread(ask)
    assert not isinstance(failed.value, openai.APIStatusError | openai.APIConnectionError)
    assert failed.value.type == "api_error"
    assert len(read) == 4
    assert "secret" not in str(failed.value.body)
    [row] = await books.rows(1)
    assert row["outcome"] == "upstream_error"


async def test_a_key_revoked_in_mid_stream_is_raised(
    openai_client: openai.OpenAI, key: str, mock_ollama: Any, books: Any
) -> None:
    failures: list[openai.APIError] = []

    def ask() -> None:
        with pytest.raises(openai.APIError) as failed:
            list(chat(openai_client, "[[tokens:10000]] [[tps:50]]", stream=True))
        failures.append(failed.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, ask)
        with trio.fail_after(5):
            await mock_ollama.stats.wait_for(lambda stats: stats.tokens > 3)
        await books.postgres.execute("INSERT INTO gateway.revocations (prefix) VALUES ($1)", key[:PREFIX_LENGTH])
    assert failures[0].code == "invalid_api_key"
    assert failures[0].type == "authentication_error"


@pytest.mark.parametrize("failure", ["", "[[fail:stall]]"])
async def test_a_model_that_is_slow_to_begin_keeps_its_client(
    asyncio_loop: Any, settings: Any, run_gateway: Any, key: str, failure: str
) -> None:
    """Comments come meanwhile, which the client passes over; after them a failure is one in mid-stream."""
    changes = {"sse_heartbeat_s": 0.05, "first_byte_timeout_s": 1.0 if failure else 10.0}
    async with run_gateway(settings.model_copy(update=changes)) as gateway:
        with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0, timeout=0.7) as client:

            def ask() -> list[Any]:
                return list(chat(client, failure or "[[ttft:0.9]]", stream=True))

            if failure:
                with pytest.raises(openai.APIError, match="did not answer in time"):
                    await in_thread(ask)
            else:
                chunks = await in_thread(ask)
                assert chunks[-1].choices[0].finish_reason == "stop"


async def test_the_async_client_raises_the_same(gateway: Any, key: str) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
            with pytest.raises(openai.PermissionDeniedError):
                await client.chat.completions.create(model="gpt-4o", messages=say("hello"))
            broken = say("[[fail:error_line]]")
            stream = await client.chat.completions.create(model="tiny", messages=broken, stream=True)
            with pytest.raises(openai.APIError, match="upstream failed"):
                [chunk async for chunk in stream]

    await in_asyncio(ask)
