"""G7, fail closed: what cannot be checked is denied, and nothing goes upstream meanwhile.

Here: each thing that a decision needs, taken away, and given back. Further: tests/gateway/test_redis_outage.py,
tests/gateway/test_postgres_outage.py, tests/gateway/test_services.py (a gateway without one of its services),
tests/admission/test_lease.py (a script that fails, a reply that is none), tests/models/test_discovery.py,
tests/guarantees/test_fault_matrix.py.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from neuronetz.access.keys import generate
from tests.guarantees.faulty_wire import FaultyWire, wires
from tests.patience import until
from tests.shapes import Shape

CHAT = Shape("/api/chat", False)


class House:
    """A gateway behind wires, and one that knocks."""

    def __init__(self, gateway: Any, postgres: FaultyWire, redis: FaultyWire, key: str) -> None:
        self.gateway = gateway
        self.postgres = postgres
        self.redis = redis
        self.key = key

    async def knock(self, key: str | None = None) -> int:
        async with httpx.AsyncClient(base_url=self.gateway.base_url, trust_env=False, timeout=30) as client:
            reply = await client.post(
                "/api/chat", json=CHAT.body("rivers"), headers={"authorization": f"Bearer {key or self.key}"}
            )
        return reply.status_code


@pytest.fixture
async def house(
    asyncio_loop: Any, settings: Any, database_url: str, redis_url: str, run_gateway: Any, key: str
) -> AsyncIterator[House]:
    async with wires(database_url, redis_url) as (postgres, postgres_url, redis, faulty_redis_url):
        quick = {"store_timeout_s": 0.3, "cleanup_timeout_s": 0.3, "audit_commit_timeout_s": 0.3}
        urls = {"database_url": postgres_url, "redis_url": faulty_redis_url}
        async with run_gateway(settings.model_copy(update=quick | urls)) as gateway:
            yield House(gateway, postgres, redis, key)
            postgres.heal()
            redis.heal()


@asynccontextmanager
async def without_redis(house: House) -> AsyncIterator[str]:
    house.redis.refuse()
    yield house.key
    house.redis.heal()


@asynccontextmanager
async def with_redis_hung(house: House) -> AsyncIterator[str]:
    house.redis.stall()
    yield house.key
    house.redis.heal()


@asynccontextmanager
async def without_postgresql_for_a_key_nobody_knows(house: House) -> AsyncIterator[str]:
    house.postgres.refuse()
    yield generate().text
    house.postgres.heal()


@asynccontextmanager
async def without_room_in_the_ring(house: House) -> AsyncIterator[str]:
    recorder = house.gateway.recorder
    await until(lambda: not recorder.waiting + recorder.open_entries, 3)
    recorder.capacity, recorder.failing = 1, True
    with recorder.open() as entry:
        yield house.key
        entry.close()
    recorder.failing = False


@asynccontextmanager
async def with_models_of_long_ago(house: House) -> AsyncIterator[str]:
    discovery = house.gateway.discovery
    ttl_s, discovery._ttl_s = discovery._ttl_s, -1.0
    yield house.key
    discovery._ttl_s = ttl_s


@asynccontextmanager
async def without_a_heartbeat(house: House) -> AsyncIterator[str]:
    admission = house.gateway.admission
    alive_until, admission.alive_until = admission.alive_until, 0.0
    yield house.key
    admission.alive_until = alive_until


@pytest.mark.parametrize(
    ("away", "status"),
    [
        (without_redis, 503),
        (with_redis_hung, 503),
        (without_postgresql_for_a_key_nobody_knows, 503),
        (without_room_in_the_ring, 503),
        (with_models_of_long_ago, 403),
        (without_a_heartbeat, 503),
    ],
)
async def test_what_cannot_be_checked_is_denied_until_it_can(
    house: House, mock_ollama: Any, away: Any, status: int
) -> None:
    with trio.fail_after(10):  # on a busy machine the first connections may take longer than they may
        while await house.knock() != 200:
            await trio.sleep(0.05)
    asked = mock_ollama.stats.requests["/api/chat"]
    async with away(house) as key:
        assert await house.knock(key) == status
        assert mock_ollama.stats.requests["/api/chat"] == asked
    # Soon, but not at once: a pooled connection may have to learn first that its server went away.
    with trio.fail_after(5):
        while await house.knock() != 200:
            await trio.sleep(0.05)
