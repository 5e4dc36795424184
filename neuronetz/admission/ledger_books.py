"""The ledger check's questions to PostgreSQL: which budgets there are, and what they should count."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from neuronetz.admission.drift import PERIODS, Books, Look, Row, Scope
from neuronetz.admission.ledger import day_of
from neuronetz.policy import Period
from neuronetz.stores.postgres import Postgres

_TENANTS_OF = """
SELECT tenant_id::text FROM gateway.api_keys WHERE id = ANY($2::uuid[])
UNION SELECT id::text FROM gateway.tenants WHERE id = ANY($1::uuid[])
"""

_TENANTS_WITH_BUDGETS = """
SELECT tenant_id::text FROM gateway.tenant_limits WHERE budget_tokens IS NOT NULL
UNION
SELECT k.tenant_id::text FROM gateway.key_limits l JOIN gateway.api_keys k ON k.id = l.key_id
WHERE l.budget_tokens IS NOT NULL AND k.revoked_at IS NULL
"""

_SCOPES = """
SELECT NULL AS key_id, budget_period AS period, budget_tokens AS tokens FROM gateway.tenant_limits
WHERE tenant_id = $1::uuid AND budget_tokens IS NOT NULL
UNION ALL
SELECT k.id::text, coalesce(l.budget_period, t.budget_period, 'month'), l.budget_tokens
FROM gateway.api_keys k
JOIN gateway.key_limits l ON l.key_id = k.id
LEFT JOIN gateway.tenant_limits t ON t.tenant_id = k.tenant_id
WHERE k.tenant_id = $1::uuid AND l.budget_tokens IS NOT NULL AND k.revoked_at IS NULL
"""

# One statement, so that all of it is of one moment: the ledger moves with the audit log.
# $2 to $7: start and end of the day, the week and the month; $8 and $9: rows by their primary key;
# $10: request ids whose start is not known, but not before $11.
_BOOKS = """
WITH booked AS (
    SELECT 'used' AS what, key_id, day, prompt_tokens + completion_tokens AS tokens
    FROM gateway.budget_usage
    WHERE tenant_id = $1::uuid AND day >= least($2::date, $4::date, $6::date)
      AND day < greatest($3::date, $5::date, $7::date)
    UNION ALL
    SELECT 'adjusted', key_id, day, tokens
    FROM gateway.budget_adjustments
    WHERE tenant_id = $1::uuid AND day >= least($2::date, $4::date, $6::date)
      AND day < greatest($3::date, $5::date, $7::date)
)
SELECT what, key_id::text, NULL AS request_id, NULL::timestamptz AS started_at, NULL::date AS budget_day,
       (coalesce(sum(tokens) FILTER (WHERE day >= $2 AND day < $3), 0))::bigint AS day,
       (coalesce(sum(tokens) FILTER (WHERE day >= $4 AND day < $5), 0))::bigint AS week,
       (coalesce(sum(tokens) FILTER (WHERE day >= $6 AND day < $7), 0))::bigint AS month
FROM booked GROUP BY what, key_id
UNION ALL
SELECT 'row', a.key_id::text, a.request_id::text, a.started_at, a.budget_day,
       a.prompt_tokens, a.completion_tokens, 0
FROM unnest($8::uuid[], $9::timestamptz[]) AS known (request_id, started_at)
JOIN gateway.audit_log a USING (request_id, started_at)
UNION ALL
SELECT 'row', a.key_id::text, a.request_id::text, a.started_at, a.budget_day,
       a.prompt_tokens, a.completion_tokens, 0
FROM gateway.audit_log a
WHERE a.tenant_id = $1::uuid AND a.request_id = ANY($10::uuid[]) AND a.started_at >= $11::timestamptz
"""

# A request starts before it is admitted, by no more than its body takes.
_BEFORE_ADMISSION = timedelta(hours=1)
_NEVER = datetime(9999, 1, 1, tzinfo=UTC)


async def tenants_of(postgres: Postgres, changes: Iterable[tuple[str, UUID]]) -> list[str]:
    """The tenants of which notifications speak, as ``("tenant", id)`` or ``("key", id)``."""
    changes = list(changes)
    if not changes:
        return []
    ids = [[name for kind, name in changes if kind == wanted] for wanted in ("tenant", "key")]
    return [row["tenant_id"] for row in await postgres.fetch(_TENANTS_OF, *ids)]


async def tenants_with_budgets(postgres: Postgres) -> list[str]:
    """The tenants that have a budget, or a key that has one."""
    return [row["tenant_id"] for row in await postgres.fetch(_TENANTS_WITH_BUDGETS)]


async def scopes(postgres: Postgres, tenant_id: str) -> list[Scope]:
    """The budgets of a tenant and its keys."""
    rows = await postgres.fetch(_SCOPES, tenant_id)
    return [Scope(row["key_id"], row["period"], row["tokens"]) for row in rows]


async def read(postgres: Postgres, tenant_id: str, look: Look) -> Books:
    """The books for what ``look`` saw, read after it. Raises ``StoreUnavailable``."""
    bounds = {counter.place.period: (counter.place.start, counter.place.end) for counter in look.counters}
    days: list[date] = []
    for kind in PERIODS:
        days += [day_of(at) for at in bounds.get(kind) or next(iter(bounds.values()))]
    living = {lease.request_id: lease for lease in look.leases}
    known = [row for row in look.rows.values() if row.tokens or row.request_id in living]
    unknown = [lease for lease in look.leases if lease.request_id not in look.rows]
    since = min((lease.admitted_s for lease in unknown), default=0.0)
    rows = await postgres.fetch(
        _BOOKS,
        tenant_id,
        *days,
        [row.request_id for row in known],
        [row.started_at for row in known],
        [lease.request_id for lease in unknown],
        datetime.fromtimestamp(since, UTC) - _BEFORE_ADMISSION if unknown else _NEVER,
    )
    return Books(
        {row["key_id"]: _by_period(row) for row in rows if row["what"] == "used"},
        {row["key_id"]: _by_period(row) for row in rows if row["what"] == "adjusted"},
        {row["request_id"]: _row(row) for row in rows if row["what"] == "row"},
    )


def _by_period(row: Any) -> dict[Period, int]:
    return {kind: row[kind] for kind in PERIODS}


def _row(row: Any) -> Row:
    return Row(row["request_id"], row["started_at"], row["key_id"], row["budget_day"], row["day"], row["week"])
