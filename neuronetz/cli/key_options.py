"""The options that a key has beside its limits: name, expiry, prompt log."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from neuronetz.cli import limits
from neuronetz.cli.failure import Failure

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
OWN_COLUMNS = {"expires": "expires_at", "prompt-ttl": "prompt_ttl_s"}


def check_name(name: str) -> None:
    """Raises ``Failure`` where ``name`` is none for a key."""
    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise Failure("a key's name has 1 to 100 printable characters")


def own_columns(expires: str | None, log_prompts: bool | None, prompt_ttl: str | None) -> dict[str, Any]:
    """The columns of the key itself that the options set. Raises ``Failure`` for a value that is none."""
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
