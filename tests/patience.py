"""Bounds on what gateway and mock do, in the time that the machine lets them run: both live in the test's process."""

import time
from collections.abc import Callable

import trio

# A nap that is no longer than this (seconds) is a nap, whoever had the processor meanwhile.
_NAP_S = 0.02


class Patience:
    """How long (seconds) something has taken, without the time in which this process did not get a processor.

    A machine that is shared stands still for a tenth of a second now and then. Trio then finds the deadline
    and what should have come before it due in one and the same turn, and tells of the deadline. What the process
    itself computes, and what others take to answer it, counts.
    """

    def __init__(self) -> None:
        self.took = 0.0
        self._counted_until = trio.current_time()

    async def nap(self, seconds: float = 0.002) -> None:
        """Sleep. All that was done since the last nap, or the start, counts in full, whoever was waited for."""
        lies_down, used = trio.current_time(), time.process_time()
        await trio.sleep(seconds)
        gets_up, used = trio.current_time(), time.process_time() - used
        self.took += lies_down - self._counted_until + min(gets_up - lies_down, max(_NAP_S, seconds) + used)
        self._counted_until = gets_up


async def until(condition: Callable[[], bool], within_s: float) -> float:
    """Wait for the condition; return how long it took; fail when it takes longer than it may."""
    patience = Patience()
    while not condition():
        assert patience.took < within_s, "not within the bound"
        await patience.nap()
    return patience.took
