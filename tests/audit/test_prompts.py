"""The prompt log's rows: written for keys that opted in alone, given up beyond the bound, gone when expired."""

import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
import trio

from neuronetz.audit.prompts import GROUP_BYTES, GROUP_ROWS, PromptLog, PromptPurge, PromptRow
from neuronetz.embedded.postgres import EmbeddedPostgres
from neuronetz.stores.postgres import Postgres, open_postgres

MARKER = "a-marker-that-nobody-may-read"
NOW = datetime.now(UTC)
serial = itertools.count(1)

MakeKey = Callable[..., Awaitable[str]]


def new_log(postgres: Postgres, **values: Any) -> PromptLog:
    bounds: dict[str, Any] = {
        "ttl_s": 3600,
        "max_bytes": 1000,
        "max_rows": 100,
        "queue_bytes": 10_000_000,
        "on_dropped": lambda rows: None,
    }
    return PromptLog(postgres, **bounds | values)


def make_row(key_id: str, **values: Any) -> PromptRow:
    row = {"request_id": str(uuid.UUID(int=next(serial))), "prompt": "user: hi", "completion": "hello"}
    return PromptRow(key_id=key_id, **row | values)


@asynccontextmanager
async def running(prompts: PromptLog) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(prompts.run)
        yield
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.005)


async def insert_key(postgres: Postgres, *, log_prompts: bool = True, prompt_ttl_s: int | None = None) -> str:
    tenant_id = await postgres.fetchval(
        "INSERT INTO gateway.tenants (name) VALUES ('acme')"
        " ON CONFLICT (name) DO UPDATE SET name = 'acme' RETURNING id"
    )
    key_id = await postgres.fetchval(
        "INSERT INTO gateway.api_keys (tenant_id, name, prefix, secret_hash, log_prompts, prompt_ttl_s)"
        " VALUES ($1, 'test', $2, '$argon2id$', $3, $4) RETURNING id",
        tenant_id,
        f"nnz_{next(serial):08}",
        log_prompts,
        prompt_ttl_s,
    )
    return str(key_id)


@pytest.fixture
def key(postgres: Postgres) -> MakeKey:
    async def make(**values: Any) -> str:
        return await insert_key(postgres, **values)

    return make


async def stored(postgres: Postgres) -> list[dict[str, Any]]:
    return [dict(row) for row in await postgres.fetch("SELECT * FROM gateway.prompt_log ORDER BY request_id")]


async def ids(postgres: Postgres) -> list[str]:
    return [str(row["request_id"]) for row in await stored(postgres)]


async def test_a_row_is_written_with_its_tenant_and_its_expiry(postgres: Postgres, key: MakeKey) -> None:
    prompts, key_id = new_log(postgres, ttl_s=3600), await key()
    row = make_row(key_id, prompt_truncated=True, created_at=NOW)
    async with running(prompts):
        prompts.submit(row)
        await until(lambda: prompts.waiting == 0)
    [found] = await stored(postgres)
    assert {name: str(value) if name.endswith("_id") else value for name, value in found.items()} == {
        "request_id": row.request_id,
        "tenant_id": str(await postgres.fetchval("SELECT id FROM gateway.tenants")),
        "key_id": key_id,
        "prompt": "user: hi",
        "completion": "hello",
        "created_at": NOW,
        "expires_at": NOW + timedelta(seconds=3600),
        "prompt_truncated": True,
        "completion_truncated": False,
    }


async def test_a_keys_own_time_to_live_goes_before_the_settings(postgres: Postgres, key: MakeKey) -> None:
    prompts = new_log(postgres, ttl_s=3600)
    prompts.submit(make_row(await key(prompt_ttl_s=60), created_at=NOW))
    assert await prompts.drain(10) == 0
    assert (await stored(postgres))[0]["expires_at"] == NOW + timedelta(seconds=60)


@pytest.mark.parametrize("ttl_s", [0, 59, 365 * 24 * 3600 + 1])
async def test_a_time_to_live_has_bounds(postgres: Postgres, key: MakeKey, ttl_s: int) -> None:
    with pytest.raises(Exception, match="prompt_ttl_s"):
        await key(prompt_ttl_s=ttl_s)


