"""The ledger check repairs what has drifted, and nothing else, whatever goes on meanwhile."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio

from neuronetz.admission import keyspace, ledger, period
from neuronetz.admission.admission import Admission
from neuronetz.admission.ledger_check import LedgerCheck
from neuronetz.audit.record import AuditRecord, encode
from neuronetz.audit.recorder import Recorder
from neuronetz.errors import StoreUnavailable
from neuronetz.policy import Limits, Principal
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis, open_redis
from neuronetz.telemetry.metrics import Metrics

BUDGET = 1_000_000


class Instance:
    """A gateway's rooms that move tokens: admission, recorder, ledger check."""

    def __init__(self, name: str, redis: Redis, postgres: Postgres) -> None:
        self.name = name
        self.metrics = Metrics()
        self.admission = Admission(redis, postgres, instance=name, cleanup_timeout_s=5.0, store_timeout_s=5.0)
        self.recorder = Recorder(postgres, redis, capacity=1000, commit_timeout_s=5.0, instance=name)
        self.check = LedgerCheck(redis, postgres, self.metrics, interval_s=3600.0)

    @property
    def repairs(self) -> float:
        return float(self.metrics.registry.get_sample_value("gateway_ledger_repairs_total") or 0)

    def drift(self, scope: str) -> float | None:
        return self.metrics.registry.get_sample_value("gateway_ledger_drift_tokens", {"scope": scope})

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.recorder.run)
            yield
            await self.recorder.drain(5.0)
            nursery.cancel_scope.cancel()


class Shop:
    """Instances on the same stores, and the tenant that they serve."""

    def __init__(self, desk: Any, redis: Redis, postgres: Postgres) -> None:
        self.desk, self.redis, self.postgres = desk, redis, postgres

    def instance(self, name: str = "one") -> Instance:
        return Instance(name, self.redis, self.postgres)

    async def principal(
        self, tenant: Limits | None = None, key: Limits | None = None, *, of: Principal | None = None
    ) -> Principal:
        """A tenant and a key with these limits, or another key ``of`` the same tenant."""
        tenant, key = tenant or Limits(), key or Limits()
        tenant_id = of.tenant_id if of else str(uuid4())
        if of is None:
            await self.postgres.execute(
                "INSERT INTO gateway.tenants (id, name) VALUES ($1::uuid, $2)", tenant_id, f"t{tenant_id[:8]}"
            )
            await self.postgres.execute(
                "INSERT INTO gateway.tenant_limits (tenant_id, budget_tokens, budget_period)"
                " VALUES ($1::uuid, $2, $3)",
                tenant_id,
                tenant.budget_tokens,
                tenant.budget_period,
            )
        key_id = str(uuid4())
        prefix = f"nnz_{key_id[:8]}"
        await self.postgres.execute(
            "INSERT INTO gateway.api_keys (id, tenant_id, name, prefix, secret_hash)"
            " VALUES ($1::uuid, $2::uuid, 'test', $3, '$argon2id$')",
            key_id,
            tenant_id,
            prefix,
        )
        await self.postgres.execute(
            "INSERT INTO gateway.key_limits (key_id, budget_tokens, budget_period) VALUES ($1::uuid, $2, $3)",
            key_id,
            key.budget_tokens,
            key.budget_period,
        )
        return self.desk.principal(of.tenant_limits if of else tenant, key, tenant_id=tenant_id, key_id=key_id)

    async def set_budget(self, principal: Principal, limits: Limits) -> Principal:
        """Give the tenant another budget; the principal as an instance that has heard of it sees it."""
        await self.postgres.execute(
            "UPDATE gateway.tenant_limits SET budget_tokens = $2, budget_period = $3 WHERE tenant_id = $1::uuid",
            principal.tenant_id,
            limits.budget_tokens,
            limits.budget_period,
        )
        return self.desk.principal(
            limits, principal.key_limits, tenant_id=principal.tenant_id, key_id=principal.key_id
        )

    @asynccontextmanager
    async def request(
        self, instance: Instance, principal: Principal, prompt: int, completion: int, *, recorded: bool = True
    ) -> AsyncIterator[Any]:
        """A request that runs for as long as the block; its row is handed to the recorder behind it."""
        ask = self.desk.ask(principal, estimate=prompt, predict=max(1, completion))
        started = datetime.now(UTC)

        def row(outcome: str, prompt: int, completion: int, day: Any) -> AuditRecord:
            return AuditRecord(
                request_id=ask.request_id,
                started_at=started,
                tenant_id=principal.tenant_id,
                key_id=principal.key_id,
                endpoint="/api/chat",
                dialect="ollama",
                model="tiny",
                stream=True,
                status=200,
                outcome=outcome,
                prompt_tokens=prompt,
                completion_tokens=completion,
                tokens_exact=True,
                budget_day=day,
                duration_ms=1,
                first_byte_ms=1,
                client_ip=None,
                instance=instance.name,
            )

        stub = encode(row("abandoned", 0, 0, started.date()))
        with instance.recorder.open() as entry:
            lease = instance.admission.lease(
                ask, stub=stub, final_row=lambda: encode(row("completed", prompt, completion, lease.budget_day))
            )
            async with lease:
                yield lambda: entry.finish(row("completed", prompt, completion, lease.budget_day))
                lease.used(prompt, completion)
            if recorded:
                entry.finish(row("completed", prompt, completion, lease.budget_day))

    async def spend(self, instance: Instance, principal: Principal, tokens: int, **how: Any) -> None:
        async with self.request(instance, principal, 0, tokens, **how):
            pass

    async def counter(self, principal: Principal, key_id: str | None = None) -> str:
        limits = principal.key_limits if key_id else principal.tenant_limits
        start, _ = period.bounds(limits.budget_period, await self.desk.now_ms() / 1000)
        return keyspace.budget(principal.tenant_id, key_id, limits.budget_period, start)

    async def counted(self, principal: Principal, key_id: str | None = None) -> tuple[int, int]:
        """(used, reserved) of the tenant's counter, or the key's."""
        values = await self.redis.command("HMGET", await self.counter(principal, key_id), "used", "reserved")
        return int(values[0]), int(values[1])

    async def used(self, principal: Principal, key_id: str | None = None) -> int:
        """What PostgreSQL says was used."""
        limits = principal.key_limits if key_id else principal.tenant_limits
        start, end = period.bounds(limits.budget_period, await self.desk.now_ms() / 1000)
        return await ledger.used(self.postgres, principal.tenant_id, key_id, start, end)


