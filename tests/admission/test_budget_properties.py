"""G4 under everything at once: admissions, settlements, aborts and reaps in random order on a real server."""

import random
from typing import Any

import pytest
import trio

from neuronetz.admission import keyspace
from neuronetz.admission.admission import Admission
from neuronetz.admission.reaper import Reaper
from neuronetz.admission.verdict import Admitted
from neuronetz.policy import Limits
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis

TENANT_BUDGET = 4000
KEY_BUDGET = 1500
INSTANCES = ("a", "b", "c")
CLIENTS = 16
REQUESTS = 25


class World:
    """Three instances before one tenant with three keys; ``spent`` is what was settled, by key."""

    def __init__(self, desk: Any, redis: Redis, postgres: Postgres, seed: int) -> None:
        self.desk, self.redis, self.seed = desk, redis, seed
        self.choose = random.Random(seed)
        tenant, key = Limits(budget_tokens=TENANT_BUDGET), Limits(budget_tokens=KEY_BUDGET)
        first = desk.principal(tenant, key)
        self.principals = [first, *(desk.principal(tenant, key, tenant_id=first.tenant_id) for _ in range(2))]
        self.spent = dict.fromkeys((principal.key_id for principal in self.principals), 0)
        self.settled_late = self.reaps = self.observed = self.busy = 0
        self.reapers = {
            name: Reaper(
                redis,
                instance=name,
                admission=Admission(redis, postgres, instance=name, cleanup_timeout_s=5, store_timeout_s=5),
                adopt=lambda rows: None,
                heartbeat_s=5,
                dead_after_s=15,
            )
            for name in INSTANCES
        }

    async def observe(self) -> None:
        for principal in self.principals:
            pairs = zip(await self.desk.budgets(principal), (TENANT_BUDGET, KEY_BUDGET), strict=True)
            for counter, budget in pairs:
                if counter is not None:
                    assert min(counter) >= 0, f"seed {self.seed}: {counter}"
                    assert sum(counter) <= budget, f"seed {self.seed}: {counter} of {budget}"
                    self.busy += counter[1] > 0
        self.observed += 1

    async def watch(self) -> None:
        while True:
            await self.observe()

    async def client(self) -> None:
        for _ in range(REQUESTS):
            await self.request()

    async def request(self) -> None:
        choose, desk = self.choose, self.desk
        principal, instance = choose.choice(self.principals), choose.choice(INSTANCES)
        asked = choose.randint(1, 400)
        ask = desk.ask(
            principal,
            estimate=choose.randint(0, 60),
            predict=asked,
            least=choose.choice((1, asked)),
        )
        end = choose.choice(("settle", "settle", "settle", "twice", "abort", "abort first", "die"))
        if end == "abort first":
            await desk.settle(ask, abort=True, instance=instance)
        outcome = await desk.admit(ask, instance=instance)
        if not isinstance(outcome, Admitted):
            return
        assert end != "abort first", f"seed {self.seed}: admitted after it was given up"
        await trio.sleep(choose.random() * 0.003)
        if end == "die":
            self.reaps += 1
            reaper = self.reapers[choose.choice(INSTANCES)]
            await reaper.reap(instance, await desk.now_ms() + 60_000)
        # Most end small, so that the budget lasts.
        tokens = min(ask.prompt_estimate + choose.randint(0, outcome.predict), choose.choice((0, 5, 20, 500)))
        if end == "abort":
            await desk.settle(ask, abort=True, instance=instance)
            tokens = 0
        ended = await desk.settle(ask, tokens=tokens, instance=instance)
        if ended and end != "abort":
            self.spent[principal.key_id] += tokens
        self.settled_late += not ended
        if end == "twice":
            assert await desk.settle(ask, tokens=tokens, instance=instance) == 0


@pytest.mark.parametrize("seed", range(5))
async def test_used_and_reserved_stay_within_the_budget_whatever_is_settled_aborted_or_reaped(
    desk: Any, redis: Redis, postgres: Postgres, seed: int
) -> None:
    world = World(desk, redis, postgres, seed)
    with trio.fail_after(60):
        async with trio.open_nursery() as watching:
            watching.start_soon(world.watch)
            async with trio.open_nursery() as nursery:
                for _ in range(CLIENTS):
                    nursery.start_soon(world.client)
            watching.cancel_scope.cancel()
    for name in INSTANCES:
        await world.reapers["a"].reap(name, await desk.now_ms() + 60_000)
    for principal in world.principals:
        expected = [(sum(world.spent.values()), 0), (world.spent[principal.key_id], 0)]
        assert await desk.budgets(principal) == expected, f"seed {seed}"
        assert await desk.slots(principal) == (0, 0), f"seed {seed}"
        for name in INSTANCES:
            assert await redis.command("EXISTS", keyspace.leases(principal.tenant_id, name)) == 0, f"seed {seed}"
    # The run was one: things were reserved while it was watched, instances died, settlements came too late.
    assert min(world.observed, world.busy, world.reaps, world.settled_late) > 0, f"seed {seed}"
