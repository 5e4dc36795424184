import asyncio
from datetime import UTC, datetime

import pytest
import trio

from neuronetz.audit.partitions import Partitions
from neuronetz.errors import StoreUnavailable
from neuronetz.stores.postgres import Postgres, open_postgres


async def partitions(postgres: Postgres) -> list[str]:
    rows = await postgres.fetch(
        "SELECT inhrelid::regclass::text FROM pg_inherits"
        " WHERE inhparent = 'gateway.audit_log'::regclass AND inhrelid::regclass::text ~ '[0-9]{6}$' ORDER BY 1"
    )
    return [row[0] for row in rows]


def months() -> list[str]:
    now = datetime.now(UTC)
    numbers = [now.year * 12 + now.month - 1 + ahead for ahead in range(3)]
    return [f"gateway.audit_log_{number // 12}{number % 12 + 1:02}" for number in numbers]


async def test_this_month_and_two_ahead_have_partitions(postgres: Postgres) -> None:
    for table in await partitions(postgres):
        await postgres.execute(f"DROP TABLE {table}")
    assert await Partitions(postgres).make()
    assert await partitions(postgres) == months()
    assert await Partitions(postgres).make()
    assert await partitions(postgres) == months()


async def test_it_looks_again_after_its_interval(postgres: Postgres) -> None:
    for table in await partitions(postgres):
        await postgres.execute(f"DROP TABLE {table}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Partitions(postgres, every_s=0.01).run)
        for _ in range(2):
            with trio.fail_after(10):
                while await partitions(postgres) != months():
                    await trio.sleep(0.01)
            await postgres.execute(f"DROP TABLE {months()[-1]}")
        nursery.cancel_scope.cancel()


async def test_it_gives_way_to_a_long_report(postgres: Postgres) -> None:
    await postgres.execute(f"DROP TABLE {months()[-1]}")

    async def report(connection: object) -> None:
        async with connection.transaction():  # type: ignore[attr-defined]
            await connection.execute("LOCK TABLE gateway.audit_log IN ACCESS SHARE MODE")  # type: ignore[attr-defined]
            reading.set()
            await asyncio.sleep(1.0)

    reading = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await postgres.run(report)  # type: ignore[arg-type]

        nursery.start_soon(run)
        await reading.wait()
        assert not await Partitions(postgres).make()
    assert await Partitions(postgres).make()
    assert await partitions(postgres) == months()


async def test_postgresql_away_is_the_supervisors_case(asyncio_loop: object) -> None:
    async with open_postgres("postgresql://nobody@127.0.0.1:1/x", size=1, timeout_s=1.0) as postgres:
        with pytest.raises(StoreUnavailable):
            await Partitions(postgres).run()
