"""A gateway process that is killed outright: each request has its one row, and nothing stays taken.

What a killed process held is given back by whoever finds its heartbeat missing. With the defaults (HEARTBEAT_S
5, DEAD_AFTER_S 15) that takes at most 15 s and a moment: the last beat was sent before the kill, so the process
counts as dead no later than 15 s after it; every other instance's beat tells it when the next one is due to die,
and it looks again just then (``reaper.pause``) and not up to 5 s later; a reap is a few round trips. A process
that is started in place of the killed one beats at its start and is in the same position. That leaves almost 5 s
of the 20 s that G1 allows for a slow Redis. These tests use smaller times; the sum is the same.
"""

import json
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from neuronetz.embedded.postgres import EmbeddedPostgres
from neuronetz.stores.postgres import Postgres, open_postgres

DEAD_AFTER_S = 2.0
# Of the machine's, not of the gateway's: starting a process and PostgreSQL takes its time here.
SLACK_S = 8.0

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}
LONG = CHAT | {"messages": [{"role": "user", "content": "[[tokens:100000]] [[tps:50]]"}], "stream": True}
NO_MODEL = CHAT | {"model": "nobody-has-it"}


@pytest.fixture
def database_url(own_postgres: EmbeddedPostgres) -> str:
    """Every fixture that asks for the database gets one that the test may stop."""
    return own_postgres.dsn()


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url, size=4, timeout_s=5.0) as store:
        yield store


@pytest.fixture
def env(database_url: str, redis_url: str, mock_ollama: Any) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "OLLAMA_URL": mock_ollama.url,
        "LISTEN_PORT": "0",
        "METRICS_PORT": "0",
        "DRAIN_TIMEOUT_S": "1",
        "STORE_TIMEOUT_S": "1",
        "HEARTBEAT_S": "0.5",
        "DEAD_AFTER_S": str(DEAD_AFTER_S),
        "LOG_FORMAT": "json",
    }


@pytest.fixture
async def key(make_key: Any) -> str:
    return str(await make_key(rpm=6, concurrency=10, budget_tokens=10**6, budget_period="day"))


async def base_url(errors: bytearray) -> str:
    with trio.fail_after(30):
        while not (found := re.search(rb'"base_url":"([^"]+)"', errors)):
            assert b"neuronetz: " not in errors, errors.decode()
            await trio.sleep(0.02)
    return found[1].decode()


@asynccontextmanager
async def client_of(key: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(headers=headers, timeout=30, trust_env=False) as client:
        yield client


async def killed_in_mid_stream(
    process: trio.Process, url: str, client: httpx.AsyncClient, own_postgres: EmbeddedPostgres, books: Any
) -> dict[str, str]:
    """Have a gateway serve, lose PostgreSQL, serve on, and be killed while it streams.

    The outcomes by request id: what the rows must say.
    """
    expected: dict[str, str] = {}

    async def ask(body: dict[str, Any], outcome: str) -> None:
        reply = await client.post(url + "/api/chat", json=body)
        expected[reply.headers["x-request-id"]] = outcome

    async def stream(task_status: Any) -> None:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):  # noqa: PT012
            async with client.stream("POST", url + "/api/chat", json=LONG) as reply:
                expected[reply.headers["x-request-id"]] = "abandoned"
                lines = reply.aiter_lines()
                await anext(lines)
                task_status.started()
                async for line in lines:
                    assert json.loads(line)["done"] is False

    await ask(CHAT, "completed")
    await books.rows(1)
    # That row is PostgreSQL's alone once its copy is gone, a moment later.
    with trio.fail_after(SLACK_S):
        while await books.copies():
            await trio.sleep(0.02)
    async with trio.open_nursery() as nursery:
        await nursery.start(stream)
        await own_postgres.stop()
        await ask(CHAT, "completed")
        await ask(CHAT, "completed")
        await ask(NO_MODEL, "model_denied")
        await nursery.start(stream)
        await ask(CHAT, "rate_limited")
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert Counter(expected.values()) == {"completed": 3, "model_denied": 1, "abandoned": 2, "rate_limited": 1}
    assert await books.leases() == await books.slots() == 2
    assert await books.reserved() > 0
    return expected


