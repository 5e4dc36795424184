"""What a budget counter should say, from one look at Redis and one at PostgreSQL. No I/O.

The two looks are not of one moment, so what may be in one and not yet in the other is told apart by its row:
a settled row waits in Redis until PostgreSQL has it, and a lease that lives has not been charged, even where
its row is in PostgreSQL already (Redis did not take its settlement yet).
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any

import msgspec

from neuronetz.admission import keyspace, period
from neuronetz.policy import Period

PERIODS: tuple[Period, ...] = ("day", "week", "month")


class Scope(msgspec.Struct, frozen=True):
    """A budget: a tenant's (``key_id`` None) or a key's, in the period that the policy gives it.

    ``tokens``: how many it is of; None where that does not matter.
    """

    key_id: str | None
    period: Period
    tokens: int | None = None

    @property
    def kind(self) -> str:
        return "tenant" if self.key_id is None else "key"


class Place(msgspec.Struct, frozen=True):
    """Where a counter may be. ``current``: the policy counts in this period; others are kept right too,
    since a budget's period may be changed back to theirs.
    """

    name: str
    scope: Scope
    period: Period
    start: int
    end: int

    @property
    def current(self) -> bool:
        return self.period == self.scope.period


class Counter(msgspec.Struct, frozen=True):
    """A counter as it was read. All three values are the same again only if nothing was settled meanwhile."""

    place: Place
    used: bytes
    generation: bytes
    repairs: bytes

    @property
    def tokens(self) -> int:
        """What it says was used; 0 for what is no number."""
        return int(self.used) if self.used.isdigit() else 0


class Row(msgspec.Struct, frozen=True):
    """What matters of an audit row."""

    request_id: str
    started_at: datetime
    key_id: str
    budget_day: date
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Lease(msgspec.Struct, frozen=True):
    """A living lease; ``counters``: the counters that it will be charged to, by name, with their generations."""

    request_id: str
    key_id: str
    slot: bool
    admitted_s: float
    counters: Mapping[str, bytes]


class Look(msgspec.Struct, frozen=True):
    """Redis at one moment. ``rows``: the waiting rows, by request id; the stub of each lease is one."""

    counters: Sequence[Counter]
    leases: Sequence[Lease]
    rows: Mapping[str, Row]


class Books(msgspec.Struct, frozen=True):
    """PostgreSQL at one moment, not before the look.

    ``used`` and ``adjusted``: tokens by key and period (adjustments of the tenant's own under None);
    ``rows``: those rows of the look, and of its leases, that the audit log has.
    """

    used: Mapping[str, Mapping[Period, int]]
    adjusted: Mapping[str | None, Mapping[Period, int]]
    rows: Mapping[str, Row]


def places(tenant_id: str, scopes: Sequence[Scope], now_s: float) -> list[Place]:
    """Where the counters of the running periods of ``scopes`` may be."""
    return [
        Place(keyspace.budget(tenant_id, scope.key_id, kind, start), scope, kind, start, end)
        for scope in scopes
        for kind in PERIODS
        for start, end in [period.bounds(kind, now_s)]
    ]


def parse(wanted: Sequence[Place], reply: Sequence[Any]) -> Look:
    """The look script's reply as values. A row that cannot be read is left out: nobody can ever commit it."""
    found, leases, rows = reply
    counters = [
        Counter(place, used or b"", generation, repairs or b"")
        for place, (used, generation, repairs) in zip(wanted, found, strict=True)
        if generation is not None
    ]
    return Look(
        counters,
        [lease(id_, value) for id_, value in zip(leases[0::2], leases[1::2], strict=True)],
        {row.request_id: row for row in _rows(rows[1::2])},
    )


def lease(id_: bytes, value: bytes) -> Lease:
    """A lease as it stands in Redis."""
    key_id, slot, _, _, admitted_ms, *named = value.split(b"|")
    return Lease(
        id_.decode(),
        key_id.decode(),
        slot == b"1",
        int(admitted_ms) / 1000,
        {name.decode(): generation for name, generation in zip(named[0::2], named[1::2], strict=True) if name},
    )


def _rows(data: Sequence[bytes]) -> Iterator[Row]:
    for each in data:
        try:
            yield msgspec.json.decode(each, type=Row)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue


def used(counter: Counter, look: Look, books: Books) -> int:
    """What ``counter`` should say was used at the moment of the look; never below 0."""
    place = counter.place
    key_id, kind = place.scope.key_id, place.period
    charged = books.used if key_id is None else {key_id: books.used.get(key_id, {})}
    tokens = sum(by_period.get(kind, 0) for by_period in charged.values())
    tokens += books.adjusted.get(key_id, {}).get(kind, 0)
    for row in look.rows.values():
        if row.request_id not in books.rows and _counts(row, place):
            tokens += row.tokens
    uncharged = {lease.request_id for lease in look.leases if place.name in lease.counters}
    for row in books.rows.values():
        if row.request_id in uncharged and _counts(row, place):
            tokens -= row.tokens
    return max(0, tokens)


def overspent(look: Look) -> dict[str, int]:
    """By kind of scope, the most tokens by which more was used of a budget than it has; 0 where of none."""
    most = {"tenant": 0, "key": 0}
    for counter in look.counters:
        scope = counter.place.scope
        if counter.place.current and scope.tokens is not None:
            most[scope.kind] = max(most[scope.kind], counter.tokens - scope.tokens)
    return most


def _counts(row: Row, place: Place) -> bool:
    return (place.scope.key_id or row.key_id) == row.key_id and (
        place.start <= period.seconds(row.budget_day) < place.end
    )


def strangers(look: Look) -> bool:
    """Whether a lease lives that will not be charged to a counter that counts for it.

    It was admitted before the budget or its period was set: what it uses reaches the counter by the ledger
    alone.
    """
    return any(
        lease.slot
        and counter.place.current
        and (counter.place.scope.key_id or lease.key_id) == lease.key_id
        and lease.admitted_s >= counter.place.start
        and counter.place.name not in lease.counters
        for counter in look.counters
        for lease in look.leases
    )
