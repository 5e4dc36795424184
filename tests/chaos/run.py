"""One run of chaos: clients of all kinds and disasters of all kinds, then peace, then the reckoning.

**What is drawn from the seed**: what each client asks and how it behaves, and which disasters come, in which order,
how long each lasts. When a process gets to run is the machine's; so a seed repeats the same mischief, not the same
instants.

**What must hold**, and within which bound:

- Peace: ``peace.QUIET_WITHIN_S`` after the last disaster and the last client, no slot, lease, reservation or copy of a row
  is left in Redis, the mock is at no request, every gateway and worker beats and no other is listed, Redis's
  budget counters say what the ledger says. Every gateway serves, and refuses each revoked key.
- Rows: each reply with an ``x-request-id`` belongs to exactly one row of the client's own address, unless a gateway
  logged that it refused a stranger; a refusal that was read whole has its row's status. No request id has two rows.
  Each client has at most as many rows as it sent requests; rows that no reply told of exist only for clients that
  left, or whose connection was cut. The ledger is the sum of the rows, by key and day.
- Slots: in every look at Redis (``samples.EVERY_S``) a key and a tenant hold at most N slots, whatever is killed or
  frozen meanwhile. The mock, too, is never at more than N requests of a key or tenant: a killed process's
  connections are closed by the system, and its leases stay until they are reaped. It is otherwise with a process
  that stands still for longer than ``DEAD_AFTER_S`` less a heartbeat: its leases are reaped while its streams
  are open, so those do not count from then on.
- Rates: in every look the window's sum is at most N; and no window of 60 s has more than N rows that were admitted
  and ended in it. (A row does not say when it was admitted: those that straddle the edge are not counted.)
- Budgets: in every look used + reserved is at most the budget, and so is the ledger in the end. The prompts here are
  such that the estimate is no less than what the mock counts, so there is no error to allow for. What is allowed for
  are the tokens of requests of a process that stood still for so long that its reservations may have been given
  back: it goes on with its streams when it comes back.
- Every stream of a revoked key ends; no client waits longer than ``clients.PATIENCE_S``.
- SIGTERM ends a gateway with status 0. No log has a traceback, a prompt, a key or the upstream's own text. The
  memory of gateway 0, which is frozen but never killed, grows by less than ``MEMORY_GROWS_BYTES``.

**What cannot be known**: whether a client that heard nothing was authenticated (it has a row or none); what a row of
outcome ``abandoned`` would have said, since its process was killed or thought dead, so a client may have read a whole
reply for it. A 503 for Redis's absence, from a process that is then killed, may have no row: nothing but the
process had it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import trio

from tests.chaos.clients import CUSTOMERS, Crowd
from tests.chaos.disasters import Disasters
from tests.chaos.peace import rest, spent
from tests.chaos.reckoning import Reckoning
from tests.chaos.samples import Samples
from tests.chaos.world import World, open_world

MEMORY_GROWS_BYTES = 96 * 1024 * 1024
# While modules are still being loaded and pools filled.
WARM_AFTER_S = 4.0


@dataclass
class Report:
    """``figures`` of the run by name, and its ``problems``: none where all held."""

    seed: int
    figures: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        return "  ".join([*(f"{name} {value}" for name, value in self.figures.items()), f"seed {self.seed}"])


@dataclass
class Progress:
    """Where a run is, for whoever watches it."""

    phase: str = "starting"
    requests: int = 0
    open: int = 0
    last: str = ""


async def run(
    seed: int, seconds: float, watch: Callable[[Progress], None] = lambda _: None, keep: Path | None = None
) -> Report:
    """Run for so long, and then for as long as it takes to come to rest. Problems stand in the report."""
    report = Report(seed)
    async with open_world(keep) as world, trio.open_nursery() as nursery:
        crowd, samples = Crowd(world, seed), Samples(world)
        disasters = Disasters(world, crowd, seed)
        progress = Progress()
        nursery.start_soon(_show, progress, crowd, disasters, watch)
        async with trio.open_nursery() as busy:
            sampling = await busy.start(_sampling, samples)
            async with trio.open_nursery() as clients:
                progress.phase = "chaos"
                for _ in range(CUSTOMERS):
                    clients.start_soon(crowd.customer)
                clients.start_soon(crowd.crowds)
                await disasters.run(seconds)
                progress.phase = "last clients"
                crowd.closing.set()
            progress.phase = "coming to rest"
            left = await rest(world)
            report.figures["leaked slots"] = left.get("slots", 0)
            report.problems += [f"{name}: {count} left" for name, count in left.items()]
            sampling.cancel()
        progress.phase = "reckoning"
        await _serves(world, report)
        await _reckon(world, crowd, samples, report)
        nursery.cancel_scope.cancel()
    visits = crowd.visits
    counts = disasters.counts
    report.figures = {
        "requests": sum(visit.sent for visit in visits),
        "disconnects": sum(visit.ended == "left" for visit in visits),
        "kills": counts["kill"],
        "stops": counts["freeze"],
        "restarts": counts["restart"] + counts["drain"],
        "outages": counts["outage"],
        "revocations": counts["revocation"],
        **report.figures,
    }
    return report


async def _sampling(samples: Samples, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await samples.run()


async def _show(progress: Progress, crowd: Crowd, disasters: Disasters, watch: Callable[[Progress], None]) -> None:
    while True:
        progress.requests, progress.open, progress.last = len(crowd.visits), crowd.open, disasters.last
        watch(progress)
        await trio.sleep(1)


async def _serves(world: World, report: Report) -> None:
    """Every gateway is whole again: it serves, and refuses whom it should. Not by way of the crowd's addresses."""
    free = world.accounts[0]
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        for gateway in world.gateways:
            url = f"http://127.0.0.1:{gateway.port}/api/version"
            for account in [free, *(account for account in world.accounts if account.revoked)]:
                expected = 401 if account.revoked else 200
                status: int | str = ""
                try:
                    status = (
                        await client.get(url, headers={"authorization": f"Bearer {account.key}"})
                    ).status_code
                except httpx.HTTPError as error:
                    status = type(error).__name__
                if status != expected:
                    report.problems.append(f"gateway {gateway.number} says {status}, not {expected}, in the end")