async def all_is_accounted_for(expected: dict[str, str], books: Any) -> None:
    """Fails unless each request has its one row, and the ledger and Redis agree with them."""
    with trio.fail_after(SLACK_S):
        while await books.copies():
            await trio.sleep(0.02)
    rows = await books.rows(len(expected))
    assert {str(row["request_id"]): row["outcome"] for row in rows} == expected
    spent = [row["prompt_tokens"] + row["completion_tokens"] for row in rows if row["outcome"] == "completed"]
    assert all(spent)
    assert await books.ledger() == (
        sum(row["prompt_tokens"] for row in rows),
        sum(row["completion_tokens"] for row in rows),
        len(rows),
    )
    for name in await books.redis.command("KEYS", "gateway:{*}:budget:*"):
        used, reserved = await books.redis.command("HMGET", name, "used", "reserved")
        assert (int(used), int(reserved)) == (sum(spent), 0)


async def until_settled(books: Any, killed_at: float) -> None:
    """Slots, leases and reservations are back in time, whether PostgreSQL is there or not."""
    await books.settled(within_s=killed_at + DEAD_AFTER_S + SLACK_S - trio.current_time())
    assert trio.current_time() - killed_at < 20


async def test_after_a_restart_each_request_has_its_row_and_nothing_stays_taken(
    launch: Any, env: dict[str, str], own_postgres: EmbeddedPostgres, mock_ollama: Any, key: str, books: Any
) -> None:
    async with client_of(key) as client:
        async with launch("serve", **env) as (process, errors):
            expected = await killed_in_mid_stream(process, await base_url(errors), client, own_postgres, books)
            killed_at = trio.current_time()
        # The model is not left to generate for nobody: the system has closed the connections.
        with trio.fail_after(1):
            await mock_ollama.stats.wait_for(lambda stats: stats.open == 0)
        async with launch("serve", **env) as (_, errors):
            url = await base_url(errors)
            await until_settled(books, killed_at)
            # They wait under the new process's name now, should it be killed too.
            assert await books.copies() == len(expected) - 1
            await own_postgres.start()
            await all_is_accounted_for(expected, books)
            assert (await client.get(url + "/readyz")).status_code == 200


async def test_another_gateway_takes_over_what_a_killed_one_left(
    launch: Any, env: dict[str, str], own_postgres: EmbeddedPostgres, mock_ollama: Any, key: str, books: Any
) -> None:
    async with (
        client_of(key) as client,
        launch("serve", **env) as (doomed, errors),
        launch("serve", **env) as (survivor, other_errors),
    ):
        url = await base_url(errors)
        await base_url(other_errors)
        expected = await killed_in_mid_stream(doomed, url, client, own_postgres, books)
        killed_at = trio.current_time()
        await until_settled(books, killed_at)
        await own_postgres.start()
        await all_is_accounted_for(expected, books)
        survivor.send_signal(signal.SIGTERM)
        with trio.fail_after(10):
            assert await survivor.wait() == 0
    assert await books.redis.command("ZCARD", "gateway:instances") == 0


async def test_a_survivor_that_is_killed_too_loses_none_of_what_it_took_over(
    launch: Any, env: dict[str, str], own_postgres: EmbeddedPostgres, mock_ollama: Any, key: str, books: Any
) -> None:
    async with client_of(key) as client:
        async with launch("serve", **env) as (doomed, errors), launch("serve", **env) as (survivor, other):
            url = await base_url(errors)
            await base_url(other)
            expected = await killed_in_mid_stream(doomed, url, client, own_postgres, books)
            await until_settled(books, trio.current_time())
            survivor.send_signal(signal.SIGKILL)
            await survivor.wait()
        async with launch("serve", **env) as (_, errors):
            await base_url(errors)
            await own_postgres.start()
            with trio.fail_after(DEAD_AFTER_S + SLACK_S):
                while await books.postgres.fetchval("SELECT count(*) FROM gateway.audit_log") < len(expected):
                    await trio.sleep(0.05)
            await all_is_accounted_for(expected, books)
