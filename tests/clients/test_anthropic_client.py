"""Anthropic's own Python client, pointed at the gateway."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anthropic
import pytest
import trio

QUESTION: Any = [{"role": "user", "content": "tell me of rivers"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [
    {"name": "weather", "description": "the weather of a city", "input_schema": CITY},
    {"name": "population", "description": "who lives in a city", "input_schema": CITY},
]


def asking(prompt: str, **more: Any) -> Any:
    messages = [{"role": "user", "content": prompt}]
    return {"model": "tiny", "max_tokens": 100, "messages": messages, **more}


@pytest.fixture
def client(gateway: Any, key: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway.base_url, auth_token=key, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(gateway: Any, key: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=gateway.base_url, auth_token=key, max_retries=0) as client:
        yield client


async def in_thread(call: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(call)


@pytest.mark.parametrize("way", ["api_key", "auth_token"])
async def test_either_way_to_give_the_key(gateway: Any, key: str, way: str) -> None:
    credential: Any = {way: key}
    with anthropic.Anthropic(base_url=gateway.base_url, max_retries=0, **credential) as client:
        assert (await in_thread(lambda: client.messages.create(**asking("rivers")))).stop_reason == "end_turn"


async def test_a_message_whole_and_in_events(client: anthropic.Anthropic) -> None:
    whole = await in_thread(lambda: client.messages.create(**asking("rivers")))
    assert (whole.type, whole.role, whole.model, whole.stop_reason) == ("message", "assistant", "tiny", "end_turn")
    assert whole.usage.output_tokens == 16
    events = await in_thread(lambda: list(client.messages.create(**asking("rivers"), stream=True)))
    assert [event.type for event in events[:2]] == ["message_start", "content_block_start"]
    assert events[0].message.usage.input_tokens > 0
    text = "".join(event.delta.text for event in events if event.type == "content_block_delta")
    assert text == whole.content[0].text
    assert [event.type for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[-2].usage.output_tokens == whole.usage.output_tokens


async def test_the_stream_helper_comes_to_the_whole_message(client: anthropic.Anthropic) -> None:
    def streamed() -> tuple[str, Any]:
        with client.messages.stream(**asking("rivers")) as stream:
            return "".join(stream.text_stream), stream.get_final_message()

    text, final = await in_thread(streamed)
    whole = await in_thread(lambda: client.messages.create(**asking("rivers")))
    assert text == whole.content[0].text
    assert final.model_dump(exclude={"id"}) == whole.model_dump(exclude={"id"})
    assert final.id.startswith("msg_")
    assert final.id != whole.id


async def test_the_async_client(async_client: anthropic.AsyncAnthropic) -> None:
    whole = await async_client.messages.create(**asking("rivers"))
    async with async_client.messages.stream(**asking("rivers")) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert (final.stop_reason, final.usage) == (whole.stop_reason, whole.usage)


async def test_a_cut_message_says_so(client: anthropic.Anthropic) -> None:
    cut = await in_thread(lambda: client.messages.create(**{**asking("rivers"), "max_tokens": 3}))
    assert cut.stop_reason == "max_tokens"
    assert cut.usage.output_tokens == 3


async def test_a_model_that_thinks(client: anthropic.Anthropic, mock_ollama: Any) -> None:
    asked = asking("rivers", model="thinker")

    def streamed() -> Any:
        with client.messages.stream(**asked) as stream:
            return stream.get_final_message()

    whole = await in_thread(lambda: client.messages.create(**asked))
    final = await in_thread(streamed)
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].thinking == whole.content[0].thinking
    assert final.content[0].signature == ""

    again = [*QUESTION, {"role": "assistant", "content": final.content}, *QUESTION]
    await in_thread(lambda: client.messages.create(model="thinker", max_tokens=9, messages=again))
    seen = next(seen.json() for seen in reversed(mock_ollama.stats.last) if seen.path == "/api/chat")
    assert seen["messages"][1] == {
        "role": "assistant",
        "content": whole.content[1].text,
        "thinking": whole.content[0].thinking,
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_and_answered(client: anthropic.Anthropic, mock_ollama: Any, stream: bool) -> None:
    def ask(messages: Any) -> Any:
        asked: Any = {"model": "thinker", "max_tokens": 100, "messages": messages, "tools": TOOLS}
        if not stream:
            return client.messages.create(**asked)
        with client.messages.stream(**asked) as events:
            return events.get_final_message()

    question = [{"role": "user", "content": "how is the weather? [[tools:2]]"}]
    called = await in_thread(lambda: ask(question))
    assert called.stop_reason == "tool_use"
    uses = [block for block in called.content if block.type == "tool_use"]
    assert [(use.name, sorted(use.input)) for use in uses] == [("weather", ["city"]), ("population", ["city"])]

    results = [
        {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "sunny"}]}
        for use in uses
    ]
    history = [*question, {"role": "assistant", "content": called.content}, {"role": "user", "content": results}]
    said = await in_thread(lambda: ask(history))
    assert said.stop_reason == "end_turn"
    assert [block.type for block in said.content] == ["thinking", "text"]
    seen = next(seen.json() for seen in reversed(mock_ollama.stats.last) if seen.path == "/api/chat")
    assert [call["id"] for call in seen["messages"][1]["tool_calls"]] == [use.id for use in uses]
    assert seen["messages"][2:] == [
        {"role": "tool", "content": "sunny", "tool_name": use.name, "tool_call_id": use.id} for use in uses
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "changes", "error", "kind"),
    [
        ("rivers", {"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error"),
        ("rivers", {"model": "missing"}, anthropic.PermissionDeniedError, "permission_error"),
        ("[[fail:503]]", {}, anthropic.InternalServerError, "overloaded_error"),
        ("[[fail:500]]", {}, anthropic.InternalServerError, "api_error"),
    ],
)
async def test_errors_are_of_the_clients_own_classes(
    client: anthropic.Anthropic, books: Any, prompt: str, changes: Any, error: Any, kind: str, stream: bool
) -> None:
    with pytest.raises(error) as raised:
        await in_thread(lambda: client.messages.create(**{**asking(prompt), **changes}, stream=stream))
    assert raised.value.body["error"]["type"] == kind
    [row] = await books.rows(1)
    assert raised.value.request_id == str(row["request_id"])


async def test_a_wrong_key_is_an_authentication_error(gateway: Any) -> None:
    with (
        anthropic.Anthropic(base_url=gateway.base_url, auth_token="nnz_wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        await in_thread(lambda: stranger.messages.create(**asking("rivers")))


async def test_a_spent_rate_is_a_rate_limit_error(gateway: Any, make_key: Any) -> None:
    slow = await make_key("slow", rpm=1)
    with anthropic.Anthropic(base_url=gateway.base_url, auth_token=slow, max_retries=0) as client:
        await in_thread(lambda: client.messages.create(**asking("rivers")))
        with pytest.raises(anthropic.RateLimitError) as refused:
            await in_thread(lambda: client.messages.create(**asking("rivers")))
    assert int(refused.value.response.headers["retry-after"]) > 0


async def test_an_error_in_mid_stream_is_raised(client: anthropic.Anthropic) -> None:
    def read() -> None:
        list(client.messages.create(**asking("[[fail:error_line]]"), stream=True))

    with pytest.raises(anthropic.APIStatusError, match="upstream failed") as raised:
        await in_thread(read)
    assert raised.value.body == {"type": "error", "error": {"type": "api_error", "message": "upstream failed"}}


async def test_tokens_are_not_counted_beforehand(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        await in_thread(lambda: client.messages.count_tokens(model="tiny", messages=QUESTION))


async def test_a_client_that_drops_its_stream_stops_the_model(
    client: anthropic.Anthropic, mock_ollama: Any, books: Any
) -> None:
    def taste() -> None:
        with client.messages.create(**asking("[[tokens:100]] [[tps:50]]"), stream=True) as stream:
            assert next(iter(stream)).type == "message_start"

    await in_thread(taste)
    with trio.fail_after(1):
        await mock_ollama.stats.wait_for(lambda stats: stats.aborted == 1)
    await books.settled()
    [row] = await books.rows(1)
    assert (row["outcome"], row["dialect"]) == ("client_disconnected", "anthropic")
    assert row["completion_tokens"] > 0


async def test_an_async_client_that_is_cancelled_stops_the_model(
    async_client: anthropic.AsyncAnthropic, mock_ollama: Any, books: Any
) -> None:
    async with async_client.messages.stream(**asking("[[tokens:100]] [[tps:50]]")) as stream:
        with trio.CancelScope() as scope:
            async for _ in stream.text_stream:
                scope.cancel()
    with trio.fail_after(1):
        await mock_ollama.stats.wait_for(lambda stats: stats.aborted == 1)
    await books.settled()
    [row] = await books.rows(1)
    assert row["outcome"] == "client_disconnected"
