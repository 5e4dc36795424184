"""neuronetz key: API keys and their own limits."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from neuronetz.cli import key_store, limits
from neuronetz.cli.database import DatabaseUrl, with_postgres
from neuronetz.cli.failure import Failure
from neuronetz.cli.output import Json, say, write_fields, write_json, write_rows

commands = typer.Typer(no_args_is_help=True, help="API keys: created, limited, revoked. Secrets are never stored.")

Key = Annotated[str, typer.Argument(metavar="KEY", help="The key's prefix (its first 12 characters) or id.")]
Expires = Annotated[
    str | None, typer.Option(metavar="WHEN", help="A date or time (UTC), or a duration such as 12h or 30d.")
]


class Unset(StrEnum):
    """The options that ``--unset`` can take back: a tenant's limits, and the expiry."""

    RPM = limits.Limit.RPM
    CONCURRENCY = limits.Limit.CONCURRENCY
    BUDGET = limits.Limit.BUDGET
    PERIOD = limits.Limit.PERIOD
    MAX_PREDICT = limits.Limit.MAX_PREDICT
    MAX_BODY = limits.Limit.MAX_BODY
    MODELS = limits.Limit.MODELS
    ALLOW_ALL_MODELS = limits.Limit.ALLOW_ALL_MODELS
    EXPIRES = "expires"


