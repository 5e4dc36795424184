"""Checks of Redis: version, eviction, memory, persistence, the cluster's nodes."""

from typing import Any

from neuronetz.doctor.finding import Finding, Patient, failed, ok, warning
from neuronetz.stores.redis import ClusterRedis

# HRANDFIELD, by which a dead instance's leases are taken over.
OLDEST = (6, 2)

_NEARLY_FULL = 0.9


async def server(patient: Patient) -> list[Finding]:
    """Whether Redis answers, every node of a cluster included, and which version it is."""
    redis = patient.redis
    if isinstance(redis, ClusterRedis):
        await redis.check_nodes()
    servers = await redis.on_each_node("INFO", "server")
    old = [text for text in map(_version, servers) if _number(text) < OLDEST]
    if old:
        return [failed(f"Redis {old[0]} is too old", f"upgrade it to {OLDEST[0]}.{OLDEST[1]} at least")]
    kind = f"a cluster of {len(servers)} nodes" if isinstance(redis, ClusterRedis) else "a single server"
    return [ok(f"Redis {_version(servers[0])} answers, {kind}")]


async def memory(patient: Patient) -> list[Finding]:
    """Whether Redis keeps what it is given."""
    found = []
    for node in await patient.redis.on_each_node("INFO", "memory"):
        policy, limit = str(node.get("maxmemory_policy", "unknown")), int(node.get("maxmemory", 0))
        if policy != "noeviction":
            hint = "set maxmemory-policy noeviction: what is evicted is limits, leases and revocations"
            found.append(failed(f"maxmemory-policy is {policy}", hint))
        if limit and int(node["used_memory"]) > _NEARLY_FULL * limit:
            hint = (
                "raise maxmemory, or find out what else is kept there; once it is full, every request is refused"
            )
            found.append(warning("more than nine tenths of maxmemory are used", hint))
    return found or [ok("Redis evicts nothing, and has memory left")]


async def persistence(patient: Patient) -> list[Finding]:
    """Whether what is in Redis outlives a restart of it."""
    found = []
    for node in await patient.redis.on_each_node("INFO", "persistence"):
        if not int(node.get("aof_enabled", 0)):
            hint = "set appendonly yes: without it, audit rows that wait for PostgreSQL are lost if both restart"
            found.append(warning("Redis does not keep its data over a restart", hint))
        elif node.get("aof_last_write_status") != "ok":
            found.append(
                failed("Redis cannot write its append-only file", "see its log, and the disk's free space")
            )
    return found or [ok("Redis keeps its data in an append-only file")]


def _version(info: Any) -> str:
    return str(info.get("valkey_version") or info.get("redis_version"))


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
