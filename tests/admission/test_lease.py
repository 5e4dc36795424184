"""A lease as a block, over real stores."""

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from neuronetz.admission import keyspace
from neuronetz.admission.admission import Admission
from neuronetz.admission.command import counters, periods
from neuronetz.errors import BudgetExhausted, ConcurrencyLimited, RateLimited, Unavailable
from neuronetz.policy import Limits
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis, Script

LIMITS = Limits(rpm=50, budget_tokens=1000, concurrency=5)


def final_row() -> bytes:
    return b'{"outcome":"ok"}'


async def test_a_lease_holds_inside_its_block_and_is_settled_behind_it(desk: Any, admission: Admission) -> None:
    principal = desk.principal(LIMITS, Limits(rpm=20))
    ask = desk.ask(principal, estimate=10, predict=90)
    now_ms = await desk.now_ms()
    async with admission.lease(ask, stub=desk.stub(ask), final_row=final_row) as lease:
        assert admission.held == 1
        assert lease.predict == 90
        assert abs(lease.admitted_at - now_ms / 1000) < 5
        assert lease.budget_day == datetime.fromtimestamp(lease.admitted_at, UTC).date()
        assert lease.headers["x-ratelimit-limit-requests"] == "20"
        assert lease.headers["x-ratelimit-remaining-requests"] == "19"
        assert lease.headers["x-ratelimit-limit-tokens"] == "1000"
        assert lease.headers["x-ratelimit-remaining-tokens"] == "900"
        assert await desk.slots(principal) == (1, 1)
        assert await desk.budgets(principal, now_ms) == [(0, 100), None]
        assert (await desk.rows(principal))[ask.request_id]["outcome"] == "abandoned"
        lease.used(12, 30)
    assert admission.held == 0
    assert not admission.unsettled
    assert await desk.slots(principal) == (0, 0)
    assert await desk.leases(principal) == 0
    assert await desk.budgets(principal, now_ms) == [(42, 0), None]
    assert await desk.rows(principal) == {ask.request_id: {"outcome": "ok"}}


