"""zstd is taken on every endpoint with a body, to the plain body's bounds; what else is compressed is a clear 415."""

import json
import threading
from typing import Any

import httpx
import pytest
import zstandard

from neuronetz.dialects import compression
from neuronetz.exchange import exchange

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "tell me of rivers"}], "stream": False}
ZSTD = {"content-encoding": "zstd"}

BODIES: dict[str, dict[str, Any]] = {
    "/api/chat": CHAT,
    "/api/generate": {"model": "tiny", "prompt": "tell me of rivers", "stream": False},
    "/api/embed": {"model": "embed", "input": "rivers"},
    "/api/embeddings": {"model": "embed", "prompt": "rivers"},
    "/api/show": {"model": "tiny"},
    "/v1/chat/completions": CHAT,
}
# Where a call goes at the upstream, if not to its own path.
UPSTREAM = {"/v1/chat/completions": "/api/chat"}


def packed(body: object, *, declared: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=declared).compress(json.dumps(body).encode())


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("coding", ["zstd", "ZSTD"])
async def test_a_zstd_body_asks_what_the_plain_one_asks(
    client: httpx.AsyncClient, mock_ollama: Any, books: Any, path: str, coding: str
) -> None:
    replies, asked = [], []
    for content, headers in (
        (json.dumps(BODIES[path]).encode(), {}),
        (packed(BODIES[path]), {"content-encoding": coding}),
    ):
        replies.append(await client.post(path, content=content, headers=headers))
        asked.append(
            next(seen for seen in reversed(mock_ollama.stats.last) if seen.path == UPSTREAM.get(path, path))
        )
    assert [reply.status_code for reply in replies] == [200, 200]
    assert asked[0].body == asked[1].body
    assert "content-encoding" not in {name.lower() for name in dict(asked[1].headers)}
    plain, inflated = await books.rows(2)
    assert (plain["outcome"], plain["model"]) == (inflated["outcome"], inflated["model"])
    assert plain["prompt_tokens"] == inflated["prompt_tokens"]
    await books.settled()


@pytest.mark.parametrize("declared", [True, False])
async def test_a_bomb_is_a_413_and_is_never_held(
    client: httpx.AsyncClient, books: Any, make_key: Any, declared: bool
) -> None:
    small = await make_key("small", max_body_bytes=100_000)
    body = packed(CHAT | {"padding": "a" * 10_000_000}, declared=declared)
    assert len(body) < 100_000
    reply = await client.post("/api/chat", content=body, headers=ZSTD | {"authorization": f"Bearer {small}"})
    assert (reply.status_code, reply.json()) == (413, {"error": "request body too large"})
    [row] = await books.rows(1)
    assert row["outcome"] == "body_too_large"
    await books.settled()


async def test_the_limit_is_the_inflated_bodys_and_exact(client: httpx.AsyncClient, make_key: Any) -> None:
    size = len(json.dumps(CHAT))
    for limit, status in ((size, 200), (size - 1, 413)):
        key = await make_key(f"limit-{limit}", max_body_bytes=limit)
        headers = ZSTD | {"authorization": f"Bearer {key}"}
        assert (await client.post("/api/chat", content=packed(CHAT), headers=headers)).status_code == status


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body is not valid zstd"),
        (json.dumps(CHAT).encode(), "body is not valid zstd"),
        (packed(CHAT)[:-1], "body is not valid zstd"),
        (packed(CHAT) + b"x", "body is not valid zstd"),
        (packed(CHAT, declared=False) * 2, "body holds more than one zstd frame"),
        (packed([]), "body must be a JSON object"),
    ],
)
async def test_a_body_that_is_no_zstd_is_a_400_with_one_row(
    client: httpx.AsyncClient, books: Any, body: bytes, message: str
) -> None:
    reply = await client.post("/api/chat", content=body, headers=ZSTD)
    assert (reply.status_code, reply.json()) == (400, {"error": message})
    [row] = await books.rows(1)
    assert (row["outcome"], row["status"]) == ("invalid_request", 400)
    await books.settled()


async def test_broken_zstd_is_held_until_it_was_counted(client: httpx.AsyncClient, make_key: Any) -> None:
    limited = await make_key("limited", rpm=2)
    headers = ZSTD | {"authorization": f"Bearer {limited}"}
    statuses = [(await client.post("/api/chat", content=b"x", headers=headers)).status_code for _ in range(3)]
    assert statuses == [400, 400, 429]


@pytest.mark.parametrize(
    "codings", [["gzip"], ["br"], ["zstd, identity"], ["zstd", "zstd"], ["gzip, zstd"], ["dcz"], ["\u00e4"]]
)
async def test_other_codings_are_a_415_that_says_what_is_taken(
    client: httpx.AsyncClient, books: Any, codings: list[str]
) -> None:
    headers = [(b"content-encoding", coding.encode()) for coding in codings]
    reply = await client.post("/api/chat", content=packed(CHAT), headers=headers)
    assert reply.status_code == 415
    assert reply.headers["accept-encoding"] == "zstd"
    assert "zstd" in reply.json()["error"]
    [row] = await books.rows(1)
    assert row["outcome"] == "unsupported_encoding"


@pytest.mark.parametrize(
    ("body", "in_line"),
    [
        (packed(CHAT), True),
        (packed(CHAT, declared=False), False),
        (packed(CHAT | {"padding": "a" * 1_000_000}), False),
    ],
    ids=["small", "of unknown size", "large"],
)
async def test_what_may_be_large_is_inflated_beside_the_event_loop(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, body: bytes, in_line: bool
) -> None:
    threads = []

    def inflate(data: bytes, limit: int) -> bytes:
        threads.append(threading.current_thread())
        return compression.inflate(data, limit)

    monkeypatch.setattr(exchange, "inflate", inflate)
    assert (await client.post("/api/chat", content=body, headers=ZSTD)).status_code == 200
    assert [thread is threading.main_thread() for thread in threads] == [in_line]
