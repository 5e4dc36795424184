"""Redis away, hung, flushed or empty: nothing is let through unchecked, and what ran ends well (G1, G4, G7)."""

import json
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from neuronetz.embedded.valkey import EmbeddedValkey

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}
STORE_TIMEOUT_S = 0.4


@pytest.fixture
def redis_url(own_valkey: EmbeddedValkey) -> str:
    """Every fixture that asks for Redis gets one that the test may stop."""
    return own_valkey.url()


@pytest.fixture
def settings(settings: Any) -> Any:
    return settings.model_copy(update={"store_timeout_s": STORE_TIMEOUT_S, "cleanup_timeout_s": STORE_TIMEOUT_S})


@pytest.fixture
async def key(make_key: Any) -> str:
    return str(await make_key(rpm=100_000, concurrency=50, budget_tokens=10**6, budget_period="day"))


@pytest.fixture
async def gateway(asyncio_loop: Any, settings: Any, run_gateway: Any, key: str) -> AsyncIterator[Any]:
    """Started after its key was made, which would otherwise be announced to it, and evicted, at any time."""
    async with run_gateway(settings) as gateway:
        # Its first connections are made: on a busy machine they take longer than they may.
        with trio.fail_after(15):
            while (await gateway.readiness()).status != "ready":
                await trio.sleep(0.02)
        yield gateway


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/api/chat", json=CHAT)


async def until(condition: Callable[[], object], within_s: float = 15) -> None:
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.005)


async def until_answered(client: httpx.AsyncClient, status: int = 200) -> httpx.Response:
    with trio.fail_after(15):
        while (reply := await ask(client)).status_code != status:
            await trio.sleep(0.01)
    return reply


async def metric(gateway: Any, name: str) -> float:
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(gateway.metrics_url)).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


async def counters(redis: Any) -> dict[bytes, dict[bytes, int]]:
    """The budget counters, and a check that nothing in Redis ever went below zero."""
    found = {}
    for name in await redis.command("KEYS", "gateway:{*}:budget:*"):
        flat = await redis.command("HMGET", name, "used", "reserved")
        found[name] = {b"used": int(flat[0]), b"reserved": int(flat[1])}
    for name in await redis.command("KEYS", "gateway:{*}:rpm*"):
        assert int(await redis.command("HGET", name, "sum")) >= 0
    assert all(value >= 0 for counter in found.values() for value in counter.values()), found
    return found


@asynccontextmanager
async def streaming(client: httpx.AsyncClient, *, tokens: int, count: int = 1) -> AsyncIterator[list[list[str]]]:
    """So many streams that run; the lists hold all their lines once the block has ended."""
    prompt = f"[[tokens:{tokens}]] [[tps:50]]"
    body = CHAT | {"messages": [{"role": "user", "content": prompt}], "stream": True}
    streams: list[list[str]] = []

    async def read(task_status: Any) -> None:
        lines: list[str] = []
        streams.append(lines)
        async with client.stream("POST", "/api/chat", json=body) as reply:
            assert reply.status_code == 200
            async for line in reply.aiter_lines():
                lines.append(line)
                if len(lines) == 2:
                    task_status.started()

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            await nursery.start(read)
        yield streams


def ended_well(lines: list[str], tokens: int) -> bool:
    last = json.loads(lines[-1])
    return bool(last["done"] and last["eval_count"] == tokens and "error" not in last)


Away = Callable[[EmbeddedValkey], Awaitable[None]]


async def stop(server: EmbeddedValkey) -> None:
    await server.stop()


async def kill(server: EmbeddedValkey) -> None:
    await server.stop(immediate=True)


async def pause(server: EmbeddedValkey) -> None:
    server.pause()


async def back(server: EmbeddedValkey) -> None:
    if server.pid is None:
        await server.start()
    else:
        server.resume()


async def restart_empty(server: EmbeddedValkey) -> None:
    await server.stop()
    shutil.rmtree(server.data_dir)
    await server.start()


@pytest.mark.parametrize("away", [stop, kill, pause])
async def test_while_redis_is_away_nothing_goes_upstream_and_all_is_well_afterwards_without_a_restart(
    own_valkey: EmbeddedValkey,
    gateway: Any,
    client: httpx.AsyncClient,
    books: Any,
    redis: Any,
    mock_ollama: Any,
    away: Away,
) -> None:
    statuses: Counter[int] = Counter()
    served: list[str] = []
    over = trio.Event()

    async def customer() -> None:
        while not over.is_set():
            reply = await ask(client)
            statuses[reply.status_code] += 1
            if reply.status_code == 200:
                served.append(reply.headers["x-request-id"])
            else:
                assert int(reply.headers["retry-after"]) >= 1
                assert reply.json() == {"error": "service temporarily unavailable"}
                await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(customer)
        await until(lambda: statuses[200] > 20)
        await away(own_valkey)
        # Those that were admitted before may still be on their way.
        await until(lambda: statuses[503] >= 8)
        generated, refused = mock_ollama.stats.requests["/api/chat"], statuses[503]
        state = await gateway.readiness()
        assert (state.status, state.checks["redis"] != "ok") == ("unavailable", True)
        await until(lambda: statuses[503] >= refused + 8)
        assert mock_ollama.stats.requests["/api/chat"] == generated
        began = trio.current_time()
        assert (await ask(client)).status_code == 503
        assert trio.current_time() - began < 3 * STORE_TIMEOUT_S
        answered = statuses[200]
        await back(own_valkey)
        await until(lambda: statuses[200] > answered + 20)
        over.set()
    assert set(statuses) == {200, 503}
    await until(lambda: not gateway.admission.unsettled)
    await books.settled()
    await counters(redis)
    assert gateway.admission.held == 0
    await until(lambda: not gateway.recorder.waiting + gateway.recorder.open_entries)
    rows = await books.postgres.fetch("SELECT request_id::text, outcome FROM gateway.audit_log")
    outcomes = {row["request_id"]: row["outcome"] for row in rows}
    assert len(outcomes) == len(rows)
    # Authenticated just before Redis went: refused, with a row. All others never were authenticated.
    assert set(outcomes.values()) <= {"completed", "unavailable"}
    assert all(outcomes[id_] == "completed" for id_ in served)
    assert (await gateway.readiness()).status != "unavailable"


