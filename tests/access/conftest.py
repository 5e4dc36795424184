"""Tenants and keys made in SQL, and an argon2 that is counted and can be held at a gate."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio

from neuronetz.access.directory import Directory
from neuronetz.access.keys import Hasher, NewKey, generate
from neuronetz.stores.postgres import Postgres, open_postgres
from neuronetz.stores.redis import Redis, open_redis


class ObservedHasher(Hasher):
    """The real one, cheap; it counts, and a test can stop it before it verifies or hashes."""

    def __init__(self, time_cost: int = 1) -> None:
        super().__init__(time_cost=time_cost, memory_kib=8, parallelism=1, workers=4, waiting=64)
        self.verifications = 0
        self.at_gate = trio.Event()
        self.gate: trio.Event | None = None
        self.before_hash: Callable[[], Awaitable[object]] | None = None

    async def verify(self, hash: str, secret: str) -> bool:
        self.verifications += 1
        self.at_gate.set()
        if self.gate is not None:
            await self.gate.wait()
        return await super().verify(hash, secret)

    async def hash(self, secret: str) -> str:
        if self.before_hash is not None:
            await self.before_hash()
        return await super().hash(secret)


class Clock:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        self.now += timedelta(**by)


class Issuer:
    """Makes tenants and keys, as an operator would."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._hasher = Hasher(time_cost=1, memory_kib=8, parallelism=1, workers=2, waiting=64)

    async def tenant(self, name: str = "acme", **limits: Any) -> str:
        """The id of a new tenant with these limits; without any, it has no row of limits."""
        tenant_id: str = await self._postgres.fetchval(
            "INSERT INTO gateway.tenants (name) VALUES ($1) RETURNING id::text", name
        )
        if limits:
            await self._insert("gateway.tenant_limits", {"tenant_id": tenant_id, **limits})
        return tenant_id

    async def key(self, tenant_id: str, *, expires_at: datetime | None = None, **limits: Any) -> NewKey:
        """A new key of a tenant with these limits; without any, it has no row of limits."""
        key = generate()
        key_id: str = await self._postgres.fetchval(
            "INSERT INTO gateway.api_keys (tenant_id, name, prefix, secret_hash, expires_at)"
            " VALUES ($1::text::uuid, 'laptop', $2, $3, $4) RETURNING id::text",
            tenant_id,
            key.prefix,
            await self._hasher.hash(key.secret),
            expires_at,
        )
        if limits:
            await self._insert("gateway.key_limits", {"key_id": key_id, **limits})
        return key

    async def revoke(self, key: NewKey) -> None:
        await self._postgres.execute("INSERT INTO gateway.revocations (prefix) VALUES ($1)", key.prefix)

    async def _insert(self, table: str, row: dict[str, Any]) -> None:
        places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
        await self._postgres.execute(
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})",
            *row.values(),
        )


@pytest.fixture
def redis_url(each_redis_url: str) -> str:
    return each_redis_url


@pytest.fixture
def issuer(postgres: Postgres) -> Issuer:
    return Issuer(postgres)


@pytest.fixture
def hasher() -> ObservedHasher:
    return ObservedHasher()


@pytest.fixture
def make_hasher() -> Callable[..., ObservedHasher]:
    return ObservedHasher


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(postgres: Postgres, redis: Redis, hasher: ObservedHasher, clock: Clock) -> Directory:
    return Directory(postgres, redis, hasher, cache_ttl_s=60, clock=clock)


@pytest.fixture
async def dead_postgres(asyncio_loop: asyncio.AbstractEventLoop) -> AsyncIterator[Postgres]:
    """A pool whose server is not there."""
    async with open_postgres("postgresql://nobody@/none?host=/nonexistent", size=2, timeout_s=2.0) as store:
        yield store


@pytest.fixture
async def dead_redis(asyncio_loop: asyncio.AbstractEventLoop) -> AsyncIterator[Redis]:
    """A pool whose server is not there."""
    async with open_redis("unix:///nonexistent/redis.sock", size=2, timeout_s=2.0) as store:
        yield store


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Wait, ten seconds at most, until something holds."""

    async def wait(condition: Callable[[], object]) -> None:
        with trio.fail_after(10):
            while not condition():
                await trio.sleep(0.001)

    return wait
