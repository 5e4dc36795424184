"""OpenAI's own client lists and finds models, and reads why it may not."""

import openai
import pytest

from tests.clients.threads import in_thread

INSTALLED = {"tiny:latest", "tiny:1b", "acme/other:latest", "thinker:latest", "embed:latest"}


async def test_the_openai_client_lists_and_finds_models(openai_client: openai.OpenAI) -> None:
    models = await in_thread(lambda: list(openai_client.models.list()))
    assert {model.id for model in models} == INSTALLED
    for model in models:
        assert await in_thread(lambda model=model: openai_client.models.retrieve(model.id)) == model
    assert {model.owned_by for model in models} == {"library", "acme"}


async def test_a_model_out_of_reach_is_permission_denied(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError) as denied:
        await in_thread(lambda: openai_client.models.retrieve("acme/ghost:1b"))
    assert denied.value.code == "model_not_available"
    assert denied.value.request_id


async def test_a_wrong_key_is_an_authentication_error(openai_client: openai.OpenAI) -> None:
    stranger = openai_client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError) as refused:
        await in_thread(lambda: stranger.models.retrieve("tiny"))
    assert refused.value.code == "invalid_api_key"