async def _reckon(world: World, crowd: Crowd, samples: Samples, report: Report) -> None:
    for gateway in world.gateways:
        await gateway.drain()
        report.problems += gateway.troubles
    await world.mock.stop()
    rows = [dict(row) for row in await world.postgres.fetch("SELECT * FROM gateway.audit_log")]
    ledger = [dict(row) for row in await world.postgres.fetch("SELECT * FROM gateway.budget_usage")]
    # Those of the last questions, which no client of the crowd asked.
    reckoning = Reckoning(crowd.visits, [row for row in rows if row["client_ip"] != "127.0.0.1"])
    log = await trio.to_thread.run_sync(world.logs)
    reckoning.check_rows(log, world.gateways, world.outages)
    reckoning.check_abandoned(world.gateways)
    reckoning.check_rates(world.accounts)
    reckoning.check_slots(world.mock.works(), world.accounts, world.gateways)
    reckoning.check_log(log, world.accounts)
    whole = Reckoning([], rows)
    whole.check_ledger(ledger)
    reckoning.problems += whole.problems
    overspent = 0
    for account in world.accounts:
        for scope, column, owner in (
            ("tenant", "tenant_id", account.tenant_id),
            ("key", "key_id", account.key_id),
        ):
            if (budget := account.limit(scope, "budget_tokens")) is not None:
                spare = reckoning.beyond_budget(column, owner, world.gateways)
                tokens = await spent(world, scope, account.tenant_id, account.key_id)
                overspent += max(0, tokens - budget - spare)
                samples.allow(f"tokens of {scope} {account.tenant if scope == 'tenant' else account.model}", spare)
    reckoning.hold(not overspent, f"{overspent} tokens overspent")
    for what, (seen, limit) in samples.excesses().items():
        reckoning.problems.append(f"{seen} {what}, of {limit}")
    warm = samples.memory[int(WARM_AFTER_S / 0.25) :] or samples.memory
    growth = max(warm) - warm[0]
    reckoning.hold(growth < MEMORY_GROWS_BYTES, f"gateway 0 grew by {growth >> 20} MiB")
    report.problems += reckoning.problems
    report.figures |= {
        "rows": len(rows),
        "unheard": reckoning.unheard,
        "lost": reckoning.lost,
        "doubled": reckoning.doubled,
        "overspent tokens": overspent,
        "looks": samples.looks,
        "limits reached": sum(seen >= limit for seen, limit in samples.worst.values()),
        "grown MiB": growth >> 20,
    }
