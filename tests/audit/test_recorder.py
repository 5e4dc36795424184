import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
import trio.testing

from neuronetz.admission import keyspace
from neuronetz.audit.copies import rows_key
from neuronetz.audit.entry import Entry
from neuronetz.audit.record import AuditRecord, encode
from neuronetz.audit.recorder import COMMIT_EVERY_S, GROUP_ROWS, Recorder
from neuronetz.embedded.postgres import EmbeddedPostgres
from neuronetz.errors import AuditDenied
from neuronetz.stores.postgres import Postgres, open_postgres
from neuronetz.stores.redis import Redis

Make = Callable[..., AuditRecord]
Running = Callable[[Recorder], AbstractAsyncContextManager[None]]


class Counted(Postgres):
    """PostgreSQL, with its statements counted."""

    statements = 0

    async def execute(self, query: str, *args: Any, timeout_s: float | None = None) -> str:
        self.statements += 1
        return await super().execute(query, *args, timeout_s=timeout_s)


@pytest.fixture
def recorder(postgres: Postgres, redis: Redis) -> Recorder:
    return new_recorder(postgres, redis)


def new_recorder(postgres: Postgres, redis: Redis, **values: Any) -> Recorder:
    return Recorder(postgres, redis, **{"capacity": 10, "commit_timeout_s": 5.0, "instance": "one"} | values)


async def record(recorder: Recorder, row: AuditRecord) -> bool:
    """A request, as far as the recorder sees it."""
    with recorder.open() as entry:
        entry.finish(row)
        return await recorder.commit_when_known(entry)


async def stored(postgres: Postgres) -> list[str]:
    rows = await postgres.fetch("SELECT request_id FROM gateway.audit_log ORDER BY started_at")
    return [str(row["request_id"]) for row in rows]


async def ledger(postgres: Postgres) -> list[tuple[str, int, int, int]]:
    rows = await postgres.fetch(
        "SELECT key_id, requests, prompt_tokens, completion_tokens FROM gateway.budget_usage ORDER BY key_id"
    )
    return [(str(row[0]), row[1], row[2], row[3]) for row in rows]


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.005)


async def test_every_value_of_a_row_arrives(
    postgres: Postgres, recorder: Recorder, running: Running, make_row: Make
) -> None:
    row = make_row(first_byte_ms=11, tokens_exact=False)
    async with running(recorder):
        assert await record(recorder, row)
    found = await postgres.fetchrow("SELECT * FROM gateway.audit_log")
    assert found is not None
    texts = ("request_id", "tenant_id", "key_id")
    assert {name: str(value) if name in texts else value for name, value in found.items()} == {
        name: getattr(row, name) for name in row.__struct_fields__
    }


async def test_a_row_submitted_again_is_one_row_and_moves_the_ledger_once(
    postgres: Postgres, recorder: Recorder, running: Running, make_row: Make
) -> None:
    row = make_row()
    async with running(recorder):
        for _ in range(3):
            await record(recorder, row)
        recorder.adopt([encode(row), encode(row)])
        await until(lambda: recorder.waiting == 0)
    assert await stored(postgres) == [row.request_id]
    assert await ledger(postgres) == [(row.key_id, 1, 3, 5)]


async def test_only_the_first_row_of_an_entry_counts(
    postgres: Postgres, recorder: Recorder, running: Running, make_row: Make
) -> None:
    first, second = make_row(), make_row()
    async with running(recorder):
        with recorder.open() as entry:
            entry.finish(first)
            entry.finish(second)
            await entry.committed.wait()
    assert await stored(postgres) == [first.request_id]
    assert recorder.open_entries == 0


async def test_a_thousand_rows_of_fifty_tasks_take_few_statements_and_move_the_ledger_exactly(
    postgres: Postgres, redis: Redis, running: Running, make_row: Make
) -> None:
    counted = Counted(postgres._pool, 5.0)
    recorder = new_recorder(counted, redis, capacity=1000)

    async def requests() -> None:
        for _ in range(20):
            assert await record(recorder, make_row())

    async with running(recorder):
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(requests)
        assert recorder.waiting == recorder.open_entries == 0
    assert len(await stored(postgres)) == recorder.committed == 1000
    assert [row[1:] for row in await ledger(postgres)] == [(500, 1500, 2500), (500, 1500, 2500)]
    assert counted.statements <= 250


