"""Admission: a request holds a lease for as long as its block runs.

Rate, budget and concurrency are checked and taken by one atomic script, and given back by another (G1, G4,
G5). What cannot be checked is denied (G7).
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from types import TracebackType
from typing import Self

import trio

from neuronetz.admission import command, keyspace, ledger, verdict
from neuronetz.admission.command import Ask, Periods
from neuronetz.admission.settlement import Settlement, Settler
from neuronetz.errors import (
    BudgetExhausted,
    BudgetReserved,
    ConcurrencyLimited,
    GatewayError,
    RateLimited,
    StoreUnavailable,
    Unavailable,
)
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis, Script

__all__ = ["Admission", "Ask", "Lease"]

_ADMIT = Script.load("neuronetz.admission", "scripts/admit.lua")

_ERRORS: dict[verdict.Refusal, type[GatewayError]] = {
    "rate": RateLimited,
    "budget": BudgetExhausted,
    "reserved": BudgetReserved,
    "concurrency": ConcurrencyLimited,
}

# Asking again is normal once for a new period and once for missing counters; each may be true again when a
# period ends in between. More than that means that something is wrong.
_ATTEMPTS = 5

# A client that obeys Retry-After should not sleep for days: for what is further away, there is none.
_LONGEST_RETRY_S = 120

# While Redis is away every refused request may leave a settlement of unknown fate behind; this bounds them.
_MOST_UNSETTLED = 1000


class Admission:
    """Gives out leases for one instance. ``held``: leases held now.

    ``clock`` (seconds of the epoch) only chooses the budget period asked for first; Redis's time decides.
    """

    def __init__(
        self,
        redis: Redis,
        postgres: Postgres,
        *,
        instance: str,
        cleanup_timeout_s: float,
        store_timeout_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.instance = instance
        self.held = 0
        self._leases: dict[str, Lease] = {}
        self._doubted: dict[str, Lease] = {}
        self.cleanup_timeout_s = cleanup_timeout_s
        # Tenants that Redis knows this instance to have leases of; the reaper says them again when forgotten.
        self.tenants: set[str] = set()
        # trio's time up to which this instance counts as alive: past it others may reap its leases, and a
        # lease of an instance that is struck out would be nobody's. The reaper moves it with every beat.
        self.alive_until = math.inf
        # Called with the id of a tenant whose budget counter was made from the ledger, which knows nothing of
        # what is not committed yet. Must not block.
        self.on_seeded: Callable[[str], None] = lambda _: None
        self._redis = redis
        self._postgres = postgres
        self._store_timeout_s = store_timeout_s
        self._clock = clock
        self._skew_s = 0.0
        self._settler = Settler(redis, instance=instance, cleanup_timeout_s=cleanup_timeout_s)

    @property
    def unsettled(self) -> deque[Settlement]:
        """Settlements that Redis has not taken yet, oldest first."""
        return self._settler.unsettled

    async def settle_unsettled(self) -> None:
        """A service: repeat ``unsettled`` until Redis has it; one last bounded try when cancelled."""
        await self._settler.run()

    def lease(self, ask: Ask, *, stub: bytes, final_row: Callable[[], bytes]) -> "Lease":
        """A lease, taken by entering it: ``async with admission.lease(...) as lease``.

        ``stub``: the audit row's JSON should this process die; ``final_row`` is called once, when the
        block ends, for the row that replaces it.
        """
        return Lease(self, ask, stub, final_row)

    async def admit(self, ask: Ask, stub: bytes) -> tuple[verdict.Admitted, Periods]:
        """Take a lease, of which the caller must then be sure to call ``settle``: ``Lease`` does.

        Raises as ``Lease.__aenter__`` does. The decisive call is shielded and bounded; a cancellation
        before it leaves nothing taken, one during it surfaces after it.
        """
        if len(self.unsettled) >= _MOST_UNSETTLED:
            raise Unavailable("redis")
        try:
            await self._register(ask.principal.tenant_id)
            return await self._negotiate(ask, stub)
        except StoreUnavailable as error:
            raise Unavailable(error.store) from error

    async def settle(self, settlement: Settlement) -> None:
        """End a lease, or keep its settlement for later. Shielded, bounded; never raises."""
        await self._settler.settle(settlement)

    def doubt(self) -> None:
        """Note that this instance was held up for so long that others may give back what it holds now.

        They may be slow at it, so a lease is in doubt for as long as it is held.
        """
        self._doubted.update(self._leases)

    @property
    def doubted(self) -> int:
        """Leases in doubt that are still held."""
        self._doubted = {name: lease for name, lease in self._doubted.items() if self._leases.get(name) is lease}
        return len(self._doubted)

    async def give_up_lost(self) -> None:
        """Look which of the leases in doubt Redis still knows, and tell those that it does not.

        Raises ``StoreUnavailable`` where some could not be looked at.
        """
        held: dict[str, list[Lease]] = {}
        for lease in self._doubted.values():
            held.setdefault(lease.tenant_id, []).append(lease)
        failures: dict[str, StoreUnavailable] = {}
        for tenant_id, leases in held.items():
            place = self._redis.place(keyspace.slots(tenant_id))
            if place not in failures:
                try:
                    await self._tell_lost(tenant_id, leases)
                except StoreUnavailable as error:
                    # Tenants elsewhere in a cluster need not wait for those of a node that is away.
                    failures[place] = error
        for failure in failures.values():
            raise failure

    async def _tell_lost(self, tenant_id: str, leases: "list[Lease]") -> None:
        ids = [lease.request_id for lease in leases]
        known = await self._redis.command("HMGET", keyspace.leases(tenant_id, self.instance), *ids)
        for lease, entry in zip(leases, known, strict=True):
            # One that has ended meanwhile was not lost but given back.
            if entry is None and self._leases.get(lease.request_id) is lease:
                lease.on_lost()

    async def _register(self, tenant_id: str) -> None:
        if tenant_id not in self.tenants:
            await self._redis.command("SADD", keyspace.instance_tenants(self.instance), tenant_id)
            self.tenants.add(tenant_id)

    async def _negotiate(self, ask: Ask, stub: bytes) -> tuple[verdict.Admitted, Periods]:
        """Ask until the script decides: it may first want to know the ledger or another period."""
        when = command.periods(ask, self._clock() + self._skew_s)
        seeds = command.NOT_READ
        for _ in range(_ATTEMPTS):
            # Each time: a look at the ledger, or the call before, may have taken long.
            if trio.current_time() >= self.alive_until:
                raise StoreUnavailable("redis", "no heartbeat")
            outcome = await self._call(ask, stub, when, seeds)
            self._skew_s = outcome.now_s - self._clock()
            if seeds != command.NOT_READ and isinstance(outcome, verdict.Admitted | verdict.Refused):
                self.on_seeded(ask.principal.tenant_id)
            match outcome:
                case verdict.Admitted():
                    return outcome, when
                case verdict.Refused():
                    raise _ERRORS[outcome.limit](
                        retry_after=_retry_after(outcome.retry_after_s),
                        headers=verdict.headers(outcome, ask.limits, when.ends),
                    )
                case verdict.SeedNeeded():
                    seeds = await self._read_ledger(ask, when, outcome)
                case verdict.OutsidePeriod():
                    when, seeds = command.periods(ask, outcome.now_s), command.NOT_READ
                case verdict.Aborted():
                    break
        raise StoreUnavailable("redis", "no verdict")

    async def _call(self, ask: Ask, stub: bytes, when: Periods, seeds: tuple[int, int]) -> verdict.Verdict:
        keys = command.admit_keys(ask, self.instance, when)
        arguments = command.admit_arguments(ask, when, stub, seeds=seeds)
        await trio.lowlevel.checkpoint_if_cancelled()
        answer: verdict.Verdict | None = None
        sent = True
        try:
            # Shielded: a cancelled call costs its connection and leaves nobody knowing whether it was done.
            with trio.move_on_after(self._store_timeout_s, shield=True):
                answer = verdict.parse(await self._redis.script(_ADMIT, keys, arguments))
        except ValueError as error:
            raise StoreUnavailable("redis", "unexpected reply") from error
        except StoreUnavailable as error:
            sent = error.sent
            raise
        finally:
            if answer is None and sent:
                await self.settle(settlement(ask, when, abort=True))
        if answer is None:
            raise StoreUnavailable("redis", "timeout")
        return answer

    async def _read_ledger(self, ask: Ask, when: Periods, need: verdict.SeedNeeded) -> tuple[int, int]:
        tenant_id, key_id = ask.principal.tenant_id, ask.principal.key_id
        tenant, key = command.NOT_READ
        if need.tenant:
            tenant = await ledger.used(self._postgres, tenant_id, None, when.starts[0], when.ends[0])
        if need.key:
            key = await ledger.used(self._postgres, tenant_id, key_id, when.starts[1], when.ends[1])
        return tenant, key


class Lease:
    """A request's admission, as a block. Its attributes hold from the moment it is entered.

    ``predict``: completion tokens granted. ``admitted_at``: the server's time, seconds of the epoch.
    ``budget_day``: the UTC day of the ledger that the tokens count for. ``headers``: the limits' state.
    """

    predict: int
    admitted_at: float
    budget_day: date
    headers: Mapping[str, str]

    def __init__(self, admission: Admission, ask: Ask, stub: bytes, final_row: Callable[[], bytes]) -> None:
        self._admission = admission
        self._ask = ask
        self._stub = stub
        self._final_row = final_row
        self._when: Periods
        self._tokens = 0
        self.tenant_id = ask.principal.tenant_id
        self.request_id = ask.request_id
        # Called when others have given the lease back, for its instance was taken for dead. Must not block.
        self.on_lost: Callable[[], None] = lambda: None

    def used(self, prompt: int, completion: int) -> None:
        """State the tokens actually used; the last statement before the block ends counts."""
        self._tokens = min(max(0, prompt) + max(0, completion), command.MOST)

    async def __aenter__(self) -> Self:
        """Raises ``RateLimited``, ``BudgetExhausted`` (or its ``BudgetReserved``), ``ConcurrencyLimited`` or
        ``Unavailable``.

        A cancellation leaves nothing taken, or surfaces at the block's first checkpoint, so that leaving
        the block gives the lease back.
        """
        admitted, self._when = await self._admission.admit(self._ask, self._stub)
        self._admission.held += 1
        self._admission._leases[self.request_id] = self
        self.predict = admitted.predict
        self.admitted_at = admitted.now_s
        self.budget_day = datetime.fromtimestamp(admitted.now_s, UTC).date()
        self.headers = verdict.headers(admitted, self._ask.limits, self._when.ends)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lease back: shielded, bounded, and repeated by a service where Redis does not take it."""
        row = b""
        try:
            row = self._final_row()
        finally:
            self._admission.held -= 1
            self._admission._leases.pop(self.request_id, None)
            await self._admission.settle(settlement(self._ask, self._when, tokens=self._tokens, row=row))


def _retry_after(seconds: float) -> float | None:
    return float(max(1, math.ceil(seconds))) if seconds <= _LONGEST_RETRY_S else None


def settlement(ask: Ask, when: Periods, *, tokens: int = 0, row: bytes = b"", abort: bool = False) -> Settlement:
    """How the lease of ``ask``, asked for in the periods ``when``, ends."""
    principal, counters = ask.principal, command.counters(ask, when)
    return Settlement(
        ask.request_id, principal.tenant_id, principal.key_id, counters, tokens=tokens, row=row, abort=abort
    )
