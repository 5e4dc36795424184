"""neuronetz tenant: who pays, and the limits over all keys together."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from neuronetz.cli import completion, limits, tenant_store
from neuronetz.cli.confirmation import Yes, confirm
from neuronetz.cli.database import DatabaseUrl, with_postgres
from neuronetz.cli.failure import Failure
from neuronetz.cli.output import Json, quoted, say, write_fields, write_json, write_rows

commands = typer.Typer(no_args_is_help=True, help="Tenants: who pays, with limits over all of their keys.")

Name = Annotated[
    str,
    typer.Argument(metavar="TENANT", help="The tenant's name or id.", autocompletion=completion.tenants),
]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


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
    tenant = with_postgres(database_url, lambda postgres: tenant_store.create(postgres, name, values))
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
    tenants = with_postgres(database_url, tenant_store.read_all)
    write_rows(
        tenants,
        {
            "name": "NAME",
            "state": "STATE",
            "keys": "KEYS",
            "rpm": "RPM",
            "concurrency": "AT ONCE",
            "budget": "BUDGET",
            "permitted": "MODELS",
        },
        json=json,
        empty="no tenants yet; create one with: neuronetz tenant create NAME",
        shown=lambda tenant: {**tenant, **tenant["limits"], **_texts(tenant)},
    )


@commands.command("show")
def show(name: Name, json: Json = False, database_url: DatabaseUrl = None) -> None:
    """Show one tenant with its limits and what it used of its budget.

    \b
    Example: neuronetz tenant show acme
    """
    tenant = with_postgres(database_url, lambda postgres: tenant_store.read(postgres, name))
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
    tenant = with_postgres(database_url, lambda postgres: tenant_store.change(postgres, name, values))
    if json:
        write_json(tenant)
    else:
        say(f"tenant {tenant['name']} changed")


@commands.command("suspend")
def suspend(name: Name, yes: Yes = False, json: Json = False, database_url: DatabaseUrl = None) -> None:
    """Refuse every key of a tenant until it is resumed. What runs already goes on; revoking a key cuts it.

    \b
    Example: neuronetz tenant suspend acme --yes
    """
    tenant = with_postgres(database_url, lambda postgres: tenant_store.read(postgres, name))
    if not (yes or tenant["suspended_at"]):
        confirm(
            f"Refuse all {tenant['keys']:,} keys of tenant {tenant['name']} until it is resumed?", "not suspended"
        )
    _tell(*with_postgres(database_url, lambda postgres: tenant_store.set_suspended(postgres, name, True)), json)


@commands.command("resume")
def resume(name: Name, json: Json = False, database_url: DatabaseUrl = None) -> None:
    """Let a suspended tenant's keys in again.

    \b
    Example: neuronetz tenant resume acme
    """
    _tell(*with_postgres(database_url, lambda postgres: tenant_store.set_suspended(postgres, name, False)), json)


def _tell(tenant: dict[str, Any], changed: bool, json: bool) -> None:
    if json:
        write_json(tenant)
    else:
        state = f"is {tenant['state']}" if changed else f"was {tenant['state']} already"
        say(f"tenant {tenant['name']} {state}")


def _texts(tenant: Mapping[str, Any]) -> dict[str, Any]:
    own = tenant["limits"]
    return {
        "budget": limits.budget_text(own["budget_tokens"], own["budget_period"]),
        "permitted": limits.models_text(own["allow_all_models"], own["models"]),
    }
