"""Tenants in PostgreSQL, as the commands read and change them."""

from typing import TYPE_CHECKING, Any

from neuronetz.cli import limits
from neuronetz.cli.database import find_tenant
from neuronetz.cli.failure import Failure
from neuronetz.cli.output import quoted

if TYPE_CHECKING:
    from neuronetz.stores.postgres import Postgres

_READ = """
SELECT t.id, t.name, t.suspended_at, t.created_at, l.rpm, l.concurrency, l.budget_tokens,
       coalesce(l.budget_period, 'month') AS budget_period, l.max_predict, l.max_body_bytes,
       coalesce(l.allow_all_models, false) AS allow_all_models, coalesce(l.models, '{}') AS models,
       (SELECT count(*) FROM gateway.api_keys k WHERE k.tenant_id = t.id AND k.revoked_at IS NULL) AS keys,
       (SELECT coalesce(sum(u.prompt_tokens + u.completion_tokens), 0)::bigint FROM gateway.budget_usage u
        WHERE u.tenant_id = t.id
          AND u.day >= date_trunc(coalesce(l.budget_period, 'month'), now() AT TIME ZONE 'UTC')::date
       ) AS used_tokens
FROM gateway.tenants t
LEFT JOIN gateway.tenant_limits l ON l.tenant_id = t.id
WHERE $1::uuid IS NULL OR t.id = $1
ORDER BY t.name
"""


async def create(postgres: "Postgres", name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Create a tenant with limits; what ``read`` gives of it."""
    import uuid

    import asyncpg

    tenant_id = uuid.uuid4()
    insert = ("INSERT INTO gateway.tenants (id, name) VALUES ($1, $2)", [tenant_id, name])
    try:
        await postgres.transaction([insert, *limits.tenant_statements(tenant_id, values)])
    except asyncpg.UniqueViolationError:
        raise Failure(f"tenant {quoted(name)} exists already; change it with: neuronetz tenant set") from None
    return await read(postgres, str(tenant_id))


async def change(postgres: "Postgres", name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Set ``values`` of a tenant's limits."""
    tenant = await find_tenant(postgres, name)
    await postgres.transaction(limits.tenant_statements(tenant["id"], values))
    return await read(postgres, str(tenant["id"]))


async def set_suspended(postgres: "Postgres", name: str, suspended: bool) -> tuple[dict[str, Any], bool]:
    """Suspend a tenant or resume it; the tenant, and whether that changed anything."""
    tenant = await find_tenant(postgres, name)
    done = await postgres.fetch(
        "UPDATE gateway.tenants SET suspended_at = CASE WHEN $2 THEN now() END"
        " WHERE id = $1 AND (suspended_at IS NOT NULL) <> $2 RETURNING id",
        tenant["id"],
        suspended,
    )
    return await read(postgres, str(tenant["id"])), bool(done)


async def read(postgres: "Postgres", name: str) -> dict[str, Any]:
    """A tenant with its limits and what it used of its budget."""
    tenant = await find_tenant(postgres, name)
    row = await postgres.fetchrow(_READ, tenant["id"])
    if row is None:
        raise Failure(f"tenant {quoted(name)} was removed just now")
    return _shown(row)


def _shown(row: Any) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "state": "suspended" if row["suspended_at"] else "active",
        "suspended_at": row["suspended_at"],
        "created_at": row["created_at"],
        "keys": row["keys"],
        "used_tokens": row["used_tokens"],
        "limits": limits.shown(row),
    }


async def read_all(postgres: "Postgres") -> list[dict[str, Any]]:
    """All tenants."""
    return [_shown(row) for row in await postgres.fetch(_READ, None)]