@pytest.fixture
def shop(desk: Any, redis: Redis, postgres: Postgres) -> Shop:
    return Shop(desk, redis, postgres)


async def hurry(shop: Shop, instances: list[Instance], principals: list[Principal], requests: int) -> None:
    """Clients that come one after the other, without a pause, as many at once as there are instances times six."""
    choose = random.Random(7)

    async def client(instance: Instance) -> None:
        for _ in range(requests):
            principal = choose.choice(principals)
            async with shop.request(instance, principal, choose.randint(0, 9), choose.randint(0, 40)):
                await trio.sleep(choose.random() * 0.004)

    async with trio.open_nursery() as nursery:
        for instance in instances:
            for _ in range(6):
                nursery.start_soon(client, instance)


@asynccontextmanager
async def checking(instances: list[Instance], principal: Principal) -> AsyncIterator[Callable[[], int]]:
    """Checks without a pause while the block runs; gives how many there were."""
    checks = 0

    async def run(instance: Instance) -> None:
        nonlocal checks
        while True:
            await instance.check.check(principal.tenant_id)
            checks += 1

    async with trio.open_nursery() as nursery:
        for instance in instances:
            nursery.start_soon(run, instance)
        yield lambda: checks
        nursery.cancel_scope.cancel()


async def test_under_load_without_drift_nothing_is_ever_repaired(shop: Shop) -> None:
    one, two = shop.instance("one"), shop.instance("two")
    mine = await shop.principal(Limits(budget_tokens=BUDGET), Limits(budget_tokens=BUDGET, budget_period="day"))
    other = await shop.principal(of=mine)
    await shop.spend(one, mine, 1)
    with trio.fail_after(60):
        async with one.recording(), two.recording(), checking([one, two], mine) as checks:
            while checks() <= 20:
                await hurry(shop, [one, two], [mine, other], 40)
    assert (one.repairs, two.repairs) == (0, 0)
    assert await shop.counted(mine) == (await shop.used(mine), 0)
    assert await shop.counted(mine, mine.key_id) == (await shop.used(mine, mine.key_id), 0)
    assert await shop.used(mine) > await shop.used(mine, mine.key_id) > 0


async def test_a_tampered_counter_is_repaired_under_load(shop: Shop) -> None:
    one, two = shop.instance("one"), shop.instance("two")
    mine = await shop.principal(Limits(budget_tokens=BUDGET))
    await shop.spend(one, mine, 1)
    with trio.fail_after(60):
        async with one.recording(), two.recording(), trio.open_nursery() as nursery:
            nursery.start_soon(hurry, shop, [one, two], [mine], 40)
            async with checking([one, two], mine):
                for tokens in (100_000, -3):
                    before = one.repairs + two.repairs
                    await shop.redis.command("HINCRBY", await shop.counter(mine), "used", tokens)
                    while one.repairs + two.repairs == before:
                        await trio.sleep(0.005)
    assert one.repairs + two.repairs == 2
    assert await shop.counted(mine) == (await shop.used(mine), 0)


