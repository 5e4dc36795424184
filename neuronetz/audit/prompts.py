"""The prompt log: what keys that opted in asked and were answered, best effort, and until it expires.

The audit row is the guarantee; this is not. Rows wait in memory while PostgreSQL is away, up to a bound, and
are given up beyond it. A prompt is in PostgreSQL or in this queue and nowhere else: no event, no metric and no
error holds any of its text.
"""

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

import asyncpg
import msgspec
import structlog
import trio

from neuronetz.errors import StoreUnavailable
from neuronetz.stores.postgres import Postgres

log = structlog.get_logger("neuronetz.prompts")

GROUP_ROWS = 64
GROUP_BYTES = 1024 * 1024
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 2.0
PURGE_ROWS = 1000

# The opt-in is read once more where the row is written: a key that opted out a moment ago is not logged any
# more, whatever a cache, a long stream or this queue held. The lock keeps a key from being removed meanwhile.
_INSERT = """
INSERT INTO gateway.prompt_log (
    request_id, tenant_id, key_id, prompt, completion, prompt_truncated, completion_truncated, created_at,
    expires_at
)
SELECT r.request_id, k.tenant_id, k.id, r.prompt, r.completion, r.prompt_truncated, r.completion_truncated,
       r.created_at, r.created_at + make_interval(secs => coalesce(k.prompt_ttl_s, $8))
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::boolean[], $6::boolean[], $7::timestamptz[])
     AS r (request_id, key_id, prompt, completion, prompt_truncated, completion_truncated, created_at)
JOIN gateway.api_keys k ON k.id = r.key_id
WHERE k.log_prompts
FOR KEY SHARE OF k
ON CONFLICT (request_id) DO NOTHING
"""

# Several gateways purge at once: each takes rows that no other has in hand.
_PURGE = """
DELETE FROM gateway.prompt_log WHERE request_id IN (
    SELECT request_id FROM gateway.prompt_log WHERE expires_at <= now()
    ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
"""


class PromptRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request's prompt and completion; idempotent by request id. When it expires, its key says."""

    request_id: str
    key_id: str
    prompt: str
    completion: str
    prompt_truncated: bool = False
    completion_truncated: bool = False
    created_at: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))

    def __repr__(self) -> str:
        """Without the text, which must not get into a traceback."""
        return f"PromptRow({self.request_id})"


