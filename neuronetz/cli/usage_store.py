"""Usage and budgets in PostgreSQL, as the command reads them."""

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from neuronetz.cli.database import selected

if TYPE_CHECKING:
    from neuronetz.stores.postgres import Postgres

# The ledger: it outlives the audit log's partitions, but knows no models.
_LEDGER = """
SELECT u.day, u.tenant_id, u.key_id, NULL::text AS model, u.requests, u.prompt_tokens, u.completion_tokens
FROM gateway.budget_usage u
WHERE u.day >= $2 AND ($3::uuid IS NULL OR u.tenant_id = $3) AND ($4::uuid IS NULL OR u.key_id = $4)
  AND $5::text IS NULL
"""
# The bound on started_at only leaves out partitions; what counts is the ledger's day.
_AUDIT_LOG = """
SELECT a.budget_day AS day, a.tenant_id, a.key_id, a.model, count(*) AS requests,
       sum(a.prompt_tokens)::bigint AS prompt_tokens, sum(a.completion_tokens)::bigint AS completion_tokens
FROM gateway.audit_log a
WHERE a.budget_day >= $2 AND a.started_at >= ($2::date - 2)::timestamp AT TIME ZONE 'UTC'
  AND ($3::uuid IS NULL OR a.tenant_id = $3) AND ($4::uuid IS NULL OR a.key_id = $4)
  AND ($5::text IS NULL OR a.model = $5)
GROUP BY 1, 2, 3, 4
"""
_SUMS = """
sum(requests)::bigint AS requests, sum(prompt_tokens)::bigint AS prompt_tokens,
sum(completion_tokens)::bigint AS completion_tokens
"""
# By day first, so that each row of the result knows its days.
_USAGE = """
SELECT CASE WHEN 'day' = ANY($1::text[]) THEN day END AS day, tenant, key, model, {sums},
       array_agg(day ORDER BY day) AS days,
       array_agg(prompt_tokens + completion_tokens ORDER BY day) AS tokens_by_day
FROM (
    SELECT u.day,
           CASE WHEN 'tenant' = ANY($1) THEN coalesce(t.name, u.tenant_id::text) END AS tenant,
           CASE WHEN 'key' = ANY($1) THEN coalesce(k.prefix, u.key_id::text) END AS key,
           CASE WHEN 'model' = ANY($1) THEN u.model END AS model,
           {sums}
    FROM ({uses}) AS u
    LEFT JOIN gateway.tenants t ON t.id = u.tenant_id
    LEFT JOIN gateway.api_keys k ON k.id = u.key_id
    GROUP BY 1, 2, 3, 4
) AS by_day
GROUP BY 1, 2, 3, 4
ORDER BY 1 DESC, sum(prompt_tokens + completion_tokens) DESC, 2, 3, 4
"""

# Budgets of tenants, or of keys, with what counts in their running periods: as admission.ledger has it, for all.
_BUDGETS = """
SELECT b.name, b.tokens, b.period, greatest(0, (
    SELECT coalesce(sum(u.prompt_tokens + u.completion_tokens), 0) FROM gateway.budget_usage u
    WHERE u.tenant_id = b.tenant_id AND u.day >= b.first AND (b.key_id IS NULL OR u.key_id = b.key_id)
) + (
    SELECT coalesce(sum(a.tokens), 0) FROM gateway.budget_adjustments a
    WHERE a.tenant_id = b.tenant_id AND a.day >= b.first AND a.key_id IS NOT DISTINCT FROM b.key_id
))::bigint AS used
FROM (
    SELECT *, date_trunc(period, now() AT TIME ZONE 'UTC')::date AS first FROM ({owners}) AS owner
) AS b
"""
_OF_TENANTS = """
SELECT t.name, t.id AS tenant_id, NULL::uuid AS key_id, l.budget_tokens AS tokens, l.budget_period AS period
FROM gateway.tenants t JOIN gateway.tenant_limits l ON l.tenant_id = t.id
WHERE l.budget_tokens IS NOT NULL AND ($1::uuid IS NULL OR t.id = $1) AND $2::uuid IS NULL
"""
_OF_KEYS = """
SELECT k.prefix AS name, k.tenant_id, k.id AS key_id, l.budget_tokens AS tokens,
       coalesce(l.budget_period, tl.budget_period, 'month') AS period
FROM gateway.api_keys k JOIN gateway.key_limits l ON l.key_id = k.id
LEFT JOIN gateway.tenant_limits tl ON tl.tenant_id = k.tenant_id
WHERE l.budget_tokens IS NOT NULL AND ($1::uuid IS NULL OR k.tenant_id = $1) AND ($2::uuid IS NULL OR k.id = $2)
"""


async def read(
    postgres: "Postgres",
    dimensions: Sequence[str],
    first_day: date,
    tenant: str | None,
    key: str | None,
    model: str | None,
) -> list[dict[str, Any]]:
    """Tokens and requests since ``first_day``, summed by ``dimensions`` (day, tenant, key, model).

    ``days`` and ``tokens_by_day`` of a row go together; days without use are not among them.
    """
    from neuronetz.models.effective import normalise

    wanted = normalise(model) if model is not None else None
    uses = _AUDIT_LOG if wanted is not None or "model" in dimensions else _LEDGER
    query = _USAGE.format(sums=_SUMS, uses=uses)
    rows = await postgres.fetch(query, dimensions, first_day, *await selected(postgres, tenant, key), wanted)
    return [{**row, "total_tokens": row["prompt_tokens"] + row["completion_tokens"]} for row in rows]


async def budgets(
    postgres: "Postgres", *, of_keys: bool, tenant: str | None, key: str | None
) -> dict[str, dict[str, Any]]:
    """The budgets of tenants or keys by name or prefix: ``tokens``, ``period``, and what of it is ``used`` now."""
    query = _BUDGETS.format(owners=_OF_KEYS if of_keys else _OF_TENANTS)
    rows = await postgres.fetch(query, *await selected(postgres, tenant, key))
    return {row["name"]: {name: row[name] for name in ("tokens", "period", "used")} for row in rows}