async def test_rows_that_wait_together_leave_in_full_groups(
    postgres: Postgres, redis: Redis, running: Running, make_row: Make
) -> None:
    counted = Counted(postgres._pool, 5.0)
    recorder = new_recorder(counted, redis)
    recorder.adopt(encode(make_row()) for _ in range(3 * GROUP_ROWS + 1))
    async with running(recorder):
        await until(lambda: recorder.waiting == 0)
    assert counted.statements == 4


async def test_rows_outlast_an_outage_in_order_and_deny_mode_guards_the_places(
    own_postgres: EmbeddedPostgres, redis: Redis, running: Running, make_row: Make
) -> None:
    rows = [make_row() for _ in range(11)]
    async with open_postgres(own_postgres.dsn(), size=2, timeout_s=2.0) as postgres:
        recorder = new_recorder(postgres, redis)
        async with running(recorder):
            await record(recorder, rows[0])
            with recorder.open() as entered_before, recorder.open() as other:
                # Not at once: this server, made for tests, forgets its latest commits then.
                await own_postgres.stop()
                entered_before.finish(rows[1])
                await until(lambda: recorder.failing)
                assert not recorder.deny_mode
                for row in rows[2:10]:
                    with recorder.open() as entry:
                        entry.finish(row)
                assert (recorder.waiting, recorder.open_entries, recorder.deny_mode) == (9, 1, True)
                with pytest.raises(AuditDenied) as denied, recorder.open():
                    pass
                assert denied.value.retry_after is not None
                other.finish(rows[10])
                assert recorder.waiting == recorder.capacity
                assert not entered_before.committed.is_set()
            await own_postgres.start()
            await until(lambda: recorder.waiting == 0)
            assert entered_before.committed.is_set()
            assert not recorder.failing
            assert await record(recorder, make_row())
        assert len(await stored(postgres)) == 12
        assert (await stored(postgres))[:11] == [row.request_id for row in rows]
        assert sum(requests for _, requests, _, _ in await ledger(postgres)) == 12


async def test_a_full_ring_admits_while_the_writer_works(recorder: Recorder, make_row: Make) -> None:
    recorder.adopt(encode(make_row()) for _ in range(recorder.capacity))
    assert not recorder.deny_mode
    with recorder.open() as entry:
        entry.finish(make_row())


async def test_a_place_is_given_back_without_a_row(recorder: Recorder) -> None:
    with recorder.open() as entry:
        assert recorder.open_entries == 1
    assert recorder.open_entries == recorder.waiting == 0
    assert entry.known.is_set()
    assert not await recorder.commit_when_known(entry)


@pytest.mark.parametrize(
    "poison",
    [{"outcome": "No Outcome"}, {"request_id": "no-uuid"}, {"status": 7}, {"outcome": None}],
    ids=["check", "type", "range", "null"],
)
async def test_a_row_that_postgresql_refuses_is_dropped_alone(
    postgres: Postgres, redis: Redis, recorder: Recorder, running: Running, make_row: Make, poison: dict[str, Any]
) -> None:
    rows = [make_row(**(poison if number in (0, 17, 18, 39) else {})) for number in range(40)]
    bad = [row for number, row in enumerate(rows) if number in (0, 17, 18, 39)]
    entries: list[Entry] = []
    for row in rows:
        await redis.command("HSET", rows_key(row.tenant_id, "one"), row.request_id, encode(row))
        with recorder.open() as entry:
            entry.finish(row)
            entries.append(entry)
    async with running(recorder):
        await until(lambda: recorder.waiting == 0)
    assert await stored(postgres) == [row.request_id for row in rows if row not in bad]
    assert (recorder.rejected, recorder.committed, recorder.failing) == (4, 36, False)
    assert [entry.committed.is_set() for entry in entries] == [row not in bad for row in rows]
    await recorder.drain(2)
    assert await redis.command("KEYS", "gateway:*") == []


