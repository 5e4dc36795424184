"""The options for limits, which tenants and keys share, and how they are stored."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from neuronetz.cli import completion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_INTEGER = 2**31 - 1
# Redis counts tokens in floating point, exactly up to 2^53.
MAX_BUDGET = 10**15

Rpm = Annotated[int | None, typer.Option(min=1, max=MAX_INTEGER, help="Requests in any 60 seconds.")]
Concurrency = Annotated[int | None, typer.Option(min=1, max=MAX_INTEGER, help="Requests at once.")]
Budget = Annotated[
    int | None,
    typer.Option(min=0, max=MAX_BUDGET, metavar="TOKENS", help="Tokens, prompt and completion, in a period."),
]
Period = Annotated[
    Literal["day", "week", "month"] | None, typer.Option(help="The budget's period (UTC; weeks start on Monday).")
]
MaxPredict = Annotated[
    int | None, typer.Option(min=1, max=MAX_INTEGER, metavar="TOKENS", help="Completion tokens of one request.")
]
MaxBody = Annotated[
    int | None, typer.Option(min=1, max=MAX_INTEGER, metavar="BYTES", help="Size of a request's body.")
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME",
        autocompletion=completion.models,
        help="A permitted model; repeat it for more. Replaces the earlier list and turns off --allow-all-models.",
    ),
]
AllowAll = Annotated[
    bool | None,
    typer.Option(
        "--allow-all-models/--no-allow-all-models", show_default=False, help="Permit every installed model."
    ),
]


class Limit(StrEnum):
    """The options that ``--unset`` can take back."""

    RPM = "rpm"
    CONCURRENCY = "concurrency"
    BUDGET = "budget"
    PERIOD = "period"
    MAX_PREDICT = "max-predict"
    MAX_BODY = "max-body"
    MODELS = "models"
    ALLOW_ALL_MODELS = "allow-all-models"


_COLUMNS = {
    "rpm": "rpm",
    "concurrency": "concurrency",
    "budget": "budget_tokens",
    "period": "budget_period",
    "max-predict": "max_predict",
    "max-body": "max_body_bytes",
    "models": "models",
    "allow-all-models": "allow_all_models",
}
COLUMNS = tuple(_COLUMNS.values())

# A tenant has nobody to inherit from: what it cannot be without goes back to its default.
TENANT_UNSET: "Mapping[str, Any]" = {"budget_period": "month", "allow_all_models": False, "models": []}

# Absent fields keep their values; a JSON null sets NULL.
SET_TENANT_LIMITS = """
UPDATE gateway.tenant_limits AS old SET (
    rpm, concurrency, budget_tokens, budget_period, max_predict, max_body_bytes, allow_all_models, models,
    updated_at
) = (
    SELECT new.rpm, new.concurrency, new.budget_tokens, new.budget_period, new.max_predict, new.max_body_bytes,
           new.allow_all_models, new.models, now()
    FROM jsonb_populate_record(old, $2::jsonb) AS new
)
WHERE tenant_id = $1
"""
SET_KEY_LIMITS = SET_TENANT_LIMITS.replace("tenant_limits", "key_limits").replace("tenant_id", "key_id")


def tenant_statements(tenant_id: Any, values: "Mapping[str, Any]") -> list[tuple[str, list[Any]]]:
    """The statements that set ``values`` of a tenant's limits."""
    insert = "INSERT INTO gateway.tenant_limits (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING"
    return [(insert, [tenant_id]), (SET_TENANT_LIMITS, [tenant_id, _json(values)])]


def key_statements(key_id: Any, values: "Mapping[str, Any]") -> list[tuple[str, list[Any]]]:
    """The statements that set ``values`` of a key's own limits."""
    insert = "INSERT INTO gateway.key_limits (key_id) VALUES ($1) ON CONFLICT DO NOTHING"
    return [(insert, [key_id]), (SET_KEY_LIMITS, [key_id, _json(values)])]


def _json(values: "Mapping[str, Any]") -> str:
    import msgspec

    return msgspec.json.encode(values).decode()


def given(
    rpm: int | None,
    concurrency: int | None,
    budget: int | None,
    period: str | None,
    max_predict: int | None,
    max_body: int | None,
    models: "Sequence[str] | None",
    allow_all: bool | None,
) -> dict[str, Any]:
    """The columns that the options set. Raises ``typer.BadParameter`` where two contradict each other."""
    if models and allow_all:
        raise typer.BadParameter("--model has no effect beside --allow-all-models: give one of them")
    if models and allow_all is None:
        # Whoever lists models means those and no others.
        allow_all = False
    values = {
        "rpm": rpm,
        "concurrency": concurrency,
        "budget_tokens": budget,
        "budget_period": period,
        "max_predict": max_predict,
        "max_body_bytes": max_body,
        "models": _normalised(models) if models else None,
        "allow_all_models": allow_all,
    }
    return {column: value for column, value in values.items() if value is not None}


def with_unset(
    values: "Mapping[str, Any]", unset: "Sequence[str]", defaults: "Mapping[str, Any]"
) -> dict[str, Any]:
    """``values`` and, for the options named in ``unset``, ``defaults`` or None (no limit, or inherited)."""
    cleared = {_COLUMNS[name]: defaults.get(_COLUMNS[name]) for name in unset}
    if cleared.keys() & values.keys() - {"allow_all_models"}:
        raise typer.BadParameter("a limit cannot be set and --unset at once")
    return {**values, **cleared}


def _normalised(models: "Sequence[str]") -> list[str]:
    from neuronetz.cli.output import quoted
    from neuronetz.models.effective import normalise

    for name in models:
        if not name.strip() or not name.isprintable():
            raise typer.BadParameter(f"{quoted(name)} is no model's name")
    return sorted({normalise(name) for name in models})


def shown(row: "Mapping[str, Any]", prefix: str = "") -> dict[str, Any]:
    """The limits in a row of PostgreSQL, for JSON."""
    return {column: row[prefix + column] for column in COLUMNS}


def budget_text(limit: int | None, period: str | None, used: int | None = None) -> str | None:
    """A budget for a table."""
    if limit is None:
        return None
    spent = "" if used is None else f"{used:,} of "
    return f"{spent}{limit:,}" + (f" / {period}" if period else "")


def models_text(allow_all: bool | None, models: "Sequence[str] | None") -> str | None:
    """Permitted models for a table."""
    if allow_all:
        return "all installed"
    if models is None:
        return None
    return ", ".join(models) or "none"
