"""neuronetz key: API keys and their own limits."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from neuronetz.cli import completion, key_options, key_store, limits
from neuronetz.cli.confirmation import Yes, confirm
from neuronetz.cli.database import DatabaseUrl, OfTenant, with_postgres
from neuronetz.cli.failure import Failure
from neuronetz.cli.output import Json, say, write_fields, write_json, write_rows

commands = typer.Typer(no_args_is_help=True, help="API keys: created, limited, revoked. Secrets are never stored.")

Key = Annotated[
    str,
    typer.Argument(
        metavar="KEY", help="The key's prefix (its first 12 characters) or id.", autocompletion=completion.keys
    ),
]


@commands.command("create")
def create(
    tenant: Annotated[str, typer.Argument(help="The tenant's name or id.", autocompletion=completion.tenants)],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    rpm: limits.Rpm = None,
    concurrency: limits.Concurrency = None,
    budget: limits.Budget = None,
    period: limits.Period = None,
    max_predict: limits.MaxPredict = None,
    max_body: limits.MaxBody = None,
    model: limits.Models = None,
    allow_all_models: limits.AllowAll = None,
    expires: key_options.Expires = None,
    log_prompts: key_options.LogPrompts = None,
    prompt_ttl: key_options.PromptTtl = None,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Create a key and show it, once. A limit that is not given is inherited from the tenant.

    \b
    Example: neuronetz key create acme --name ci --expires 30d --max-predict 512
    """
    key_options.check_name(name)
    values = limits.given(rpm, concurrency, budget, period, max_predict, max_body, model, allow_all_models)
    columns = {"name": name, **key_options.own_columns(expires, log_prompts, prompt_ttl)}
    key, text = with_postgres(database_url, lambda postgres: key_store.create(postgres, tenant, columns, values))
    if json:
        write_json({**key, "api_key": text})
        return
    say(f"key {key['prefix']} of tenant {key['tenant']} created; it is shown this once and stored nowhere:\n")
    say(f"  {text}\n")
    say(f'try it:  curl "$GATEWAY/api/tags" -H "Authorization: Bearer {text}"')
    say("where GATEWAY is your gateway's address, such as http://127.0.0.1:8080")


@commands.command("list")
def list_(
    tenant: OfTenant = None,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List keys.

    \b
    Example: neuronetz key list --tenant acme
    """
    keys = with_postgres(database_url, lambda postgres: key_store.read_all(postgres, tenant))
    write_rows(
        keys,
        {
            "prefix": "PREFIX",
            "tenant": "TENANT",
            "name": "NAME",
            "state": "STATE",
            "expires_at": "EXPIRES",
            "rpm": "RPM",
            "concurrency": "AT ONCE",
            "budget": "BUDGET",
            "permitted": "MODELS",
        },
        json=json,
        empty="no keys yet; create one with: neuronetz key create TENANT",
        shown=lambda key: {**key, **key["limits"], **_texts(key)},
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
            ("log-prompts", _prompts_text(found)),
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
    expires: key_options.Expires = None,
    log_prompts: key_options.LogPrompts = None,
    prompt_ttl: key_options.PromptTtl = None,
    unset: Annotated[
        list[key_options.Unset] | None,
        typer.Option(
            metavar="OPTION",
            help="Inherit a limit again, never expire, or keep prompts as long as the gateway says; repeat it for "
            "more: rpm, concurrency, budget, period, max-predict, max-body, models, allow-all-models, expires, "
            "prompt-ttl.",
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
        key_options.check_name(name)
    columns = key_options.own_columns(expires, log_prompts, prompt_ttl)
    if name is not None:
        columns["name"] = name
    for option in set(unset or ()) & key_options.OWN_COLUMNS.keys():
        if key_options.OWN_COLUMNS[option] in columns:
            raise typer.BadParameter("an option cannot be set and --unset at once")
        columns[key_options.OWN_COLUMNS[option]] = None
    values = limits.given(rpm, concurrency, budget, period, max_predict, max_body, model, allow_all_models)
    values = limits.with_unset(values, [each for each in unset or () if each not in key_options.OWN_COLUMNS], {})
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
    yes: Yes = False,
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
        if not yes:
            name = f"{found['prefix']} ({found['name']}) of tenant {found['tenant']}"
            confirm(f"Revoke key {name}? This cannot be undone.", "not revoked")
        found, already = with_postgres(database_url, lambda postgres: key_store.revoke(postgres, key, reason))
    if json:
        write_json({**found, "already_revoked": already})
    elif already:
        say(f"key {found['prefix']} was revoked already, at {found['revoked_at']:%Y-%m-%d %H:%M:%S} UTC")
    else:
        say(f"key {found['prefix']} revoked")


def _prompts_text(key: dict[str, Any]) -> str:
    if not key["log_prompts"]:
        return "no"
    ttl_s = key["prompt_ttl_s"]
    return "yes, kept " + ("as long as the gateway says" if ttl_s is None else f"for {_duration(ttl_s)}")


def _duration(seconds: int) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _texts(key: Mapping[str, Any]) -> dict[str, Any]:
    own, over = key["limits"], key["tenant_limits"]
    allow_all = over["allow_all_models"] if own["allow_all_models"] is None else own["allow_all_models"]
    models = over["models"] if own["models"] is None else own["models"]
    period = own["budget_period"] or over["budget_period"]
    return {
        "budget": limits.budget_text(own["budget_tokens"], period),
        "permitted": limits.models_text(allow_all, models),
    }
