"""OpenAI's own Python client, pointed at the gateway: chats, whole and streamed, blocking and async."""

import base64
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.clients.threads import in_asyncio, in_thread
from tests.clients.upstream import last_body

QUESTION: Any = [{"role": "user", "content": "tell me of rivers"}]
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Stream(BaseModel):
    """What a model is to fill in."""

    name: str
    length_km: int
    mouths: list["Mouth"]


class Mouth(BaseModel):
    sea: str
    tidal: bool


async def test_chat_streamed_and_whole(openai_client: openai.OpenAI) -> None:
    whole = await in_thread(lambda: openai_client.chat.completions.create(model="tiny", messages=QUESTION))
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 16

    def streamed() -> list[Any]:
        options: Any = {"include_usage": True}
        return list(
            openai_client.chat.completions.create(
                model="tiny", messages=QUESTION, stream=True, stream_options=options
            )
        )

    chunks = await in_thread(streamed)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.created for chunk in chunks} == {chunks[0].created}
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", None]
    assert chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:-1]] == ["stop"]


async def test_the_async_client_reads_the_same(gateway: Any, key: str, openai_client: openai.OpenAI) -> None:
    async def ask() -> tuple[Any, list[Any]]:
        async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
            whole = await client.chat.completions.create(model="tiny", messages=QUESTION)
            stream = await client.chat.completions.create(model="tiny", messages=QUESTION, stream=True)
            return whole, [chunk async for chunk in stream]

    whole, chunks = await in_asyncio(ask)
    blocking = await in_thread(lambda: openai_client.chat.completions.create(model="tiny", messages=QUESTION))
    assert whole.choices == blocking.choices
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert all(chunk.usage is None for chunk in chunks)


async def test_the_stream_helper_tells_its_events_and_the_whole(openai_client: openai.OpenAI) -> None:
    def ask() -> tuple[list[Any], Any]:
        with openai_client.chat.completions.stream(
            model="tiny", messages=QUESTION, stream_options={"include_usage": True}
        ) as stream:
            events = list(stream)
            return events, stream.get_final_completion()

    events, final = await in_thread(ask)
    deltas = [event.delta for event in events if event.type == "content.delta"]
    assert len([delta for delta in deltas if delta]) == 16
    assert "".join(deltas) == final.choices[0].message.content
    assert [event.type for event in events].count("content.done") == 1
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].finish_reason == "stop"
    assert final.usage.completion_tokens == 16


async def test_parse_makes_an_object_of_the_reply(openai_client: openai.OpenAI, mock_ollama: Any) -> None:
    reply = await in_thread(
        lambda: openai_client.chat.completions.parse(model="tiny", messages=QUESTION, response_format=Stream)
    )
    assert reply.choices[0].message.parsed == Stream(
        name="quick", length_km=7, mouths=[Mouth(sea="quick", tidal=True)]
    )
    asked = last_body(mock_ollama)["format"]
    assert asked["$defs"]["Mouth"]["required"] == ["sea", "tidal"]


async def test_the_stream_helper_parses_too(openai_client: openai.OpenAI) -> None:
    def ask() -> Any:
        with openai_client.chat.completions.stream(
            model="tiny", messages=QUESTION, response_format=Stream
        ) as stream:
            stream.until_done()
            return stream.get_final_completion()

    final = await in_thread(ask)
    assert isinstance(final.choices[0].message.parsed, Stream)


async def test_parse_says_when_the_reply_was_cut_short(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        await in_thread(
            lambda: openai_client.chat.completions.parse(
                model="tiny", messages=QUESTION, response_format=Stream, max_completion_tokens=2
            )
        )


async def test_a_json_object_is_ollamas_json(openai_client: openai.OpenAI, mock_ollama: Any) -> None:
    reply = await in_thread(
        lambda: openai_client.chat.completions.create(
            model="tiny", messages=QUESTION, response_format={"type": "json_object"}
        )
    )
    assert reply.choices[0].message.content == '{"answer": "quick"}'
    assert last_body(mock_ollama)["format"] == "json"


async def test_an_image_reaches_the_model(openai_client: openai.OpenAI, mock_ollama: Any) -> None:
    encoded = base64.b64encode(PIXEL).decode()
    image: Any = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}", "detail": "low"}}
    asked: Any = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, image]}]
    await in_thread(lambda: openai_client.chat.completions.create(model="tiny", messages=asked))
    assert last_body(mock_ollama)["messages"] == [
        {"role": "user", "content": "what is this?"},
        {"role": "user", "images": [encoded]},
    ]


async def test_an_image_elsewhere_is_not_fetched(openai_client: openai.OpenAI, mock_ollama: Any) -> None:
    image: Any = {"type": "image_url", "image_url": {"url": "https://example.org/pixel.png"}}
    asked: Any = [{"role": "user", "content": [image]}]
    with pytest.raises(openai.BadRequestError) as refused:
        await in_thread(lambda: openai_client.chat.completions.create(model="tiny", messages=asked))
    assert refused.value.param == "messages[0].content[0].image_url"
    assert "must be a data URI" in refused.value.message
    assert mock_ollama.stats.requests["/api/chat"] == 0


