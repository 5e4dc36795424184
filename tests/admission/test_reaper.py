"""G1 and G3 after a process died: its slots come free, its rows are adopted."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio

from neuronetz.admission import keyspace
from neuronetz.admission.admission import Admission
from neuronetz.admission.reaper import Reaper, pause
from neuronetz.errors import StoreUnavailable
from neuronetz.policy import Limits
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis, Script

LIMITS = Limits(rpm=5000, budget_tokens=1_000_000, concurrency=5000)
DEAD_MS = 15_000


class House:
    """Instances with their reapers on one Redis."""

    def __init__(self, redis: Redis, postgres: Postgres) -> None:
        self.redis, self.postgres = redis, postgres
        self.adopted: list[bytes] = []

    def instance(
        self, name: str, *, heartbeat_s: float = 5.0, dead_after_s: float = DEAD_MS / 1000
    ) -> tuple[Admission, Reaper]:
        admission = Admission(self.redis, self.postgres, instance=name, cleanup_timeout_s=2, store_timeout_s=2)
        reaper = Reaper(
            self.redis,
            instance=name,
            admission=admission,
            adopt=self.adopted.extend,
            heartbeat_s=heartbeat_s,
            dead_after_s=dead_after_s,
        )
        return admission, reaper

    def outcomes(self) -> list[str]:
        return sorted(json.loads(row)["outcome"] for row in self.adopted)


@pytest.fixture
def house(redis: Redis, postgres: Postgres) -> House:
    return House(redis, postgres)


async def live(desk: Any, admission: Admission, principal: Any, outcomes: list[str | None]) -> None:
    """A life of some requests: those with an outcome are settled, the others never will be."""
    for outcome in outcomes:
        ask = desk.ask(principal)
        lease = admission.lease(
            ask, stub=desk.stub(ask), final_row=lambda ask=ask, outcome=outcome: desk.stub(ask, outcome)
        )
        await lease.__aenter__()
        if outcome is not None:
            lease.used(10, 20)
            await lease.__aexit__(None, None, None)


async def test_a_beat_lists_the_instance_and_finds_the_dead(house: House) -> None:
    _, old = house.instance("old")
    _, mid = house.instance("mid")
    _, new = house.instance("new")
    start = 1_790_164_800_000
    await old.beat(start)
    await mid.beat(start + 4000)
    dead, due_s = await new.beat(start + DEAD_MS - 1)
    assert (dead, due_s) == ([], 0.001)
    dead, due_s = await new.beat(start + DEAD_MS)
    assert (dead, due_s) == ([("old", start)], 4.0)


@pytest.mark.parametrize(
    ("heartbeat_s", "due_s", "pause_s"),
    [(5.0, 12.0, 5.0), (5.0, 4.0, 4.0), (5.0, 0.001, 0.05), (5.0, -3.0, 0.05)],
)
def test_the_next_beat_comes_no_later_than_the_next_death(
    heartbeat_s: float, due_s: float, pause_s: float
) -> None:
    assert pause(heartbeat_s, due_s) == pause_s


async def test_the_started_event_comes_with_the_first_beat(house: House) -> None:
    admission, reaper = house.instance("one")
    assert not reaper.started.is_set()
    await reaper.beat()
    assert reaper.started.is_set()
    assert 0 < admission.alive_until - trio.current_time() <= DEAD_MS / 1000


async def test_an_instance_that_was_held_up_itself_gives_the_others_time(house: House) -> None:
    _, one = house.instance("one")
    _, two = house.instance("two")
    start = 1_790_164_800_000
    await one.beat(start)
    await two.beat(start)
    # Redis was away, or the host was suspended: nobody has beaten.
    assert (await one.beat(start + 60_000))[0] == []
    assert (await one.beat(start + 65_000))[0] == [("two", start + 50_000)]
    await two.beat(start + 65_000)
    assert (await one.beat(start + 70_000))[0] == []


async def test_a_clock_that_is_set_back_makes_nobody_dead(house: House) -> None:
    _, one = house.instance("one")
    _, two = house.instance("two")
    start = 1_790_164_800_000
    await two.beat(start)
    await one.beat(start)
    assert (await one.beat(start - 3_600_000))[0] == []


async def test_reaping_frees_all_and_moves_all_rows(desk: Any, house: House) -> None:
    dead, _ = house.instance("dead")
    _, reaper = house.instance("one")
    tenants = [desk.principal(LIMITS, LIMITS) for _ in range(3)]
    for principal in tenants:
        await live(desk, dead, principal, ["ok", None, "client_disconnected", None])
    now_ms = await desk.now_ms()
    await desk.redis.command("ZADD", keyspace.INSTANCES, now_ms - 20_000, "dead")

    await reaper.reap("dead", now_ms - DEAD_MS)

    for principal in tenants:
        assert await desk.slots(principal) == (0, 0)
        assert await desk.leases(principal, "dead") == 0
        assert await desk.budgets(principal, now_ms) == [(60, 0), (60, 0)]
        assert await desk.rows(principal, "dead") == {}
        assert len(await desk.rows(principal, "one")) == 4
    assert house.outcomes() == ["abandoned"] * 6 + ["client_disconnected"] * 3 + ["ok"] * 3
    assert await desk.redis.command("ZSCORE", keyspace.INSTANCES, "dead") is None
    assert await desk.redis.command("EXISTS", keyspace.instance_tenants("dead")) == 0
    # Should the reaper die before PostgreSQL has the rows, it must be found in its turn.
    assert await desk.redis.command("SCARD", keyspace.instance_tenants("one")) == 3


async def test_reaping_is_bounded_per_call_and_ends(
    desk: Any, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuronetz.admission.reaper._BATCH", 7)
    dead, _ = house.instance("dead")
    _, reaper = house.instance("one")
    principal = desk.principal(LIMITS)
    await live(desk, dead, principal, ["ok"] * 10 + [None] * 30)
    sizes: list[int] = []
    reaper._adopt = lambda rows: sizes.append(len(rows))
    await reaper.reap("dead", await desk.now_ms())
    assert sum(sizes) == 40
    assert max(sizes) == 7
    assert await desk.slots(principal) == (0, 0)


async def test_reaping_twice_and_at_once_by_two_counts_once(desk: Any, house: House) -> None:
    dead, _ = house.instance("dead")
    principal = desk.principal(LIMITS, LIMITS)
    await live(desk, dead, principal, ["ok", None, None])
    alive, one = house.instance("one")
    _, two = house.instance("two")
    await live(desk, alive, principal, [None])
    now_ms = await desk.now_ms()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.reap, "dead", now_ms)
        nursery.start_soon(two.reap, "dead", now_ms)
    await one.reap("dead", now_ms)
    assert await desk.slots(principal) == (1, 1)
    assert await desk.budgets(principal, now_ms) == [(30, 100), (30, 100)]
    assert {json.loads(row)["request_id"] for row in house.adopted} == (
        (await desk.rows(principal, "one")).keys() | (await desk.rows(principal, "two")).keys()
    ) - {next(iter(await leases_of(desk, principal, "one")))}


async def leases_of(desk: Any, principal: Any, instance: str) -> set[str]:
    keys = await desk.redis.command("HKEYS", keyspace.leases(principal.tenant_id, instance))
    return {key.decode() for key in keys}


async def test_rows_whose_reply_was_lost_are_handed_over_again(desk: Any, house: House) -> None:
    dead, _ = house.instance("dead")
    principal = desk.principal(LIMITS)
    await live(desk, dead, principal, ["ok", None])
    _, reaper = house.instance("one")

    def lost(rows: list[bytes]) -> None:
        raise StoreUnavailable("redis", "the connection broke before the reply was read")

    reaper._adopt = lost
    with pytest.raises(StoreUnavailable):
        await reaper.reap("dead", await desk.now_ms())
    reaper._adopt = house.adopted.extend
    await reaper.reap("dead", await desk.now_ms())
    assert house.outcomes() == ["abandoned", "ok"]


async def test_a_settlement_after_the_reaper_changes_nothing(desk: Any, house: House) -> None:
    slow, _ = house.instance("slow")
    _, reaper = house.instance("one")
    principal = desk.principal(LIMITS)
    ask = desk.ask(principal)
    now_ms = await desk.now_ms()
    async with slow.lease(ask, stub=desk.stub(ask), final_row=lambda: desk.stub(ask, "ok")) as lease:
        await reaper.reap("slow", now_ms)
        lease.used(10, 20)
    assert not slow.unsettled
    assert await desk.budgets(principal, now_ms) == [(0, 0), None]
    assert await desk.rows(principal, "slow") == {}
    assert [row["outcome"] for row in (await desk.rows(principal, "one")).values()] == ["abandoned"]


async def test_an_instance_that_beats_again_stays_listed_and_says_its_tenants_again(
    desk: Any, house: House
) -> None:
    slow_admission, slow = house.instance("slow")
    _, reaper = house.instance("one")
    principal = desk.principal(LIMITS)
    await live(desk, slow_admission, principal, ["ok"])
    judged_ms = await desk.now_ms()
    await slow.beat(judged_ms + 1)
    await reaper.reap("slow", judged_ms)
    assert await desk.redis.command("ZSCORE", keyspace.INSTANCES, "slow") is not None
    assert await desk.redis.command("SCARD", keyspace.instance_tenants("slow")) == 1

    await reaper.reap("slow", judged_ms + 1)
    assert await desk.redis.command("EXISTS", keyspace.instance_tenants("slow")) == 0
    await slow.beat(judged_ms + 20_000)
    members = await desk.redis.command("SMEMBERS", keyspace.instance_tenants("slow"))
    assert [member.decode() for member in members] == [principal.tenant_id]


@pytest.mark.parametrize("lost", ["set", "list"])
async def test_whatever_redis_forgot_of_an_instance_the_next_beat_restores(
    desk: Any, house: House, lost: str
) -> None:
    admission, reaper = house.instance("one")
    await live(desk, admission, desk.principal(), ["ok"])
    await live(desk, admission, desk.principal(), ["ok"])
    await reaper.beat()
    if lost == "set":
        await desk.redis.command("SPOP", keyspace.instance_tenants("one"))
    else:
        await desk.redis.command("DEL", keyspace.INSTANCES, keyspace.instance_tenants("one"))
    await reaper.beat()
    assert await desk.redis.command("SCARD", keyspace.instance_tenants("one")) == 2
    assert await desk.redis.command("ZSCORE", keyspace.INSTANCES, "one") is not None


async def test_the_service_reaps_an_instance_that_stopped_beating(desk: Any, house: House) -> None:
    dead, its_reaper = house.instance("dead", dead_after_s=0.5)
    _, reaper = house.instance("one", heartbeat_s=0.1, dead_after_s=0.5)
    principal = desk.principal(LIMITS)
    died = trio.current_time()
    await its_reaper.beat()
    await live(desk, dead, principal, ["ok", None])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reaper.run)
        await reaper.started.wait()
        with trio.fail_after(20):
            while await desk.redis.command("ZSCORE", keyspace.INSTANCES, "dead") is not None:
                await trio.sleep(0.01)
        took = trio.current_time() - died
        nursery.cancel_scope.cancel()
    assert took > 0.49
    assert await desk.slots(principal) == (0, 0)
    assert house.outcomes() == ["abandoned", "ok"]


async def test_the_service_outlives_redis_being_away(
    own_valkey: Any, asyncio_loop: Any, postgres: Postgres, open_desk: Callable[[Redis], Any]
) -> None:
    from neuronetz.stores.redis import open_redis

    async with open_redis(own_valkey.url(), size=4, timeout_s=0.3) as redis, trio.open_nursery() as nursery:
        await own_valkey.stop()
        admission, reaper = House(redis, postgres).instance("one", heartbeat_s=0.05, dead_after_s=0.5)
        nursery.start_soon(reaper.run)
        await trio.sleep(0.15)
        assert not reaper.started.is_set()
        await own_valkey.start()
        with trio.fail_after(10):
            await reaper.started.wait()
        await own_valkey.stop()
        desk = open_desk(redis)
        ask = desk.ask(desk.principal())
        with trio.fail_after(10):
            while trio.current_time() < admission.alive_until:
                await trio.sleep(0.05)
        await own_valkey.start()
        with trio.fail_after(10):
            while trio.current_time() >= admission.alive_until:
                await trio.sleep(0.01)
            async with admission.lease(ask, stub=desk.stub(ask), final_row=lambda: b"{}"):
                pass
        nursery.cancel_scope.cancel()


async def test_an_instance_with_nothing_left_retires_by_itself(desk: Any, house: House) -> None:
    admission, reaper = house.instance("one")
    principal = desk.principal(LIMITS)
    await reaper.beat()
    await live(desk, admission, principal, ["ok"])
    await reaper.retire()
    assert await desk.redis.command("ZSCORE", keyspace.INSTANCES, "one") is not None, "its row is still there"
    await desk.redis.command("DEL", keyspace.rows(principal.tenant_id, "one"))
    await reaper.retire()
    assert await desk.redis.command("ZSCORE", keyspace.INSTANCES, "one") is None
    assert await desk.redis.command("EXISTS", keyspace.instance_tenants("one")) == 0


async def test_an_instance_with_a_lease_left_does_not_retire(desk: Any, house: House) -> None:
    admission, reaper = house.instance("one")
    principal = desk.principal(LIMITS)
    await reaper.beat()
    await live(desk, admission, principal, [None])
    await desk.redis.command("DEL", keyspace.rows(principal.tenant_id, "one"))
    admission.held = 0
    await reaper.retire()
    assert await desk.redis.command("ZSCORE", keyspace.INSTANCES, "one") is not None


async def test_a_reap_of_an_unknown_instance_does_nothing(desk: Any, house: House) -> None:
    _, reaper = house.instance("one")
    await reaper.reap("never-was", await desk.now_ms())
    assert house.adopted == []


async def test_more_rows_than_a_batch_are_moved_by_the_script_alone(desk: Any) -> None:
    script = Script.load("neuronetz.admission", "scripts/reap.lua")
    principal = desk.principal()
    dead_rows = keyspace.rows(principal.tenant_id, "dead")
    for number in range(600):
        await desk.redis.command("HSET", dead_rows, f"r{number}", "{}")
    keys = (
        keyspace.leases(principal.tenant_id, "dead"),
        dead_rows,
        keyspace.rows(principal.tenant_id, "one"),
        keyspace.slots(principal.tenant_id),
        keyspace.hashes(principal.tenant_id),
    )
    seen: set[bytes] = set()
    arrived: list[bytes] = []
    for expected in (500, 100, 0):
        _, _, *pairs = await desk.redis.script(script, keys, (500, "unused:", 0, *arrived))
        arrived = pairs[0::2]
        assert len(arrived) == expected
        seen |= set(arrived)
    assert len(seen) == 600
    assert await desk.redis.command("EXISTS", dead_rows) == 0


async def test_who_comes_first_after_a_silence_takes_nobody_for_dead(house: House) -> None:
    _, old = house.instance("old")
    _, other = house.instance("other")
    _, new = house.instance("new")
    _, newer = house.instance("newer")
    start = 1_790_164_800_000
    await old.beat(start)
    await other.beat(start)
    # Redis was away for a minute. It is not the others that noticed first, but a process that was just started.
    back = start + 60_000
    assert await new.beat(back) == ([], 5.0)
    assert (await newer.beat(back + 1000))[0] == []
    await old.beat(back + 4000)
    assert await newer.beat(back + 4990) == ([], 0.01)
    # Whoever lives has beaten by now.
    assert (await newer.beat(back + 5000))[0] == [("other", back + 5000 - DEAD_MS)]


async def test_what_is_admitted_after_the_judgement_is_not_reaped(desk: Any, house: House) -> None:
    slow, _ = house.instance("slow")
    _, reaper = house.instance("one")
    principal = desk.principal(LIMITS, LIMITS)
    await live(desk, slow, principal, ["ok", None])
    judged_ms = await desk.now_ms()
    await trio.sleep(0.01)
    # It was held up, was taken for dead, and lives again while it is being reaped.
    ask = desk.ask(principal)
    async with slow.lease(ask, stub=desk.stub(ask), final_row=lambda: desk.stub(ask, "fine")) as lease:
        await reaper.reap("slow", judged_ms - DEAD_MS)
        assert await desk.slots(principal) == (1, 1)
        assert await leases_of(desk, principal, "slow") == {ask.request_id}
        assert set(await desk.rows(principal, "slow")) == {ask.request_id}
        assert house.outcomes() == ["abandoned", "ok"]
        lease.used(10, 20)
    assert await desk.budgets(principal, judged_ms) == [(60, 0), (60, 0)]
    assert (await desk.rows(principal, "slow"))[ask.request_id]["outcome"] == "fine"


async def test_an_instance_that_lives_again_before_it_is_reaped_keeps_all(desk: Any, house: House) -> None:
    slow, its_reaper = house.instance("slow")
    _, reaper = house.instance("one")
    principal = desk.principal(LIMITS, LIMITS)
    await live(desk, slow, principal, ["ok", None])
    await its_reaper.beat()
    # The reaper was itself held up between its judgement and this.
    await reaper.reap("slow", await desk.now_ms() - DEAD_MS)
    assert await desk.slots(principal) == (1, 1)
    assert len(await desk.rows(principal, "slow")) == 2
    assert house.adopted == []


async def test_an_instance_with_a_newer_lease_stays_listed(desk: Any, house: House) -> None:
    slow, _ = house.instance("slow")
    _, reaper = house.instance("one")
    principal = desk.principal(LIMITS)
    judged_ms = await desk.now_ms()
    await trio.sleep(0.01)
    await live(desk, slow, principal, [None])
    await desk.redis.command("ZADD", keyspace.INSTANCES, judged_ms - 20_000, "slow")
    # It has not beaten since: the next judgement has to find it.
    await reaper.reap("slow", judged_ms - DEAD_MS)
    assert await desk.redis.command("ZSCORE", keyspace.INSTANCES, "slow") is not None
    assert await desk.leases(principal, "slow") == 1
    await trio.sleep(0.01)
    await reaper.reap("slow", await desk.now_ms() - DEAD_MS)
    assert await desk.redis.command("ZSCORE", keyspace.INSTANCES, "slow") is None
    assert await desk.slots(principal) == (0, 0)


async def test_an_instance_that_comes_back_ends_what_ran_under_the_leases_that_others_gave_back(
    desk: Any, house: House
) -> None:
    admission, reaper = house.instance("frozen")
    _, other = house.instance("other")
    principal = desk.principal(LIMITS)
    await reaper.beat()
    lost: list[str] = []
    ask = desk.ask(principal)
    async with admission.lease(ask, stub=desk.stub(ask), final_row=lambda: desk.stub(ask)) as lease:
        lease.on_lost = lambda: lost.append("before")
        later = await desk.now_ms() + DEAD_MS + 1000
        await other.reap("frozen", later - DEAD_MS)
        assert lost == []
        await reaper.beat(later + 1)
        assert lost == ["before"]
        newer = desk.ask(principal)
        async with admission.lease(newer, stub=desk.stub(newer), final_row=lambda: desk.stub(newer)) as held:
            held.on_lost = lambda: lost.append("after")
            await reaper.beat(later + 2)
    assert "after" not in lost


async def test_an_empty_redis_ends_nothing(desk: Any, house: House) -> None:
    admission, reaper = house.instance("one")
    principal = desk.principal(LIMITS)
    await reaper.beat()
    ask = desk.ask(principal)
    lost: list[str] = []
    async with admission.lease(ask, stub=desk.stub(ask), final_row=lambda: desk.stub(ask)) as lease:
        lease.on_lost = lambda: lost.append("it")
        await desk.redis.command("FLUSHDB")
        await reaper.beat()
    assert lost == []


async def test_a_beat_whose_reply_is_lost_is_remembered_for_the_leases_sake(
    desk: Any, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    admission, reaper = house.instance("frozen", heartbeat_s=1.0, dead_after_s=5.0)
    _, other = house.instance("other")
    principal = desk.principal(LIMITS)
    await reaper.beat()
    lost: list[str] = []
    ask = desk.ask(principal)
    async with admission.lease(ask, stub=desk.stub(ask), final_row=lambda: desk.stub(ask)) as lease:
        lease.on_lost = lambda: lost.append("it")
        admission.alive_until = trio.current_time()
        await other.reap("frozen", await desk.now_ms() + 1)
        script = desk.redis.script

        async def reply_lost(*args: Any) -> Any:
            await script(*args)
            raise StoreUnavailable("redis", "TimeoutError")

        with monkeypatch.context() as patched:
            patched.setattr(desk.redis, "script", reply_lost)
            with pytest.raises(StoreUnavailable):
                await reaper.beat()
        assert lost == []
        await reaper.beat()
        assert lost == ["it"]


async def test_a_look_at_the_leases_that_fails_is_made_again_and_spoils_no_beat(
    desk: Any, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    admission, reaper = house.instance("frozen")
    _, other = house.instance("other")
    principal = desk.principal(LIMITS)
    await reaper.beat()
    lost: list[str] = []
    ask = desk.ask(principal)
    async with admission.lease(ask, stub=desk.stub(ask), final_row=lambda: desk.stub(ask)) as lease:
        lease.on_lost = lambda: lost.append("it")
        later = await desk.now_ms() + DEAD_MS + 1000
        await other.reap("frozen", later - DEAD_MS)

        async def away(_: str, leases: Any) -> None:
            raise StoreUnavailable("redis", "TimeoutError")

        with monkeypatch.context() as patched:
            patched.setattr(admission, "_tell_lost", away)
            await reaper.beat(later + 1)
        assert lost == []
        await reaper.beat(later + 2)
        assert lost == ["it"]
