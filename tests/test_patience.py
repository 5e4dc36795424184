"""The tests' own measure of time: what the process does counts, and a machine that stands still does not."""

import time

import pytest
import trio

from tests.patience import Patience, until


async def test_what_the_process_computes_counts_and_a_stall_of_the_machine_does_not() -> None:
    async def compute() -> None:
        done = time.process_time() + 0.2
        while time.process_time() < done:
            pass

    async def stand_still() -> None:
        time.sleep(0.3)  # noqa: ASYNC251 - as if the machine had

    took: list[float] = []
    for holds_up in (compute, stand_still):
        patience = Patience()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holds_up)
            await patience.nap()
        took.append(patience.took)
    assert took[0] >= 0.2
    assert took[1] < 0.2


async def test_what_is_waited_for_between_two_naps_counts_in_full() -> None:
    patience = Patience()
    await patience.nap()
    await trio.sleep(0.1)
    await patience.nap()
    assert 0.1 <= patience.took < 1.0


async def test_a_wait_that_is_too_long_fails_and_naps_are_counted_in_full() -> None:
    began = trio.current_time()
    with pytest.raises(AssertionError, match="bound"):
        await until(lambda: False, 0.2)
    assert trio.current_time() - began >= 0.2
