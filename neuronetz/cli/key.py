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

LogPrompts = Annotated[
    bool | None,
    typer.Option(
        "--log-prompts/--no-log-prompts",
        show_default=False,
        help="Keep what this key asks and is answered for a time (--prompt-ttl); off unless given.",
    ),
]
PromptTtl = Annotated[
    str | None,
    typer.Option(metavar="DURATION", help="How long logged prompts are kept, such as 12h or 7d; at most 365d."),
]

# As PostgreSQL checks it, in seconds.
_SHORTEST_TTL_S, _LONGEST_TTL_S = 60, 365 * 24 * 3600


class Unset(StrEnum):
    """The options that ``--unset`` can take back: a tenant's limits, and what the key alone has."""

    RPM = limits.Limit.RPM
    CONCURRENCY = limits.Limit.CONCURRENCY
    BUDGET = limits.Limit.BUDGET
    PERIOD = limits.Limit.PERIOD
    MAX_PREDICT = limits.Limit.MAX_PREDICT
    MAX_BODY = limits.Limit.MAX_BODY
    MODELS = limits.Limit.MODELS
    ALLOW_ALL_MODELS = limits.Limit.ALLOW_ALL_MODELS
    EXPIRES = "expires"
    PROMPT_TTL = "prompt-ttl"


# Not limits: columns of the key, and the options that set them.
_OWN = {"expires": "expires_at", "prompt-ttl": "prompt_ttl_s"}


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
    log_prompts: LogPrompts = None,
    prompt_ttl: PromptTtl = None,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Create a key and show it, once. A limit that is not given is inherited from the tenant.

    \b
    Example: neuronetz key create acme --name ci --expires 30d --max-predict 512
    """
    _check_name(name)
    values = limits.given(rpm, concurrency, budget, period, max_predict, max_body, model, allow_all_models)
    columns = {"name": name, **_own_columns(expires, log_prompts, prompt_ttl)}
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
    expires: Expires = None,
    log_prompts: LogPrompts = None,
    prompt_ttl: PromptTtl = None,
    unset: Annotated[
        list[Unset] | None,
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
        _check_name(name)
    columns = _own_columns(expires, log_prompts, prompt_ttl)
    if name is not None:
        columns["name"] = name
    for option in set(unset or ()) & _OWN.keys():
        if _OWN[option] in columns:
            raise typer.BadParameter("an option cannot be set and --unset at once")
        columns[_OWN[option]] = None
    values = limits.given(rpm, concurrency, budget, period, max_predict, max_body, model, allow_all_models)
    values = limits.with_unset(values, [each for each in unset or () if each not in _OWN], {})
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


def _own_columns(expires: str | None, log_prompts: bool | None, prompt_ttl: str | None) -> dict[str, Any]:
    """The columns of the key itself that the options set."""
    from neuronetz.cli import times

    columns: dict[str, Any] = {}
    if expires is not None:
        columns["expires_at"] = times.expiry(expires, datetime.now(UTC))
    if log_prompts is not None:
        columns["log_prompts"] = log_prompts
    if prompt_ttl is not None:
        ttl_s = times.duration_s(prompt_ttl)
        if not _SHORTEST_TTL_S <= ttl_s <= _LONGEST_TTL_S:
            raise Failure("--prompt-ttl must be from 1m to 365d")
        columns["prompt_ttl_s"] = ttl_s
    return columns


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


def _texts(key: dict[str, Any]) -> dict[str, Any]:
    own, over = key["limits"], key["tenant_limits"]
    allow_all = over["allow_all_models"] if own["allow_all_models"] is None else own["allow_all_models"]
    models = over["models"] if own["models"] is None else own["models"]
    period = own["budget_period"] or over["budget_period"]
    return {
        "budget": limits.budget_text(own["budget_tokens"], period),
        "permitted": limits.models_text(allow_all, models),
    }
