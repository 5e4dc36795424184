"""The admit script: all or nothing (G5), in the order rate, budget, concurrency; budgets (G4)."""

from typing import Any

import pytest

from neuronetz.admission import keyspace
from neuronetz.admission.command import periods
from neuronetz.admission.verdict import Aborted, Admitted, OutsidePeriod, Refused, SeedNeeded
from neuronetz.policy import Limits

AT_LIMIT = {"rate": {"rpm": 1}, "reserved": {"budget_tokens": 100}, "concurrency": {"concurrency": 1}}
DAY_S = 86_400


async def state(desk: Any, principal: Any) -> list[Any]:
    """All that a request can consume, as Redis has it."""
    windows = []
    for window in (
        keyspace.rpm(principal.tenant_id),
        keyspace.rpm(principal.tenant_id, principal.key_id),
    ):
        windows.append(await desk.redis.command("HGET", window, "sum"))
    return [*windows, await desk.slots(principal), await desk.leases(principal), await desk.budgets(principal)]


@pytest.mark.parametrize("scope", ["tenant", "key"])
@pytest.mark.parametrize(
    ("limit", "outcome"),
    [("rate", "rate_limited"), ("reserved", "budget_exhausted"), ("concurrency", "concurrency_limited")],
)
async def test_a_refused_request_consumed_nothing_and_left_its_row(
    desk: Any, scope: str, limit: str, outcome: str
) -> None:
    # Every limit exists in both scopes, with room; one of them is full after one request.
    room = {"rpm": 50, "budget_tokens": 5000, "concurrency": 50}
    full = Limits(**{**room, **AT_LIMIT[limit]})
    roomy = Limits(**room)
    principal = desk.principal(*((full, roomy) if scope == "tenant" else (roomy, full)))
    assert isinstance(await desk.admit(desk.ask(principal)), Admitted)
    before = await state(desk, principal)

    ask = desk.ask(principal)
    refused = await desk.admit(ask)

    assert isinstance(refused, Refused)
    assert (refused.limit, refused.scope) == (limit, scope)
    assert await state(desk, principal) == before
    row = (await desk.rows(principal))[ask.request_id]
    assert (row["outcome"], row["status"], row["model"]) == (outcome, 429, None)


async def test_refusals_come_in_the_order_rate_budget_concurrency_and_tenant_before_key(desk: Any) -> None:
    everything = {"rpm": 1, "budget_tokens": 100, "concurrency": 1}
    one = desk.principal(Limits(**everything), Limits(**everything))
    await desk.admit(desk.ask(one))
    seen = []
    for limits in (
        (Limits(**everything), Limits(**everything)),
        (Limits(rpm=9, budget_tokens=100, concurrency=1), Limits(**everything)),
        (Limits(rpm=9, budget_tokens=100, concurrency=1), Limits(rpm=9, budget_tokens=100, concurrency=1)),
        (Limits(rpm=9, budget_tokens=999, concurrency=1), Limits(rpm=9, budget_tokens=100, concurrency=1)),
        (Limits(rpm=9, budget_tokens=999, concurrency=1), Limits(rpm=9, budget_tokens=999, concurrency=1)),
        (Limits(rpm=9, budget_tokens=999, concurrency=9), Limits(rpm=9, budget_tokens=999, concurrency=1)),
    ):
        again = desk.principal(*limits, tenant_id=one.tenant_id, key_id=one.key_id)
        refused = await desk.admit(desk.ask(again))
        seen.append((refused.limit, refused.scope))
    assert seen == [
        ("rate", "tenant"),
        ("rate", "key"),
        ("reserved", "tenant"),
        ("reserved", "key"),
        ("concurrency", "tenant"),
        ("concurrency", "key"),
    ]


async def test_a_read_counts_against_the_rate_alone(desk: Any) -> None:
    limits = Limits(rpm=5, budget_tokens=0, concurrency=1)
    principal = desk.principal(limits, limits)
    for _ in range(2):
        assert isinstance(await desk.admit(desk.ask(principal, slot=False)), Admitted)
    assert await desk.slots(principal) == (0, 0)
    assert await desk.budgets(principal) == [None, None]
    assert await desk.leases(principal) == 2
    assert len(await desk.rows(principal)) == 2


