"""The admit script's reply as values, and the limit headers that follow from it. No I/O."""

import math
from collections.abc import Iterable
from typing import Any, Literal, cast

import msgspec

from neuronetz.policy import Limits

Refusal = Literal["rate", "budget", "reserved", "concurrency"]
Scope = Literal["tenant", "key"]

_REFUSALS = frozenset({"rate", "budget", "reserved", "concurrency"})
_SCOPES = frozenset({"tenant", "key"})


class Quota(msgspec.Struct, frozen=True):
    """One limit's state; ``reset_s``: seconds until all of it is available again."""

    limit: int
    remaining: int
    reset_s: float


class Left(msgspec.Struct, frozen=True):
    """What is left in both scopes, tenant before key. None: no such limit, or not looked at."""

    requests: tuple[int | None, int | None] = (None, None)
    requests_reset_s: tuple[float, float] = (0.0, 0.0)
    tokens: tuple[int | None, int | None] = (None, None)


class Admitted(msgspec.Struct, frozen=True):
    """``now_s``: the server's time of the admission; ``predict``: completion tokens granted."""

    now_s: float
    predict: int
    left: Left


class Refused(msgspec.Struct, frozen=True):
    """``budget``: too little is left of it; ``reserved``: enough, but requests that run hold it for now."""

    now_s: float
    limit: Refusal
    scope: Scope
    retry_after_s: float
    left: Left


class SeedNeeded(msgspec.Struct, frozen=True):
    """Redis has no counter for the tenant's or the key's budget: read the ledger and ask again."""

    now_s: float
    tenant: bool
    key: bool


class OutsidePeriod(msgspec.Struct, frozen=True):
    """The periods asked for do not hold at the server's time ``now_s``: ask again with those that do."""

    now_s: float


class Aborted(msgspec.Struct, frozen=True):
    """The request had been given up before its admission arrived."""

    now_s: float


Verdict = Admitted | Refused | SeedNeeded | OutsidePeriod | Aborted


def parse(reply: list[Any]) -> Verdict:
    """The typed form of a reply. Raises ``ValueError`` on anything that is not one."""
    match reply:
        case [b"admitted", int(now_ms), int(granted), _, _, *state]:
            return Admitted(now_ms / 1000, granted, _left(state))
        case [b"seed", int(now_ms), int(tenant), int(key)]:
            return SeedNeeded(now_ms / 1000, bool(tenant), bool(key))
        case [b"period", int(now_ms)]:
            return OutsidePeriod(now_ms / 1000)
        case [b"aborted", int(now_ms)]:
            return Aborted(now_ms / 1000)
        case [bytes(form), int(now_ms), _, bytes(scope), int(retry_ms), *state]:
            limit, side = form.decode(), scope.decode()
            if limit in _REFUSALS and side in _SCOPES:
                return Refused(
                    now_ms / 1000, cast("Refusal", limit), cast("Scope", side), retry_ms / 1000, _left(state)
                )
    raise ValueError("not a reply of the admit script")


def _left(state: list[Any]) -> Left:
    match state:
        case [int(rate), int(reset), int(key_rate), int(key_reset), int(tokens), int(key_tokens)]:
            return Left(
                (_known(rate), _known(key_rate)),
                (max(0, reset) / 1000, max(0, key_reset) / 1000),
                (_known(tokens), _known(key_tokens)),
            )
    raise ValueError("not a reply of the admit script")


def _known(value: int) -> int | None:
    return value if value >= 0 else None


def tightest(quotas: Iterable[Quota]) -> Quota | None:
    """The quota with the least left; among equals the one that takes longest to come back."""
    return min(quotas, key=lambda quota: (quota.remaining, -quota.reset_s), default=None)


def quotas(
    left: Left, limits: tuple[Limits, Limits], period_ends: tuple[int, int], now_s: float
) -> tuple[list[Quota], list[Quota]]:
    """The quotas of requests and of tokens that exist, from what is left in each scope."""
    requests = [
        Quota(limit.rpm, remaining, reset_s)
        for limit, remaining, reset_s in zip(limits, left.requests, left.requests_reset_s, strict=True)
        if limit.rpm is not None and remaining is not None
    ]
    tokens = [
        Quota(limit.budget_tokens, remaining, end - now_s)
        for limit, remaining, end in zip(limits, left.tokens, period_ends, strict=True)
        if limit.budget_tokens is not None and remaining is not None
    ]
    return requests, tokens


def limit_headers(requests: Iterable[Quota], tokens: Iterable[Quota]) -> dict[str, str]:
    """``x-ratelimit-{limit,remaining,reset}-{requests,tokens}`` of the tightest quota of each kind.

    A kind without a quota has no headers. ``reset`` is in whole seconds, rounded up: ``12s``.
    """
    headers: dict[str, str] = {}
    for kind, candidates in (("requests", requests), ("tokens", tokens)):
        quota = tightest(candidates)
        if quota is not None:
            headers[f"x-ratelimit-limit-{kind}"] = str(quota.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(quota.remaining)
            headers[f"x-ratelimit-reset-{kind}"] = f"{math.ceil(max(0.0, quota.reset_s))}s"
    return headers


def headers(
    outcome: Admitted | Refused, limits: tuple[Limits, Limits], period_ends: tuple[int, int]
) -> dict[str, str]:
    """The limit headers that go with a verdict."""
    return limit_headers(*quotas(outcome.left, limits, period_ends, outcome.now_s))
