"""A whole gateway in this test's Trio run, before real stores and the mock, over real sockets."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import trio

from neuronetz.access.keys import Hasher, generate
from neuronetz.gateway import Gateway, open_gateway
from neuronetz.settings import Settings
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis
from tests.patience import Patience

MakeKey = Callable[..., Awaitable[str]]


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Gateway]:
    stop = trio.Event()
    async with open_gateway(settings) as gateway, trio.open_nursery() as nursery:
        await nursery.start(gateway.run, stop)
        with trio.fail_after(5):
            while not gateway.discovery.fresh:
                await trio.sleep(0.01)
        yield gateway
        stop.set()


@pytest.fixture
def run_gateway() -> Callable[[Settings], Any]:
    """For tests that need other settings, or several gateways."""
    return running


@pytest.fixture
async def gateway(asyncio_loop: Any, settings: Settings) -> AsyncIterator[Gateway]:
    async with running(settings) as gateway:
        yield gateway


async def insert_key(postgres: Postgres, hasher: Hasher, tenant: str, **limits: Any) -> str:
    """A key of a tenant, which is made where it is not there yet. Its tenant's limits stay as they first were."""
    key = generate()
    limits.setdefault("allow_all_models", True)
    own = {name.removeprefix("key_"): value for name, value in limits.items() if name.startswith("key_")}
    shared = {name: value for name, value in limits.items() if not name.startswith("key_")}
    tenant_id = await postgres.fetchval(
        "INSERT INTO gateway.tenants (name) VALUES ($1) "
        "ON CONFLICT (name) DO UPDATE SET suspended_at = NULL RETURNING id",
        tenant,
    )
    await _insert(postgres, "tenant_limits", {"tenant_id": tenant_id, **shared})
    key_id = await postgres.fetchval(
        "INSERT INTO gateway.api_keys (tenant_id, name, prefix, secret_hash) VALUES ($1, 'test', $2, $3) "
        "RETURNING id",
        tenant_id,
        key.prefix,
        await hasher.hash(key.secret),
    )
    await _insert(postgres, "key_limits", {"key_id": key_id, **own})
    return key.text


@pytest.fixture
def make_key_in() -> Callable[..., Awaitable[str]]:
    """Make a tenant with a key in a database; keyword arguments as for ``make_key``."""
    hasher = Hasher(1, 8, 1, 1, 8)

    async def make(postgres: Postgres, tenant: str = "acme", **limits: Any) -> str:
        return await insert_key(postgres, hasher, tenant, **limits)

    return make


@pytest.fixture
def make_key(postgres: Postgres, make_key_in: Callable[..., Awaitable[str]]) -> MakeKey:
    """Make a tenant with a key; keyword arguments are columns of tenant_limits, or of key_limits as key_…."""

    async def make(tenant: str = "acme", **limits: Any) -> str:
        return await make_key_in(postgres, tenant, **limits)

    return make


async def _insert(postgres: Postgres, table: str, values: dict[str, Any]) -> None:
    names = ", ".join(values)
    places = ", ".join(f"${n + 1}" for n in range(len(values)))
    await postgres.execute(
        f"INSERT INTO gateway.{table} ({names}) VALUES ({places}) ON CONFLICT DO NOTHING",
        *values.values(),
    )


@pytest.fixture
async def key(make_key: MakeKey) -> str:
    return await make_key()


@pytest.fixture
async def client(gateway: Gateway, key: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a valid key."""
    async with httpx.AsyncClient(
        base_url=gateway.base_url, headers={"authorization": f"Bearer {key}"}, timeout=30, trust_env=False
    ) as client:
        yield client


@dataclass
class Books:
    """What is on the books of the stores: rows, leases, slots, reservations."""

    postgres: Postgres
    redis: Redis
    gateway: Gateway | None = field(default=None)

    async def rows(self, count: int, *, within_s: float = 3.0) -> list[dict[str, Any]]:
        """The audit rows, oldest first, once there are ``count``; fails when they are not, or are more."""
        deadline = trio.current_time() + within_s
        while True:
            rows = await self.postgres.fetch("SELECT * FROM gateway.audit_log ORDER BY started_at")
            if len(rows) >= count or trio.current_time() > deadline:
                break
            await trio.sleep(0.01)
        assert len(rows) == count, [dict(row) for row in rows]
        return [dict(row) for row in rows]

    async def slots(self) -> int:
        """Slots taken, over all tenants."""
        total = 0
        for name in await self.redis.command("KEYS", "gateway:{*}:slots"):
            total += await self.redis.command("SCARD", name)
        return total

    async def leases(self) -> int:
        total = 0
        for name in await self.redis.command("KEYS", "gateway:{*}:leases:*"):
            total += await self.redis.command("HLEN", name)
        return total

    async def reserved(self) -> int:
        total = 0
        for name in await self.redis.command("KEYS", "gateway:{*}:budget:*"):
            total += int(await self.redis.command("HGET", name, "reserved") or 0)
        return total

    async def copies(self) -> int:
        """Rows that wait in Redis for PostgreSQL."""
        total = 0
        for name in await self.redis.command("KEYS", "gateway:{*}:rows:*"):
            total += await self.redis.command("HLEN", name)
        return total

    async def settled(self, *, within_s: float = 0.1) -> None:
        """Fails unless no slot, lease or reservation is left, within the time that the guarantee gives."""
        patience = Patience()
        while True:
            left = (await self.slots(), await self.leases(), await self.reserved())
            if left == (0, 0, 0):
                return
            assert patience.took < within_s, f"slots, leases, reserved: {left}"
            await patience.nap(0.005)

    async def ledger(self) -> tuple[int, int, int]:
        """Prompt tokens, completion tokens and requests of the ledger."""
        row = await self.postgres.fetchrow(
            "SELECT coalesce(sum(prompt_tokens), 0)::bigint, coalesce(sum(completion_tokens), 0)::bigint, "
            "coalesce(sum(requests), 0)::bigint FROM gateway.budget_usage"
        )
        assert row is not None
        return row[0], row[1], row[2]


@pytest.fixture
def books(postgres: Postgres, redis: Redis) -> Books:
    return Books(postgres, redis)