async def test_a_read_is_told_what_is_left_of_the_budgets_and_takes_nothing_of_them(desk: Any) -> None:
    principal = desk.principal(Limits(budget_tokens=1000), Limits(budget_tokens=100))
    read = desk.ask(principal, slot=False)
    # No counter is there yet: a read makes none, and waits for no ledger.
    assert (await desk.admit(read, seeds=(-1, -1))).left.tokens == (None, None)
    running = desk.ask(principal, estimate=10, predict=90)
    await desk.admit(running)
    told = [await desk.admit(desk.ask(principal, slot=False))]
    await desk.settle(running, tokens=100)
    told.append(await desk.admit(desk.ask(principal, slot=False)))
    assert [(type(each), each.left.tokens) for each in told] == [(Admitted, (900, 0))] * 2
    assert await desk.budgets(principal) == [(100, 0), (100, 0)]
    # A period's end between the caller's clock and Redis's refuses no read either.
    late = await desk.admit(desk.ask(principal, slot=False), when=periods(read, desk.noon_ms / 1000 - 40 * DAY_S))
    assert (type(late), late.left.tokens) == (Admitted, (None, None))


async def test_without_limits_a_request_still_leaves_its_lease_and_row(desk: Any) -> None:
    principal = desk.principal()
    ask = desk.ask(principal, predict=12_345)
    outcome = await desk.admit(ask)
    assert outcome.predict == 12_345
    assert await desk.slots(principal) == (1, 1)
    assert await desk.leases(principal) == 1
    assert (await desk.rows(principal))[ask.request_id]["outcome"] == "abandoned"


@pytest.mark.parametrize(
    ("tenant_left", "key_left", "granted"),
    [
        (1000, None, 90),
        (100, None, 90),
        (60, None, 50),
        (1000, 60, 50),
        (30, 60, 20),
        (15, None, 5),
        (14, None, None),
        (1000, 14, None),
        (0, None, None),
    ],
)
async def test_the_grant_is_what_both_budgets_leave_but_never_less_than_the_least(
    desk: Any, tenant_left: int, key_left: int | None, granted: int | None
) -> None:
    principal = desk.principal(Limits(budget_tokens=tenant_left), Limits(budget_tokens=key_left))
    outcome = await desk.admit(desk.ask(principal, estimate=10, predict=90, least=5))
    if granted is None:
        assert isinstance(outcome, Refused)
        assert outcome.limit == "budget"
    else:
        assert outcome.predict == granted
        assert (await desk.budgets(principal))[0] == (0, 10 + granted)
        assert outcome.left.tokens[0] == tenant_left - 10 - granted


async def test_an_exhausted_budget_refuses_what_costs_nothing_too(desk: Any) -> None:
    principal = desk.principal(Limits(budget_tokens=50))
    await desk.admit(desk.ask(principal, estimate=10, predict=40))
    assert isinstance(await desk.admit(desk.ask(principal, estimate=0, predict=0, least=0)), Refused)


async def test_an_exhausted_budget_comes_back_when_its_period_ends(desk: Any) -> None:
    principal = desk.principal(Limits(budget_tokens=50, budget_period="day"))
    spent = desk.ask(principal)
    await desk.admit(spent)
    await desk.settle(spent, tokens=50)
    refused = await desk.admit(desk.ask(principal))
    assert (refused.limit, refused.retry_after_s) == ("budget", DAY_S / 2)
    tomorrow = desk.noon_ms + DAY_S * 500
    assert isinstance(await desk.admit(desk.ask(principal), now_ms=tomorrow - 1), Refused)
    assert isinstance(await desk.admit(desk.ask(principal), now_ms=tomorrow), Admitted)


async def test_what_running_requests_have_reserved_is_not_spent(desk: Any) -> None:
    principal = desk.principal(Limits(budget_tokens=100), Limits(budget_tokens=1000))
    running, again = desk.ask(principal), desk.ask(principal)
    await desk.admit(running)
    refused = await desk.admit(again)
    assert (refused.limit, refused.scope, refused.retry_after_s) == ("reserved", "tenant", 1.0)
    await desk.settle(running, tokens=5)
    assert (await desk.admit(again)).predict == 85


async def test_a_budget_that_is_spent_is_named_before_one_that_is_reserved(desk: Any) -> None:
    principal = desk.principal(Limits(budget_tokens=100), Limits(budget_tokens=1000))
    await desk.admit(desk.ask(principal))
    poor = desk.principal(Limits(budget_tokens=100), Limits(budget_tokens=10), tenant_id=principal.tenant_id)
    refused = await desk.admit(desk.ask(poor))
    assert (refused.limit, refused.scope) == ("budget", "key")


