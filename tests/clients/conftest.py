"""Clients as people have them, in an environment that tells them nothing."""

import os
from collections.abc import Iterator
from typing import Any

import openai
import pytest

# Read by the clients themselves: keys, places and options, and what sends their traffic elsewhere.
_READ_BY_CLIENTS = ("OPENAI_", "ANTHROPIC_", "OLLAMA_", "LANGCHAIN_", "LANGSMITH_", "LITELLM_", "LLM_")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the environment reaches a client."""
    for name in os.environ:
        if name.startswith(_READ_BY_CLIENTS) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def openai_client(gateway: Any, key: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client with a valid key. It tries once, so that no failure hides behind a second try."""
    with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0, timeout=20) as client:
        yield client
