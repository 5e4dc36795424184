"""neuronetz usage: tokens and requests, summed."""

import shutil
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuronetz.cli import charts, completion, usage_store
from neuronetz.cli.database import DatabaseUrl, OfKey, OfTenant, with_postgres
from neuronetz.cli.output import Json, write_rows

if TYPE_CHECKING:
    from neuronetz.stores.postgres import Postgres

# Characters of a sparkline, at most.
_MOST_DAYS = 31


class Dimension(StrEnum):
    """What usage can be summed by, in the order of the table's columns."""

    DAY = "day"
    TENANT = "tenant"
    KEY = "key"
    MODEL = "model"


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
    tenant: OfTenant = None,
    key: OfKey = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this model.", autocompletion=completion.models)
    ] = None,
    json: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show tokens and requests by tenant, key, model or day.

    By day, a bar shows the tokens beside the largest row's; otherwise a sparkline has a character for each
    day, or for several where they would be too many. OF BUDGET is what of the tenant's or the key's budget is
    used in its running period; by day, the share that this day's tokens are of it.

    \b
    Examples:
      neuronetz usage --by day --tenant acme --since 7d
      neuronetz usage --by key --by model --json
    """
    from neuronetz.cli import times

    today = datetime.now(UTC)
    dimensions = [each.value for each in Dimension if each in (by or [Dimension.TENANT])]
    first_day = times.since(since, today).date()
    whose = None if model is not None or "model" in dimensions else _whose(dimensions, tenant, key)

    async def read(postgres: "Postgres") -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
        rows = await usage_store.read(postgres, dimensions, first_day, tenant, key, model)
        if whose is None:
            return rows, {}
        of_keys = whose == "key"
        # A row of tenants counts all of its keys towards their budget, whichever were asked for.
        return rows, await usage_store.budgets(
            postgres, of_keys=of_keys, tenant=tenant, key=key if of_keys else None
        )

    rows, budgets = with_postgres(database_url, read, doing="adding up …")
    for row in rows:
        row["budget"] = _budget_of(row, whose, budgets)
    columns = {name: name.upper() for name in dimensions} | _SUMS
    if json:
        names = [*columns, *(["budget"] if whose is not None else [])]
        write_rows([{name: row[name] for name in names} for row in rows], {}, json=True)
        return
    if "day" in dimensions:
        largest, width = max((row["total_tokens"] for row in rows), default=0), _bar_width()
        columns["chart"] = "OF THE LARGEST"
        charts_of = [charts.bar(row["total_tokens"], largest, width) for row in rows]
    else:
        days = max(1, (today.date() - first_day).days + 1)
        step = -(-days // _MOST_DAYS)
        columns["chart"] = "PER DAY" if step == 1 else f"PER {step} DAYS"
        charts_of = [_by_day(row, first_day, days, step) for row in rows]
    if budgets:
        columns["of_budget"] = "OF BUDGET"
    write_rows(
        [{**row, "chart": chart, "of_budget": _share(row)} for row, chart in zip(rows, charts_of, strict=True)],
        columns,
        json=False,
        empty=f"no usage since {first_day}",
    )


def _whose(dimensions: list[str], tenant: str | None, key: str | None) -> str | None:
    """Whose budgets the rows can be held against: "key", "tenant" or nobody's."""
    if "key" in dimensions or key is not None:
        return "key"
    return "tenant" if "tenant" in dimensions or tenant is not None else None


def _budget_of(row: dict[str, Any], whose: str | None, budgets: dict[str, dict[str, Any]]) -> Any:
    if whose is None:
        return None
    # Where the rows do not say whose they are, an option did, and there is one budget or none.
    return budgets.get(row[whose]) if row[whose] is not None else next(iter(budgets.values()), None)


def _share(row: dict[str, Any]) -> str | None:
    budget = row["budget"]
    if budget is None:
        return None
    used = row["total_tokens"] if row["day"] is not None else budget["used"]
    percent = f"{used / budget['tokens']:.0%}" if budget["tokens"] else "none"
    return f"{percent} of {budget['tokens']:,} / {budget['period']}"


def _by_day(row: dict[str, Any], first_day: date, days: int, step: int) -> str:
    tokens = [0] * days
    for day, used in zip(row["days"], row["tokens_by_day"], strict=True):
        if (at := (day - first_day).days) < days:
            tokens[at] = used
    return charts.sparkline(charts.in_steps(tokens, step))


def _bar_width() -> int:
    return max(8, min(30, shutil.get_terminal_size().columns // 5))
