"""G5, the rate: never more than N in any 60 seconds."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuronetz.admission import keyspace
from neuronetz.admission.verdict import Admitted, Refused
from neuronetz.policy import Limits

AtDesk = Callable[..., None]

examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
gaps_ms = st.one_of(st.integers(0, 1500), st.integers(0, 20_000), st.integers(55_000, 130_000))


@examples
@given(limit=st.integers(1, 5), gaps=st.lists(gaps_ms, min_size=1, max_size=40))
def test_never_more_than_n_in_any_60_seconds_and_none_refused_without_need(
    at_desk: AtDesk, limit: int, gaps: list[int]
) -> None:
    at_desk(_check_against_the_model, limit, gaps)


async def _check_against_the_model(desk: Any, limit: int, gaps: list[int]) -> None:
    principal = desk.principal(Limits(rpm=limit))
    now_ms, admitted = desk.noon_ms, []
    for gap in gaps:
        now_ms += gap
        counted = [at for at in admitted if at // 1000 >= now_ms // 1000 - 60]
        outcome = await desk.admit(desk.ask(principal, slot=False), now_ms=now_ms)
        # The window is exact to the second, on the strict side.
        assert isinstance(outcome, Admitted) == (len(counted) < limit)
        if isinstance(outcome, Admitted):
            admitted.append(now_ms)
            assert outcome.left.requests[0] == limit - len(counted) - 1
        else:
            assert (await desk.admit(desk.ask(principal, slot=False), now_ms=now_ms)).limit == "rate"
    for at in admitted:
        assert sum(at - 60_000 <= other <= at for other in admitted) <= limit


@examples
@given(
    limit=st.integers(1, 4),
    steps=st.lists(
        st.tuples(gaps_ms, st.one_of(st.just(0), st.just(0), st.integers(0, 5000), st.integers(0, 4_000_000))),
        max_size=40,
    ),
)
def test_a_clock_that_is_set_back_lets_nobody_through_and_shuts_nobody_out(
    at_desk: AtDesk, limit: int, steps: list[tuple[int, int]]
) -> None:
    at_desk(_check_in_real_time, limit, steps)


async def _check_in_real_time(desk: Any, limit: int, steps: list[tuple[int, int]]) -> None:
    principal = desk.principal(Limits(rpm=limit))
    real_ms, clock_ms, admitted = 0, desk.noon_ms, []
    for gap, back in steps:
        real_ms += gap
        clock_ms += gap - back
        if isinstance(await desk.admit(desk.ask(principal, slot=False), now_ms=clock_ms), Admitted):
            admitted.append(real_ms)
    for at in admitted:
        assert sum(at - 60_000 <= other <= at for other in admitted) <= limit
    quiet = await desk.admit(desk.ask(principal, slot=False), now_ms=clock_ms + 122_000)
    assert isinstance(quiet, Admitted)


async def test_after_61_quiet_seconds_the_whole_limit_is_there_again(desk: Any) -> None:
    principal = desk.principal(Limits(rpm=3))
    for _ in range(3):
        await desk.admit(desk.ask(principal, slot=False))
    outcome = await desk.admit(desk.ask(principal, slot=False), now_ms=desk.noon_ms + 61_000)
    assert outcome.left.requests[0] == 2


async def test_retry_after_names_the_moment_at_which_one_more_fits(desk: Any) -> None:
    principal = desk.principal(Limits(rpm=2))
    await desk.admit(desk.ask(principal, slot=False), now_ms=desk.noon_ms)
    await desk.admit(desk.ask(principal, slot=False), now_ms=desk.noon_ms + 30_250)
    refused = await desk.admit(desk.ask(principal, slot=False), now_ms=desk.noon_ms + 40_500)
    assert isinstance(refused, Refused)
    assert refused.retry_after_s == 20.5
    assert refused.left.requests_reset_s[0] == 50.5
    then = desk.noon_ms + 40_500 + 20_500
    assert isinstance(await desk.admit(desk.ask(principal, slot=False), now_ms=then - 1), Refused)
    assert isinstance(await desk.admit(desk.ask(principal, slot=False), now_ms=then), Admitted)


async def test_retry_after_waits_for_as_many_as_a_lowered_limit_needs(desk: Any) -> None:
    generous = desk.principal(Limits(rpm=3))
    for second in (0, 10, 20):
        await desk.admit(desk.ask(generous, slot=False), now_ms=desk.noon_ms + second * 1000)
    strict = desk.principal(Limits(rpm=1), tenant_id=generous.tenant_id)
    refused = await desk.admit(desk.ask(strict, slot=False), now_ms=desk.noon_ms + 30_000)
    assert refused.retry_after_s == 51.0


async def test_the_key_has_a_window_of_its_own_beside_the_tenants(desk: Any) -> None:
    tenant_limits, key_limits = Limits(rpm=3), Limits(rpm=2)
    one = desk.principal(tenant_limits, key_limits)
    two = desk.principal(tenant_limits, key_limits, tenant_id=one.tenant_id)
    for _ in range(2):
        assert isinstance(await desk.admit(desk.ask(one, slot=False)), Admitted)
    by_key = await desk.admit(desk.ask(one, slot=False))
    assert (by_key.limit, by_key.scope) == ("rate", "key")
    assert isinstance(await desk.admit(desk.ask(two, slot=False)), Admitted)
    by_tenant = await desk.admit(desk.ask(two, slot=False))
    assert (by_tenant.limit, by_tenant.scope) == ("rate", "tenant")


@pytest.mark.parametrize("quiet_s", [61, 3600])
async def test_a_window_keeps_no_seconds_that_fell_out(desk: Any, quiet_s: int) -> None:
    principal = desk.principal(Limits(rpm=1000))
    for second in range(70):
        await desk.admit(desk.ask(principal, slot=False), now_ms=desk.noon_ms + second * 1000)
    window = keyspace.rpm(principal.tenant_id)
    state = 3
    assert await desk.redis.command("HLEN", window) == 61 + state
    assert 60 < await desk.redis.command("TTL", window) <= 120
    await desk.admit(desk.ask(principal, slot=False), now_ms=desk.noon_ms + (69 + quiet_s) * 1000)
    assert await desk.redis.command("HLEN", window) == 1 + state
