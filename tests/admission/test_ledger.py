from collections.abc import Awaitable, Callable
from datetime import date
from typing import Any

from neuronetz.admission.ledger import used
from neuronetz.admission.period import bounds
from neuronetz.stores.postgres import Postgres

NOON_S = 1_790_164_800


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
