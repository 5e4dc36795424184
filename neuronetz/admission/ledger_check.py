"""The service that compares Redis's budget counters with PostgreSQL and repairs them towards it.

A counter drifts where tokens were used that it never heard of: those of requests that ran when the budget, its
period or the counter itself was new, and those that an operator took off by a reset. A false repair is worse
than none, so a drift is repaired only when two looks in a row find the same one, and only if nothing was
settled between the second look and the repair.
"""

import random
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import UUID

import msgspec
import structlog
import trio

from neuronetz.admission import drift, keyspace, ledger_books
from neuronetz.admission.drift import Counter, Look, Scope
from neuronetz.errors import StoreUnavailable
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis, Script
from neuronetz.telemetry.metrics import Metrics

log = structlog.get_logger("neuronetz.ledger_check")

_LOOK = Script.load("neuronetz.admission", "scripts/look.lua")
_REPAIR = Script.load("neuronetz.admission", "scripts/repair.lua")

# Looks at one tenant in one check; under load several may be in vain.
_LOOKS = 8
_PAUSE_S = 0.02

# Leases and rows of one tenant that are looked at; Redis serves nobody else meanwhile.
_MOST = 20_000

# A reset of a month notifies once, but a policy may be changed by several statements.
_DEBOUNCE_S = 0.02

# How soon a tenant is checked again while requests run that its counters do not know of, or after a failure.
_AGAIN_S = 2.0


class Repair(msgspec.Struct, frozen=True):
    """A counter that was corrected, by ``tokens`` (positive: it said too little)."""

    scope: Scope
    period: str
    tokens: int


async def look_at(redis: Redis, postgres: Postgres, tenant_id: str, *, tidy: bool) -> Look | None:
    """A tenant's counters, leases and waiting rows at one moment; None without a budget, or where they are
    too many. Raises ``StoreUnavailable``. ``tidy``: also forget in Redis the names of what is empty.
    """
    scopes = await ledger_books.scopes(postgres, tenant_id)
    if not scopes:
        return None
    now_s, _ = await redis.command("TIME")
    places = drift.places(tenant_id, scopes, int(now_s))
    keys = (keyspace.hashes(tenant_id), *(place.name for place in places))
    reply = await redis.script(
        _LOOK, keys, (keyspace.leases(tenant_id, ""), keyspace.rows(tenant_id, ""), _MOST, int(tidy))
    )
    if not isinstance(reply, list):
        log.debug("ledger_check.crowded", tenant_id=tenant_id)
        return None
    return drift.parse(places, reply)


async def compare(postgres: Postgres, tenant_id: str, look: Look) -> list[tuple[Counter, int]]:
    """The counters of ``look`` that PostgreSQL, read after it, does not bear out, each with what it lacks.

    One such finding proves nothing: two in a row that are the same do. Raises ``StoreUnavailable``.
    """
    books = await ledger_books.read(postgres, tenant_id, look)
    found = [(counter, drift.used(counter, look, books) - counter.tokens) for counter in look.counters]
    return [(counter, tokens) for counter, tokens in found if tokens or not counter.used.isdigit()]


