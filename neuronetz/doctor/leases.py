"""Checks of what requests hold in Redis: leases against heartbeats, slots against leases, rows that wait.

One walk over the keys, in batches, finds the names; what looks wrong is looked at again before it is reported,
since requests come and go meanwhile.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from neuronetz.admission import drift, keyspace
from neuronetz.audit.record import decode
from neuronetz.doctor.finding import Finding, Patient, failed, ok, warning
from neuronetz.stores.redis import Redis

_NAME = re.compile(r"gateway:\{([^}]+)\}:(leases|rows|slots)(?::(.+))?")

# Hashes that are larger are counted, and not read: Redis serves nobody else meanwhile.
_MOST = 20_000
_BATCH = 200

# Beyond the longest exchange: for a body that arrives slowly before it, and for the settlement after it.
_MARGIN_S = 60.0
# A row that has waited for longer (seconds) is not merely on its way.
_LONG_S = 30.0
# A dead instance is taken over within this time (seconds) of its death counting.
_TAKE_OVER_S = 10.0


@dataclass
class Holdings:
    """What one walk found: names of leases and of rows by instance, each with its tenant; of slots by tenant."""

    now_s: float
    beats: dict[str, float]
    leases: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    rows: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    slots: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


async def walk(redis: Redis) -> Holdings:
    """Find the names of all leases, rows and slots, and when each instance's heart last beat."""
    pairs = await redis.command("ZRANGE", keyspace.INSTANCES, 0, -1, "WITHSCORES")
    beats = {id_.decode(): float(score) / 1000 for id_, score in _pairs(pairs)}
    found = Holdings(await _now(redis), beats)

    async def take(names: list[bytes]) -> None:
        for each in names:
            if (match := _NAME.fullmatch(name := each.decode("utf-8", "replace"))) is None:
                continue
            tenant, kind, rest = match.groups()
            if kind == "slots":
                found.slots[tenant].append(name)
            elif rest:
                (found.leases if kind == "leases" else found.rows)[rest].append((tenant, name))

    await redis.scan("gateway:{*}:*", take)
    return found


async def leases(patient: Patient) -> list[Finding]:
    """Whether every lease is of an instance that lives, and no older than an exchange may be."""
    redis, settings = patient.redis, patient.settings
    found = await walk(redis)
    findings, held = [], 0
    longest_s = settings.exchange_timeout_s + settings.body_timeout_s + _MARGIN_S
    for instance, names in sorted(found.leases.items()):
        living = [lease for _, name in names for lease in await _leases(redis, name)]
        held += len(living)
        old = [lease for lease in living if found.now_s - lease.admitted_s > longest_s]
        if old:
            hint = f"end that process: its slots are then given back within {settings.dead_after_s + 5:.0f} s"
            findings.append(failed(f"leases of {instance} are older than an exchange may be: {len(old)}", hint))
        if living and (verdict := await _of_the_dead(redis, found, instance, settings.dead_after_s)) is not None:
            findings.append(
                failed(f"{len(living)} leases of {instance}, {verdict}", _hint(found, instance, names))
            )
    return findings or [ok(f"leases held: {held}, instances alive: {len(found.beats)}")]


async def slots(patient: Patient) -> list[Finding]:
    """Whether every slot that is taken has its lease."""
    redis = patient.redis
    found = await walk(redis)
    taken = 0
    strays: dict[str, set[bytes]] = {}
    for tenant, names in found.slots.items():
        members = {name: await _members(redis, name) for name in names}
        taken += max((len(ids) for ids in members.values()), default=0)
        # Taken together with its lease, and given back with it, by one script: a slot that was there before
        # the leases were read and is there afterwards had none.
        owned = await _owned(redis, tenant)
        for name, ids in members.items():
            suspects = ids - owned
            if suspects and (left := suspects & await _members(redis, name)):
                strays[name] = left
    hint = "nobody will free them; remove them by hand: redis-cli SREM '{}' REQUEST_ID"
    return [
        failed(f"slots without a lease in {name}: {len(ids)}", hint.format(name))
        for name, ids in sorted(strays.items())
    ] or [ok(f"every slot that is taken has its lease: {taken}")]


