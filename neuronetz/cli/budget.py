"""neuronetz budget: token budgets of tenants and keys."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuronetz.cli import budget_store, completion, limits
from neuronetz.cli.confirmation import Yes, confirm
from neuronetz.cli.database import DatabaseUrl, RedisUrl, with_postgres, with_redis
from neuronetz.cli.failure import Failure
from neuronetz.cli.output import Json, quoted, say, write_json, write_rows

if TYPE_CHECKING:
    from neuronetz.stores.postgres import Postgres

commands = typer.Typer(no_args_is_help=True, help="Token budgets: shown, set, and what was used of them reset.")

Tenant = Annotated[
    str | None,
    typer.Option(metavar="TENANT", help="The tenant's name or id.", autocompletion=completion.tenants),
]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="KEY", help="The key's prefix (its first 12 characters) or id.", autocompletion=completion.keys
    ),
]

_COLUMNS = {
    "tenant": "TENANT",
    "key": "KEY",
    "limit": "LIMIT",
    "period": "PERIOD",
    "starts_at": "FROM (UTC)",
    "ends_at": "TO (UTC)",
    "used": "USED",
    "redis_used": "IN REDIS",
    "redis_reserved": "RESERVED",
    "remaining": "REMAINING",
}


@commands.command("show")
def show(
    tenant: Tenant = None,
    key: Key = None,
    json: Json = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Show budgets: all of them, a tenant's with those of its keys, or a key's.

    USED is what the ledger says, less what was reset. With REDIS_URL set, IN REDIS and RESERVED are the
    counters by which requests are admitted, and REMAINING goes by them; - where a counter does not exist
    yet. Without it REMAINING goes by the ledger.

    \b
    Example: neuronetz budget show --tenant acme
    """
    if tenant is not None and key is not None:
        raise typer.BadParameter("give --tenant or --key, not both")
    budgets = with_postgres(database_url, lambda postgres: budget_store.read(postgres, tenant, key))
    if redis_url:
        with_redis(redis_url, lambda redis: budget_store.add_counters(redis, budgets))
    write_rows(budgets, _COLUMNS, json=json, empty="no budgets yet; set one with: neuronetz budget set")


@commands.command("set")
def set_(
    limit: Annotated[
        str | None, typer.Argument(metavar="[TOKENS|none]", help="Tokens in a period; none takes the budget away.")
    ] = None,
    tenant: Tenant = None,
    key: Key = None,
    period: limits.Period = None,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Set a tenant's or a key's budget, its period, or both. What was used in the period counts at once.

    \b
    Example: neuronetz budget set 5000000 --tenant acme --period month
    """
    _one(tenant, key)
    values: dict[str, Any] = {}
    if limit is not None:
        values["budget_tokens"] = _tokens(limit)
    if period is not None:
        values["budget_period"] = period
    if not values:
        raise Failure("nothing to change: give a number of tokens, none, or --period")
    budget = with_postgres(database_url, lambda postgres: budget_store.change(postgres, tenant, key, values))
    if json:
        write_json(budget)
        return
    text = limits.budget_text(budget["limit"], budget["period"], budget["used"])
    say(f"budget of {_name(budget)}: {text or 'none'}")


@commands.command("reset")
def reset(
    tenant: Tenant = None,
    key: Key = None,
    reason: Annotated[str | None, typer.Option(help="Kept beside the adjustment.")] = None,
    yes: Yes = False,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Let what was used in the running period count as 0 from now on, on every gateway at once.

    Usage reports and the audit log stay as they are. A tenant's budget and those of its keys are reset
    each for itself. Requests that still run count when they end.

    \b
    Example: neuronetz budget reset --tenant acme --reason "paid for more" --yes
    """
    _one(tenant, key)
    if not yes:
        found = with_postgres(database_url, lambda postgres: budget_store.read_one(postgres, tenant, key))
        used = f"{found['used']:,} tokens that {_name(found)} used this {found['period']}"
        confirm(f"Let {used} count no more?", "not reset")

    async def work(postgres: "Postgres") -> tuple[dict[str, Any], int]:
        return await budget_store.reset(postgres, tenant, key, reason)

    budget, tokens = with_postgres(database_url, work)
    if json:
        write_json({**budget, "reset_tokens": tokens})
    elif tokens:
        say(f"budget of {_name(budget)}: {tokens:,} tokens of this {budget['period']} count no more")
    else:
        say(f"budget of {_name(budget)}: nothing counts in this {budget['period']} yet")


def _one(tenant: str | None, key: str | None) -> None:
    if (tenant is None) == (key is None):
        raise typer.BadParameter("give --tenant or --key, one of them")


def _tokens(text: str) -> int | None:
    if text.lower() == "none":
        return None
    if not (text.isascii() and text.isdigit() and int(text) <= limits.MAX_BUDGET):
        raise typer.BadParameter(f"{quoted(text)} is no budget: a number up to {limits.MAX_BUDGET}, or none")
    return int(text)


def _name(budget: dict[str, Any]) -> str:
    return f"key {budget['key']}" if budget["key"] else f"tenant {budget['tenant']}"
