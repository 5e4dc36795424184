"""PostgreSQL away: who is known is served, rows wait in order, and no row is lost or doubled (G3, G7)."""

import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio

from neuronetz.access.keys import generate
from neuronetz.audit import recorder
from neuronetz.embedded.postgres import EmbeddedPostgres
from neuronetz.stores.postgres import Postgres, open_postgres

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}
RING = 12


@pytest.fixture
def database_url(own_postgres: EmbeddedPostgres) -> str:
    """Every fixture that asks for the database gets one that the test may stop."""
    return own_postgres.dsn()


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url, size=4, timeout_s=5.0) as store:
        yield store


@pytest.fixture
def settings(settings: Any) -> Any:
    return settings.model_copy(update={"audit_ring": RING, "store_timeout_s": 0.5, "audit_commit_timeout_s": 1.0})


@pytest.fixture
async def gateway(asyncio_loop: Any, settings: Any, run_gateway: Any, key: str) -> AsyncIterator[Any]:
    """Started after its key was made, which would otherwise be announced to it, and evicted, at any time."""
    async with run_gateway(settings) as gateway:
        # Its first connections are made: on a busy machine they take longer than they may.
        with trio.fail_after(15):
            while (await gateway.readiness()).status != "ready":
                await trio.sleep(0.02)
        yield gateway


async def ask(client: httpx.AsyncClient, **extra: Any) -> httpx.Response:
    return await client.post("/api/chat", json=CHAT | extra)


async def metric(gateway: Any, name: str) -> float:
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(gateway.metrics_url)).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


async def readyz(gateway: Any) -> tuple[int, dict[str, Any]]:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        gateway._said = None  # ask the stores now: what they said of late counts for half a second
        reply = await client.get(gateway.base_url + "/readyz")
    return reply.status_code, reply.json()


async def until(condition: Any, within_s: float = 15) -> None:
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.005)


async def transactions(postgres: Postgres, ids: list[str]) -> list[int]:
    """The transactions, by number, that wrote these rows."""
    rows = await postgres.fetch("SELECT request_id::text, xmin::text::bigint AS number FROM gateway.audit_log")
    numbers = {row["request_id"]: row["number"] for row in rows}
    return [numbers[id_] for id_ in ids]


async def ledger_is_the_sum_of_the_rows(books: Any, rows: list[dict[str, Any]]) -> None:
    assert await books.ledger() == (
        sum(row["prompt_tokens"] for row in rows),
        sum(row["completion_tokens"] for row in rows),
        len(rows),
    )


async def test_stopped_under_load_known_keys_are_served_until_the_ring_is_full_and_no_row_is_lost(
    own_postgres: EmbeddedPostgres,
    gateway: Any,
    client: httpx.AsyncClient,
    books: Any,
    postgres: Postgres,
    mock_ollama: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "GROUP_ROWS", 4)
    gateway.recorder._group_rows = 4
    assert (await ask(client)).status_code == 200
    await books.rows(1)
    statuses: Counter[int] = Counter()
    served: list[str] = []
    lost = trio.Event()

    async def customer() -> None:
        while not lost.is_set():
            reply = await ask(client)
            statuses[reply.status_code] += 1
            if reply.status_code == 200:
                served.append(reply.headers["x-request-id"])
            # Slow enough that the ring does not fill while PostgreSQL goes and the writer has not noticed yet.
            await trio.sleep(0.02)
            while gateway.recorder.waiting > RING - 4 and not gateway.recorder.failing:
                await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(customer)
        await until(lambda: statuses[200] > 20)
        await own_postgres.stop()
        await until(lambda: statuses[503] > 8)
        lost.set()
    # Whoever was let in had a place for its row; with every place taken nobody was let in.
    assert gateway.recorder.waiting == RING
    assert set(statuses) == {200, 503}
    generated = mock_ollama.stats.requests["/api/chat"]
    assert generated == statuses[200] + 1

    refused = await ask(client)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json() == {"error": "service temporarily unavailable"}
    assert mock_ollama.stats.requests["/api/chat"] == generated
    status, state = await readyz(gateway)
    assert (status, state["status"]) == (503, "unavailable")
    assert state["checks"]["audit"] == "deny_mode"
    assert state["checks"]["postgres"] not in ("ok", "")
    assert await metric(gateway, "gateway_audit_deny_mode") == 1
    assert await metric(gateway, "gateway_audit_failing") == 1
    assert await metric(gateway, "gateway_audit_ring_rows") == RING
    # The rows that wait have their copies in Redis, should this process be killed now.
    with trio.fail_after(5):  # those of rows that were committed before go a little later
        while await books.copies() != RING:
            await trio.sleep(0.01)
    await books.settled()

    waiting = [row.request_id for row in gateway.recorder._ring]
    await own_postgres.start()
    await until(lambda: gateway.recorder.waiting == 0)
    assert not gateway.recorder.deny_mode
    assert (await ask(client)).status_code == 200
    rows = await books.rows(statuses[200] + 2)
    assert {row["outcome"] for row in rows} == {"completed"}
    # In order: no group went before one that had waited for longer.
    numbers = await transactions(postgres, waiting)
    assert numbers == sorted(numbers)
    assert len(set(numbers)) >= 3
    assert set(served) <= {str(row["request_id"]) for row in rows}
    await ledger_is_the_sum_of_the_rows(books, rows)
    assert await metric(gateway, "gateway_audit_deny_mode") == 0
    assert await metric(gateway, "gateway_audit_failing") == 0
    assert await metric(gateway, "gateway_audit_ring_rows") == 0
    await until_async(copies_gone(books))
    status, state = await readyz(gateway)
    assert status == 200
    assert state["checks"]["audit"] == state["checks"]["postgres"] == "ok"