@pytest.mark.parametrize("written", [b"0", b"999999", b"-50", b"much", b"", b"1.5"])
async def test_whatever_a_counter_says_becomes_what_the_ledger_says(shop: Shop, written: bytes) -> None:
    one = shop.instance()
    mine = await shop.principal(Limits(budget_tokens=BUDGET))
    async with one.recording():
        await shop.spend(one, mine, 120)
    async with shop.request(one, mine, 10, 90):
        await shop.redis.command("HSET", await shop.counter(mine), "used", written)
        (repair,) = await one.check.check(mine.tenant_id)
        assert (repair.scope.kind, repair.period) == ("tenant", "month")
        # The reservation of what runs is not touched.
        assert await shop.counted(mine) == (120, 100)
    assert await shop.counted(mine) == (220, 0)
    assert one.repairs == 1


async def test_rows_that_only_redis_has_count(shop: Shop) -> None:
    one = shop.instance()
    mine = await shop.principal(Limits(budget_tokens=BUDGET), Limits(budget_tokens=BUDGET))
    # Nobody records: PostgreSQL has none of it.
    for _ in range(3):
        await shop.spend(one, mine, 50)
    assert await shop.used(mine) == 0
    assert await one.check.check(mine.tenant_id) == []
    assert await shop.counted(mine) == await shop.counted(mine, mine.key_id) == (150, 0)
    async with one.recording():
        pass
    assert await one.check.check(mine.tenant_id) == []
    assert await shop.used(mine) == 150


async def test_a_row_that_is_committed_before_its_lease_is_settled_counts_once(shop: Shop) -> None:
    one = shop.instance()
    mine = await shop.principal(Limits(budget_tokens=BUDGET))
    await shop.spend(one, mine, 1)
    async with one.recording():
        async with shop.request(one, mine, 10, 90, recorded=False) as finish:
            # As when Redis does not take the settlement: the row goes its way, the lease lives on.
            finish()
            with trio.fail_after(5):
                while await shop.used(mine) < 101 or one.recorder.copies_left:
                    await trio.sleep(0.005)
            assert await one.check.check(mine.tenant_id) == []
            assert await shop.counted(mine) == (1, 100)
        assert await shop.counted(mine) == (101, 0)
        assert await one.check.check(mine.tenant_id) == []


async def test_what_ran_while_redis_was_emptied_is_counted_again(shop: Shop) -> None:
    one = shop.instance()
    mine = await shop.principal(Limits(budget_tokens=BUDGET))
    async with one.recording():
        await shop.spend(one, mine, 5)
        async with shop.request(one, mine, 10, 90):
            await shop.redis.command("FLUSHDB")
            await shop.spend(one, mine, 7)
    assert await shop.used(mine) == 112
    assert (await shop.counted(mine))[0] < 112
    assert len(await one.check.check(mine.tenant_id)) == 1
    assert await shop.counted(mine) == (112, 0)


async def test_rows_of_a_dead_instance_count(shop: Shop) -> None:
    one, dead = shop.instance("one"), shop.instance("dead")
    mine = await shop.principal(Limits(budget_tokens=BUDGET))
    await shop.spend(dead, mine, 70, recorded=False)
    assert await one.check.check(mine.tenant_id) == []
    assert await shop.counted(mine) == (70, 0)


@pytest.mark.parametrize("when", ["waiting", "running"])
async def test_a_new_budget_counts_what_was_not_in_the_ledger_when_it_was_set(shop: Shop, when: str) -> None:
    one = shop.instance()
    one.admission.on_seeded = one.check.seeded
    free = await shop.principal()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.check.run)
        release = trio.Event()

        async def request() -> None:
            async with shop.request(one, free, 0, 500):
                if when == "running":
                    await release.wait()

        if when == "running":
            nursery.start_soon(request)
            with trio.fail_after(5):
                while not one.admission.held:
                    await trio.sleep(0.005)
        else:
            await request()
        mine = await shop.set_budget(free, Limits(budget_tokens=1000, budget_period="week"))
        await shop.spend(one, mine, 1)
        release.set()
        with trio.fail_after(10):
            while await shop.counted(mine) != (501, 0):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert one.repairs == 1


