"""A key may come as ``x-api-key``, as Anthropic's clients send it; Authorization wins where both are there."""

from typing import Any

import httpx
import pytest

from neuronetz.access.keys import generate
from neuronetz.exchange.request import Request

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}

# ``KEY`` stands for a valid key, ``OTHER`` for a well-formed one that nobody has.
ACCEPTED = [
    [("x-api-key", "KEY")],
    [("X-Api-Key", "KEY")],
    [("authorization", "Bearer KEY"), ("x-api-key", "OTHER")],
    [("x-api-key", "nonsense"), ("authorization", "Bearer KEY")],
    [("authorization", "Bearer KEY"), ("x-api-key", "a"), ("x-api-key", "b")],
]
REFUSED = [
    [("x-api-key", "")],
    [("x-api-key", "OTHER")],
    [("x-api-key", "Bearer KEY")],
    [("x-api-key", "KEY, KEY")],
    [("x-api-key", "KEY KEY")],
    [("x-api-key", "KEYx")],
    [("x-api-key", "KEY"), ("x-api-key", "KEY")],
    [("x-api-key", "KEY"), ("x-api-key", "")],
    [("authorization", ""), ("x-api-key", "KEY")],
    [("authorization", "Bearer OTHER"), ("x-api-key", "KEY")],
    [("authorization", "Bearer KEY"), ("authorization", "Bearer KEY"), ("x-api-key", "KEY")],
    [("api-key", "KEY")],
]


def headers(given: list[tuple[str, str]], key: str) -> list[tuple[str, str]]:
    other = generate().text
    return [(name, value.replace("KEY", key).replace("OTHER", other)) for name, value in given]


@pytest.mark.parametrize("given", ACCEPTED)
async def test_a_bare_key_is_as_good_as_a_bearer(
    gateway: Any, key: str, mock_ollama: Any, given: list[tuple[str, str]]
) -> None:
    sent = headers(given, key)
    async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as client:
        assert (await client.get("/api/tags", headers=sent)).status_code == 200
        assert (await client.post("/api/chat", json=CHAT, headers=sent)).status_code == 200
    seen = [name.lower() for name in dict(mock_ollama.stats.last[-1].headers)]
    assert "x-api-key" not in seen
    assert "authorization" not in seen


@pytest.mark.parametrize("given", REFUSED)
async def test_whatever_else_is_the_same_401(
    gateway: Any, key: str, books: Any, given: list[tuple[str, str]]
) -> None:
    async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as client:
        reply = await client.get("/api/tags", headers=headers(given, key))
    assert (reply.status_code, reply.content) == (401, b'{"error":"invalid API key"}')
    assert await books.postgres.fetchval("SELECT count(*) FROM gateway.audit_log") == 0


async def test_a_request_shown_in_a_traceback_or_a_log_shows_no_key() -> None:
    request = Request(
        action="tags",
        endpoint="/api/tags",
        dialect="ollama",
        authorization="Bearer nnz_secret",
        content_length=None,
        content_encoding=None,
        client_ip=None,
    )
    assert "nnz_secret" not in repr(request)
