"""The audit log's partitions, made ahead of their month."""

import asyncpg
import structlog
import trio

from neuronetz.stores.postgres import Postgres

log = structlog.get_logger("neuronetz.audit")

MONTHS_AHEAD = 2
EVERY_S = 6 * 3600.0
AGAIN_S = 60.0


class Partitions:
    """The service that makes partitions at its start and every ``every_s`` seconds."""

    def __init__(self, postgres: Postgres, *, every_s: float = EVERY_S) -> None:
        self._postgres = postgres
        self._every_s = every_s

    async def run(self) -> None:
        """Run until cancelled. Raises ``StoreUnavailable`` while PostgreSQL is away, for the supervisor."""
        while True:
            pause = self._every_s if await self.make() else min(AGAIN_S, self._every_s)
            await trio.sleep(pause)

    async def make(self) -> bool:
        """Make what is missing; False if the audit log was busy, in which case nothing was made."""
        try:
            made = await self._postgres.run(_make)
        except asyncpg.LockNotAvailableError:
            log.warning("audit.partitions_postponed")
            return False
        if made:
            log.info("audit.partitions_made", partitions=made)
        return True


async def _make(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    async with connection.transaction():
        # A new partition locks the whole audit log for a moment. Queued behind a long report, that lock
        # would hold up every commit; there are months of time, so it gives way.
        await connection.execute("SET LOCAL lock_timeout = '500ms'")
        made: int = await connection.fetchval("SELECT gateway.make_audit_partitions($1)", MONTHS_AHEAD)
        return made
