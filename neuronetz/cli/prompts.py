"""neuronetz prompts: what keys that opted in asked and were answered. Text is shown by request, never listed."""

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from neuronetz.cli.confirmation import Yes, confirm
from neuronetz.cli.database import DatabaseUrl, OfKey, OfTenant, selected, with_postgres
from neuronetz.cli.failure import Failure
from neuronetz.cli.output import Json, printable, quoted, say, write_fields, write_json, write_rows

if TYPE_CHECKING:
    from neuronetz.stores.postgres import Postgres

commands = typer.Typer(no_args_is_help=True, help="Prompts and completions of keys created with --log-prompts.")

_ABOUT = """
SELECT p.request_id, p.created_at, p.expires_at, t.name AS tenant, k.prefix AS key,
       octet_length(p.prompt) AS prompt_bytes, p.prompt_truncated,
       octet_length(p.completion) AS completion_bytes, p.completion_truncated
"""
_FROM = """
FROM gateway.prompt_log p
JOIN gateway.api_keys k ON k.id = p.key_id
JOIN gateway.tenants t ON t.id = p.tenant_id
"""
_SELECTED = "($1::uuid IS NULL OR tenant_id = $1) AND ($2::uuid IS NULL OR key_id = $2)"
_LIST = f"""{_ABOUT}{_FROM}
WHERE ($1::uuid IS NULL OR p.tenant_id = $1) AND ($2::uuid IS NULL OR p.key_id = $2) AND p.expires_at > now()
ORDER BY p.created_at DESC, p.request_id
LIMIT $3
"""
_SHOW = f"{_ABOUT}, p.prompt, p.completion {_FROM} WHERE p.request_id = $1 AND p.expires_at > now()"
_COUNT = f"SELECT count(*) FROM gateway.prompt_log WHERE {_SELECTED}"  # noqa: S608
_DELETE = f"""
DELETE FROM gateway.prompt_log WHERE request_id IN (
    SELECT request_id FROM gateway.prompt_log WHERE {_SELECTED} LIMIT $3
)
"""  # noqa: S608
_BATCH = 1000

_COLUMNS = {
    "created_at": "LOGGED (UTC)",
    "expires_at": "EXPIRES (UTC)",
    "tenant": "TENANT",
    "key": "KEY",
    "prompt_bytes": "PROMPT BYTES",
    "completion_bytes": "COMPLETION BYTES",
    "truncated": "CUT",
    "request_id": "REQUEST",
}


@commands.command("list")
def list_(
    key: OfKey = None,
    tenant: OfTenant = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most this many rows.")] = 50,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List logged requests, newest first, without their text.

    \b
    Example: neuronetz prompts list --key nnz_AbCd1234
    """

    async def read(postgres: "Postgres") -> list[dict[str, Any]]:
        return [dict(row) for row in await postgres.fetch(_LIST, *await selected(postgres, tenant, key), limit)]

    write_rows(
        with_postgres(database_url, read),
        _COLUMNS,
        json=json,
        empty="no prompts logged; a key opts in with: neuronetz key set KEY --log-prompts",
        shown=lambda row: {**row, "truncated": row["prompt_truncated"] or row["completion_truncated"]},
    )


@commands.command("show")
def show(
    request: Annotated[
        str, typer.Argument(metavar="REQUEST_ID", help="As x-request-id and the audit log have it.")
    ],
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show what one request asked and was answered.

    \b
    Example: neuronetz prompts show 3f8e0c52-6a55-4c0e-9d0a-2f6f0b9f8a11
    """
    try:
        request_id = UUID(request)
    except ValueError:
        raise Failure(f"{quoted(request)} is no request id") from None
    row = with_postgres(database_url, lambda postgres: postgres.fetchrow(_SHOW, request_id))
    if row is None:
        raise Failure(
            "nothing is logged of this request: its key had not opted in, the row has expired, or it was given up"
        )
    if json:
        write_json(dict(row))
        return
    write_fields(
        [
            ("request", row["request_id"]),
            ("tenant", row["tenant"]),
            ("key", row["key"]),
            ("logged", row["created_at"]),
            ("expires", row["expires_at"]),
        ]
    )
    for name in ("prompt", "completion"):
        cut = ", cut" if row[f"{name}_truncated"] else ""
        say(f"\n--- {name} ({row[f'{name}_bytes']:,} bytes{cut})\n")
        # Line by line: what steers a terminal is taken out, the lines stay.
        say("\n".join(printable(line.replace("\t", "    ")) for line in row[name].split("\n")))


@commands.command("purge")
def purge(
    key: OfKey = None,
    tenant: OfTenant = None,
    every: Annotated[bool, typer.Option("--all", help="The whole prompt log.")] = False,
    yes: Yes = False,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Delete logged prompts now, of a key, a tenant or all. What has expired is deleted by the gateways.

    \b
    Example: neuronetz prompts purge --key nnz_AbCd1234 --yes
    """
    if every == (key is not None or tenant is not None):
        raise typer.BadParameter("give --key, --tenant or --all")

    async def count(postgres: "Postgres") -> int:
        rows: int = await postgres.fetchval(_COUNT, *await selected(postgres, tenant, key))
        return rows

    async def delete(postgres: "Postgres") -> int:
        whose, deleted = await selected(postgres, tenant, key), 0
        while True:
            batch = int((await postgres.execute(_DELETE, *whose, _BATCH)).rpartition(" ")[2])
            deleted += batch
            if batch < _BATCH:
                return deleted

    if not yes:
        rows = with_postgres(database_url, count)
        confirm(f"Delete {rows:,} rows of the prompt log? This cannot be undone.", "not deleted")
    deleted = with_postgres(database_url, delete, doing="deleting …")
    if json:
        write_json({"deleted": deleted})
    else:
        say(f"{deleted:,} rows deleted")