async def test_an_error_that_is_no_rows_fault_makes_rows_wait_and_drops_none(
    postgres: Postgres, recorder: Recorder, running: Running, make_row: Make
) -> None:
    await postgres.execute("ALTER TABLE gateway.budget_usage RENAME TO elsewhere")
    recorder.adopt([encode(make_row()), encode(make_row())])
    async with running(recorder):
        await until(lambda: recorder.failing)
        assert (recorder.waiting, recorder.rejected) == (2, 0)
        await postgres.execute("ALTER TABLE gateway.elsewhere RENAME TO budget_usage")
        await until(lambda: recorder.waiting == 0)
    assert len(await stored(postgres)) == 2


async def test_a_month_without_a_partition_makes_rows_wait(
    postgres: Postgres, recorder: Recorder, running: Running, make_row: Make
) -> None:
    await postgres.execute("DROP TABLE gateway.audit_log_default")
    recorder.adopt([encode(make_row(started_at=make_row().started_at.replace(year=1999)))])
    async with running(recorder):
        await until(lambda: recorder.failing)
        assert (recorder.waiting, recorder.rejected) == (1, 0)


async def test_cancelled_before_the_outcome_is_known_it_waits_for_the_row(
    recorder: Recorder, running: Running, make_row: Make
) -> None:
    async with running(recorder):
        with recorder.open() as entry:
            async with trio.open_nursery() as request:
                request.start_soon(recorder.commit_when_known, entry)
                request.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.02)
                    entry.finish(make_row())
        assert request.cancel_scope.cancelled_caught
        assert entry.committed.is_set()


async def test_the_wait_for_a_commit_ends_at_its_deadline(
    postgres: Postgres, redis: Redis, make_row: Make, autojump_clock: trio.testing.MockClock
) -> None:
    recorder = new_recorder(postgres, redis, commit_timeout_s=5.0)
    with recorder.open() as entry:
        entry.finish(make_row())
        began = trio.current_time()
        assert not await recorder.commit_when_known(entry)
        assert math.isclose(trio.current_time() - began, 5.0, abs_tol=0.1)
    assert recorder.waiting == 1


async def test_cancelled_without_an_outcome_it_ends_at_its_deadline(
    postgres: Postgres, redis: Redis, autojump_clock: trio.testing.MockClock
) -> None:
    recorder = new_recorder(postgres, redis, commit_timeout_s=5.0)
    with recorder.open() as entry:
        began = trio.current_time()
        with trio.move_on_after(100) as scope:
            scope.cancel()
            await recorder.commit_when_known(entry)
        assert scope.cancelled_caught
        assert math.isclose(trio.current_time() - began, 5.0, abs_tol=0.1)


async def test_copies_in_redis_go_once_the_rows_are_committed(
    redis: Redis, recorder: Recorder, running: Running, make_row: Make
) -> None:
    mine, adopted, others = make_row(), make_row(instance="dead"), make_row()
    for row, owner in ((mine, "one"), (adopted, "one"), (others, "two")):
        await redis.command("HSET", rows_key(row.tenant_id, owner), row.request_id, encode(row))
    recorder.adopt([encode(adopted)])
    async with running(recorder):
        await record(recorder, mine)
        await until(lambda: not recorder.copies_left)
    assert await redis.command("HLEN", rows_key(mine.tenant_id, "one")) == 0
    assert await redis.command("HKEYS", rows_key(mine.tenant_id, "two")) == [others.request_id.encode()]


def test_admission_and_audit_mean_the_same_copies() -> None:
    assert rows_key("t", "i") == keyspace.rows("t", "i")