@commands.command("create")
def create(
    tenant: Annotated[str, typer.Argument(help="The tenant's name or id.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    rpm: limits.Rpm = None,
    concurrency: limits.Concurrency = None,
    budget: limits.Budget = None,
    period: limits.Period = None,
    max_predict: limits.MaxPredict = None,
    max_body: limits.MaxBody = None,
    model: limits.Models = None,
    allow_all_models: limits.AllowAll = None,
    expires: Expires = None,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Create a key and show it, once. A limit that is not given is inherited from the tenant.

    \b
    Example: neuronetz key create acme --name ci --expires 30d --max-predict 512
    """
    _check_name(name)
    values = limits.given(rpm, concurrency, budget, period, max_predict, max_body, model, allow_all_models)
    expires_at = _expiry(expires)
    key, text = with_postgres(
        database_url, lambda postgres: key_store.create(postgres, tenant, name, expires_at, values)
    )
    if json:
        write_json({**key, "api_key": text})
        return
    say(f"key {key['prefix']} of tenant {key['tenant']} created; it is shown this once and stored nowhere:\n")
    say(f"  {text}\n")
    say(f'try it:  curl "$GATEWAY/api/tags" -H "Authorization: Bearer {text}"')
    say("where GATEWAY is your gateway's address, such as http://127.0.0.1:8080")


@commands.command("list")
def list_(
    tenant: Annotated[str | None, typer.Option(metavar="TENANT", help="Only this tenant's keys.")] = None,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List keys.

    \b
    Example: neuronetz key list --tenant acme
    """
    keys = with_postgres(database_url, lambda postgres: key_store.read_all(postgres, tenant))
    if json:
        write_rows(keys, {}, json=True)
        return
    columns = {
        "prefix": "PREFIX",
        "tenant": "TENANT",
        "name": "NAME",
        "state": "STATE",
        "expires_at": "EXPIRES",
        "rpm": "RPM",
        "concurrency": "AT ONCE",
        "budget": "BUDGET",
        "permitted": "MODELS",
    }
    write_rows(
        [key | key["limits"] | _texts(key) for key in keys],
        columns,
        json=False,
        empty="no keys yet; create one with: neuronetz key create TENANT",
    )


@commands.command("show")
def show(key: Key, json: Json = False, database_url: DatabaseUrl = None) -> None:
    """Show one key with its own limits and those of its tenant. The secret cannot be shown again.

    \b
    Example: neuronetz key show nnz_AbCd1234
    """
    found = with_postgres(database_url, lambda postgres: key_store.read(postgres, key))
    if json:
        write_json(found)
        return
    own, over = found["limits"], found["tenant_limits"]

    def both(column: str) -> str:
        own_text, over_text = (f"{value:,}" if value is not None else "-" for value in (own[column], over[column]))
        return f"{own_text} (tenant: {over_text})"

    period = own["budget_period"] or over["budget_period"]
    write_fields(
        [
            ("prefix", found["prefix"]),
            ("id", found["id"]),
            ("name", found["name"]),
            ("tenant", found["tenant"]),
            ("state", found["state"]),
            ("created", found["created_at"]),
            ("expires", found["expires_at"]),
            ("revoked", found["revoked_at"]),
            ("rpm", both("rpm")),
            ("concurrency", both("concurrency")),
            ("budget", f"{both('budget_tokens')} each {period}"),
            ("used", f"{found['used_tokens']:,} tokens this {period}"),
            ("max-predict", both("max_predict")),
            ("max-body", both("max_body_bytes")),
            ("models", _texts(found)["permitted"]),
        ]
    )


@commands.command("set")
def set_(
    key: Key,
    name: Annotated[str | None, typer.Option(help="What the key is for.")] = None,
    rpm: limits.Rpm = None,
    concurrency: limits.Concurrency = None,
    budget: limits.Budget = None,
    period: limits.Period = None,
    max_predict: limits.MaxPredict = None,
    max_body: limits.MaxBody = None,
    model: limits.Models = None,
    allow_all_models: limits.AllowAll = None,
    expires: Expires = None,
    unset: Annotated[
        list[Unset] | None,
        typer.Option(
            metavar="OPTION",
            help="Inherit a limit again, or never expire; repeat it for more: rpm, concurrency, budget, period, "
            "max-predict, max-body, models, allow-all-models, expires.",
        ),
    ] = None,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Change a key's own limits; those not named stay as they are.

    \b
    Example: neuronetz key set nnz_AbCd1234 --rpm 10 --unset budget --unset expires
    """
    if name is not None:
        _check_name(name)
    if expires is not None and "expires" in (unset or ()):
        raise typer.BadParameter("a limit cannot be set and --unset at once")
    values = limits.given(rpm, concurrency, budget, period, max_predict, max_body, model, allow_all_models)
    values = limits.with_unset(values, [each for each in unset or () if each != "expires"], {})
    columns: dict[str, Any] = {} if name is None else {"name": name}
    if expires is not None or "expires" in (unset or ()):
        columns["expires_at"] = _expiry(expires)
    if not values and not columns:
        raise Failure("nothing to change: give at least one option")
    changed = with_postgres(database_url, lambda postgres: key_store.change(postgres, key, columns, values))
    if json:
        write_json(changed)
    else:
        say(f"key {changed['prefix']} changed")


@commands.command("revoke")
def revoke(
    key: Key,
    reason: Annotated[str | None, typer.Option(help="Kept beside the revocation.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Revoke a key for good, on every gateway at once; its running requests are cut.

    \b
    Example: neuronetz key revoke nnz_AbCd1234 --reason "left the company" --yes
    """
    found = with_postgres(database_url, lambda postgres: key_store.read(postgres, key))
    already = found["revoked_at"] is not None
    if not already:
        if not (yes or json):
            _confirm(found)
        found, already = with_postgres(database_url, lambda postgres: key_store.revoke(postgres, key, reason))
    if json:
        write_json({**found, "already_revoked": already})
    elif already:
        say(f"key {found['prefix']} was revoked already, at {found['revoked_at']:%Y-%m-%d %H:%M:%S} UTC")
    else:
        say(f"key {found['prefix']} revoked")


def _confirm(key: dict[str, Any]) -> None:
    import sys

    question = f"Revoke key {key['prefix']} ({key['name']}) of tenant {key['tenant']}? This cannot be undone."
    if sys.stdin.isatty() and not typer.confirm(question, err=True):
        raise Failure("not revoked")


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise Failure("a key's name has 1 to 100 printable characters")


def _expiry(text: str | None) -> datetime | None:
    from neuronetz.cli import times

    return times.expiry(text, datetime.now(UTC)) if text is not None else None


def _texts(key: dict[str, Any]) -> dict[str, Any]:
    own, over = key["limits"], key["tenant_limits"]
    allow_all = over["allow_all_models"] if own["allow_all_models"] is None else own["allow_all_models"]
    models = over["models"] if own["models"] is None else own["models"]
    period = own["budget_period"] or over["budget_period"]
    return {
        "budget": limits.budget_text(own["budget_tokens"], period),
        "permitted": limits.models_text(allow_all, models),
    }
