"""Budgets in the stores, as the commands read and change them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from neuronetz.cli import limits
from neuronetz.cli.database import find_key, find_tenant, selected
from neuronetz.cli.failure import Failure

if TYPE_CHECKING:
    from neuronetz.stores.postgres import Postgres
    from neuronetz.stores.redis import Redis

# $1: a tenant, $2: a key; both null: all that have a budget.
_READ = """
SELECT 'tenant' AS scope, t.name AS tenant, t.id AS tenant_id, NULL AS key, NULL::uuid AS key_id,
       l.budget_tokens, coalesce(l.budget_period, 'month') AS period, extract(epoch FROM now())::float8 AS now_s
FROM gateway.tenants t
LEFT JOIN gateway.tenant_limits l ON l.tenant_id = t.id
WHERE $2::uuid IS NULL AND (t.id = $1::uuid OR $1::uuid IS NULL AND l.budget_tokens IS NOT NULL)
UNION ALL
SELECT 'key', t.name, t.id, k.prefix, k.id, l.budget_tokens, coalesce(l.budget_period, tl.budget_period, 'month'),
       extract(epoch FROM now())::float8
FROM gateway.api_keys k
JOIN gateway.tenants t ON t.id = k.tenant_id
LEFT JOIN gateway.key_limits l ON l.key_id = k.id
LEFT JOIN gateway.tenant_limits tl ON tl.tenant_id = k.tenant_id
WHERE k.id = $2::uuid
   OR $2::uuid IS NULL AND (k.tenant_id = $1::uuid OR $1::uuid IS NULL)
      AND l.budget_tokens IS NOT NULL AND k.revoked_at IS NULL
ORDER BY tenant, key NULLS FIRST
"""


async def read(postgres: "Postgres", tenant: str | None, key: str | None) -> list[dict[str, Any]]:
    """The budgets of a tenant and its keys, or a key's, or all; with what the ledger says was used.

    A tenant or key that was named is there without a budget too, first.
    """
    tenant_id, key_id = await selected(postgres, tenant, key)
    return [await _shown(postgres, row) for row in await postgres.fetch(_READ, tenant_id, key_id)]


async def _shown(postgres: "Postgres", row: Any) -> dict[str, Any]:
    from neuronetz.admission import ledger, period

    start, end = period.bounds(row["period"], row["now_s"])
    key_id = str(row["key_id"]) if row["key_id"] is not None else None
    used = await ledger.used(postgres, str(row["tenant_id"]), key_id, start, end)
    return {
        "scope": row["scope"],
        "tenant": row["tenant"],
        "tenant_id": str(row["tenant_id"]),
        "key": row["key"],
        "key_id": key_id,
        "limit": row["budget_tokens"],
        "period": row["period"],
        "starts_at": datetime.fromtimestamp(start, UTC),
        "ends_at": datetime.fromtimestamp(end, UTC),
        "used": used,
        "redis_used": None,
        "redis_reserved": None,
        "remaining": _remaining(row["budget_tokens"], used),
    }


async def add_counters(redis: "Redis", budgets: Sequence[dict[str, Any]]) -> None:
    """Add to budgets what their counters in Redis say, which is what admission goes by."""
    from neuronetz.admission import keyspace

    names = [
        keyspace.budget(
            budget["tenant_id"], budget["key_id"], budget["period"], int(budget["starts_at"].timestamp())
        )
        for budget in budgets
    ]
    if not names:
        return
    replies = await redis.pipeline([("HMGET", name, "used", "reserved") for name in names])
    for budget, (used, reserved) in zip(budgets, replies, strict=True):
        # A counter that was tampered with is none, until the ledger check has mended it.
        if (used or b"").isdigit() and (reserved or b"").isdigit():
            budget["redis_used"], budget["redis_reserved"] = int(used), int(reserved)
            budget["remaining"] = _remaining(budget["limit"], int(used) + int(reserved))


def _remaining(limit: int | None, taken: int) -> int | None:
    return None if limit is None else max(0, limit - taken)


async def change(
    postgres: "Postgres", tenant: str | None, key: str | None, values: dict[str, Any]
) -> dict[str, Any]:
    """Set ``values`` (``budget_tokens``, ``budget_period``) of a tenant's or a key's limits; its budget."""
    if key is not None:
        statements = limits.key_statements((await find_key(postgres, key))["id"], values)
    else:
        statements = limits.tenant_statements((await find_tenant(postgres, tenant or ""))["id"], values)
    await postgres.transaction(statements)
    return await read_one(postgres, tenant, key)


async def reset(
    postgres: "Postgres", tenant: str | None, key: str | None, reason: str | None
) -> tuple[dict[str, Any], int]:
    """Let what was used in the running period count as 0; the budget as it is now, and the tokens taken off."""
    from neuronetz.admission import ledger

    budget = await read_one(postgres, tenant, key)
    start, end = (int(budget[name].timestamp()) for name in ("starts_at", "ends_at"))
    tokens = await ledger.reset(postgres, budget["tenant_id"], budget["key_id"], start, end, reason=reason)
    return await read_one(postgres, tenant, key), tokens


async def read_one(postgres: "Postgres", tenant: str | None, key: str | None) -> dict[str, Any]:
    """One budget: the key's, or the tenant's own."""
    budgets = await read(postgres, tenant, key)
    if not budgets:
        raise Failure("it was removed just now")
    return budgets[0]
