"""What a check found, and what a check works with."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from neuronetz.settings import Settings
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis
from neuronetz.upstream.ollama import Upstream

State = Literal["ok", "warning", "failed"]


class Finding(msgspec.Struct, frozen=True):
    """One line of the report. ``what``: what was found; ``hint``: what to do about it, where there is something.

    Neither ever holds a secret, a prompt or a URL with its user and password.
    """

    check: str
    state: State
    what: str
    hint: str | None = None


def ok(what: str) -> Finding:
    return Finding("", "ok", what)


def warning(what: str, hint: str) -> Finding:
    """Something that breaks no promise yet."""
    return Finding("", "warning", what, hint)


def failed(what: str, hint: str) -> Finding:
    """Something for which requests are refused, or a promise does not hold."""
    return Finding("", "failed", what, hint)


@dataclass(frozen=True)
class Patient:
    """A deployment under examination: its settings, and its stores, of which PostgreSQL is read-only.

    ``days``: UTC days of the ledger, up to today, that are compared with the audit log.
    """

    settings: Settings
    postgres: Postgres
    redis: Redis
    upstream: Upstream
    days: int


# A check reads and reports; a store that does not answer is raised as ``StoreUnavailable``.
Check = Callable[[Patient], Awaitable[list[Finding]]]