@pytest.mark.parametrize("away", [stop, kill, pause])
async def test_streams_that_run_through_an_outage_end_well_and_are_settled_later(
    own_valkey: EmbeddedValkey, gateway: Any, client: httpx.AsyncClient, books: Any, redis: Any, away: Away
) -> None:
    async with streaming(client, tokens=120, count=3) as streams:
        assert await books.slots() == 3
        await away(own_valkey)
    assert all(ended_well(lines, 120) for lines in streams)
    assert len(gateway.admission.unsettled) == 3
    assert await metric(gateway, "gateway_settles_pending") == 3
    # PostgreSQL has their rows: it does not wait for Redis.
    rows = await books.rows(3)
    assert {(row["outcome"], row["completion_tokens"]) for row in rows} == {("completed", 120)}
    await back(own_valkey)
    await until(lambda: not gateway.admission.unsettled)
    await books.settled()
    used = {counter[b"used"] for counter in (await counters(redis)).values()}
    assert used == {sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)}
    assert await metric(gateway, "gateway_settles_pending") == 0


async def flush(server: EmbeddedValkey) -> None:
    import redis as redis_py

    with redis_py.Redis.from_url(server.url()) as client:
        client.flushall()


@pytest.mark.parametrize("lose", [flush, restart_empty])
async def test_streams_whose_leases_were_lost_end_well_and_leave_no_negative_counter(
    own_valkey: EmbeddedValkey, gateway: Any, client: httpx.AsyncClient, books: Any, redis: Any, lose: Away
) -> None:
    assert (await ask(client)).status_code == 200
    [first] = await books.rows(1)
    async with streaming(client, tokens=100, count=3) as streams:
        await lose(own_valkey)
        # In the new counters the running ones hold nothing, and they take nothing out of them.
        reply = await until_answered(client)
        used = first["prompt_tokens"] + first["completion_tokens"]
        left = int(reply.headers["x-ratelimit-remaining-tokens"])
        assert left <= 10**6 - used
        assert all(counter[b"reserved"] == 0 for counter in (await counters(redis)).values())
        async with streaming(client, tokens=200) as later:
            assert await books.slots() == 1
            await until(lambda: all(lines and '"done":true' in lines[-1] for lines in streams))
            assert await books.slots() == 1
            assert all(counter[b"reserved"] > 0 for counter in (await counters(redis)).values())
    assert all(ended_well(lines, 100) for lines in streams)
    assert ended_well(later[0], 200)
    await until(lambda: not gateway.admission.unsettled)
    await books.settled()
    await counters(redis)
    await until(lambda: not gateway.recorder.waiting + gateway.recorder.open_entries)
    rows = await books.postgres.fetch("SELECT * FROM gateway.audit_log")
    assert Counter(row["outcome"] for row in rows)["completed"] >= 6
    assert sum(await _ledger(books)) == sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)


async def _ledger(books: Any) -> tuple[int, int]:
    prompt, completion, _ = await books.ledger()
    return prompt, completion


@pytest.mark.parametrize("lose", [flush, restart_empty])
async def test_a_spent_budget_is_still_spent_when_redis_has_forgotten_it(
    own_valkey: EmbeddedValkey,
    gateway: Any,
    client: httpx.AsyncClient,
    make_key: Any,
    books: Any,
    mock_ollama: Any,
    lose: Away,
) -> None:
    poor = {"authorization": f"Bearer {await make_key('poor', budget_tokens=30, budget_period='week')}"}
    spent = 0
    while (reply := await client.post("/api/chat", json=CHAT, headers=poor)).status_code == 200:
        spent += 1
    assert reply.status_code == 429
    await books.rows(spent + 1)
    generated = mock_ollama.stats.requests["/api/chat"]
    await lose(own_valkey)
    statuses = set()
    with trio.fail_after(15):
        while 429 not in statuses:
            statuses.add((await client.post("/api/chat", json=CHAT, headers=poor)).status_code)
    assert statuses <= {429, 503}
    assert mock_ollama.stats.requests["/api/chat"] == generated


async def test_without_the_ledger_nobody_with_a_budget_is_let_in_after_a_flush(
    own_valkey: EmbeddedValkey,
    gateway: Any,
    client: httpx.AsyncClient,
    books: Any,
    mock_ollama: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from neuronetz.admission import ledger
    from neuronetz.errors import StoreUnavailable

    assert (await ask(client)).status_code == 200
    used = ledger.used
    reachable = False

    async def away(*args: Any) -> int:
        if not reachable:
            raise StoreUnavailable("postgres", "gone")
        return int(await used(*args))

    monkeypatch.setattr(ledger, "used", away)
    await flush(own_valkey)
    for _ in range(3):
        assert (await ask(client)).status_code == 503
    assert mock_ollama.stats.requests["/api/chat"] == 1
    reachable = True
    assert (await ask(client)).status_code == 200
    rows = await books.rows(5)
    assert Counter(row["outcome"] for row in rows) == {"completed": 2, "unavailable": 3}
    await books.settled()
