"""What a request asks of admission, and the admit script's keys and arguments for it. No I/O."""

from collections.abc import Sequence
from functools import lru_cache

import msgspec

from neuronetz.admission import keyspace, period
from neuronetz.policy import Limits, Period, Principal
from neuronetz.stores.redis import Argument

# Lua's numbers are doubles: whole up to here.
MOST = 2**53

NOT_READ = (-1, -1)

_DAY_S = 86_400


class Ask(msgspec.Struct, frozen=True):
    """What a request asks for.

    ``slot``: False for reads, which count against the rate alone. ``prompt_estimate``: tokens that the
    prompt will cost. ``predict``: completion tokens wanted; ``predict_min``: the least worth starting for.
    """

    request_id: str
    principal: Principal
    slot: bool
    prompt_estimate: int
    predict: int
    predict_min: int

    @property
    def limits(self) -> tuple[Limits, Limits]:
        """The limits of both scopes, tenant before key."""
        return self.principal.tenant_limits, self.principal.key_limits


class Periods(msgspec.Struct, frozen=True):
    """The budget periods of both scopes that hold at one time: starts and ends in seconds of the epoch."""

    starts: tuple[int, int]
    ends: tuple[int, int]


def periods(ask: Ask, now_s: float) -> Periods:
    tenant, key = ask.limits
    return _periods(tenant.budget_period, key.budget_period, int(now_s // _DAY_S))


@lru_cache(maxsize=64)
def _periods(tenant: Period, key: Period, day: int) -> Periods:
    # Every period begins and ends with a day, so that all of a day's requests have the same ones.
    (tenant_start, tenant_end), (key_start, key_end) = (
        period.bounds(name, day * _DAY_S) for name in (tenant, key)
    )
    return Periods((tenant_start, key_start), (tenant_end, key_end))


def counters(ask: Ask, when: Periods) -> tuple[str, str]:
    """The names of the budget counters of the tenant and the key."""
    tenant, key = ask.principal.tenant_id, ask.principal.key_id
    return (
        keyspace.budget(tenant, None, ask.limits[0].budget_period, when.starts[0]),
        keyspace.budget(tenant, key, ask.limits[1].budget_period, when.starts[1]),
    )


def admit_keys(ask: Ask, instance: str, when: Periods) -> Sequence[str]:
    tenant, key = ask.principal.tenant_id, ask.principal.key_id
    return (
        keyspace.rpm(tenant),
        keyspace.rpm(tenant, key),
        keyspace.slots(tenant),
        keyspace.slots(tenant, key),
        keyspace.leases(tenant, instance),
        keyspace.rows(tenant, instance),
        keyspace.aborted(tenant, ask.request_id),
        *counters(ask, when),
        keyspace.hashes(tenant),
    )


def admit_arguments(
    ask: Ask, when: Periods, stub: bytes, *, seeds: tuple[int, int] = NOT_READ, now_ms: int = 0
) -> list[Argument]:
    """``seeds``: tokens used by the ledger, for counters that are missing. ``now_ms`` replaces Redis's time."""
    tenant, key = ask.limits
    arguments: list[Argument] = [ask.request_id, now_ms, ask.principal.key_id, int(ask.slot)]
    arguments += (_limit(tenant.rpm), _limit(key.rpm))
    arguments += (_limit(tenant.concurrency), _limit(key.concurrency)) if ask.slot else (-1, -1)
    arguments += (_limit(tenant.budget_tokens), _limit(key.budget_tokens))
    arguments += (_count(ask.prompt_estimate), _count(ask.predict), _count(ask.predict_min))
    arguments += (when.starts[0], when.ends[0], when.starts[1], when.ends[1])
    arguments += (*seeds, stub)
    return arguments


def _limit(value: int | None) -> int:
    return -1 if value is None else min(value, MOST)


def _count(value: int) -> int:
    return min(max(0, value), MOST)
