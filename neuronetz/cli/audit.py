"""neuronetz audit: the latest rows of the audit log."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuronetz.cli.database import DatabaseUrl, find_key, find_tenant, with_postgres
from neuronetz.cli.output import Json, write_rows

if TYPE_CHECKING:
    from neuronetz.stores.postgres import Postgres

_READ = """
SELECT a.request_id, a.started_at, a.tenant_id, t.name AS tenant, a.key_id, k.prefix AS key, a.endpoint, a.dialect,
       a.model, a.stream, a.status, a.outcome, a.prompt_tokens, a.completion_tokens, a.tokens_exact, a.budget_day,
       a.duration_ms, a.first_byte_ms, a.client_ip, a.instance
FROM gateway.audit_log a
LEFT JOIN gateway.tenants t ON t.id = a.tenant_id
LEFT JOIN gateway.api_keys k ON k.id = a.key_id
WHERE ($1::uuid IS NULL OR a.tenant_id = $1) AND ($2::uuid IS NULL OR a.key_id = $2)
  AND ($3::text IS NULL OR a.outcome = $3) AND ($4::timestamptz IS NULL OR a.started_at >= $4)
ORDER BY a.started_at DESC, a.request_id DESC
LIMIT $5
"""

_COLUMNS = {
    "started_at": "STARTED (UTC)",
    "tenant": "TENANT",
    "key": "KEY",
    "endpoint": "ENDPOINT",
    "model": "MODEL",
    "status": "STATUS",
    "outcome": "OUTCOME",
    "tokens": "TOKENS",
    "duration_ms": "MS",
    "request_id": "REQUEST",
}


def audit(
    tenant: Annotated[str | None, typer.Option(metavar="TENANT", help="Only this tenant.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Only this key (prefix or id).")] = None,
    outcome: Annotated[
        str | None, typer.Option(help="Only this outcome: completed, client_disconnected, rate_limited, …")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="From a time on (UTC), or for a duration such as 2h.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most this many rows.")] = 50,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show the latest requests, newest first. Tokens are prompt+completion; ~ marks a count of our own.

    \b
    Example: neuronetz audit --tenant acme --outcome client_disconnected --since 2h
    """
    from neuronetz.cli import times

    start = times.since(since, datetime.now(UTC)) if since is not None else None

    async def read(postgres: "Postgres") -> list[dict[str, Any]]:
        tenant_id = (await find_tenant(postgres, tenant))["id"] if tenant is not None else None
        key_id = (await find_key(postgres, key))["id"] if key is not None else None
        return [dict(row) for row in await postgres.fetch(_READ, tenant_id, key_id, outcome, start, limit)]

    rows = with_postgres(database_url, read)
    write_rows(
        rows if json else [_for_table(row) for row in rows],
        _COLUMNS,
        json=json,
        empty="no requests found",
    )


def _for_table(row: dict[str, Any]) -> dict[str, Any]:
    tokens = f"{row['prompt_tokens']}+{row['completion_tokens']}"
    return {
        **row,
        "tenant": row["tenant"] or row["tenant_id"],
        "key": row["key"] or row["key_id"],
        "tokens": tokens if row["tokens_exact"] else f"~{tokens}",
        "status": str(row["status"]),
    }
