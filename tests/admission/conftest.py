"""A desk at which the tests of admission stand: scripts by hand, Redis's state at a glance."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
import trio
import trio_asyncio

from neuronetz.admission import command, keyspace, verdict
from neuronetz.admission.admission import Admission
from neuronetz.admission.command import Ask
from neuronetz.policy import Limits, Principal
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis, Script, open_redis

# A Wednesday, 23 September 2026, 12:00 UTC.
NOON_MS = 1_790_164_800_000


class Desk:
    """Admits and settles by the scripts themselves, at a given time, as instance ``one`` unless told."""

    noon_ms = NOON_MS

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.admit_script = Script.load("neuronetz.admission", "scripts/admit.lua")
        self.settle_script = Script.load("neuronetz.admission", "scripts/settle.lua")

    def principal(
        self,
        tenant_limits: Limits | None = None,
        key_limits: Limits | None = None,
        *,
        tenant_id: str | None = None,
        key_id: str | None = None,
    ) -> Principal:
        return Principal(
            tenant_id=tenant_id or str(uuid4()),
            tenant="acme",
            key_id=key_id or str(uuid4()),
            key_name="laptop",
            prefix="nnz_abcdefgh",
            tenant_limits=tenant_limits or Limits(),
            key_limits=key_limits or Limits(),
            allow_all_models=True,
            models=frozenset(),
        )

    def ask(
        self,
        principal: Principal,
        *,
        slot: bool = True,
        estimate: int = 10,
        predict: int = 90,
        least: int = 1,
        request_id: str | None = None,
    ) -> Ask:
        return Ask(request_id or str(uuid4()), principal, slot, estimate, predict, least)

    def stub(self, ask: Ask, outcome: str = "abandoned") -> bytes:
        row = {"request_id": ask.request_id, "outcome": outcome, "status": 499, "model": None, "tokens": 0}
        return json.dumps(row).encode()

    async def admit(
        self,
        ask: Ask,
        *,
        now_ms: int = NOON_MS,
        seeds: tuple[int, int] = (0, 0),
        when: command.Periods | None = None,
        instance: str = "one",
    ) -> verdict.Verdict:
        when = when or command.periods(ask, now_ms / 1000)
        reply = await self.redis.script(
            self.admit_script,
            command.admit_keys(ask, instance, when),
            command.admit_arguments(ask, when, self.stub(ask), seeds=seeds, now_ms=now_ms),
        )
        return verdict.parse(reply)

    async def settle(
        self,
        ask: Ask,
        *,
        tokens: int = 0,
        row: bytes = b"",
        abort: bool = False,
        now_ms: int = NOON_MS,
        instance: str = "one",
    ) -> int:
        tenant, key = ask.principal.tenant_id, ask.principal.key_id
        reply = await self.redis.script(
            self.settle_script,
            (
                keyspace.slots(tenant),
                keyspace.slots(tenant, key),
                keyspace.leases(tenant, instance),
                keyspace.rows(tenant, instance),
                keyspace.aborted(tenant, ask.request_id),
                *command.counters(ask, command.periods(ask, now_ms / 1000)),
            ),
            (ask.request_id, tokens, row, int(abort)),
        )
        return int(reply)

    async def slots(self, principal: Principal) -> tuple[int, int]:
        """Slots taken: of the tenant, of the key."""
        tenant = await self.redis.command("SCARD", keyspace.slots(principal.tenant_id))
        key = await self.redis.command("SCARD", keyspace.slots(principal.tenant_id, principal.key_id))
        return tenant, key

    async def leases(self, principal: Principal, instance: str = "one") -> int:
        return int(await self.redis.command("HLEN", keyspace.leases(principal.tenant_id, instance)))

    async def rows(self, principal: Principal, instance: str = "one") -> dict[str, Any]:
        """Audit rows that wait in Redis, by request id."""
        flat = await self.redis.command("HGETALL", keyspace.rows(principal.tenant_id, instance))
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[0::2], flat[1::2], strict=True)
        return {request.decode(): json.loads(row) for request, row in pairs}

    async def budgets(self, principal: Principal, now_ms: int = NOON_MS) -> list[tuple[int, int] | None]:
        """(used, reserved) of the tenant's and of the key's counter; None where there is none."""
        ask = self.ask(principal)
        found: list[tuple[int, int] | None] = []
        for counter in command.counters(ask, command.periods(ask, now_ms / 1000)):
            used, reserved = await self.redis.command("HMGET", counter, "used", "reserved")
            found.append(None if used is None else (int(used), int(reserved)))
        return found

    async def now_ms(self) -> int:
        seconds, micros = await self.redis.command("TIME")
        return int(seconds) * 1000 + int(micros) // 1000


@pytest.fixture
def redis_url(each_redis_url: str) -> str:
    return each_redis_url


@pytest.fixture
def desk(redis: Redis) -> Desk:
    return Desk(redis)


@pytest.fixture
def at_desk(single_url: str) -> Callable[..., None]:
    """Runs an async function at a desk, in a Trio run of its own: Hypothesis calls a test many times."""

    def run(check: Callable[..., Awaitable[None]], *args: Any) -> None:
        async def main() -> None:
            async with trio_asyncio.open_loop(), open_redis(single_url, size=2, timeout_s=5.0) as redis:
                await check(Desk(redis), *args)

        trio.run(main)

    return run


@pytest.fixture
def open_desk() -> Callable[[Redis], Desk]:
    """A desk on another Redis than the session's."""
    return Desk


@pytest.fixture
def admission(redis: Redis, postgres: Postgres) -> Admission:
    return Admission(redis, postgres, instance="one", cleanup_timeout_s=2.0, store_timeout_s=2.0)


@pytest.fixture
def charge(postgres: Postgres) -> Callable[..., Awaitable[None]]:
    """Book tokens in the ledger: ``await charge(principal, day, prompt, completion)``."""

    async def run(principal: Principal, day: Any, prompt: int, completion: int) -> None:
        await postgres.execute(
            "INSERT INTO gateway.budget_usage (tenant_id, key_id, day, prompt_tokens, completion_tokens, requests)"
            " VALUES ($1::uuid, $2::uuid, $3, $4, $5, 1)",
            principal.tenant_id,
            principal.key_id,
            day,
            prompt,
            completion,
        )

    return run
