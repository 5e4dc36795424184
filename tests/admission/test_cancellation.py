"""G1: a request that is cancelled anywhere holds no slot and no reservation."""

import random
from typing import Any

import trio

from neuronetz.admission.admission import Admission
from neuronetz.policy import Limits

LIMITS = Limits(rpm=100_000, budget_tokens=10_000, concurrency=5)


class CancelAfterSteps(trio.abc.Instrument):
    """Cancels a scope when a task stops running for the n-th time: it is then at its n-th checkpoint."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, steps: int) -> None:
        self.task, self.scope, self.left = task, scope, steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


class Rows:
    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> bytes:
        self.made += 1
        return b'{"outcome":"ok"}'


async def request(desk: Any, admission: Admission, principal: Any) -> tuple[bool, int]:
    """One request as the exchange does it; whether its block was entered, and how many rows were made."""
    ask, rows, entered = desk.ask(principal), Rows(), False
    async with admission.lease(ask, stub=desk.stub(ask), final_row=rows) as lease:
        entered = True
        await trio.lowlevel.checkpoint()
        lease.used(1, 2)
        await trio.lowlevel.checkpoint()
    return entered, rows.made


async def nothing_is_held(desk: Any, admission: Admission, principal: Any) -> None:
    assert admission.held == 0
    assert not admission.unsettled
    assert await desk.slots(principal) == (0, 0)
    assert await desk.leases(principal) == 0
    for counter in await desk.budgets(principal, await desk.now_ms()):
        assert counter is None or counter[1] == 0


async def test_a_cancellation_at_any_checkpoint_leaves_no_slot_and_no_reservation(
    desk: Any, admission: Admission
) -> None:
    cancelled = 0
    for steps in range(1, 200):
        # A tenant of its own each time, so that registering and seeding are cancelled too.
        principal = desk.principal(LIMITS, LIMITS)
        with trio.CancelScope() as scope:
            instrument = CancelAfterSteps(trio.lowlevel.current_task(), scope, steps)
            trio.lowlevel.add_instrument(instrument)
            try:
                await request(desk, admission, principal)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await nothing_is_held(desk, admission, principal)
        cancelled += scope.cancelled_caught
        if instrument.left > 0:
            break
    else:
        raise AssertionError("the request never ran to its end")
    assert cancelled >= 5


async def test_a_cancellation_during_the_admission_surfaces_in_the_block(desk: Any, admission: Admission) -> None:
    principal = desk.principal(LIMITS)
    await request(desk, admission, principal)
    rows, entered = Rows(), False
    ask = desk.ask(principal)
    with trio.CancelScope() as scope:
        # The first stop is the wait for Redis's reply to the admission: nothing awaits before it.
        instrument = CancelAfterSteps(trio.lowlevel.current_task(), scope, 1)
        trio.lowlevel.add_instrument(instrument)
        try:
            async with admission.lease(ask, stub=desk.stub(ask), final_row=rows):
                entered = True
                await trio.lowlevel.checkpoint()
                raise AssertionError("not cancelled")
        finally:
            trio.lowlevel.remove_instrument(instrument)
    assert scope.cancelled_caught
    assert entered
    assert rows.made == 1
    assert (await desk.rows(principal))[ask.request_id] == {"outcome": "ok"}
    await nothing_is_held(desk, admission, principal)


async def test_a_client_that_is_gone_already_costs_nothing(desk: Any, admission: Admission) -> None:
    principal = desk.principal(Limits(rpm=2))
    await request(desk, admission, principal)
    with trio.CancelScope() as scope:
        scope.cancel()
        await request(desk, admission, principal)
    assert scope.cancelled_caught
    await request(desk, admission, principal)


async def test_requests_cancelled_at_random_moments_leave_nothing(desk: Any, admission: Admission) -> None:
    choose = random.Random(7)
    principal = desk.principal(LIMITS, LIMITS)
    deadlines = [choose.uniform(0, 0.01) for _ in range(100)]

    async def client(after_s: float) -> None:
        with trio.move_on_after(after_s):
            await request(desk, admission, roomy)

    roomy = desk.principal(tenant_id=principal.tenant_id, key_id=principal.key_id)
    async with trio.open_nursery() as nursery:
        for after_s in deadlines:
            nursery.start_soon(client, after_s)
    await nothing_is_held(desk, admission, roomy)
