"""What PostgreSQL says was used: the truth of which Redis's budget counters are a cache.

It is the sum of two tables. The ledger tells what was used and is never corrected; the adjustments tell what
of it an operator took off a budget.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime

import asyncpg

from neuronetz.stores.postgres import Postgres

_USED = """
SELECT greatest(0, (
    SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) FROM gateway.budget_usage
    WHERE tenant_id = $1::uuid AND day >= $2 AND day < $3 AND ($4::uuid IS NULL OR key_id = $4::uuid)
) + (
    SELECT coalesce(sum(tokens), 0) FROM gateway.budget_adjustments
    WHERE tenant_id = $1::uuid AND day >= $2 AND day < $3 AND key_id IS NOT DISTINCT FROM $4::uuid
))::bigint
"""

# Each day's use is taken off that day: a lump on one day would hide what is used later, should the budget's
# period become shorter.
_RESET = """
INSERT INTO gateway.budget_adjustments (tenant_id, key_id, day, tokens, reason)
SELECT $1::uuid, $4::uuid, day, -sum(tokens), $5 FROM (
    SELECT day, prompt_tokens + completion_tokens AS tokens FROM gateway.budget_usage
    WHERE tenant_id = $1::uuid AND day >= $2 AND day < $3 AND ($4::uuid IS NULL OR key_id = $4::uuid)
    UNION ALL
    SELECT day, tokens FROM gateway.budget_adjustments
    WHERE tenant_id = $1::uuid AND day >= $2 AND day < $3 AND key_id IS NOT DISTINCT FROM $4::uuid
) AS booked
GROUP BY day HAVING sum(tokens) > 0
RETURNING tokens
"""


async def used(postgres: Postgres, tenant_id: str, key_id: str | None, start: int, end: int) -> int:
    """Tokens that count against a budget in ``[start, end)``: a key's, or the tenant's where ``key_id`` is None.

    Never below 0. ``start`` and ``end`` are midnights in UTC, in seconds of the epoch. Raises
    ``StoreUnavailable``. A cancelled call has read nothing and changed nothing.
    """
    return int(await postgres.fetchval(_USED, tenant_id, day_of(start), day_of(end), key_id))


async def reset(
    postgres: Postgres, tenant_id: str, key_id: str | None, start: int, end: int, *, reason: str | None = None
) -> int:
    """Let what was used in ``[start, end)`` count as 0 from now on; the tokens that this takes off.

    Arguments as of ``used``. Nothing used is nothing written. The gateways hear of it from PostgreSQL.
    Raises ``StoreUnavailable``. A cancelled call has done all of it or nothing.
    """

    async def work(connection: "asyncpg.Connection[asyncpg.Record]") -> "Sequence[asyncpg.Record]":
        async with connection.transaction():
            # One at a time: two that both read the same use would take it off twice.
            await connection.execute(
                "SELECT FROM gateway.tenants WHERE id = $1::uuid FOR NO KEY UPDATE", tenant_id
            )
            return await connection.fetch(_RESET, tenant_id, day_of(start), day_of(end), key_id, reason)

    return -sum(int(row["tokens"]) for row in await postgres.run(work))


def day_of(at: int) -> date:
    """The UTC day of a moment in seconds of the epoch."""
    return datetime.fromtimestamp(at, UTC).date()