def copies_gone(books: Any) -> Any:
    async def gone() -> bool:
        return bool(await books.copies() == 0)

    return gone


async def until_async(condition: Any, within_s: float = 10) -> None:
    with trio.fail_after(within_s):
        while not await condition():
            await trio.sleep(0.005)


async def test_before_the_ring_is_full_the_gateway_is_degraded_and_serves(
    own_postgres: EmbeddedPostgres, gateway: Any, client: httpx.AsyncClient, books: Any
) -> None:
    assert (await ask(client)).status_code == 200
    await books.rows(1)
    await own_postgres.stop()
    for _ in range(3):
        assert (await ask(client)).status_code == 200
    await until(lambda: gateway.recorder.failing)
    status, state = await readyz(gateway)
    assert (status, state["status"]) == (200, "degraded")
    assert state["checks"]["audit"] == "failing"
    assert "StoreUnavailable" in state["services"]["policy_listener"]
    assert await metric(gateway, "gateway_audit_deny_mode") == 0
    assert await metric(gateway, "gateway_audit_ring_rows") == 3
    assert await metric(gateway, 'gateway_service_up{service="policy_listener"}') == 0
    assert (
        await metric(gateway, 'gateway_service_failing{reason="StoreUnavailable",service="policy_listener"}') == 1
    )
    await own_postgres.start()
    await books.rows(4, within_s=15)


async def test_a_key_that_is_not_cached_gets_a_503_and_no_row_until_postgresql_is_back(
    own_postgres: EmbeddedPostgres,
    gateway: Any,
    client: httpx.AsyncClient,
    make_key: Any,
    books: Any,
    mock_ollama: Any,
) -> None:
    stranger = {"authorization": f"Bearer {await make_key('stranger')}"}
    assert (await ask(client)).status_code == 200
    await own_postgres.stop()
    reply = await client.post("/api/chat", json=CHAT, headers=stranger)
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.json() == {"error": "service temporarily unavailable"}
    # A key that never was gets the same: whether it exists cannot be told.
    unknown = {"authorization": f"Bearer {generate().text}"}
    assert (await client.post("/api/chat", json=CHAT, headers=unknown)).content == reply.content
    assert mock_ollama.stats.requests["/api/chat"] == 1
    await own_postgres.start()
    await until_status(client, stranger, 200)
    rows = await books.rows(2, within_s=15)
    assert {row["outcome"] for row in rows} == {"completed"}


async def until_status(client: httpx.AsyncClient, headers: dict[str, str], status: int) -> None:
    async def answers() -> bool:
        return (await client.post("/api/chat", json=CHAT, headers=headers)).status_code == status

    await until_async(answers)


async def test_paused_it_is_as_good_as_stopped_and_every_answer_is_bounded(
    own_postgres: EmbeddedPostgres, gateway: Any, client: httpx.AsyncClient, make_key: Any, books: Any
) -> None:
    stranger = {"authorization": f"Bearer {await make_key('stranger')}"}
    assert (await ask(client)).status_code == 200
    await books.rows(1)
    own_postgres.pause()
    try:
        began = trio.current_time()
        for _ in range(3):
            assert (await ask(client)).status_code == 200
        # A reply waits for no row: only its audit task does.
        assert trio.current_time() - began < 1.0
        began = trio.current_time()
        assert (await client.post("/api/chat", json=CHAT, headers=stranger)).status_code == 503
        assert trio.current_time() - began < 3.0
        await until(lambda: gateway.recorder.failing)
        for _ in range(RING):
            if (reply := await ask(client)).status_code == 503:
                break
        assert reply.status_code == 503
        assert gateway.recorder.deny_mode
        status, state = await readyz(gateway)
        assert (status, state["checks"]["audit"]) == (503, "deny_mode")
    finally:
        own_postgres.resume()
    await until(lambda: gateway.recorder.waiting == 0)
    await until_status(client, stranger, 200)
    # One that was in flight when PostgreSQL froze may have been carried out afterwards, unheard: still one row.
    rows = await books.rows(1 + RING + 1, within_s=15)
    assert len({row["request_id"] for row in rows}) == len(rows)
    assert {row["outcome"] for row in rows} == {"completed"}
    await ledger_is_the_sum_of_the_rows(books, rows)
    assert not gateway.recorder.deny_mode


async def test_a_stream_that_runs_through_an_outage_ends_well_and_has_its_row(
    own_postgres: EmbeddedPostgres, gateway: Any, client: httpx.AsyncClient, books: Any
) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": "[[tokens:40]] [[tps:100]]"}], "stream": True}
    async with client.stream("POST", "/api/chat", json=body) as reply:
        lines = reply.aiter_lines()
        await anext(lines)
        await own_postgres.stop()
        last = [line async for line in lines][-1]
    assert '"done":true' in last
    await until(lambda: gateway.recorder.waiting == 1)
    await own_postgres.start()
    [row] = await books.rows(1, within_s=15)
    assert (row["outcome"], row["completion_tokens"]) == ("completed", 40)
    await books.settled()