class PromptLog:
    """Takes rows without waiting and writes them in groups.

    ``ttl_s``: how long rows live (seconds) whose key has no value of its own. ``max_bytes``: of a prompt, and
    of a completion; whoever makes rows cuts them. ``max_rows`` and ``queue_bytes``: what may wait.
    ``on_dropped`` is called with the number of rows given up.
    """

    def __init__(
        self,
        postgres: Postgres,
        *,
        ttl_s: int,
        max_bytes: int,
        max_rows: int,
        queue_bytes: int,
        on_dropped: Callable[[int], object],
    ) -> None:
        self.max_bytes = max_bytes
        self.dropped = 0
        self._postgres = postgres
        self._ttl_s = ttl_s
        self._max_rows = max_rows
        self._queue_bytes = queue_bytes
        self._on_dropped = on_dropped
        self._queue: deque[tuple[PromptRow, int]] = deque()
        self._bytes = 0
        self._arrived = trio.Event()
        self._writing = trio.Lock()
        self._group_rows = GROUP_ROWS
        self._pause_s = FIRST_PAUSE_S
        self._troubled = False

    @property
    def waiting(self) -> int:
        """Rows not yet in PostgreSQL."""
        return len(self._queue)

    def submit(self, row: PromptRow) -> None:
        """Hand a row over; it is given up where the queue is full. Synchronous, never raises."""
        size = len(row.prompt.encode()) + len(row.completion.encode())
        if len(self._queue) >= self._max_rows or self._bytes + size > self._queue_bytes:
            self._give_up(1, "queue_full")
            return
        self._queue.append((row, size))
        self._bytes += size
        self._arrived.set()

    async def run(self) -> None:
        """Write rows until cancelled: the supervised service. A row in flight then stays in the queue."""
        while True:
            if not self._queue:
                self._arrived = trio.Event()
                await self._arrived.wait()
            if not await self._write_group():
                await trio.sleep(self._back_off())

    async def drain(self, timeout_s: float) -> int:
        """Write what is left, shielded, for at most ``timeout_s`` seconds; the number of rows given up.

        May run beside ``run`` or after it was cancelled.
        """
        with trio.move_on_after(max(0.0, timeout_s), shield=True):
            while self._queue:
                if not await self._write_group():
                    await trio.sleep(self._back_off())
        left = len(self._queue)
        if left:
            self._give_up(left, "shutdown")
        return left

    async def _write_group(self) -> bool:
        """Write one group from the head of the queue; False if PostgreSQL could not do it now."""
        async with self._writing:
            group = self._group()
            if not group:
                return True
            try:
                await self._postgres.execute(
                    _INSERT,
                    [row.request_id for row in group],
                    [row.key_id for row in group],
                    [row.prompt for row in group],
                    [row.completion for row in group],
                    [row.prompt_truncated for row in group],
                    [row.completion_truncated for row in group],
                    [row.created_at for row in group],
                    self._ttl_s,
                )
            except StoreUnavailable:
                return False
            except asyncpg.PostgresError as error:
                # Only the class: the error's own words may quote the row.
                return self._refused(len(group), error.sqlstate or "", type(error).__name__)
            self._pop(len(group))
            self._group_rows = GROUP_ROWS
            self._pause_s = FIRST_PAUSE_S
            if self._troubled:
                self._troubled = False
                log.info("prompts.recovered", rows_dropped=self.dropped)
        return True

    def _group(self) -> list[PromptRow]:
        group: list[PromptRow] = []
        total = 0
        for row, size in self._queue:
            total += size
            if len(group) == self._group_rows or (group and total > GROUP_BYTES):
                break
            group.append(row)
        return group

    def _refused(self, rows: int, state: str, reason: str) -> bool:
        """A row's data is at fault: find it by going one by one. Anything else has to wait for an operator."""
        if not state.startswith(("22", "23")):
            return False
        if rows == 1:
            self._pop(1)
            self._give_up(1, reason)
        self._group_rows = 1
        return True

    def _pop(self, rows: int) -> None:
        for _ in range(rows):
            self._bytes -= self._queue.popleft()[1]

    def _give_up(self, rows: int, reason: str) -> None:
        self.dropped += rows
        self._on_dropped(rows)
        if not self._troubled:
            # Once, until it works again: the metric counts the rest.
            self._troubled = True
            log.warning("prompts.dropped", reason=reason, rows_waiting=len(self._queue))

    def _back_off(self) -> float:
        pause, self._pause_s = self._pause_s, min(self._pause_s * 2, LAST_PAUSE_S)
        return pause


class PromptPurge:
    """The service that deletes expired rows at its start and every ``every_s`` seconds."""

    def __init__(self, postgres: Postgres, *, every_s: float, batch_rows: int = PURGE_ROWS) -> None:
        self._postgres = postgres
        self._every_s = every_s
        self._batch_rows = batch_rows

    async def run(self) -> None:
        """Run until cancelled. Raises ``StoreUnavailable`` while PostgreSQL is away, for the supervisor."""
        while True:
            purged = await self.purge()
            if purged:
                log.info("prompts.purged", rows=purged)
            await trio.sleep(self._every_s)

    async def purge(self) -> int:
        """Delete what has expired, a batch a statement, and return how many rows there were."""
        purged = 0
        while True:
            tag = await self._postgres.execute(_PURGE, self._batch_rows)
            batch = int(tag.rpartition(" ")[2])
            purged += batch
            if batch < self._batch_rows:
                return purged
