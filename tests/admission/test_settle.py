"""The settle script: frees once, charges what was used, and never makes a counter wrong."""

from typing import Any

from neuronetz.admission import keyspace
from neuronetz.admission.command import counters, periods
from neuronetz.policy import Limits

LIMITS = Limits(rpm=50, budget_tokens=1000, concurrency=5)
ROW = b'{"outcome":"ok"}'


async def test_settling_frees_the_slots_and_turns_the_reservation_into_use(desk: Any) -> None:
    principal = desk.principal(LIMITS, LIMITS)
    ask = desk.ask(principal, estimate=10, predict=90)
    await desk.admit(ask)
    assert await desk.settle(ask, tokens=42, row=ROW) == 1
    assert await desk.slots(principal) == (0, 0)
    assert await desk.leases(principal) == 0
    assert await desk.budgets(principal) == [(42, 0), (42, 0)]
    assert await desk.rows(principal) == {ask.request_id: {"outcome": "ok"}}


async def test_settling_twice_changes_nothing_more(desk: Any) -> None:
    principal = desk.principal(LIMITS, LIMITS)
    ask, other = desk.ask(principal), desk.ask(principal)
    await desk.admit(ask)
    await desk.admit(other)
    await desk.settle(ask, tokens=42, row=ROW)
    assert await desk.settle(ask, tokens=42, row=b'{"outcome":"again"}') == 0
    assert await desk.budgets(principal) == [(42, 100), (42, 100)]
    assert (await desk.rows(principal))[ask.request_id] == {"outcome": "ok"}


async def test_use_beyond_the_reservation_is_charged_in_full(desk: Any) -> None:
    principal = desk.principal(LIMITS)
    ask = desk.ask(principal, estimate=10, predict=90)
    await desk.admit(ask)
    await desk.settle(ask, tokens=130)
    assert await desk.budgets(principal) == [(130, 0), None]


async def test_an_abort_gives_everything_back_and_leaves_the_stub(desk: Any) -> None:
    principal = desk.principal(LIMITS, LIMITS)
    ask = desk.ask(principal)
    await desk.admit(ask)
    assert await desk.settle(ask, abort=True) == 1
    assert await desk.slots(principal) == (0, 0)
    assert await desk.budgets(principal) == [(0, 0), (0, 0)]
    assert (await desk.rows(principal))[ask.request_id]["outcome"] == "abandoned"


async def test_a_settlement_is_charged_to_the_period_that_admitted(desk: Any) -> None:
    limits = Limits(budget_tokens=1000, budget_period="day")
    principal = desk.principal(limits)
    ask = desk.ask(principal)
    late_ms = desk.noon_ms + 43_200_000 - 1
    tomorrow_ms = late_ms + 1000
    await desk.admit(ask, now_ms=late_ms)
    other = desk.ask(principal)
    await desk.admit(other, now_ms=tomorrow_ms)
    await desk.settle(ask, tokens=7, now_ms=tomorrow_ms)
    assert await desk.budgets(principal, late_ms) == [(7, 0), None]
    assert await desk.budgets(principal, tomorrow_ms) == [(0, 100), None]


async def test_after_a_flush_a_settlement_makes_nothing_out_of_nothing(desk: Any) -> None:
    principal = desk.principal(LIMITS, LIMITS)
    ask = desk.ask(principal)
    await desk.admit(ask)
    await desk.redis.command("FLUSHDB")
    assert await desk.settle(ask, tokens=42, row=ROW) == 0
    assert await desk.redis.command("DBSIZE") == 0


async def test_a_lost_counter_is_not_made_by_a_settlement(desk: Any) -> None:
    principal = desk.principal(LIMITS)
    ask = desk.ask(principal)
    await desk.admit(ask)
    await desk.redis.command("DEL", *counters(ask, periods(ask, desk.noon_ms / 1000)))
    assert await desk.settle(ask, tokens=42) == 1
    assert await desk.budgets(principal) == [None, None]
    assert await desk.slots(principal) == (0, 0)


async def test_a_rebuilt_counter_keeps_the_reservations_of_others(desk: Any) -> None:
    principal = desk.principal(LIMITS)
    old, new = desk.ask(principal, estimate=10, predict=90), desk.ask(principal, estimate=10, predict=20)
    await desk.admit(old)
    await desk.redis.command("DEL", *counters(old, periods(old, desk.noon_ms / 1000)))
    await desk.admit(new, seeds=(500, -1))
    await desk.settle(old, tokens=42)
    assert await desk.budgets(principal) == [(542, 30), None]


async def test_a_row_that_postgresql_already_has_is_not_stored_again(desk: Any) -> None:
    principal = desk.principal()
    ask = desk.ask(principal)
    await desk.admit(ask)
    await desk.redis.command("HDEL", keyspace.rows(principal.tenant_id, "one"), ask.request_id)
    assert await desk.settle(ask, row=ROW) == 1
    assert await desk.rows(principal) == {}
