"""Keys in PostgreSQL, as the commands read and change them."""

from typing import TYPE_CHECKING, Any

from neuronetz.cli import limits
from neuronetz.cli.database import find_key, find_tenant
from neuronetz.cli.failure import Failure
from neuronetz.cli.output import quoted

if TYPE_CHECKING:
    from neuronetz.access.keys import NewKey
    from neuronetz.stores.postgres import Postgres

_READ = """
SELECT k.id, k.prefix, k.name, k.tenant_id, t.name AS tenant, k.expires_at, k.revoked_at, k.created_at,
       k.log_prompts, k.prompt_ttl_s,
       CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked'
            WHEN k.expires_at <= now() THEN 'expired'
            WHEN t.suspended_at IS NOT NULL THEN 'suspended'
            ELSE 'active' END AS state,
       l.rpm, l.concurrency, l.budget_tokens, l.budget_period, l.max_predict, l.max_body_bytes,
       l.allow_all_models, l.models,
       tl.rpm AS tenant_rpm, tl.concurrency AS tenant_concurrency, tl.budget_tokens AS tenant_budget_tokens,
       coalesce(tl.budget_period, 'month') AS tenant_budget_period, tl.max_predict AS tenant_max_predict,
       tl.max_body_bytes AS tenant_max_body_bytes,
       coalesce(tl.allow_all_models, false) AS tenant_allow_all_models, coalesce(tl.models, '{}') AS tenant_models,
       (SELECT coalesce(sum(u.prompt_tokens + u.completion_tokens), 0)::bigint FROM gateway.budget_usage u
        WHERE u.tenant_id = k.tenant_id AND u.key_id = k.id
          AND u.day >= date_trunc(
              coalesce(l.budget_period, tl.budget_period, 'month'), now() AT TIME ZONE 'UTC')::date
       ) AS used_tokens
FROM gateway.api_keys k
JOIN gateway.tenants t ON t.id = k.tenant_id
LEFT JOIN gateway.key_limits l ON l.key_id = k.id
LEFT JOIN gateway.tenant_limits tl ON tl.tenant_id = k.tenant_id
WHERE ($1::uuid IS NULL OR k.id = $1) AND ($2::uuid IS NULL OR k.tenant_id = $2)
ORDER BY t.name, k.created_at, k.prefix
"""


_INSERT = """
INSERT INTO gateway.api_keys (id, tenant_id, prefix, secret_hash, name, expires_at, log_prompts, prompt_ttl_s)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""


# What the options of a key set in its own row, in the order of the insert.
_DEFAULTS: dict[str, Any] = {"name": "default", "expires_at": None, "log_prompts": False, "prompt_ttl_s": None}


async def create(
    postgres: "Postgres", tenant: str, columns: dict[str, Any], values: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """Create a key with ``columns`` (as ``change`` takes them) and limits.

    Returns what ``read`` gives of it, and its text, which nothing can give again.
    """
    import uuid

    import asyncpg

    from neuronetz.access.keys import generate

    owner = await find_tenant(postgres, tenant)
    while True:
        new, key_id = generate(), uuid.uuid4()
        row = [key_id, owner["id"], new.prefix, await _hash(new), *(_DEFAULTS | columns).values()]
        try:
            await postgres.transaction([(_INSERT, row), *limits.key_statements(key_id, values)])
        except asyncpg.UniqueViolationError:
            continue  # the prefix is taken
        except asyncpg.ForeignKeyViolationError:
            raise Failure(f"tenant {quoted(tenant)} was removed just now") from None
        return await read(postgres, new.prefix), new.text


async def _hash(key: "NewKey") -> str:
    from neuronetz.access.keys import Hasher
    from neuronetz.settings import Settings

    # The gateway's own parameters, from the same environment; the three URLs are not needed for them.
    settings = Settings.load(database_url="postgresql://", redis_url="redis://", ollama_url="http://localhost")
    hasher = Hasher(settings.argon2_time_cost, settings.argon2_memory_kib, settings.argon2_parallelism, 1, 1)
    return await hasher.hash(key.secret)


async def change(
    postgres: "Postgres", key: str, columns: dict[str, Any], values: dict[str, Any]
) -> dict[str, Any]:
    """Set ``columns`` of a key (``name``, ``expires_at``, ``log_prompts``, ``prompt_ttl_s``) and ``values`` of
    its limits.
    """
    found = await find_key(postgres, key)
    statements: list[tuple[str, list[Any]]] = [
        (f"UPDATE gateway.api_keys SET {column} = $2 WHERE id = $1", [found["id"], columns[column]])  # noqa: S608
        for column in _DEFAULTS
        if column in columns
    ]
    if values:
        statements += limits.key_statements(found["id"], values)
    await postgres.transaction(statements)
    return await read(postgres, found["prefix"])


async def revoke(postgres: "Postgres", key: str, reason: str | None) -> tuple[dict[str, Any], bool]:
    """Revoke a key; the key, and whether it was revoked already."""
    found = await find_key(postgres, key)
    inserted = await postgres.fetch(
        "INSERT INTO gateway.revocations (prefix, reason)"
        " SELECT prefix, $2 FROM gateway.api_keys WHERE id = $1 AND revoked_at IS NULL RETURNING id",
        found["id"],
        reason,
    )
    return await read(postgres, found["prefix"]), not inserted


async def read(postgres: "Postgres", key: str) -> dict[str, Any]:
    """A key with its own limits and its tenant's; nothing of its secret."""
    found = await find_key(postgres, key)
    row = await postgres.fetchrow(_READ, found["id"], None)
    if row is None:
        raise Failure(f"key {quoted(key)} was removed just now")
    return _shown(row)


def _shown(row: Any) -> dict[str, Any]:
    names = ("id", "prefix", "name", "tenant", "tenant_id", "state", "expires_at", "revoked_at", "created_at")
    return {
        **{name: row[name] for name in names},
        "log_prompts": row["log_prompts"],
        "prompt_ttl_s": row["prompt_ttl_s"],
        "used_tokens": row["used_tokens"],
        "limits": limits.shown(row),
        "tenant_limits": limits.shown(row, "tenant_"),
    }


async def read_all(postgres: "Postgres", tenant: str | None) -> list[dict[str, Any]]:
    """All keys, or those of one tenant."""
    tenant_id = (await find_tenant(postgres, tenant))["id"] if tenant is not None else None
    return [_shown(row) for row in await postgres.fetch(_READ, None, tenant_id)]
