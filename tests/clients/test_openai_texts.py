"""Completions and embeddings by OpenAI's own client."""

from typing import Any

import openai
import pytest

from neuronetz.embedded.mock_replies import embedding
from tests.clients.threads import in_asyncio, in_thread
from tests.clients.upstream import last_body


async def test_a_completion_whole_and_streamed(openai_client: openai.OpenAI, mock_ollama: Any) -> None:
    whole = await in_thread(
        lambda: openai_client.completions.create(model="tiny", prompt="rivers", max_tokens=5, suffix="end")
    )
    assert whole.object == "text_completion"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 5
    assert last_body(mock_ollama, "/api/generate")["suffix"] == "end"

    def streamed() -> list[Any]:
        return list(
            openai_client.completions.create(
                model="tiny", prompt="rivers", max_tokens=5, stream=True, stream_options={"include_usage": True}
            )
        )

    chunks = await in_thread(streamed)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[-2].choices[0].finish_reason == "length"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 5)


async def test_an_echo_begins_with_the_prompt(openai_client: openai.OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return openai_client.completions.create(model="tiny", prompt="rivers ", max_tokens=2, echo=True, **more)

    whole = await in_thread(ask)
    assert whole.choices[0].text == "rivers the quick"
    chunks = await in_thread(lambda: list(ask(stream=True)))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "rivers the quick"


@pytest.mark.parametrize("more", [{"prompt": ["one", "two"]}, {"n": 2}, {"best_of": 3}])
async def test_what_completions_cannot_do_is_a_bad_request(openai_client: openai.OpenAI, more: Any) -> None:
    asked: Any = {"model": "tiny", "prompt": "rivers", **more}
    with pytest.raises(openai.BadRequestError) as refused:
        await in_thread(lambda: openai_client.completions.create(**asked))
    assert refused.value.param == next(iter(more))


async def test_a_completion_that_breaks_in_mid_stream_is_raised(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="upstream failed"):
        await in_thread(
            lambda: list(openai_client.completions.create(model="tiny", prompt="[[fail:error_line]]", stream=True))
        )


async def test_embeddings_by_the_clients_default_and_as_numbers(openai_client: openai.OpenAI) -> None:
    """By default the client asks for base64 of 32-bit numbers, and unpacks them."""
    texts = ["one", "two"]
    packed = await in_thread(lambda: openai_client.embeddings.create(model="embed", input=texts))
    plain = await in_thread(
        lambda: openai_client.embeddings.create(model="embed", input=texts, encoding_format="float")
    )
    assert [item.index for item in packed.data] == [0, 1]
    for text, from_bytes, from_numbers in zip(texts, packed.data, plain.data, strict=True):
        assert from_numbers.embedding == embedding(text)
        assert from_bytes.embedding == pytest.approx(embedding(text), abs=1e-7)
    assert packed.usage == plain.usage
    assert packed.usage.total_tokens == packed.usage.prompt_tokens > 0
    assert packed.model == "embed"


async def test_embeddings_of_few_dimensions(openai_client: openai.OpenAI) -> None:
    reply = await in_thread(lambda: openai_client.embeddings.create(model="embed", input="one", dimensions=3))
    assert len(reply.data[0].embedding) == 3


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]])
async def test_tokens_are_a_bad_request(openai_client: openai.OpenAI, tokens: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await in_thread(lambda: openai_client.embeddings.create(model="embed", input=tokens))
    assert refused.value.param == "input"
    assert "string" in refused.value.message


async def test_the_async_client_embeds_and_completes(gateway: Any, key: str) -> None:
    async def ask() -> tuple[Any, str]:
        async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
            embedded = await client.embeddings.create(model="embed", input="one")
            stream = await client.completions.create(model="tiny", prompt="rivers", stream=True, max_tokens=2)
            return embedded, "".join([chunk.choices[0].text async for chunk in stream])

    embedded, text = await in_asyncio(ask)
    assert embedded.data[0].embedding == pytest.approx(embedding("one"), abs=1e-7)
    assert text == "the quick"