async def test_a_row_submitted_again_is_one_row(postgres: Postgres, key: MakeKey) -> None:
    prompts, row = new_log(postgres), make_row(await key())
    for _ in range(2):
        prompts.submit(row)
        prompts.submit(row)
        assert await prompts.drain(10) == 0
    assert await ids(postgres) == [row.request_id]


async def test_the_opt_in_is_read_once_more_where_the_row_is_written(postgres: Postgres, key: MakeKey) -> None:
    prompts = new_log(postgres)
    never, left, removed, stays = await key(log_prompts=False), await key(), await key(), await key()
    kept = make_row(left)
    prompts.submit(kept)
    assert await prompts.drain(10) == 0
    rows = [make_row(key_id) for key_id in (never, left, removed, stays)]
    for row in rows:
        prompts.submit(row)
    await postgres.execute("UPDATE gateway.api_keys SET log_prompts = false WHERE id::text = $1", left)
    await postgres.execute("DELETE FROM gateway.api_keys WHERE id::text = $1", removed)
    assert await prompts.drain(10) == 0
    assert prompts.dropped == 0
    # What was written before its key opted out stays until it expires.
    assert await ids(postgres) == [kept.request_id, rows[3].request_id]


async def test_removing_a_tenant_removes_its_prompts(postgres: Postgres, key: MakeKey) -> None:
    prompts = new_log(postgres)
    prompts.submit(make_row(await key()))
    assert await prompts.drain(10) == 0
    await postgres.execute("DELETE FROM gateway.tenants")
    assert await stored(postgres) == []


async def test_rows_leave_in_groups_bounded_by_number_and_size(postgres: Postgres, key: MakeKey) -> None:
    class Counted(Postgres):
        statements = 0

        async def execute(self, query: str, *args: Any, timeout_s: float | None = None) -> str:
            self.statements += 1
            return await super().execute(query, *args, timeout_s=timeout_s)

    counted, key_id = Counted(postgres._pool, 5.0), await key()
    prompts = new_log(counted, max_rows=1000)
    for _ in range(2 * GROUP_ROWS + 1):
        prompts.submit(make_row(key_id))
    assert await prompts.drain(10) == 0
    assert counted.statements == 3
    for _ in range(3):
        prompts.submit(make_row(key_id, prompt="x" * (GROUP_BYTES - 100)))
    assert await prompts.drain(10) == 0
    assert counted.statements == 6
    assert len(await ids(postgres)) == 2 * GROUP_ROWS + 4


@pytest.mark.parametrize(
    ("bound", "kept"), [({"max_rows": 3}, 3), ({"queue_bytes": 2 * 1013}, 2), ({"queue_bytes": 10}, 0)]
)
async def test_beyond_the_bound_rows_are_given_up_with_one_line_and_a_count(
    postgres: Postgres, key: MakeKey, bound: dict[str, int], kept: int
) -> None:
    counted: list[int] = []
    prompts, key_id = new_log(postgres, on_dropped=counted.append, **bound), await key()
    rows = [make_row(key_id, prompt=MARKER.ljust(1008, "x")) for _ in range(6)]
    with structlog.testing.capture_logs() as logs:
        for row in rows:
            prompts.submit(row)
    assert (prompts.waiting, prompts.dropped, sum(counted)) == (kept, 6 - kept, 6 - kept)
    assert [entry["event"] for entry in logs] == ["prompts.dropped"]
    assert MARKER not in repr(logs)
    assert await prompts.drain(10) == 0
    assert await ids(postgres) == [row.request_id for row in rows[:kept]]
    # What was written makes room again.
    if kept:
        prompts.submit(rows[-1])
        assert prompts.waiting == 1


async def test_while_postgresql_is_away_rows_wait_and_then_arrive(
    asyncio_loop: object, own_postgres: EmbeddedPostgres
) -> None:
    async with open_postgres(own_postgres.dsn(), size=2, timeout_s=2.0) as postgres:
        key_id = await insert_key(postgres)
        prompts = new_log(postgres, max_rows=5)
        rows = [make_row(key_id, prompt=MARKER) for _ in range(8)]
        with structlog.testing.capture_logs() as logs:
            async with running(prompts):
                await own_postgres.stop()
                for row in rows:
                    prompts.submit(row)
                    await trio.sleep(0.01)
                assert (prompts.waiting, prompts.dropped) == (5, 3)
                await own_postgres.start()
                await until(lambda: prompts.waiting == 0)
        assert await ids(postgres) == [row.request_id for row in rows[:5]]
    assert [entry["event"] for entry in logs if "prompts" in entry["event"]] == [
        "prompts.dropped",
        "prompts.recovered",
    ]
    assert MARKER not in repr(logs)