async def rows(patient: Patient) -> list[Finding]:
    """Whether audit rows wait in Redis that somebody should have committed."""
    redis = patient.redis
    found = await walk(redis)
    findings, waiting, oldest_s = [], 0, 0.0
    for instance, names in sorted(found.rows.items()):
        ages: list[float] = []
        for tenant, name in names:
            under_way = await _ids(redis, keyspace.leases(tenant, instance))
            ages += await _ages(redis, name, under_way, found.now_s)
        waiting += len(ages)
        oldest_s = max([oldest_s, *ages])
        dead_after_s = patient.settings.dead_after_s
        if ages and (verdict := await _of_the_dead(redis, found, instance, dead_after_s)) is not None:
            hint = _hint(found, instance, names)
            findings.append(failed(f"{len(ages)} audit rows of {instance}, {verdict}", hint))
    if oldest_s > _LONG_S:
        hint = (
            "PostgreSQL is, or was, away: see audit.failing in the gateways' logs; they are kept until it is back"
        )
        findings.append(warning(f"audit rows wait: {waiting}, the oldest for {oldest_s:.0f} s", hint))
    return findings or [ok(f"audit rows on their way: {waiting}")]


async def _of_the_dead(redis: Redis, found: Holdings, instance: str, dead_after_s: float) -> str | None:
    """What is wrong with an instance that holds something; None where it lives, or died a moment ago."""
    if instance not in found.beats:
        # It may have been started since.
        known = await redis.command("ZSCORE", keyspace.INSTANCES, instance)
        return "which no gateway knows of" if known is None else None
    silent_s = found.now_s - found.beats[instance]
    return f"dead for {silent_s:.0f} s" if silent_s > dead_after_s + _TAKE_OVER_S else None


def _hint(found: Holdings, instance: str, names: Iterable[tuple[str, str]]) -> str:
    if instance in found.beats:
        return "start a gateway, or see reaper.interrupted in the log of one that runs: it takes them over"
    # Listed as long dead, it is taken over like any other.
    tenants = " ".join(sorted({tenant for tenant, _ in names}))
    return (
        "have a gateway take them over: redis-cli "
        f"SADD '{keyspace.instance_tenants(instance)}' {tenants}; then ZADD {keyspace.INSTANCES} 0 '{instance}'"
    )


async def _leases(redis: Redis, name: str) -> list[drift.Lease]:
    if await redis.command("HLEN", name) > _MOST:
        return []
    return [drift.lease(id_, value) for id_, value in _pairs(await _hash(redis, name))]


async def _owned(redis: Redis, tenant: str) -> set[bytes]:
    """The ids of all leases of a tenant, of all instances."""
    owned: set[bytes] = set()
    for name in await redis.command("SMEMBERS", keyspace.hashes(tenant)):
        if name.startswith(keyspace.leases(tenant, "").encode()):
            owned |= await _ids(redis, name.decode())
    return owned


async def _ids(redis: Redis, name: str) -> set[bytes]:
    return set(await redis.command("HKEYS", name))


async def _members(redis: Redis, name: str) -> set[bytes]:
    return set(await redis.command("SMEMBERS", name))


async def _ages(redis: Redis, name: str, under_way: set[bytes], now_s: float) -> list[float]:
    """For how long (seconds) each row of a hash has waited since its request was over."""
    ages = []
    cursor = None
    while cursor != 0:
        found, fields = await redis.command("HSCAN", name, cursor or 0, "COUNT", _BATCH)
        cursor = int(found)
        for id_, data in _pairs(fields):
            if id_ in under_way:
                continue
            try:
                record = decode(data)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                ages.append(0.0)
            else:
                ages.append(max(0.0, now_s - record.started_at.timestamp() - record.duration_ms / 1000))
    return ages


async def _hash(redis: Redis, name: str) -> Any:
    return await redis.command("HGETALL", name)


async def _now(redis: Redis) -> float:
    seconds, micros = await redis.command("TIME")
    return int(seconds) + int(micros) / 1e6


def _pairs(reply: Any) -> list[tuple[bytes, Any]]:
    """Redis-py answers some commands with pairs, some with a mapping, some flat."""
    if isinstance(reply, dict):
        return list(reply.items())
    if reply and isinstance(reply[0], (list, tuple)):
        return [(name, value) for name, value in reply]
    return list(zip(reply[0::2], reply[1::2], strict=True))
