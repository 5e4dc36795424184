"""OpenAI's own client lists and finds models, and reads why it may not."""

from typing import Any

import openai
import pytest
import trio


async def test_the_openai_client_lists_and_finds_models(gateway: Any, key: str) -> None:
    with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
        models = await trio.to_thread.run_sync(lambda: list(client.models.list()))
        assert {model.id for model in models} == {
            "tiny:latest",
            "tiny:1b",
            "acme/other:latest",
            "embed:latest",
            "thinker:latest",
        }
        for model in models:
            assert await trio.to_thread.run_sync(client.models.retrieve, model.id) == model
        with pytest.raises(openai.PermissionDeniedError) as denied:
            await trio.to_thread.run_sync(client.models.retrieve, "acme/ghost:1b")
    assert denied.value.code == "model_not_available"
    assert denied.value.request_id


async def test_the_openai_client_knows_a_wrong_key(gateway: Any) -> None:
    with (
        openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        await trio.to_thread.run_sync(client.models.retrieve, "tiny")
    assert refused.value.code == "invalid_api_key"
