"""Redis away or hung: nothing is admitted, and no settlement is forgotten."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

from neuronetz.admission import keyspace
from neuronetz.admission.admission import Admission, settlement
from neuronetz.admission.command import periods
from neuronetz.errors import Unavailable
from neuronetz.policy import Limits
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis, open_redis

LIMITS = Limits(rpm=50, concurrency=5)


def final_row() -> bytes:
    return b'{"outcome":"ok"}'


@pytest.fixture
async def lone_redis(own_valkey: Any, asyncio_loop: Any) -> AsyncIterator[Redis]:
    async with open_redis(own_valkey.url(), size=8, timeout_s=0.3) as redis:
        yield redis


@pytest.fixture
def lone_admission(lone_redis: Redis, postgres: Postgres) -> Admission:
    return Admission(lone_redis, postgres, instance="one", cleanup_timeout_s=0.3, store_timeout_s=0.3)


async def drained(admission: Admission) -> None:
    while admission.unsettled:
        await trio.sleep(0.01)


async def test_a_settlement_that_redis_missed_is_repeated_until_it_has_it(
    own_valkey: Any, lone_redis: Redis, lone_admission: Admission, open_desk: Callable[[Redis], Any]
) -> None:
    desk = open_desk(lone_redis)
    principal = desk.principal(LIMITS)
    asks = [desk.ask(principal) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lone_admission.settle_unsettled)
        for ask in asks:
            async with lone_admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
                await own_valkey.stop()
            assert [kept.request_id for kept in lone_admission.unsettled] == [ask.request_id]
            assert lone_admission.held == 0
            await own_valkey.start()
            with trio.fail_after(10):
                await drained(lone_admission)
        assert await desk.slots(principal) == (0, 0)
        assert await desk.leases(principal) == 0
        assert await desk.rows(principal) == {ask.request_id: {"outcome": "ok"} for ask in asks}
        nursery.cancel_scope.cancel()


async def test_a_settlement_that_fails_by_a_bug_is_kept_and_tears_nothing(
    lone_redis: Redis,
    lone_admission: Admission,
    open_desk: Callable[[Redis], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = open_desk(lone_redis)
    principal = desk.principal(LIMITS)
    ask = desk.ask(principal)

    async def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    async with lone_admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
        monkeypatch.setattr(lone_redis, "script", broken)
    assert [kept.request_id for kept in lone_admission.unsettled] == [ask.request_id]
    monkeypatch.undo()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lone_admission.settle_unsettled)
        with trio.fail_after(10):
            await drained(lone_admission)
        nursery.cancel_scope.cancel()
    assert await desk.slots(principal) == (0, 0)
    assert await desk.leases(principal) == 0


async def test_while_redis_is_away_requests_are_denied(
    own_valkey: Any, lone_redis: Redis, lone_admission: Admission, open_desk: Callable[[Redis], Any]
) -> None:
    desk = open_desk(lone_redis)
    principal = desk.principal(LIMITS)
    await own_valkey.stop()
    for _ in range(3):
        ask = desk.ask(principal)
        with pytest.raises(Unavailable) as caught:
            async with lone_admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
                pytest.fail("admitted")
        assert caught.value.dependency == "redis"
        assert caught.value.retry_after == 1.0
    # The tenant was never registered, so that nothing can have been taken in its name.
    assert not lone_admission.unsettled


async def test_an_admission_that_redis_carries_out_late_holds_nothing(
    own_valkey: Any, lone_redis: Redis, lone_admission: Admission, open_desk: Callable[[Redis], Any]
) -> None:
    desk = open_desk(lone_redis)
    principal = desk.principal(LIMITS)
    warm = desk.ask(principal)
    async with lone_admission.lease(warm, stub=desk.stub(warm), final_row=final_row):
        pass
    own_valkey.pause()
    ask = desk.ask(principal)
    try:
        with pytest.raises(Unavailable), trio.fail_after(5):
            async with lone_admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
                pytest.fail("admitted")
    finally:
        own_valkey.resume()
    assert [kept.request_id for kept in lone_admission.unsettled] == [ask.request_id]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lone_admission.settle_unsettled)
        with trio.fail_after(10):
            await drained(lone_admission)
        nursery.cancel_scope.cancel()
    assert await desk.slots(principal) == (0, 0)
    assert await desk.leases(principal) == 0


async def test_a_stop_tries_once_more(
    own_valkey: Any, lone_redis: Redis, lone_admission: Admission, open_desk: Callable[[Redis], Any]
) -> None:
    desk = open_desk(lone_redis)
    principal = desk.principal(LIMITS)
    ask = desk.ask(principal)
    async with lone_admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
        await own_valkey.stop()
    await own_valkey.start()
    async with trio.open_nursery() as nursery:
        # Cancelled before it has run at all.
        nursery.cancel_scope.cancel()
        nursery.start_soon(lone_admission.settle_unsettled)
    assert not lone_admission.unsettled
    assert await desk.slots(principal) == (0, 0)


async def test_a_stop_while_redis_hangs_is_bounded(
    own_valkey: Any, lone_redis: Redis, lone_admission: Admission, open_desk: Callable[[Redis], Any]
) -> None:
    desk = open_desk(lone_redis)
    ask = desk.ask(desk.principal(LIMITS))
    async with lone_admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
        own_valkey.pause()
    try:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.cancel_scope.cancel()
                nursery.start_soon(lone_admission.settle_unsettled)
    finally:
        own_valkey.resume()
    assert len(lone_admission.unsettled) == 1


async def test_too_many_settlements_of_unknown_fate_deny_at_once(
    own_valkey: Any,
    lone_redis: Redis,
    lone_admission: Admission,
    open_desk: Callable[[Redis], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("neuronetz.admission.admission._MOST_UNSETTLED", 2)
    desk = open_desk(lone_redis)
    principal = desk.principal(LIMITS)
    warm = desk.ask(principal)
    async with lone_admission.lease(warm, stub=desk.stub(warm), final_row=final_row):
        pass
    for _ in range(5):
        ask = desk.ask(principal)
        # Its fate is unknown only where it was sent: connected, to a server that then says nothing.
        await lone_redis.command("PING")
        own_valkey.pause()
        with pytest.raises(Unavailable):
            async with lone_admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
                pytest.fail("admitted")
        own_valkey.resume()
    assert len(lone_admission.unsettled) == 2


async def test_a_settlement_that_redis_refuses_does_not_hold_up_the_others(
    desk: Any, admission: Admission
) -> None:
    bad, good = desk.ask(desk.principal(LIMITS)), desk.ask(desk.principal(LIMITS))
    leases = keyspace.leases(bad.principal.tenant_id, "one")
    async with admission.lease(bad, stub=desk.stub(bad), final_row=final_row):
        await desk.redis.command("RENAME", leases, leases + ":aside")
        await desk.redis.command("SET", leases, "not a hash")
    await desk.admit(good, now_ms=0)
    admission.unsettled.append(settlement(good, periods(good, 0)))
    assert [kept.request_id for kept in admission.unsettled] == [bad.request_id, good.request_id]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admission.settle_unsettled)
        with trio.fail_after(10):
            while len(admission.unsettled) > 1:
                await trio.sleep(0.01)
        assert await desk.slots(good.principal) == (0, 0)
        assert await desk.slots(bad.principal) == (1, 1)
        await desk.redis.command("RENAME", leases + ":aside", leases)
        with trio.fail_after(10):
            await drained(admission)
        nursery.cancel_scope.cancel()
    assert await desk.slots(bad.principal) == (0, 0)