async def test_copies_that_redis_did_not_take_go_later(
    postgres: Postgres, redis: Redis, recorder: Recorder, make_row: Make
) -> None:
    row = make_row()
    key = rows_key(row.tenant_id, "one")
    await redis.command("SET", key, "not a hash")
    recorder.adopt([encode(row)])
    assert await recorder.drain(5) == 0
    await redis.command("DEL", key)
    await redis.command("HSET", key, row.request_id, encode(row))
    assert await recorder.drain(5) == 0
    assert await redis.command("EXISTS", key) == 0
    assert await stored(postgres) == [row.request_id]


async def test_an_unreadable_row_is_skipped_and_the_others_are_adopted(
    postgres: Postgres, recorder: Recorder, make_row: Make
) -> None:
    row = make_row(instance="dead")
    recorder.adopt([b"\xff\x00", b'{"request_id":"half"}', encode(row), b"[]"])
    assert await recorder.drain(5) == 0
    assert await stored(postgres) == [row.request_id]


async def test_two_recorders_with_the_same_rows_in_other_orders_neither_deadlock_nor_double(
    postgres: Postgres, redis: Redis, make_row: Make
) -> None:
    rounds = 20
    one, two = Counted(postgres._pool, 5.0), Counted(postgres._pool, 5.0)
    first, second = new_recorder(one, redis), new_recorder(two, redis, instance="two")
    for _ in range(rounds):
        rows = [encode(make_row()) for _ in range(GROUP_ROWS)]
        first.adopt(rows)
        second.adopt(reversed(rows))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.drain, 20)
            nursery.start_soon(second.drain, 20)
    # A deadlock would have been repeated.
    assert (one.statements, two.statements) == (rounds, rounds)
    assert first.committed == second.committed == len(await stored(postgres)) == rounds * GROUP_ROWS
    each = rounds * GROUP_ROWS // 2
    assert [row[1:] for row in await ledger(postgres)] == [(each, 3 * each, 5 * each)] * 2


async def test_a_stopped_service_loses_no_row_in_flight(
    postgres: Postgres, recorder: Recorder, running: Running, make_row: Make
) -> None:
    rows = [make_row() for _ in range(50)]
    for row in rows:
        async with running(recorder):
            with recorder.open() as entry:
                entry.finish(row)
            # Long enough for the statement to be under way, at times.
            await trio.sleep(0.001)
    assert await recorder.drain(5) == 0
    assert await stored(postgres) == [row.request_id for row in rows]
    assert [row[1] for row in await ledger(postgres)] == [25, 25]


async def test_draining_is_shielded_and_ends_at_its_deadline(
    own_postgres: EmbeddedPostgres, redis: Redis, make_row: Make
) -> None:
    async with open_postgres(own_postgres.dsn(), size=2, timeout_s=2.0) as postgres:
        recorder = new_recorder(postgres, redis)
        recorder.adopt([encode(make_row()) for _ in range(3)])
        with trio.CancelScope() as scope:
            scope.cancel()
            assert await recorder.drain(5) == 0
        assert len(await stored(postgres)) == 3
        recorder.adopt([encode(make_row())])
        await own_postgres.stop(immediate=True)
        began = trio.current_time()
        assert await recorder.drain(0.3) == 1
        assert trio.current_time() - began < 2.5


async def test_rows_of_a_busy_time_share_a_commit(
    mock_clock: trio.testing.MockClock, postgres: Postgres, redis: Redis, running: Running, make_row: Make
) -> None:
    committed: list[int] = []
    recorder = new_recorder(postgres, redis, capacity=100, on_committed=committed.append)
    async with running(recorder):
        with recorder.open() as entry:
            entry.finish(make_row())
            await entry.committed.wait()
        entries = []
        for _ in range(5):
            with recorder.open() as entry:
                entry.finish(make_row())
                entries.append(entry)
            # As long as it takes: without a pause each would be in PostgreSQL before the next is there.
            await postgres.fetchval("SELECT pg_sleep(0.02)")
        assert committed == [1]
        mock_clock.jump(COMMIT_EVERY_S)
        for entry in entries:
            await entry.committed.wait()
    assert committed == [1, 5]
    assert len(await stored(postgres)) == 6