async def test_the_common_path_takes_one_round_trip_to_admit_and_one_to_settle(
    desk: Any, redis: Redis, admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = 0

    def counted(call: Any) -> Any:
        async def counting(*args: Any) -> Any:
            nonlocal called
            called += 1
            return await call(*args)

        return counting

    for name in ("command", "pipeline", "script", "read_followed"):
        monkeypatch.setattr(redis, name, counted(getattr(redis, name)))
    principal = desk.principal(LIMITS, LIMITS)
    trips = []
    for _ in range(3):
        before = called
        ask = desk.ask(principal)
        async with admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
            pass
        trips.append(called - before)
    # The tenant's first request registers the tenant and seeds its counters beside.
    assert trips == [4, 2, 2]


@pytest.mark.parametrize(
    ("limits", "error", "retry_after"),
    [
        (Limits(rpm=1), RateLimited, (60, 61)),
        (Limits(budget_tokens=100, budget_period="day"), BudgetExhausted, (1, 86_400)),
        (Limits(concurrency=1), ConcurrencyLimited, (1, 1)),
    ],
)
async def test_a_refusal_says_which_limit_and_when_to_come_back(
    desk: Any, admission: Admission, limits: Limits, error: type[Exception], retry_after: tuple[int, int]
) -> None:
    principal = desk.principal(limits)
    first, second = desk.ask(principal), desk.ask(principal)
    async with admission.lease(first, stub=desk.stub(first), final_row=final_row):
        with pytest.raises(error) as caught:
            async with admission.lease(second, stub=desk.stub(second), final_row=final_row):
                pytest.fail("admitted")
    assert retry_after[0] <= caught.value.retry_after <= retry_after[1]
    if error is RateLimited:
        assert caught.value.headers["x-ratelimit-remaining-requests"] == "0"
    if error is BudgetExhausted:
        assert caught.value.headers["x-ratelimit-remaining-tokens"] == "0"
    assert admission.held == 0
    assert (await desk.rows(principal)).keys() == {first.request_id, second.request_id}


async def test_a_missing_counter_is_rebuilt_from_the_ledger(
    desk: Any, admission: Admission, charge: Callable[..., Awaitable[None]]
) -> None:
    limits = Limits(budget_tokens=1000)
    principal = desk.principal(limits, limits)
    colleague = desk.principal(tenant_id=principal.tenant_id)
    now_ms = await desk.now_ms()
    today = datetime.fromtimestamp(now_ms / 1000, UTC).date()
    await charge(principal, today, 100, 200)
    await charge(colleague, today, 50, 50)
    ask = desk.ask(principal, estimate=10, predict=10_000)
    async with admission.lease(ask, stub=desk.stub(ask), final_row=final_row) as lease:
        assert lease.predict == 1000 - 400 - 10
        assert await desk.budgets(principal, now_ms) == [(400, 600), (300, 600)]


async def test_a_counter_that_cannot_be_rebuilt_denies(
    desk: Any, redis: Redis, own_postgres: Any, asyncio_loop: Any
) -> None:
    from neuronetz.stores.postgres import open_postgres

    async with open_postgres(own_postgres.dsn(), size=1, timeout_s=1.0) as postgres:
        await own_postgres.stop(immediate=True)
        admission = Admission(redis, postgres, instance="one", cleanup_timeout_s=2, store_timeout_s=2)
        principal = desk.principal(LIMITS)
        ask = desk.ask(principal)
        with pytest.raises(Unavailable) as caught:
            async with admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
                pytest.fail("admitted")
    assert caught.value.dependency == "postgres"
    assert await desk.leases(principal) == 0


async def test_two_instances_that_seed_at_once_make_one_counter(
    desk: Any, redis: Redis, postgres: Postgres, charge: Callable[..., Awaitable[None]]
) -> None:
    principal = desk.principal(Limits(budget_tokens=10_000))
    now_ms = await desk.now_ms()
    await charge(principal, datetime.fromtimestamp(now_ms / 1000, UTC).date(), 0, 500)
    held: list[str] = []
    full, release = trio.Event(), trio.Event()

    async def hold(instance: str) -> None:
        admission = Admission(redis, postgres, instance=instance, cleanup_timeout_s=2, store_timeout_s=2)
        ask = desk.ask(principal, estimate=10, predict=90)
        async with admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
            held.append(instance)
            if len(held) == 8:
                full.set()
            await release.wait()

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(hold, f"instance-{number}")
        await full.wait()
        assert await desk.budgets(principal, now_ms) == [(500, 800), None]
        release.set()
    assert await desk.budgets(principal, now_ms) == [(500, 0), None]


async def test_a_local_clock_that_is_a_period_off_is_corrected_by_the_servers(
    desk: Any, redis: Redis, postgres: Postgres
) -> None:
    now_ms = await desk.now_ms()
    asked: list[int] = []

    def clock() -> float:
        asked.append(1)
        return now_ms / 1000 - 40 * 86_400

    admission = Admission(redis, postgres, instance="one", cleanup_timeout_s=2, store_timeout_s=2, clock=clock)
    principal = desk.principal(LIMITS)
    ask = desk.ask(principal)
    async with admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
        assert await desk.budgets(principal, now_ms) == [(0, 100), None]
        assert await desk.budgets(principal, now_ms - 40 * 86_400_000) == [None, None]
    first, again = len(asked), desk.ask(principal)
    async with admission.lease(again, stub=desk.stub(again), final_row=final_row):
        pass
    # Once to choose the period and once to learn from the reply: there was one call only.
    assert len(asked) - first == 2


@pytest.mark.parametrize("seed", range(3))
async def test_used_and_reserved_never_exceed_the_budget_at_any_instant(
    desk: Any, redis: Redis, postgres: Postgres, seed: int
) -> None:
    choose = random.Random(seed)
    tenant = Limits(budget_tokens=5000)
    principals = [desk.principal(tenant, Limits(budget_tokens=2000))]
    principals += [
        desk.principal(tenant, Limits(budget_tokens=2000), tenant_id=principals[0].tenant_id) for _ in range(2)
    ]
    instances = [
        Admission(redis, postgres, instance=name, cleanup_timeout_s=2, store_timeout_s=2) for name in "ab"
    ]
    now_ms = await desk.now_ms()
    spent = dict.fromkeys((principal.key_id for principal in principals), 0)
    refused = 0

    async def check() -> None:
        for principal in principals:
            for counter, budget in zip(await desk.budgets(principal, now_ms), (5000, 2000), strict=True):
                assert counter is None or (min(counter) >= 0 and sum(counter) <= budget)

    async def client() -> None:
        nonlocal refused
        for _ in range(6):
            principal = choose.choice(principals)
            ask = desk.ask(principal, estimate=choose.randint(0, 100), predict=choose.randint(1, 400), least=1)
            admission = choose.choice(instances)
            try:
                async with admission.lease(ask, stub=desk.stub(ask), final_row=final_row) as lease:
                    await check()
                    completion = choose.randint(0, lease.predict)
                    lease.used(ask.prompt_estimate, completion)
                    spent[principal.key_id] += ask.prompt_estimate + completion
            except BudgetExhausted:
                refused += 1
            await check()

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(client)
    assert refused > 0
    for principal in principals:
        total, own = await desk.budgets(principal, now_ms)
        assert total == (sum(spent.values()), 0)
        assert own is None or own == (spent[principal.key_id], 0)


async def test_exactly_as_many_leases_at_once_as_allowed_across_instances(
    desk: Any, redis: Redis, postgres: Postgres
) -> None:
    principal = desk.principal(Limits(concurrency=4), Limits(concurrency=3))
    instances = [
        Admission(redis, postgres, instance=name, cleanup_timeout_s=2, store_timeout_s=2) for name in "ab"
    ]
    for _ in range(5):
        assert await rush(desk, instances, principal, 12) == (3, 9)
        assert await desk.slots(principal) == (0, 0)


async def rush(desk: Any, instances: list[Admission], principal: Any, clients: int) -> tuple[int, int]:
    """Clients that come at once and stay until all know their lot: how many got in, how many were refused."""
    inside = refused = 0
    decided = trio.Event()

    def decide() -> None:
        if inside + refused == clients:
            decided.set()

    async def client(admission: Admission) -> None:
        nonlocal inside, refused
        ask = desk.ask(principal)
        try:
            async with admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
                inside += 1
                decide()
                await decided.wait()
        except ConcurrencyLimited:
            refused += 1
            decide()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(clients):
                nursery.start_soon(client, instances[number % len(instances)])
    return inside, refused


async def test_an_error_in_the_block_settles_it_too(desk: Any, admission: Admission) -> None:
    principal = desk.principal(LIMITS)
    ask = desk.ask(principal)
    with pytest.raises(ZeroDivisionError):
        async with admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
            raise ZeroDivisionError
    assert await desk.slots(principal) == (0, 0)
    assert await desk.rows(principal) == {ask.request_id: {"outcome": "ok"}}


async def test_a_row_that_cannot_be_made_frees_the_lease_and_leaves_the_stub(
    desk: Any, admission: Admission
) -> None:
    principal = desk.principal(LIMITS)
    ask = desk.ask(principal)

    def broken() -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with admission.lease(ask, stub=desk.stub(ask), final_row=broken):
            pass
    assert await desk.slots(principal) == (0, 0)
    assert (await desk.rows(principal))[ask.request_id]["outcome"] == "abandoned"


async def test_the_tenant_is_registered_before_its_first_lease(desk: Any, admission: Admission) -> None:
    principal = desk.principal()
    ask = desk.ask(principal)
    async with admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
        members = await desk.redis.command("SMEMBERS", keyspace.instance_tenants("one"))
        assert {member.decode() for member in members} == {principal.tenant_id}


async def test_an_instance_without_a_recent_beat_admits_nothing(desk: Any, admission: Admission) -> None:
    principal = desk.principal()
    ask = desk.ask(principal)
    admission.alive_until = trio.current_time()
    with pytest.raises(Unavailable):
        async with admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
            pytest.fail("admitted")
    assert await desk.leases(principal) == 0


async def test_a_script_that_fails_half_way_denies_and_leaves_nothing(desk: Any, admission: Admission) -> None:
    principal = desk.principal(Limits(concurrency=5))
    ask = desk.ask(principal)
    await desk.redis.command("SET", keyspace.slots(principal.tenant_id, principal.key_id), "not a set")
    with pytest.raises(Unavailable):
        async with admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
            pytest.fail("admitted")
    assert await desk.leases(principal) == 0
    assert await desk.redis.command("SCARD", keyspace.slots(principal.tenant_id)) == 0


async def test_a_reply_that_is_none_denies_and_gives_back_what_was_taken(
    desk: Any, admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script.load("neuronetz.admission", "scripts/admit.lua")
    foreign = Script("foreign", script.text.replace("return reply('admitted', granted, '', 0)", "return 'yes'"))
    assert foreign.text != script.text
    monkeypatch.setattr("neuronetz.admission.admission._ADMIT", foreign)
    principal = desk.principal(LIMITS)
    ask = desk.ask(principal)
    with pytest.raises(Unavailable):
        async with admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
            pytest.fail("admitted")
    assert await desk.slots(principal) == (0, 0)
    assert await desk.leases(principal) == 0
    counter = counters(ask, periods(ask, await desk.now_ms() / 1000))[0]
    assert await desk.redis.command("HGET", counter, "reserved") == b"0"