class LedgerCheck:
    """Checks every tenant each ``interval_s`` seconds (jittered), and one that is asked for at once.

    Of several instances only one checks a tenant in a round. ``jitter`` gives numbers from 0 to 1.
    """

    def __init__(
        self,
        redis: Redis,
        postgres: Postgres,
        metrics: Metrics,
        *,
        interval_s: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._redis = redis
        self._postgres = postgres
        self._metrics = metrics
        self._interval_s = interval_s
        self._jitter = jitter
        self._changes: set[tuple[str, UUID]] = set()
        self._wanted: set[str] = set()
        self._again: set[str] = set()
        self._asked = trio.Event()
        self._overspent = dict.fromkeys(("tenant", "key"), 0)

    def changed(self, kind: str, name: UUID) -> None:
        """Check the tenant ``name`` soon, or that of the key ``name``: its policy or its budget was changed."""
        self._changes.add((kind, name))
        self._asked.set()

    def seeded(self, tenant_id: str) -> None:
        """Check a tenant soon: a counter of its was made from the ledger, and may lack what is not in it yet."""
        self._wanted.add(tenant_id)
        self._asked.set()

    async def run(self) -> None:
        """A service: check until cancelled. A store that is away is waited out; nothing is ever half done."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._rounds)
            await self._on_demand()

    async def _rounds(self) -> None:
        while True:
            await trio.sleep(self._interval_s * (0.75 + self._jitter() / 2))
            await self._unless_away(self.round)

    async def _on_demand(self) -> None:
        while True:
            with trio.move_on_after(_AGAIN_S):
                await self._asked.wait()
                await trio.sleep(_DEBOUNCE_S)
            self._asked = trio.Event()
            changes, self._changes = self._changes, set()
            wanted, self._wanted, self._again = self._wanted | self._again, set(), set()
            if not await self._unless_away(partial(self._check_all, changes, wanted)):
                self._changes |= changes
                self._again |= wanted
                await trio.sleep(_AGAIN_S)

    async def _check_all(self, changes: set[tuple[str, UUID]], wanted: set[str]) -> None:
        for tenant_id in {*wanted, *await ledger_books.tenants_of(self._postgres, changes)}:
            await self.check(tenant_id)

    async def _unless_away(self, work: Callable[[], Awaitable[object]]) -> bool:
        try:
            await work()
        except StoreUnavailable as error:
            log.debug("ledger_check.skipped", store=error.store, reason=error.reason)
            return False
        return True

    async def round(self) -> None:
        """Check each tenant with a budget, unless another instance has lately. Raises ``StoreUnavailable``."""
        seen = dict.fromkeys(("tenant", "key"), 0)
        self._overspent = dict.fromkeys(seen, 0)
        for tenant_id in await ledger_books.tenants_with_budgets(self._postgres):
            if await self._claim(tenant_id):
                for repair in await self.check(tenant_id):
                    seen[repair.scope.kind] += abs(repair.tokens)
        for kind, tokens in seen.items():
            self._metrics.ledger_drift.labels(kind).set(tokens)
            self._metrics.overspent.labels(kind).set(self._overspent[kind])

    async def _claim(self, tenant_id: str) -> bool:
        lasts_ms = max(1, int(self._interval_s * 500))
        return bool(await self._redis.command("SET", keyspace.checked(tenant_id), 1, "NX", "PX", lasts_ms))

    async def check(self, tenant_id: str) -> list[Repair]:
        """Compare a tenant's counters with PostgreSQL and repair those that have drifted; the repairs made.

        Raises ``StoreUnavailable``. When cancelled, each counter is repaired or left as it was.
        """
        repairs: list[Repair] = []
        before: dict[str, int] = {}
        for _ in range(_LOOKS):
            drifts = await self._drifts(tenant_id)
            for counter, tokens in drifts:
                if before.get(counter.place.name) == tokens and await self._repair(counter, tokens):
                    repairs.append(Repair(counter.place.scope, counter.place.period, tokens))
            before = {counter.place.name: tokens for counter, tokens in drifts}
            if not drifts:
                return repairs
            await trio.sleep(_PAUSE_S * (0.5 + self._jitter()))
        log.debug("ledger_check.unsteady", tenant_id=tenant_id)
        return repairs

    async def _drifts(self, tenant_id: str) -> list[tuple[Counter, int]]:
        """The counters that have drifted, each with what it lacks."""
        look = await look_at(self._redis, self._postgres, tenant_id, tidy=True)
        if look is None or not look.counters:
            return []
        for kind, tokens in drift.overspent(look).items():
            self._overspent[kind] = max(self._overspent[kind], tokens)
        if drift.strangers(look):
            self._again.add(tenant_id)
        return await compare(self._postgres, tenant_id, look)

    async def _repair(self, counter: Counter, tokens: int) -> bool:
        place, used = counter.place, counter.tokens + tokens
        arguments = (counter.used, counter.generation, counter.repairs, used)
        if not await self._redis.script(_REPAIR, (place.name,), arguments):
            return False
        kind = place.scope.kind
        self._metrics.ledger_repairs.inc()
        self._metrics.ledger_drift.labels(kind).set(abs(tokens))
        log.warning("ledger.repaired", scope=kind, counter=place.name, tokens=tokens, used=used)
        return True
