"""The rows' copies in Redis, which outlive this process: removed once PostgreSQL has the row."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice

import structlog
import trio

from neuronetz.errors import StoreUnavailable
from neuronetz.stores.redis import Redis

log = structlog.get_logger("neuronetz.audit")

# Copies beyond this many are forgotten and stay in Redis: harmless, since rows are idempotent.
REMEMBERED = 10_000
BATCH = 512

# How long (seconds) what is to go waits for company: it harms nobody, and each removal is a round trip.
REMOVE_AFTER_S = 0.25

# Between tries (seconds) while Redis does not take them.
FIRST_PAUSE_S = 0.2
LAST_PAUSE_S = 5.0


def tenants_key(instance: str) -> str:
    """Where the tenants stand that an instance has rows of; admission's name for it."""
    return f"{{gateway:instances}}:{instance}:tenants"


def rows_key(tenant_id: str, instance: str) -> str:
    """The hash of a tenant's rows, by request id, that ``instance`` owns."""
    return f"gateway:{{{tenant_id}}}:rows:{instance}"


class Copies:
    """Copies to remove, best effort: those that Redis did not take are tried again, ever more slowly."""

    def __init__(self, redis: Redis, instance: str) -> None:
        self._redis = redis
        self._instance = instance
        self._pending: dict[tuple[str, str], None] = {}
        self._arrived = trio.Event()

    def __len__(self) -> int:
        return len(self._pending)

    def superfluous(self, rows: Iterable[tuple[str, str]]) -> None:
        """Note rows, as ``(tenant_id, request_id)``, whose copies are to go."""
        for row in rows:
            if len(self._pending) < REMEMBERED:
                self._pending[row] = None
        self._arrived.set()

    async def keep(self, rows: Iterable[tuple[str, str, bytes]]) -> list[str]:
        """Put rows, as ``(tenant_id, request_id, row)``, into Redis as this instance's, for whoever reaps it.

        Returns the ids of those that Redis took.
        """
        places: dict[str, list[tuple[str, str, bytes]]] = {}
        for row in rows:
            places.setdefault(self._redis.place(rows_key(row[0], self._instance)), []).append(row)
        kept: list[str] = []
        for some in places.values():
            commands: list[tuple[str | bytes, ...]] = []
            for tenant_id, request_id, data in some:
                commands.append(("SADD", tenants_key(self._instance), tenant_id))
                commands.append(("HSET", rows_key(tenant_id, self._instance), request_id, data))
            with suppress(StoreUnavailable):
                await self._redis.pipeline(commands)
                kept += [request_id for _, request_id, _ in some]
        return kept

    async def run(self) -> None:
        """Remove copies until cancelled; apart from the commits, which must not wait for a slow Redis."""
        pause_s = FIRST_PAUSE_S
        while True:
            await self._arrived.wait()
            await trio.sleep(REMOVE_AFTER_S)
            self._arrived = trio.Event()
            await self.remove()
            if self._pending:
                await trio.sleep(pause_s)
                pause_s = min(LAST_PAUSE_S, 2 * pause_s)
                self._arrived.set()
            else:
                pause_s = FIRST_PAUSE_S

    async def remove(self) -> None:
        """Remove what is noted. Cancelled or without Redis, the rest stays noted."""
        # By place: those of a node that is away would otherwise hold up all others.
        places: dict[str, list[tuple[str, str]]] = {}
        for row in self._pending:
            places.setdefault(self._redis.place(rows_key(row[0], self._instance)), []).append(row)
        for rows in places.values():
            await self._remove(iter(rows))

    async def _remove(self, rows: Iterator[tuple[str, str]]) -> None:
        while batch := list(islice(rows, BATCH)):
            fields: dict[str, list[str]] = {}
            for tenant_id, request_id in batch:
                fields.setdefault(rows_key(tenant_id, self._instance), []).append(request_id)
            try:
                await self._redis.pipeline([("HDEL", key, *ids) for key, ids in fields.items()])
            except StoreUnavailable as error:
                log.warning("audit.copies_left", reason=error.reason, copies=len(self._pending))
                return
            for row in batch:
                self._pending.pop(row, None)