async def test_a_row_that_postgresql_refuses_is_given_up_alone(postgres: Postgres, key: MakeKey) -> None:
    prompts, key_id = new_log(postgres), await key()
    rows = [make_row(key_id, prompt=f"{MARKER}\x00" if number == 2 else "good") for number in range(5)]
    with structlog.testing.capture_logs() as logs:
        for row in rows:
            prompts.submit(row)
        assert await prompts.drain(10) == 0
    assert prompts.dropped == 1
    assert await ids(postgres) == [row.request_id for number, row in enumerate(rows) if number != 2]
    assert MARKER not in repr(logs)


async def test_what_no_row_is_at_fault_for_makes_rows_wait(postgres: Postgres, key: MakeKey) -> None:
    prompts, key_id = new_log(postgres), await key()
    await postgres.execute("ALTER TABLE gateway.prompt_log RENAME TO elsewhere")
    prompts.submit(make_row(key_id))
    async with running(prompts):
        await trio.sleep(0.05)
        assert (prompts.waiting, prompts.dropped) == (1, 0)
        await postgres.execute("ALTER TABLE gateway.elsewhere RENAME TO prompt_log")
        await until(lambda: prompts.waiting == 0)
    assert len(await ids(postgres)) == 1


async def test_a_drain_ends_at_its_time_and_counts_what_it_gives_up(
    asyncio_loop: object, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_postgres("postgresql://nobody@/none?host=/nonexistent", size=1, timeout_s=1.0) as postgres:
        prompts = new_log(postgres)
        for _ in range(3):
            prompts.submit(make_row(str(uuid.uuid4()), prompt=MARKER))
        began = trio.current_time()
        with structlog.testing.capture_logs() as logs:
            assert await prompts.drain(5.0) == 3
        assert 4.9 < trio.current_time() - began < 6
    assert prompts.dropped == 3
    assert [entry["event"] for entry in logs] == ["prompts.dropped"]
    assert MARKER not in repr(logs)


def test_a_rows_text_gets_into_no_traceback() -> None:
    assert MARKER not in repr(make_row("k", prompt=MARKER, completion=MARKER))


async def insert_rows(postgres: Postgres, key_id: str, ages_s: list[int]) -> None:
    for age_s in ages_s:
        await postgres.execute(
            "INSERT INTO gateway.prompt_log (request_id, tenant_id, key_id, prompt, completion, expires_at)"
            " SELECT gen_random_uuid(), tenant_id, id, 'p', 'c', now() - make_interval(secs => $2)"
            " FROM gateway.api_keys WHERE id::text = $1",
            key_id,
            age_s,
        )


async def test_what_has_expired_is_purged_in_batches_and_nothing_else(postgres: Postgres, key: MakeKey) -> None:
    await insert_rows(postgres, await key(), [60] * 7 + [-60] * 3)
    assert await PromptPurge(postgres, every_s=300, batch_rows=2).purge() == 7
    assert await postgres.fetchval("SELECT count(*) FROM gateway.prompt_log WHERE expires_at > now()") == 3
    assert len(await ids(postgres)) == 3


async def test_several_gateways_purge_at_once(postgres: Postgres, key: MakeKey) -> None:
    await insert_rows(postgres, await key(), [60] * 40)
    purged: list[int] = []

    async def purge() -> None:
        purged.append(await PromptPurge(postgres, every_s=300, batch_rows=3).purge())

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(purge)
    assert sum(purged) == 40
    assert await ids(postgres) == []


async def test_the_purge_looks_again_after_its_interval(postgres: Postgres, key: MakeKey) -> None:
    key_id = await key()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(PromptPurge(postgres, every_s=0.01).run)
        for _ in range(2):
            await insert_rows(postgres, key_id, [1])
            with trio.fail_after(10):
                while await ids(postgres):
                    await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
