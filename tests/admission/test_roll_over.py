"""Budgets roll over at UTC's midnight, Monday and first of the month, with requests in flight."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio

from neuronetz.admission import command, keyspace, period, verdict
from neuronetz.admission.admission import Admission
from neuronetz.admission.verdict import Admitted, OutsidePeriod, Refused
from neuronetz.errors import BudgetExhausted, BudgetReserved
from neuronetz.policy import Limits
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis

ENDS = {
    "day": datetime(2026, 9, 24, tzinfo=UTC),
    "week": datetime(2026, 9, 28, tzinfo=UTC),
    "month": datetime(2026, 10, 1, tzinfo=UTC),
}


def end_ms(kind: str) -> int:
    return int(ENDS[kind].timestamp()) * 1000


async def spent(desk: Any, principal: Any, kind: Any, at_ms: int) -> tuple[int, int] | None:
    start, _ = period.bounds(kind, at_ms / 1000)
    fields = await desk.redis.command(
        "HMGET", keyspace.budget(principal.tenant_id, None, kind, start), "used", "reserved"
    )
    return None if fields[0] is None else (int(fields[0]), int(fields[1]))


@pytest.mark.parametrize("kind", ["day", "week", "month"])
async def test_a_spent_budget_is_whole_again_in_the_first_millisecond_of_the_next_period(
    desk: Any, kind: Any
) -> None:
    limits = Limits(budget_tokens=100, budget_period=kind)
    principal, end = desk.principal(limits), end_ms(kind)
    first = desk.ask(principal)
    await desk.admit(first, now_ms=end - 5000)
    await desk.settle(first, tokens=100, now_ms=end - 4000)
    refused = await desk.admit(desk.ask(principal), now_ms=end - 1)
    assert isinstance(refused, Refused)
    assert (refused.limit, refused.retry_after_s) == ("budget", 0.001)
    admitted = await desk.admit(desk.ask(principal), now_ms=end)
    assert isinstance(admitted, Admitted)
    assert admitted.left.tokens == (0, None)
    assert await spent(desk, principal, kind, end - 1) == (100, 0)
    assert await spent(desk, principal, kind, end) == (0, 100)


@pytest.mark.parametrize("kind", ["day", "week", "month"])
async def test_the_token_headers_count_down_to_the_period_s_end_and_start_anew(desk: Any, kind: Any) -> None:
    limits = Limits(budget_tokens=1000, budget_period=kind)
    principal, end = desk.principal(limits), end_ms(kind)
    seen = []
    for at in (end - 61_500, end - 500, end):
        ask = desk.ask(principal)
        outcome = await desk.admit(ask, now_ms=at)
        seen.append(verdict.headers(outcome, ask.limits, command.periods(ask, at / 1000).ends))
    length_s = period.bounds(kind, end / 1000)[1] - end // 1000
    assert [headers["x-ratelimit-remaining-tokens"] for headers in seen] == ["900", "800", "900"]
    assert [headers["x-ratelimit-reset-tokens"] for headers in seen] == ["62s", "1s", f"{length_s}s"]
    assert {headers["x-ratelimit-limit-tokens"] for headers in seen} == {"1000"}


async def test_an_instance_whose_clock_is_behind_asks_again_for_the_new_period(desk: Any) -> None:
    principal, end = desk.principal(Limits(budget_tokens=100, budget_period="day")), end_ms("day")
    ask = desk.ask(principal)
    behind = command.periods(ask, end / 1000 - 1)
    assert await desk.admit(ask, now_ms=end, when=behind) == OutsidePeriod(end / 1000)
    assert await spent(desk, principal, "day", end) is None


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["day", "week", "month"])
async def test_under_load_each_period_pays_for_what_it_admitted_and_for_no_more_than_its_budget(
    desk: Any, kind: Any, seed: int
) -> None:
    choose = random.Random(seed)
    budget = 2000
    principal, end = desk.principal(Limits(budget_tokens=budget, budget_period=kind)), end_ms(kind)
    paid = {False: 0, True: 0}
    admitted = {False: 0, True: 0}
    across = 0
    # The time that passes: from half a second before the end to half a second behind it.
    now = end - 500

    async def tick() -> None:
        nonlocal now
        while now < end + 500:
            await trio.sleep(0.001)
            now += 5

    async def client() -> None:
        nonlocal across
        while now < end + 500:
            at = now
            ask = desk.ask(principal, estimate=5, predict=choose.randint(1, 80))
            outcome = await desk.admit(ask, now_ms=at)
            for moment in (end - 1, end):
                counter = await spent(desk, principal, kind, moment)
                assert counter is None or sum(counter) <= budget, f"seed {seed}"
            if isinstance(outcome, Admitted):
                await trio.sleep(choose.random() * 0.05)
                tokens = choose.randint(0, 5)
                await desk.settle(ask, tokens=tokens, now_ms=now)
                paid[at >= end] += tokens
                admitted[at >= end] += 1
                across += at < end <= now

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            for _ in range(12):
                nursery.start_soon(client)
    assert await spent(desk, principal, kind, end - 1) == (paid[False], 0), f"seed {seed}"
    assert await spent(desk, principal, kind, end) == (paid[True], 0), f"seed {seed}"
    assert min(across, *admitted.values()) > 0, f"seed {seed}"


@pytest.mark.parametrize(("left_s", "retry_after"), [(119.5, 120.0), (120.5, None), (0.2, 1.0)])
async def test_retry_after_is_told_only_where_the_next_period_is_near(
    desk: Any, redis: Redis, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, left_s: float, retry_after: Any
) -> None:
    # The server's time is given to the script, as its argument for tests is.
    now_ms = end_ms("day") - int(left_s * 1000)
    monkeypatch.setattr("neuronetz.admission.admission.command.admit_arguments", _at(now_ms))
    admission = Admission(
        redis, postgres, instance="one", cleanup_timeout_s=2, store_timeout_s=2, clock=lambda: now_ms / 1000
    )
    principal = desk.principal(Limits(budget_tokens=0, budget_period="day"))
    ask = desk.ask(principal)
    with pytest.raises(BudgetExhausted) as caught:
        async with admission.lease(ask, stub=desk.stub(ask), final_row=lambda: b""):
            pytest.fail("admitted")
    assert caught.value.retry_after == retry_after
    assert caught.value.retryable is False


async def test_a_budget_that_running_requests_hold_is_worth_a_retry_at_once(
    desk: Any, admission: Admission
) -> None:
    principal = desk.principal(Limits(budget_tokens=100))
    running, ask = desk.ask(principal), desk.ask(principal)
    async with admission.lease(running, stub=desk.stub(running), final_row=lambda: b""):
        with pytest.raises(BudgetReserved) as caught:
            async with admission.lease(ask, stub=desk.stub(ask), final_row=lambda: b""):
                pytest.fail("admitted")
    assert (caught.value.retry_after, caught.value.retryable) == (1.0, True)
    async with admission.lease(ask, stub=desk.stub(ask), final_row=lambda: b""):
        pass


def _at(now_ms: int) -> Any:
    arguments = command.admit_arguments

    def made(*args: Any, **kwargs: Any) -> Any:
        return arguments(*args, **kwargs, now_ms=now_ms)

    return made


@pytest.mark.parametrize("kind", ["day", "week", "month"])
async def test_the_ledger_of_a_new_period_is_empty(postgres: Postgres, desk: Any, charge: Any, kind: Any) -> None:
    from neuronetz.admission.ledger import used

    principal = desk.principal()
    last = ENDS[kind].date() - timedelta(days=1)
    await charge(principal, last, 3, 4)
    before, behind = (period.bounds(kind, end_ms(kind) / 1000 + offset) for offset in (-1, 0))
    assert await used(postgres, principal.tenant_id, None, *before) == 7
    assert await used(postgres, principal.tenant_id, None, *behind) == 0
