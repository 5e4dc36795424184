from collections.abc import Awaitable, Callable
from datetime import date
from typing import Any

import trio

from neuronetz.admission.ledger import reset, used
from neuronetz.admission.period import bounds
from neuronetz.stores.postgres import Postgres

NOON_S = 1_790_164_800
DAY = date(2026, 9, 23)


async def test_the_ledger_counts_the_period_and_nothing_else(
    postgres: Postgres, desk: Any, charge: Callable[..., Awaitable[None]]
) -> None:
    mine = desk.principal()
    colleague = desk.principal(tenant_id=mine.tenant_id)
    stranger = desk.principal()
    await charge(mine, date(2026, 8, 31), 1000, 1000)
    await charge(mine, date(2026, 9, 1), 1, 2)
    await charge(mine, date(2026, 9, 30), 4, 8)
    await charge(mine, date(2026, 10, 1), 1000, 1000)
    await charge(colleague, date(2026, 9, 23), 16, 32)
    await charge(stranger, date(2026, 9, 23), 1000, 1000)
    start, end = bounds("month", NOON_S)

    assert await used(postgres, mine.tenant_id, mine.key_id, start, end) == 15
    assert await used(postgres, mine.tenant_id, None, start, end) == 63
    assert await used(postgres, desk.principal().tenant_id, None, start, end) == 0


async def test_a_reset_takes_off_what_was_used_day_by_day_so_that_every_period_stays_right(
    postgres: Postgres, desk: Any, charge: Callable[..., Awaitable[None]]
) -> None:
    mine = desk.principal()
    await charge(mine, date(2026, 9, 2), 100, 0)
    await charge(mine, date(2026, 9, 23), 20, 3)
    month, day = bounds("month", NOON_S), bounds("day", NOON_S)
    assert await reset(postgres, mine.tenant_id, None, *month) == 123
    assert await used(postgres, mine.tenant_id, None, *month) == 0
    await postgres.execute(
        "UPDATE gateway.budget_usage SET prompt_tokens = prompt_tokens + 50 WHERE day = $1", DAY
    )
    assert await used(postgres, mine.tenant_id, None, *month) == 50
    # A lump of 123 on one day would hide these.
    assert await used(postgres, mine.tenant_id, None, *day) == 50
    assert await postgres.fetchval("SELECT sum(prompt_tokens)::int FROM gateway.budget_usage") == 170


async def test_resets_of_a_tenant_and_of_its_keys_are_apart(
    postgres: Postgres, desk: Any, charge: Callable[..., Awaitable[None]]
) -> None:
    mine = desk.principal()
    colleague = desk.principal(tenant_id=mine.tenant_id)
    for principal in (mine, colleague):
        await charge(principal, DAY, 10, 0)
    day = bounds("day", NOON_S)
    assert await reset(postgres, mine.tenant_id, mine.key_id, *day) == 10
    books = [await used(postgres, mine.tenant_id, key, *day) for key in (None, mine.key_id, colleague.key_id)]
    assert books == [20, 0, 10]
    assert await reset(postgres, mine.tenant_id, None, *day) == 20
    books = [await used(postgres, mine.tenant_id, key, *day) for key in (None, mine.key_id, colleague.key_id)]
    assert books == [0, 0, 10]


async def test_resets_at_once_take_off_once(
    postgres: Postgres, desk: Any, charge: Callable[..., Awaitable[None]]
) -> None:
    mine = desk.principal()
    await postgres.execute("INSERT INTO gateway.tenants (id, name) VALUES ($1::uuid, 'acme')", mine.tenant_id)
    await charge(mine, DAY, 10, 0)
    day = bounds("day", NOON_S)
    taken: list[int] = []

    async def run() -> None:
        taken.append(await reset(postgres, mine.tenant_id, None, *day))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(run)
    assert sorted(taken) == [0, 0, 0, 0, 0, 10]
    await charge(desk.principal(tenant_id=mine.tenant_id), DAY, 7, 0)
    assert await used(postgres, mine.tenant_id, None, *day) == 7


async def test_more_taken_off_than_was_used_counts_as_nothing_used(postgres: Postgres, desk: Any) -> None:
    mine = desk.principal()
    await postgres.execute(
        "INSERT INTO gateway.budget_adjustments (tenant_id, day, tokens) VALUES ($1::uuid, $2, -5)",
        mine.tenant_id,
        DAY,
    )
    assert await used(postgres, mine.tenant_id, None, *bounds("day", NOON_S)) == 0
    row = await postgres.fetchrow("SELECT created_by = current_user AS mine FROM gateway.budget_adjustments")
    assert row is not None
    assert row["mine"]
