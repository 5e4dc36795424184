"""neuronetz usage: tokens and requests, summed."""

from datetime import UTC, date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuronetz.cli.database import DatabaseUrl, find_key, find_tenant, with_postgres
from neuronetz.cli.output import Json, write_rows

if TYPE_CHECKING:
    from neuronetz.stores.postgres import Postgres


class Dimension(StrEnum):
    """What usage can be summed by, in the order of the table's columns."""

    DAY = "day"
    TENANT = "tenant"
    KEY = "key"
    MODEL = "model"


# The ledger: it outlives the audit log's partitions, but knows no models.
_FROM_LEDGER = """
SELECT CASE WHEN 'day' = ANY($1::text[]) THEN u.day END AS day,
       CASE WHEN 'tenant' = ANY($1) THEN coalesce(t.name, u.tenant_id::text) END AS tenant,
       CASE WHEN 'key' = ANY($1) THEN coalesce(k.prefix, u.key_id::text) END AS key,
       NULL AS model,
       sum(u.requests)::bigint AS requests,
       sum(u.prompt_tokens)::bigint AS prompt_tokens,
       sum(u.completion_tokens)::bigint AS completion_tokens
FROM gateway.budget_usage u
LEFT JOIN gateway.tenants t ON t.id = u.tenant_id
LEFT JOIN gateway.api_keys k ON k.id = u.key_id
WHERE u.day >= $2 AND ($3::uuid IS NULL OR u.tenant_id = $3) AND ($4::uuid IS NULL OR u.key_id = $4)
  AND $5::text IS NULL
GROUP BY 1, 2, 3
ORDER BY 1 DESC, sum(u.prompt_tokens + u.completion_tokens) DESC, 2, 3
"""

# The bound on started_at only leaves out partitions; what counts is the ledger's day.
_FROM_AUDIT_LOG = """
SELECT CASE WHEN 'day' = ANY($1::text[]) THEN a.budget_day END AS day,
       CASE WHEN 'tenant' = ANY($1) THEN coalesce(t.name, a.tenant_id::text) END AS tenant,
       CASE WHEN 'key' = ANY($1) THEN coalesce(k.prefix, a.key_id::text) END AS key,
       CASE WHEN 'model' = ANY($1) THEN a.model END AS model,
       count(*) AS requests,
       sum(a.prompt_tokens)::bigint AS prompt_tokens,
       sum(a.completion_tokens)::bigint AS completion_tokens
FROM gateway.audit_log a
LEFT JOIN gateway.tenants t ON t.id = a.tenant_id
LEFT JOIN gateway.api_keys k ON k.id = a.key_id
WHERE a.budget_day >= $2 AND a.started_at >= ($2::date - 2)::timestamp AT TIME ZONE 'UTC'
  AND ($3::uuid IS NULL OR a.tenant_id = $3) AND ($4::uuid IS NULL OR a.key_id = $4)
  AND ($5::text IS NULL OR a.model = $5)
GROUP BY 1, 2, 3, 4
ORDER BY 1 DESC, sum(a.prompt_tokens + a.completion_tokens) DESC, 2, 3, 4
"""

_SUMS = {
    "requests": "REQUESTS",
    "prompt_tokens": "PROMPT",
    "completion_tokens": "COMPLETION",
    "total_tokens": "TOKENS",
}


def usage(
    by: Annotated[
        list[Dimension] | None,
        typer.Option(metavar="WHAT", help="tenant (the default), key, model or day; repeat it to sum by several."),
    ] = None,
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="From this UTC day on: a date, or a duration such as 30d.")
    ] = "30d",
    tenant: Annotated[str | None, typer.Option(metavar="TENANT", help="Only this tenant.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Only this key (prefix or id).")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Only this model.")] = None,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show tokens and requests by tenant, key, model or day.

    \b
    Example: neuronetz usage --by day --by model --tenant acme --since 7d
    """
    from neuronetz.cli import times

    dimensions = [each.value for each in Dimension if each in (by or [Dimension.TENANT])]
    first_day = times.since(since, datetime.now(UTC)).date()
    rows = with_postgres(database_url, lambda postgres: _read(postgres, dimensions, first_day, tenant, key, model))
    columns = {name: name.upper() for name in dimensions} | _SUMS
    write_rows(
        [{name: row[name] for name in columns} for row in rows],
        columns,
        json=json,
        empty=f"no usage since {first_day}",
    )


async def _read(
    postgres: "Postgres",
    dimensions: list[str],
    first_day: date,
    tenant: str | None,
    key: str | None,
    model: str | None,
) -> list[dict[str, Any]]:
    from neuronetz.models.effective import normalise

    tenant_id = (await find_tenant(postgres, tenant))["id"] if tenant is not None else None
    key_id = (await find_key(postgres, key))["id"] if key is not None else None
    query = _FROM_AUDIT_LOG if model is not None or "model" in dimensions else _FROM_LEDGER
    wanted = normalise(model) if model is not None else None
    rows = await postgres.fetch(query, dimensions, first_day, tenant_id, key_id, wanted)
    return [{**row, "total_tokens": row["prompt_tokens"] + row["completion_tokens"]} for row in rows]
