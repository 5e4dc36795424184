"""What PostgreSQL's ledger says was used: the truth of which Redis's budget counters are a cache."""

from datetime import UTC, datetime

from neuronetz.stores.postgres import Postgres

_USED = """
SELECT coalesce(sum(prompt_tokens + completion_tokens), 0)::bigint
FROM gateway.budget_usage
WHERE tenant_id = $1::uuid AND day >= $2 AND day < $3 AND ($4::uuid IS NULL OR key_id = $4::uuid)
"""


async def used(postgres: Postgres, tenant_id: str, key_id: str | None, start: int, end: int) -> int:
    """Tokens used in ``[start, end)`` by a key, or by the whole tenant where ``key_id`` is None.

    ``start`` and ``end`` are midnights in UTC, in seconds of the epoch. Raises ``StoreUnavailable``. A
    cancelled call has read nothing and changed nothing.
    """
    first, behind = (datetime.fromtimestamp(at, UTC).date() for at in (start, end))
    return int(await postgres.fetchval(_USED, tenant_id, first, behind, key_id))
