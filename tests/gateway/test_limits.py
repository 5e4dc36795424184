"""Limits hold over keys, tenants and processes; a refused request consumes nothing."""

from typing import Any

import httpx
import pytest
import trio

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}


def slow(seconds: float) -> dict[str, Any]:
    return CHAT | {"messages": [{"role": "user", "content": f"[[ttft:{seconds}]]"}]}


async def test_the_rate_limit_refuses_with_headers_and_a_row(
    client: httpx.AsyncClient, make_key: Any, books: Any
) -> None:
    limited = await make_key("limited", rpm=3)
    auth = {"authorization": f"Bearer {limited}"}
    replies = [await client.post("/api/chat", json=CHAT, headers=auth) for _ in range(5)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
    assert [reply.headers["x-ratelimit-limit-requests"] for reply in replies] == ["3"] * 5
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["2", "1", "0", "0", "0"]
    assert 1 <= int(replies[3].headers["retry-after"]) <= 61
    rows = await books.rows(5)
    assert [row["outcome"] for row in rows].count("rate_limited") == 2
    await books.settled()


async def test_reads_count_against_the_rate_and_take_no_slot(client: httpx.AsyncClient, make_key: Any) -> None:
    limited = await make_key("limited", rpm=2, concurrency=1)
    auth = {"authorization": f"Bearer {limited}"}
    statuses = [(await client.get("/api/tags", headers=auth)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


async def test_two_keys_of_a_tenant_share_its_limit(client: httpx.AsyncClient, make_key: Any) -> None:
    first, second = await make_key("shared", rpm=3), await make_key("shared", rpm=3)
    statuses = [
        (await client.post("/api/chat", json=CHAT, headers={"authorization": f"Bearer {key}"})).status_code
        for key in (first, second, first, second)
    ]
    assert statuses == [200, 200, 200, 429]


async def test_concurrency_is_refused_at_once_and_free_again_afterwards(
    client: httpx.AsyncClient, make_key: Any, mock_ollama: Any, books: Any
) -> None:
    narrow = await make_key("narrow", concurrency=2)
    auth = {"authorization": f"Bearer {narrow}"}
    statuses: list[int] = []

    async def ask(body: dict[str, Any]) -> None:
        statuses.append((await client.post("/api/chat", json=body, headers=auth)).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(ask, slow(1.0))
        with trio.fail_after(5):
            while mock_ollama.stats.open < 2:
                await trio.sleep(0.005)
        reply = await client.post("/api/chat", json=CHAT, headers=auth)
        assert reply.status_code == 429
        assert reply.headers["retry-after"] == "1"
    assert statuses == [200, 200]
    assert (await client.post("/api/chat", json=CHAT, headers=auth)).status_code == 200
    await books.settled()


async def test_a_budget_is_spent_to_its_end_and_then_refused_without_a_retry(
    client: httpx.AsyncClient, make_key: Any, books: Any
) -> None:
    poor = await make_key("poor", budget_tokens=60, budget_period="day")
    auth = {"authorization": f"Bearer {poor}"}
    spent, statuses = 0, []
    for _ in range(12):
        reply = await client.post("/api/chat", json=CHAT, headers=auth)
        statuses.append(reply.status_code)
        assert reply.headers["x-ratelimit-limit-tokens"] == "60"
        if reply.status_code == 200:
            spent += reply.json().get("prompt_eval_count", 0) + reply.json()["eval_count"]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    assert reply.headers["x-should-retry"] == "false"
    rows = await books.rows(12)
    assert rows[-1]["outcome"] == "budget_exhausted"
    prompt, completion, requests = await books.ledger()
    assert prompt + completion == spent <= 60
    assert requests == 12
    await books.settled()


async def test_parallel_requests_never_overspend_a_budget(
    client: httpx.AsyncClient, make_key: Any, books: Any
) -> None:
    poor = await make_key("poor", budget_tokens=400, budget_period="day")
    auth = {"authorization": f"Bearer {poor}"}
    statuses: list[int] = []

    async def ask() -> None:
        body = CHAT | {"options": {"num_predict": 16}}
        statuses.append((await client.post("/api/chat", json=body, headers=auth)).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(ask)
    assert set(statuses) == {200, 429}
    await books.rows(40)
    prompt, completion, _ = await books.ledger()
    assert prompt + completion <= 400
    await books.settled()


async def test_a_lost_budget_counter_is_rebuilt_from_the_ledger(
    client: httpx.AsyncClient, make_key: Any, books: Any
) -> None:
    poor = await make_key("poor", budget_tokens=1000, budget_period="month")
    auth = {"authorization": f"Bearer {poor}"}
    first = await client.post("/api/chat", json=CHAT, headers=auth)
    second = await client.post("/api/chat", json=CHAT, headers=auth)
    await books.rows(2)
    for name in await books.redis.command("KEYS", "gateway:{*}:budget:*"):
        await books.redis.command("DEL", name)
    third = await client.post("/api/chat", json=CHAT, headers=auth)
    left = [int(reply.headers["x-ratelimit-remaining-tokens"]) for reply in (first, second, third)]
    assert third.status_code == 200
    assert left[2] <= left[1]


async def test_two_gateways_together_keep_a_keys_limits(
    asyncio_loop: Any, settings: Any, run_gateway: Any, make_key: Any, books: Any, mock_ollama: Any
) -> None:
    limited = await make_key("limited", rpm=20, concurrency=3)
    auth = {"authorization": f"Bearer {limited}"}
    statuses: list[int] = []
    async with (
        run_gateway(settings) as one,
        run_gateway(settings) as two,
        httpx.AsyncClient(trust_env=False, headers=auth, timeout=30) as client,
    ):
        peak = 0

        async def ask(base_url: str) -> None:
            statuses.append((await client.post(base_url + "/api/chat", json=slow(0.05))).status_code)

        async def observe() -> None:
            nonlocal peak
            while True:
                peak = max(peak, mock_ollama.stats.open)
                await trio.sleep(0.002)

        async with trio.open_nursery() as observers:
            observers.start_soon(observe)
            for _ in range(10):
                async with trio.open_nursery() as nursery:
                    for n in range(6):
                        nursery.start_soon(ask, (one if n % 2 else two).base_url)
            observers.cancel_scope.cancel()
    assert len(statuses) == 60
    assert statuses.count(200) == 20
    assert peak <= 3
    await books.rows(60)
    await books.settled()


@pytest.mark.parametrize("where", ["tenant", "key"])
async def test_a_narrower_limit_of_the_key_or_the_tenant_wins(
    client: httpx.AsyncClient, make_key: Any, where: str
) -> None:
    limits = {"rpm": 2, "key_rpm": 50} if where == "tenant" else {"rpm": 50, "key_rpm": 2}
    key = await make_key("both", **limits)
    auth = {"authorization": f"Bearer {key}"}
    statuses = [(await client.get("/api/tags", headers=auth)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
