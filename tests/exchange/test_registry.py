"""The registry of running exchanges: who is cut, and why."""

import pytest
import trio
import trio.testing

from neuronetz.errors import ClientDisconnected, DeadlineExceeded, KeyRevoked, ShuttingDown
from neuronetz.exchange.registry import Registry


async def test_revoking_a_key_cuts_its_exchanges_and_no_others() -> None:
    registry = Registry()
    with (
        registry.track("mine", trio.current_time() + 9) as mine,
        registry.track("other", trio.current_time() + 9) as other,
    ):
        registry.revoke("mine")
        assert mine.scope.cancel_called
        assert isinstance(mine.reason(), KeyRevoked)
        assert not other.scope.cancel_called


async def test_an_exchange_that_begins_after_its_keys_revocation_is_cut_at_once() -> None:
    registry = Registry()
    registry.revoke("late")
    with registry.track("late", trio.current_time() + 9) as running:
        assert running.scope.cancel_called


async def test_an_exchange_that_is_over_is_not_torn_while_it_tells_its_client() -> None:
    registry = Registry()
    with registry.track("k", trio.current_time() + 9) as running:
        running.over = True
        registry.revoke("k")
        registry.stop_all()
        assert not running.scope.cancel_called
        # Unless nobody is there to be told.
        running.stop(ClientDisconnected())
        assert running.scope.cancel_called


async def test_the_first_reason_counts() -> None:
    registry = Registry()
    with registry.track("k", trio.current_time() + 9) as running:
        running.stop(ClientDisconnected())
        registry.stop_all()
        assert isinstance(running.reason(), ClientDisconnected)


async def test_a_passed_deadline_is_the_reason_where_nobody_stopped_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    registry = Registry()
    with registry.track("k", trio.current_time() + 5) as running:
        with running.scope:
            await trio.sleep_forever()
        assert isinstance(running.reason(), DeadlineExceeded)


async def test_a_cancellation_from_outside_is_a_shutdown() -> None:
    registry = Registry()
    with registry.track("k", trio.current_time() + 5) as running:
        assert isinstance(running.reason(), ShuttingDown)


async def test_waiting_for_idle_ends_when_the_last_exchange_ends(autojump_clock: trio.testing.MockClock) -> None:
    registry = Registry()

    async def exchange(seconds: float) -> None:
        with registry.track("k", trio.current_time() + 99):
            await trio.sleep(seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange, 1)
        nursery.start_soon(exchange, 3)
        await trio.testing.wait_all_tasks_blocked()
        assert len(registry) == 2
        began = trio.current_time()
        await registry.wait_idle()
        assert trio.current_time() - began == pytest.approx(3)
    assert len(registry) == 0
