"""The recorder: audit rows wait in a ring in memory and are committed to PostgreSQL in groups.

Nobody waits for a group to fill: what is there is committed, and what arrives meanwhile is the next group,
which begins a moment after the one before at the earliest. A commit costs the same for one row as for many, and
no client waits for it: a row lies in Redis, too, until PostgreSQL has it.
While PostgreSQL is away, rows stay in order at the head of the ring; when the rows that wait and the
requests that are open have taken every place, new requests are refused (deny mode), so that an admitted
request always has a place for its row.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice

import asyncpg
import msgspec
import structlog
import trio

from neuronetz.audit.copies import Copies
from neuronetz.audit.entry import Entry as Entry
from neuronetz.audit.record import AuditRecord, decode, encode
from neuronetz.errors import AuditDenied, StoreUnavailable
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis

log = structlog.get_logger("neuronetz.audit")

GROUP_ROWS = 256
# From the beginning of a commit to that of the next (seconds), so that rows of a busy time share them.
COMMIT_EVERY_S = 0.02
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 2.0

_COMMIT = files("neuronetz.audit").joinpath("commit.sql").read_text(encoding="utf-8")


@dataclass(slots=True)
class _Row:
    request_id: str
    tenant_id: str
    data: bytes
    entry: Entry | None
    kept: bool = False


class _RequestOf(msgspec.Struct):
    request_id: str


class Recorder:
    """Takes audit rows and commits them; exactly one row for each request, whatever is repeated.

    ``capacity``: rows that may wait while the writer fails. ``commit_timeout_s``: how long a request's
    audit task waits for its row. ``instance``: this process, the owner of the rows' copies in Redis.

    For the gauges: ``waiting`` rows not yet in PostgreSQL, ``open_entries``, ``failing``, ``deny_mode``;
    ``committed`` and ``rejected`` count rows since the start.
    """

    def __init__(
        self,
        postgres: Postgres,
        redis: Redis,
        *,
        capacity: int,
        commit_timeout_s: float,
        instance: str,
        on_rejected: Callable[[], None] = lambda: None,
        on_committed: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.capacity = capacity
        self.open_entries = 0
        self.failing = False
        self.committed = 0
        self.rejected = 0
        self._on_rejected = on_rejected
        self._on_committed = on_committed
        self._postgres = postgres
        self._commit_timeout_s = commit_timeout_s
        self._copies = Copies(redis, instance)
        self._ring: deque[_Row] = deque()
        self._arrived = trio.Event()
        self._writing = trio.Lock()
        self._group_rows = GROUP_ROWS
        self._pause_s = FIRST_PAUSE_S

    @property
    def waiting(self) -> int:
        return len(self._ring)

    @property
    def copies_left(self) -> int:
        """Copies in Redis of rows that PostgreSQL has, not removed yet."""
        return len(self._copies)

    @property
    def deny_mode(self) -> bool:
        """True while new requests are refused: the writer fails and every place is taken."""
        return self.failing and self.waiting + self.open_entries >= self.capacity

    @contextmanager
    def open(self) -> Iterator[Entry]:
        """A place for one request's row; without ``finish`` the place is free again when the block ends.

        Raises ``AuditDenied`` in deny mode. Entries already open when the writer began to fail keep their
        places.
        """
        if self.deny_mode:
            raise AuditDenied(retry_after=LAST_PAUSE_S)
        self.open_entries += 1
        entry = Entry(self._append, self._release)
        try:
            yield entry
        finally:
            if not entry.finished:
                log.error("audit.entry_without_row")
            entry.close()

    async def commit_when_known(self, entry: Entry) -> bool:
        """Wait until the entry's outcome is known, then until its row is committed; True if it was.

        The wait for the commit is shielded and takes at most ``commit_timeout_s`` seconds; the row stays
        in the ring beyond that. Cancelled before the outcome is known, it goes on waiting, shielded and
        under the same bound for both waits together, since the exchange's own unwinding finishes the
        entry; then the cancellation goes on.
        """
        try:
            await entry.known.wait()
        finally:
            with trio.move_on_after(self._commit_timeout_s, shield=True):
                await entry.known.wait()
                if entry.finished:
                    await entry.committed.wait()
        return entry.committed.is_set()

    def adopt(self, rows: Iterable[bytes]) -> None:
        """Take rows (as ``record.encode`` wrote them) that a dead process left in Redis; never refused.

        One that cannot be read is logged and skipped.
        """
        for data in rows:
            try:
                record = decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                log.error("audit.row_unreadable", request_id=_request_id(data), reason=type(error).__name__)
            else:
                self._append(record, None)

    async def run(self) -> None:
        """Commit rows until cancelled: the supervised service. A row in flight then stays in the ring."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._copies.run)
            not_before = -math.inf
            while True:
                if not self._ring:
                    self._arrived = trio.Event()
                    await self._arrived.wait()
                if len(self._ring) < self._group_rows:
                    await trio.sleep_until(not_before)
                not_before = trio.current_time() + COMMIT_EVERY_S
                if not await self._commit_group():
                    await self._keep_copies()
                    await trio.sleep(self._back_off())

    async def drain(self, timeout_s: float) -> int:
        """Commit what is left, shielded, for at most ``timeout_s`` seconds; the number of rows that remain.

        May run beside ``run`` or after it was cancelled.
        """
        with trio.move_on_after(timeout_s, shield=True):
            while self._ring:
                if not await self._commit_group():
                    await trio.sleep(self._back_off())
            await self._copies.remove()
        if self._ring:
            await self._leave_to_others()
        return len(self._ring)

    async def _leave_to_others(self) -> None:
        log.error("audit.rows_left", rows=len(self._ring))
        with trio.move_on_after(1.0, shield=True):
            await self._keep_copies()
        if lost := sum(not row.kept for row in self._ring):
            log.error("audit.rows_lost", rows=lost)

    async def _keep_copies(self) -> None:
        """Have what waits in Redis too, should this process be killed before PostgreSQL is back.

        A request that was never admitted has no copy there yet; of the others this writes the same again.
        """
        waiting = {row.request_id: row for row in self._ring if not row.kept}
        kept = await self._copies.keep([(row.tenant_id, row.request_id, row.data) for row in waiting.values()])
        for request_id in kept:
            waiting[request_id].kept = True

    def _append(self, record: AuditRecord, entry: Entry | None) -> None:
        self._ring.append(_Row(record.request_id, record.tenant_id, encode(record), entry))
        self._arrived.set()

    def _release(self) -> None:
        self.open_entries -= 1

    async def _commit_group(self) -> bool:
        """Commit one group from the head of the ring; False if PostgreSQL could not do it now."""
        async with self._writing:
            group = list(islice(self._ring, self._group_rows))
            if not group:
                return True
            rows = b"[" + b",".join(row.data for row in group) + b"]"
            try:
                await self._postgres.execute(_COMMIT, rows.decode())
            except StoreUnavailable as error:
                return self._failed(error.reason)
            except asyncpg.PostgresError as error:
                if not _is_for_a_row(error):
                    return self._failed(type(error).__name__)
                self._refused(group, error)
            else:
                self._done(group)
        return True

    def _done(self, group: list[_Row]) -> None:
        for row in group:
            self._ring.popleft()
            if row.entry is not None:
                row.entry.committed.set()
        self.committed += len(group)
        self._on_committed(len(group))
        self._copies.superfluous((row.tenant_id, row.request_id) for row in group)
        self._answered()

    def _refused(self, group: list[_Row], error: asyncpg.PostgresError) -> None:
        """Close in on the row that PostgreSQL refuses, by halves; drop it once it stands alone."""
        if len(group) > 1:
            self._group_rows = len(group) // 2
            return
        row = self._ring.popleft()
        self.rejected += 1
        self._on_rejected()
        log.error("audit.row_rejected", request_id=row.request_id, reason=type(error).__name__)
        self._copies.superfluous([(row.tenant_id, row.request_id)])
        self._answered()

    def _answered(self) -> None:
        self._group_rows = min(self._group_rows * 2, GROUP_ROWS)
        self._pause_s = FIRST_PAUSE_S
        if self.failing:
            self.failing = False
            log.info("audit.recovered", rows_waiting=len(self._ring))

    def _failed(self, reason: str) -> bool:
        if not self.failing:
            self.failing = True
            log.error("audit.failing", reason=reason, rows_waiting=len(self._ring))
        return False

    def _back_off(self) -> float:
        pause, self._pause_s = self._pause_s, min(self._pause_s * 2, LAST_PAUSE_S)
        return pause


def _is_for_a_row(error: asyncpg.PostgresError) -> bool:
    """Whether a row's data is at fault: a data exception, or a constraint that the error names.

    Anything else (a table or a partition missing, no permission, a read-only standby) would refuse every
    row, so the rows have to wait for an operator and must not be dropped.
    """
    state = error.sqlstate or ""
    named = getattr(error, "constraint_name", None) or getattr(error, "column_name", None)
    return state.startswith("22") or (state.startswith("23") and named is not None)


def _request_id(data: bytes) -> str | None:
    try:
        return msgspec.json.decode(data, type=_RequestOf).request_id[:64]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