async def test_an_admission_that_is_repeated_counts_once_and_answers_the_same(desk: Any) -> None:
    limits = Limits(rpm=5, budget_tokens=60, concurrency=1)
    principal = desk.principal(limits, limits)
    ask = desk.ask(principal)
    first = await desk.admit(ask)
    before = await state(desk, principal)
    again = await desk.admit(ask, now_ms=desk.noon_ms + 5000)
    assert (again.predict, again.now_s) == (first.predict, first.now_s) == (50, desk.noon_ms / 1000)
    assert await state(desk, principal) == before


async def test_a_missing_counter_is_asked_for_by_name_and_nothing_is_taken(desk: Any) -> None:
    tenant_only = desk.principal(Limits(budget_tokens=100))
    both = desk.principal(Limits(budget_tokens=100), Limits(budget_tokens=100))
    unread = (-1, -1)
    first = await desk.admit(desk.ask(tenant_only), seeds=unread)
    assert first == SeedNeeded(desk.noon_ms / 1000, tenant=True, key=False)
    assert await desk.admit(desk.ask(both), seeds=unread) == SeedNeeded(desk.noon_ms / 1000, True, True)
    assert await desk.leases(both) == 0
    await desk.admit(desk.ask(both), seeds=(30, -1))
    assert await desk.budgets(both) == [(30, 0), None]
    assert await desk.admit(desk.ask(both), seeds=unread) == SeedNeeded(desk.noon_ms / 1000, False, True)
    await desk.admit(desk.ask(both, estimate=10, predict=20), seeds=(-1, 20))
    assert await desk.budgets(both) == [(30, 30), (20, 30)]


async def test_the_rate_refuses_before_the_ledger_need_be_read(desk: Any) -> None:
    principal = desk.principal(Limits(rpm=1, budget_tokens=100))
    await desk.admit(desk.ask(principal, slot=False))
    refused = await desk.admit(desk.ask(principal), seeds=(-1, -1))
    assert refused.limit == "rate"
    assert refused.left.tokens == (None, None)


async def test_a_seed_never_replaces_a_counter_that_is_there(desk: Any) -> None:
    principal = desk.principal(Limits(budget_tokens=1000))
    await desk.admit(desk.ask(principal, estimate=10, predict=90), seeds=(500, -1))
    await desk.admit(desk.ask(principal, estimate=10, predict=90), seeds=(0, -1))
    assert await desk.budgets(principal) == [(500, 200), None]


async def test_a_counter_expires_two_days_after_its_period(desk: Any) -> None:
    principal = desk.principal(Limits(budget_tokens=1000, budget_period="day"))
    await desk.admit(desk.ask(principal))
    noon_s = desk.noon_ms // 1000
    counter = keyspace.budget(principal.tenant_id, None, "day", noon_s - DAY_S // 2)
    assert 0 <= DAY_S * 5 // 2 - await desk.redis.command("TTL", counter) <= 2


@pytest.mark.parametrize("scope", ["tenant", "key"])
async def test_a_period_that_does_not_hold_now_is_sent_back_with_the_servers_time(desk: Any, scope: str) -> None:
    limits = Limits(budget_tokens=1000, budget_period="day")
    principal = desk.principal(*((limits, Limits()) if scope == "tenant" else (Limits(), limits)))
    ask = desk.ask(principal)
    for wrong_by_s in (-DAY_S, DAY_S):
        when = periods(ask, desk.noon_ms / 1000 + wrong_by_s)
        assert await desk.admit(ask, when=when) == OutsidePeriod(desk.noon_ms / 1000)
    assert await desk.leases(principal) == 0


async def test_an_admission_that_arrives_after_its_abort_is_refused(desk: Any) -> None:
    principal = desk.principal(Limits(rpm=5, budget_tokens=1000, concurrency=1))
    ask = desk.ask(principal)
    assert await desk.settle(ask, abort=True) == 0
    assert await desk.admit(ask) == Aborted(desk.noon_ms / 1000)
    assert await state(desk, principal) == [None, None, (0, 0), 0, [None, None]]
    tombstone = keyspace.aborted(principal.tenant_id, ask.request_id)
    assert 100 < await desk.redis.command("TTL", tombstone) <= 120


async def test_the_servers_time_is_used_unless_told(desk: Any) -> None:
    before = await desk.now_ms()
    ask = desk.ask(desk.principal())
    outcome = await desk.admit(ask, now_ms=0, when=periods(ask, before / 1000))
    assert before / 1000 <= outcome.now_s <= await desk.now_ms() / 1000
