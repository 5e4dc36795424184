"""Failures that users of other gateways reported, provoked here: what each would break must hold.

Each test is named for what it proves; where the failure was reported stands in its docstring.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import trio

from tests.patience import until
from tests.shapes import SHAPES, STREAMING, STREAMS, Shape, named
from tests.sockets import connected

CHAT = Shape("/api/chat", False)
WHOLE = [shape for shape in SHAPES if not shape.stream and shape.path in STREAMING]
BOUND_S = 0.1


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def ask(client: httpx.AsyncClient, key: str, prompt: str = "rivers", shape: Shape = CHAT) -> httpx.Response:
    return await client.post(shape.path, json=shape.body(prompt), headers=bearer(key))


async def leave(gateway: Any, mock: Any, request: bytes, when: Callable[[], Awaitable[None]]) -> float:
    """Send a request and close the connection once ``when`` has passed; how long the model then went on."""
    async with connected(gateway) as client:
        await client.send_all(request)
        await until(lambda: mock.stats.open == 1, 3)
        await when()
    return await until(lambda: mock.stats.open == 0, 3)


async def at_once() -> None:
    """As soon as the model has the request."""


@pytest.mark.parametrize("shape", STREAMS, ids=named)
async def test_a_client_that_leaves_before_the_first_token_stops_the_model(
    gateway: Any, mock_ollama: Any, key: str, shape: Shape
) -> None:
    """BerriAI/litellm pull request 31499, issue 13774; in every shape: issue 36123."""
    took = await leave(gateway, mock_ollama, shape.request(key, "[[ttft:30]] rivers"), at_once)
    assert took < BOUND_S


@pytest.mark.parametrize("shape", WHOLE, ids=named)
async def test_a_client_that_leaves_a_request_without_a_stream_stops_the_model(
    gateway: Any, mock_ollama: Any, key: str, shape: Shape
) -> None:
    """BerriAI/litellm issue 37140; ollama-mcp-bridge issue 69; in every shape: BerriAI/litellm issue 36123."""
    took = await leave(
        gateway,
        mock_ollama,
        shape.request(key, "[[tokens:1000]] [[tps:50]] rivers"),
        lambda: mock_ollama.stats.wait_for(lambda stats: stats.tokens >= 2),
    )
    assert took < BOUND_S


async def test_streams_that_are_cancelled_do_not_wear_a_keys_concurrency_out(
    gateway: Any, mock_ollama: Any, make_key: Any, books: Any, client: httpx.AsyncClient
) -> None:
    """BerriAI/litellm issue 27955, pull request 28160."""
    key = await make_key("worn", concurrency=1)
    for round_ in range(40):
        shape = STREAMS[round_ % len(STREAMS)]
        wanted = round_ % 4
        await leave(
            gateway,
            mock_ollama,
            shape.request(key, "[[tokens:1000]] [[tps:500]] rivers"),
            lambda wanted=wanted: mock_ollama.stats.wait_for(lambda stats: stats.tokens % 7 >= wanted),
        )
        await books.settled(within_s=BOUND_S)
    assert (await ask(client, key)).status_code == 200


FAULTS = ["500", "503", "refuse", "reset", "close", "garbage", "error_line", "eof", "stall", "stall_stream"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_an_upstream_that_fails_does_not_lock_a_key(
    asyncio_loop: Any, settings: Any, run_gateway: Any, mock_ollama: Any, make_key: Any, books: Any, stream: bool
) -> None:
    """BerriAI/litellm issue 20256. (Slots of a process that was killed: ``tests/local/test_killed.py``.)"""
    quick = {"first_byte_timeout_s": 0.5, "chunk_timeout_s": 0.3, "breaker_failures": 1000}
    key = await make_key("unlucky", concurrency=1)
    async with (
        run_gateway(settings.model_copy(update=quick)) as gateway,
        httpx.AsyncClient(base_url=gateway.base_url, trust_env=False, timeout=10) as client,
    ):
        for fault in FAULTS:
            failed = await ask(client, key, f"[[fail:{fault}]] rivers", Shape("/v1/chat/completions", stream))
            assert failed.status_code >= 400 or b'"error"' in failed.content, fault
            await books.settled(within_s=BOUND_S)
            assert (await ask(client, key)).status_code == 200, fault


async def test_a_request_refused_for_concurrency_consumes_no_rate(
    gateway: Any, client: httpx.AsyncClient, mock_ollama: Any, make_key: Any
) -> None:
    """BerriAI/litellm issue 39309."""
    key = await make_key("busy", concurrency=1, rpm=3)
    async with connected(gateway) as first:
        await first.send_all(CHAT.request(key, "[[ttft:30]] rivers"))
        await until(lambda: mock_ollama.stats.open == 1, 3)
        refused = [await ask(client, key) for _ in range(5)]
        assert {reply.status_code for reply in refused} == {429}
        assert {reply.headers["x-ratelimit-remaining-requests"] for reply in refused} == {"2"}
    await until(lambda: mock_ollama.stats.open == 0, 1)
    statuses = [(await ask(client, key)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


async def test_an_invalid_request_does_not_lock_a_key(
    gateway: Any, client: httpx.AsyncClient, make_key: Any, books: Any
) -> None:
    """BerriAI/litellm issue 1477."""
    key = await make_key("clumsy", concurrency=1, allow_all_models=False, models=["tiny:latest"])
    auth = bearer(key)
    for shape in SHAPES:
        replies = [
            await client.post(shape.path, content=b"{", headers=auth),
            await client.post(shape.path, json=shape.body("rivers", model="secret"), headers=auth),
            await client.post("/v1/nowhere", json={}, headers=auth),
            await client.post("/api/pull", json={"model": "tiny"}, headers=auth),
            await client.request("PUT", shape.path, headers=auth),
        ]
        assert [reply.status_code for reply in replies] == [400, 403, 404, 403, 405]
        await books.settled(within_s=BOUND_S)
    async with connected(gateway) as large:
        length = b"Content-Length: %d" % (gateway.settings.max_body_bytes + 1)
        await large.send_all(re.sub(rb"Content-Length: \d+", length, CHAT.request(key, "rivers")))
        assert (await large.receive_some(4096)).startswith(b"HTTP/1.1 413")
    await books.settled(within_s=BOUND_S)
    assert (await ask(client, key)).status_code == 200


async def test_limits_do_not_multiply_with_the_number_of_gateways(
    asyncio_loop: Any, settings: Any, run_gateway: Any, mock_ollama: Any, make_key: Any, books: Any
) -> None:
    """BerriAI/litellm issue 16011. (Whole processes: ``tests/local/test_workers.py``.)"""
    key = await make_key("wide", concurrency=3, rpm=8)
    async with (
        run_gateway(settings) as one,
        run_gateway(settings) as two,
        httpx.AsyncClient(base_url=one.base_url, trust_env=False, timeout=10) as first,
        httpx.AsyncClient(base_url=two.base_url, trust_env=False, timeout=10) as second,
    ):
        statuses: list[int] = []

        async def one_request(client: httpx.AsyncClient) -> None:
            statuses.append((await ask(client, key, "[[ttft:2]] rivers")).status_code)

        async with trio.open_nursery() as nursery:
            for client in [first, second] * 8:
                nursery.start_soon(one_request, client)
        assert (statuses.count(200), statuses.count(429)) == (3, 13)
        later = [(await ask(client, key)).status_code for client in [first, second] * 3]
        assert later == [200] * 5 + [429]
    await books.settled()


async def test_concurrent_requests_do_not_overspend_a_budget(
    client: httpx.AsyncClient, mock_ollama: Any, make_key: Any, books: Any
) -> None:
    """BerriAI/litellm issues 26672, 34732; membrane/api-gateway issue 3210; garrytan/gbrain issue 4365."""
    budget = 200
    key = await make_key("frugal", budget_tokens=budget, max_predict=16)
    statuses: list[int] = []

    async def one() -> None:
        statuses.append((await ask(client, key, "[[ttft:0.05]] tell me of rivers")).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(one)
    assert set(statuses) == {200, 429}
    rows = await books.rows(40)
    assert sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows) <= budget
    await books.settled()


@pytest.mark.parametrize("shape", STREAMS, ids=named)
async def test_tokens_streamed_before_a_disconnect_are_accounted(
    gateway: Any, mock_ollama: Any, key: str, books: Any, shape: Shape
) -> None:
    """BerriAI/litellm issue 14457."""
    async with connected(gateway) as client:
        await client.send_all(shape.request(key, "[[tokens:1000]] [[tps:200]] rivers"))
        received = b""
        while received.count(shape.piece) < 12:
            received += await client.receive_some(65536)
    [row] = await books.rows(1)
    assert (row["outcome"], row["tokens_exact"]) == ("client_disconnected", False)
    assert 5 <= row["completion_tokens"] <= mock_ollama.stats.tokens
    assert await books.ledger() == (row["prompt_tokens"], row["completion_tokens"], 1)


async def test_a_budget_accrues_from_the_first_request_of_a_fresh_install(
    client: httpx.AsyncClient, make_key: Any, books: Any
) -> None:
    """langwatch issue 6141: the ledger moves in the statement that inserts the row."""
    key = await make_key("fresh", budget_tokens=1000, budget_period="month")
    reply = await ask(client, key)
    [row] = await books.rows(1)
    spent = row["prompt_tokens"] + row["completion_tokens"]
    assert spent == reply.json()["prompt_eval_count"] + reply.json()["eval_count"] > 0
    assert sum((await books.ledger())[:2]) == spent
    after = await ask(client, key)
    assert int(after.headers["x-ratelimit-remaining-tokens"]) <= 1000 - spent


@pytest.mark.parametrize("shape", [Shape("/api/chat", True), Shape("/v1/chat/completions", True)], ids=named)
async def test_a_slow_reader_loses_its_slot_at_the_write_deadline(
    asyncio_loop: Any, settings: Any, run_gateway: Any, mock_ollama: Any, key: str, books: Any, shape: Shape
) -> None:
    """Telcoin-Association/telcoin-network pull request 1055, hypercorn pull request 262."""
    write_timeout_s = 0.4
    async with (
        run_gateway(settings.model_copy(update={"write_timeout_s": write_timeout_s})) as gateway,
        connected(gateway, small_window=True) as client,
    ):
        await client.send_all(shape.request(key, "[[tokens:1000000]] rivers"))
        await until(lambda: mock_ollama.stats.open == 1, 3)
        await until(lambda: mock_ollama.stats.aborted == 1, 8)
        await books.settled(within_s=BOUND_S)
        [row] = await books.rows(1)
        assert row["outcome"] == "client_stalled"
