"""Budgets that an operator changes while a gateway runs."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import trio

from neuronetz.cli import budget_store
from neuronetz.stores.postgres import Postgres

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}


def auth(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def until(what: Callable[[], Awaitable[bool]], within_s: float = 5.0) -> None:
    with trio.fail_after(within_s):
        while not await what():
            await trio.sleep(0.01)


async def spend_all(client: httpx.AsyncClient, key: str) -> httpx.Response:
    for _ in range(50):
        reply = await client.post("/api/chat", json=CHAT, headers=auth(key))
        if reply.status_code == 429:
            return reply
    raise AssertionError("never refused")


async def test_a_spent_budget_is_told_as_a_quota_that_no_retry_helps(
    client: httpx.AsyncClient, make_key: Any
) -> None:
    key = await make_key("poor", budget_tokens=60, budget_period="month")
    reply = await spend_all(client, key)
    assert reply.headers["x-should-retry"] == "false"
    reset_s = int(reply.headers["x-ratelimit-reset-tokens"].removesuffix("s"))
    assert ("retry-after" in reply.headers) == (reset_s <= 120)
    assert reply.headers["x-ratelimit-limit-tokens"] == "60"
    assert reply.json() == {"error": "token budget exhausted for this period"}


async def test_a_reset_lets_requests_in_again_at_once_and_changes_no_report(
    client: httpx.AsyncClient, make_key: Any, books: Any, postgres: Postgres
) -> None:
    key = await make_key("poor", budget_tokens=60)
    await spend_all(client, key)
    before = await books.ledger()
    with trio.fail_after(3):
        while sum((await books.ledger())[:2]) == 0 or await books.copies():
            await trio.sleep(0.01)
    before = await books.ledger()
    budget, tokens = await budget_store.reset(postgres, "poor", None, "paid")
    assert (budget["used"], tokens) == (0, sum(before[:2]))
    assert await books.ledger() == before

    async def let_in() -> bool:
        return (await client.post("/api/chat", json=CHAT, headers=auth(key))).status_code == 200

    await until(let_in, 2.0)
    await books.settled()


async def test_a_budget_raised_or_lowered_keeps_what_was_spent(
    client: httpx.AsyncClient, make_key: Any, books: Any, postgres: Postgres
) -> None:
    key = await make_key("acme2", budget_tokens=10_000)
    await client.post("/api/chat", json=CHAT, headers=auth(key))
    spent = sum((await books.ledger())[:2]) if await books.rows(1) else 0
    assert spent > 0
    for limit in (50_000, spent, None):
        await budget_store.change(postgres, "acme2", None, {"budget_tokens": limit})

        async def heard(limit: int | None = limit) -> bool:
            reply = await client.post("/api/chat", json=CHAT, headers=auth(key))
            told = reply.headers.get("x-ratelimit-limit-tokens")
            if told != (None if limit is None else str(limit)):
                return False
            assert reply.status_code == (429 if limit == spent else 200)
            return True

        await until(heard)


async def test_a_budget_set_while_a_request_runs_counts_it_when_it_ends(
    client: httpx.AsyncClient, make_key: Any, books: Any, postgres: Postgres, mock_ollama: Any
) -> None:
    key = await make_key("free")
    slow = CHAT | {"messages": [{"role": "user", "content": "[[ttft:0.5]]"}]}
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await client.post("/api/chat", json=slow, headers=auth(key))

        nursery.start_soon(run)
        with trio.fail_after(5):
            while not mock_ollama.stats.open:
                await trio.sleep(0.005)
        await budget_store.change(postgres, "free", None, {"budget_tokens": 1_000_000, "budget_period": "day"})

        async def counted() -> bool:
            reply = await client.get("/api/tags", headers=auth(key))
            assert reply.status_code == 200
            return (
                "x-ratelimit-limit-tokens"
                in (await client.post("/api/chat", json=CHAT, headers=auth(key))).headers
            )

        await until(counted)
    names = await books.redis.command("KEYS", "gateway:{*}:budget:t:day:*")

    async def agrees() -> bool:
        used = int(await books.redis.command("HGET", names[0], "used"))
        return bool(used == sum((await books.ledger())[:2]) and not await books.copies())

    await until(agrees, 10.0)


async def test_the_metrics_tell_of_drift_and_repairs(gateway: Any, client: httpx.AsyncClient) -> None:
    text = (await client.get(gateway.metrics_url)).text
    assert "gateway_ledger_repairs_total 0.0" in text
    await gateway.ledger_check.round()
    text = (await client.get(gateway.metrics_url)).text
    assert 'gateway_ledger_drift_tokens{scope="tenant"} 0.0' in text
    assert 'gateway_service_up{service="ledger_check"} 1.0' in text
