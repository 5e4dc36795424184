"""neuronetz audit: the latest rows of the audit log, and new ones as they come."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from neuronetz.cli import audit_store, completion
from neuronetz.cli.database import DatabaseUrl, OfKey, OfTenant, with_postgres
from neuronetz.cli.output import Json, write_rows

_SHOWN = 50
_SHOWN_BEFORE_FOLLOWING = 10

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
    tenant: OfTenant = None,
    key: OfKey = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this model.", autocompletion=completion.models)
    ] = None,
    outcome: Annotated[
        str | None, typer.Option(help="Only this outcome: completed, client_disconnected, rate_limited, …")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="From a time on (UTC), or for a duration such as 2h.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=100_000,
            show_default=False,
            help="At most this many rows: 50, or 10 before those that follow. 0 only with --follow.",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new rows, until Ctrl-C.")] = False,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show the latest requests, newest first. Tokens are prompt+completion; ~ marks a count of our own.

    With --follow the newest is last, and each request follows within about a second of its end. An outage of
    PostgreSQL is told on stderr; what was committed meanwhile follows after it.

    \b
    Examples:
      neuronetz audit --tenant acme --outcome client_disconnected --since 2h
      neuronetz audit --follow --model llama3.2
      neuronetz audit --follow --limit 0 --json | jq -r .client_ip
    """
    from neuronetz.cli import times

    if limit == 0 and not follow:
        raise typer.BadParameter("--limit 0 shows nothing without --follow")
    start = times.since(since, datetime.now(UTC)) if since is not None else None
    selection = audit_store.Selection(tenant, key, outcome, model)
    if follow:
        from neuronetz.cli.follow import follow as write_on

        most = _SHOWN_BEFORE_FOLLOWING if limit is None else limit
        write_on(database_url, selection, start, most, _COLUMNS, _for_table, json=json)
        return
    rows = with_postgres(
        database_url,
        lambda postgres: audit_store.latest(postgres, selection, start, limit or _SHOWN),
        doing="reading the audit log …",
    )
    write_rows(rows, _COLUMNS, json=json, empty="no requests found", shown=_for_table)


def _for_table(row: Mapping[str, Any]) -> dict[str, Any]:
    tokens = f"{row['prompt_tokens']}+{row['completion_tokens']}"
    return {
        **row,
        "tenant": row["tenant"] or row["tenant_id"],
        "key": row["key"] or row["key_id"],
        "tokens": tokens if row["tokens_exact"] else f"~{tokens}",
        "status": str(row["status"]),
    }
