"""neuronetz tenant: who pays, and the limits over all keys together."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuronetz.cli import limits
from neuronetz.cli.database import DatabaseUrl, find_tenant, with_postgres
from neuronetz.cli.failure import Failure
from neuronetz.cli.output import Json, quoted, say, write_fields, write_json, write_rows

if TYPE_CHECKING:
    from neuronetz.stores.postgres import Postgres

commands = typer.Typer(no_args_is_help=True, help="Tenants: who pays, with limits over all of their keys.")

Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name or id.")]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

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


@commands.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, - and _; at most 63.")],
    rpm: limits.Rpm = None,
    concurrency: limits.Concurrency = None,
    budget: limits.Budget = None,
    period: limits.Period = None,
    max_predict: limits.MaxPredict = None,
    max_body: limits.MaxBody = None,
    model: limits.Models = None,
    allow_all_models: limits.AllowAll = None,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Create a tenant. Without --model or --allow-all-models its keys may use no model.

    \b
    Example: neuronetz tenant create acme --rpm 120 --budget 5000000 --period month --model llama3.2
    """
    if not _NAME.fullmatch(name):
        raise Failure(
            f"{quoted(name)} is no tenant's name: lower-case letters, digits, - and _, at most 63, "
            "beginning with a letter or digit"
        )
    values = limits.given(rpm, concurrency, budget, period, max_predict, max_body, model, allow_all_models)
    tenant = with_postgres(database_url, lambda postgres: _create(postgres, name, values))
    if json:
        write_json(tenant)
    else:
        say(f"tenant {name} created; next: neuronetz key create {name}")


@commands.command("list")
def list_(json: Json = False, database_url: DatabaseUrl = None) -> None:
    """List all tenants.

    \b
    Example: neuronetz tenant list --json
    """

    async def read(postgres: "Postgres") -> list[dict[str, Any]]:
        return [_shown(row) for row in await postgres.fetch(_READ, None)]

    tenants = with_postgres(database_url, read)
    if json:
        write_rows(tenants, {}, json=True)
        return
    columns = {
        "name": "NAME",
        "state": "STATE",
        "keys": "KEYS",
        "rpm": "RPM",
        "concurrency": "AT ONCE",
        "budget": "BUDGET",
        "permitted": "MODELS",
    }
    write_rows(
        [tenant | tenant["limits"] | _texts(tenant) for tenant in tenants],
        columns,
        json=False,
        empty="no tenants yet; create one with: neuronetz tenant create NAME",
    )


@commands.command("show")
def show(name: Name, json: Json = False, database_url: DatabaseUrl = None) -> None:
    """Show one tenant with its limits and what it used of its budget.

    \b
    Example: neuronetz tenant show acme
    """
    tenant = with_postgres(database_url, lambda postgres: _read(postgres, name))
    if json:
        write_json(tenant)
        return
    texts, own = _texts(tenant), tenant["limits"]
    write_fields(
        [
            ("name", tenant["name"]),
            ("id", tenant["id"]),
            ("state", tenant["state"]),
            ("created", tenant["created_at"]),
            ("keys", tenant["keys"]),
            ("rpm", own["rpm"]),
            ("concurrency", own["concurrency"]),
            ("budget", texts["budget"]),
            ("used", f"{tenant['used_tokens']:,} tokens this {own['budget_period']}"),
            ("max-predict", own["max_predict"]),
            ("max-body", own["max_body_bytes"]),
            ("models", texts["permitted"]),
        ]
    )


@commands.command("set")
def set_(
    name: Name,
    rpm: limits.Rpm = None,
    concurrency: limits.Concurrency = None,
    budget: limits.Budget = None,
    period: limits.Period = None,
    max_predict: limits.MaxPredict = None,
    max_body: limits.MaxBody = None,
    model: limits.Models = None,
    allow_all_models: limits.AllowAll = None,
    unset: Annotated[
        list[limits.Limit] | None,
        typer.Option(
            metavar="OPTION",
            help="Remove a limit; repeat it for more: rpm, concurrency, budget, period, max-predict, max-body, "
            "models, allow-all-models.",
        ),
    ] = None,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Change a tenant's limits; those not named stay as they are.

    \b
    Example: neuronetz tenant set acme --rpm 60 --unset budget
    """
    values = limits.given(rpm, concurrency, budget, period, max_predict, max_body, model, allow_all_models)
    values = limits.with_unset(values, unset or (), limits.TENANT_UNSET)
    if not values:
        raise Failure("nothing to change: give at least one limit, or --unset one")

    async def change(postgres: "Postgres") -> dict[str, Any]:
        tenant = await find_tenant(postgres, name)
        await postgres.transaction(limits.tenant_statements(tenant["id"], values))
        return await _read(postgres, str(tenant["id"]))

    tenant = with_postgres(database_url, change)
    if json:
        write_json(tenant)
    else:
        say(f"tenant {tenant['name']} changed")


@commands.command("suspend")
def suspend(name: Name, json: Json = False, database_url: DatabaseUrl = None) -> None:
    """Refuse every key of a tenant until it is resumed. What runs already goes on; revoking a key cuts it.

    \b
    Example: neuronetz tenant suspend acme
    """
    _set_suspended(name, True, json, database_url)


@commands.command("resume")
def resume(name: Name, json: Json = False, database_url: DatabaseUrl = None) -> None:
    """Let a suspended tenant's keys in again.

    \b
    Example: neuronetz tenant resume acme
    """
    _set_suspended(name, False, json, database_url)


def _set_suspended(name: str, suspended: bool, json: bool, database_url: str | None) -> None:
    async def change(postgres: "Postgres") -> tuple[dict[str, Any], bool]:
        tenant = await find_tenant(postgres, name)
        done = await postgres.fetch(
            "UPDATE gateway.tenants SET suspended_at = CASE WHEN $2 THEN now() END"
            " WHERE id = $1 AND (suspended_at IS NOT NULL) <> $2 RETURNING id",
            tenant["id"],
            suspended,
        )
        return await _read(postgres, str(tenant["id"])), bool(done)

    tenant, changed = with_postgres(database_url, change)
    if json:
        write_json(tenant)
        return
    state = "suspended" if suspended else "active"
    say(f"tenant {tenant['name']} is {state}" if changed else f"tenant {tenant['name']} was {state} already")


async def _create(postgres: "Postgres", name: str, values: dict[str, Any]) -> dict[str, Any]:
    import uuid

    import asyncpg

    tenant_id = uuid.uuid4()
    insert = ("INSERT INTO gateway.tenants (id, name) VALUES ($1, $2)", [tenant_id, name])
    try:
        await postgres.transaction([insert, *limits.tenant_statements(tenant_id, values)])
    except asyncpg.UniqueViolationError:
        raise Failure(f"tenant {quoted(name)} exists already; change it with: neuronetz tenant set") from None
    return await _read(postgres, str(tenant_id))


async def _read(postgres: "Postgres", name: str) -> dict[str, Any]:
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


def _texts(tenant: dict[str, Any]) -> dict[str, Any]:
    own = tenant["limits"]
    return {
        "budget": limits.budget_text(own["budget_tokens"], own["budget_period"]),
        "permitted": limits.models_text(own["allow_all_models"], own["models"]),
    }