async def test_a_budget_whose_period_goes_there_and_back_counts_all_of_both(shop: Shop) -> None:
    one = shop.instance()
    monthly = await shop.principal(Limits(budget_tokens=BUDGET, budget_period="month"))
    async with one.recording():
        await shop.spend(one, monthly, 10)
        daily = await shop.set_budget(monthly, Limits(budget_tokens=BUDGET, budget_period="day"))
        await shop.spend(one, daily, 20)
        back = await shop.set_budget(monthly, Limits(budget_tokens=5, budget_period="month"))
    assert await shop.counted(back) == (10, 0)
    await one.check.check(back.tenant_id)
    assert await shop.counted(back) == (30, 0)


async def test_of_two_instances_that_repair_at_once_one_does(shop: Shop) -> None:
    one, two = shop.instance("one"), shop.instance("two")
    mine = await shop.principal(Limits(budget_tokens=BUDGET))
    async with one.recording():
        await shop.spend(one, mine, 10)
    await shop.redis.command("HSET", await shop.counter(mine), "used", 999)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one.check.check, mine.tenant_id)
            nursery.start_soon(two.check.check, mine.tenant_id)
    assert one.repairs + two.repairs == 1
    assert await shop.counted(mine) == (10, 0)


async def test_a_reset_reaches_the_counter_and_leaves_the_ledger(shop: Shop) -> None:
    one = shop.instance()
    mine = await shop.principal(Limits(budget_tokens=1000), Limits(budget_tokens=1000))
    async with one.recording():
        await shop.spend(one, mine, 600)
    start, end = period.bounds("month", await shop.desk.now_ms() / 1000)
    async with shop.request(one, mine, 0, 100), trio.open_nursery() as nursery:
        nursery.start_soon(one.check.run)
        assert await ledger.reset(shop.postgres, mine.tenant_id, None, start, end, reason="paid") == 600
        one.check.changed("tenant", UUID(mine.tenant_id))
        with trio.fail_after(5):
            while (await shop.counted(mine))[0]:
                await trio.sleep(0.005)
        assert await shop.counted(mine) == (0, 100)
        # The key's own budget is another one.
        assert await shop.counted(mine, mine.key_id) == (600, 100)
        nursery.cancel_scope.cancel()
    assert await shop.postgres.fetchval("SELECT sum(completion_tokens)::int FROM gateway.budget_usage") == 600
    assert await shop.postgres.fetchval("SELECT count(*) FROM gateway.audit_log") == 1


async def test_a_round_checks_each_tenant_once_over_all_instances_and_tells_the_drift(shop: Shop) -> None:
    one, two = shop.instance("one"), shop.instance("two")
    mine = await shop.principal(Limits(budget_tokens=BUDGET))
    other = await shop.principal(None, Limits(budget_tokens=BUDGET))
    for principal, key_id in ((mine, None), (other, other.key_id)):
        await shop.spend(one, principal, 0)
        await shop.redis.command("HSET", await shop.counter(principal, key_id), "used", 40)
    await one.check.round()
    assert (one.drift("tenant"), one.drift("key"), one.repairs) == (40, 40, 2)
    await shop.redis.command("HSET", await shop.counter(mine), "used", 40)
    await two.check.round()
    assert two.repairs == 0
    for tenant in (mine, other):
        await shop.redis.command("DEL", keyspace.checked(tenant.tenant_id))
    await two.check.round()
    assert (two.drift("tenant"), two.drift("key"), two.repairs) == (40, 0, 1)


async def test_stores_that_are_away_are_waited_out(shop: Shop, own_valkey: Any, postgres: Postgres) -> None:
    async with open_redis(own_valkey.url(0), size=4, timeout_s=1.0) as redis:
        away = Shop(type(shop.desk)(redis), redis, postgres)
        mine = await away.principal(Limits(budget_tokens=BUDGET))
        one = away.instance()
        one.check = LedgerCheck(redis, postgres, one.metrics, interval_s=0.05)
        await away.spend(one, mine, 0)
        await redis.command("HSET", await away.counter(mine), "used", 40)
        counter = await away.counter(mine)
        await own_valkey.stop()
        with pytest.raises(StoreUnavailable):
            await one.check.check(mine.tenant_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.check.run)
            await trio.sleep(0.2)
            assert one.repairs == 0
            await own_valkey.start()
            with trio.fail_after(10):
                while not one.repairs:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert await redis.command("HGET", counter, "used") == b"0"


async def test_names_of_instances_that_hold_nothing_are_forgotten(shop: Shop) -> None:
    one = shop.instance()
    mine = await shop.principal(Limits(budget_tokens=BUDGET))
    async with one.recording():
        await shop.spend(one, mine, 10)
    assert await shop.redis.command("SCARD", keyspace.hashes(mine.tenant_id)) == 2
    await one.check.check(mine.tenant_id)
    assert await shop.redis.command("SCARD", keyspace.hashes(mine.tenant_id)) == 0