@pytest.mark.parametrize(("effort", "think"), [("none", False), ("minimal", "low"), ("high", "high")])
async def test_reasoning_effort_is_how_much_ollama_thinks(
    openai_client: openai.OpenAI, mock_ollama: Any, effort: Any, think: bool | str
) -> None:
    reply = await in_thread(
        lambda: openai_client.chat.completions.create(model="thinker", messages=QUESTION, reasoning_effort=effort)
    )
    assert last_body(mock_ollama)["think"] == think
    assert bool(getattr(reply.choices[0].message, "reasoning", "")) is (effort != "none")


async def test_reasoning_comes_apart_from_the_answer(openai_client: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": "[[think:3]] [[tokens:5]] [[both:1]]"}]
    whole = await in_thread(lambda: openai_client.chat.completions.create(model="thinker", messages=asked))
    message = whole.choices[0].message
    assert message.model_extra == {"reasoning": "the quick brown"}

    def streamed() -> tuple[str, Any]:
        with openai_client.chat.completions.stream(model="thinker", messages=asked) as stream:
            reasoning = "".join(
                (event.chunk.choices[0].delta.model_extra or {}).get("reasoning", "")
                for event in stream
                if event.type == "chunk"
            )
            return reasoning, stream.get_final_completion()

    reasoning, final = await in_thread(streamed)
    assert reasoning == "the quick brown"
    assert final.choices[0].message.content == message.content


async def test_logprobs(openai_client: openai.OpenAI) -> None:
    whole = await in_thread(
        lambda: openai_client.chat.completions.create(
            model="tiny", messages=QUESTION, logprobs=True, top_logprobs=2
        )
    )
    assert whole.choices[0].logprobs is not None
    told = whole.choices[0].logprobs.content
    assert told is not None
    assert "".join(entry.token for entry in told) == whole.choices[0].message.content
    assert {len(entry.top_logprobs) for entry in told} == {2}

    def streamed() -> tuple[list[Any], Any]:
        with openai_client.chat.completions.stream(
            model="tiny", messages=QUESTION, logprobs=True, top_logprobs=2
        ) as stream:
            events = [event for event in stream if event.type == "logprobs.content.delta"]
            return events, stream.get_final_completion()

    events, final = await in_thread(streamed)
    assert [entry for event in events for entry in event.content] == told
    assert final.choices[0].logprobs.content == told


async def test_a_bound_of_the_client_cuts_the_answer_short(openai_client: openai.OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        bound: Any = {name: 3}
        reply = await in_thread(
            lambda bound=bound: openai_client.chat.completions.create(model="tiny", messages=QUESTION, **bound)
        )
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage.completion_tokens == 3


async def test_two_choices_are_a_bad_request(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await in_thread(lambda: openai_client.chat.completions.create(model="tiny", messages=QUESTION, n=2))
    assert refused.value.param == "n"
    assert refused.value.type == "invalid_request_error"


async def test_what_clients_send_as_a_matter_of_course_is_taken(openai_client: openai.OpenAI) -> None:
    reply = await in_thread(
        lambda: openai_client.chat.completions.create(
            model="tiny",
            messages=[{"role": "developer", "content": "be brief", "name": "ops"}, *QUESTION],
            n=1,
            user="somebody",
            metadata={"team": "rivers"},
            store=False,
            logit_bias={"50256": -100},
            parallel_tool_calls=True,
            service_tier="auto",
            stop=["\n\n"],
            seed=7,
            temperature=0,
            top_p=0.5,
            presence_penalty=0.1,
            frequency_penalty=0.1,
            prompt_cache_key="rivers",
            safety_identifier="hashed",
            verbosity="low",
            modalities=["text"],
            tools=[{"type": "function", "function": {"name": "look", "parameters": {}}}],
            tool_choice="none",
        )
    )
    assert reply.choices[0].finish_reason == "stop"


async def test_headers_tell_the_request_and_the_limits(gateway: Any, make_key: Any) -> None:
    limited = await make_key("limited", rpm=5, budget_tokens=10_000)
    with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=limited, max_retries=0) as client:
        raw = await in_thread(
            lambda: client.chat.completions.with_raw_response.create(model="tiny", messages=QUESTION)
        )
        reply = raw.parse()
    assert reply._request_id == raw.headers["x-request-id"]
    assert raw.headers["x-ratelimit-limit-requests"] == "5"
    assert raw.headers["x-ratelimit-remaining-requests"] == "4"
    assert raw.headers["x-ratelimit-limit-tokens"] == "10000"
    assert int(raw.headers["x-ratelimit-remaining-tokens"]) < 10_000
    for name in ("requests", "tokens"):
        assert raw.headers[f"x-ratelimit-reset-{name}"].endswith("s")


async def test_a_stream_bears_the_headers_too(openai_client: openai.OpenAI, books: Any) -> None:
    def ask() -> tuple[str, str]:
        with openai_client.chat.completions.with_streaming_response.create(
            model="tiny", messages=QUESTION, stream=True
        ) as raw:
            chunks = list(raw.parse())
            return raw.headers["x-request-id"], chunks[0].id

    request_id, _ = await in_thread(ask)
    [row] = await books.rows(1)
    assert str(row["request_id"]) == request_id
