"""PostgreSQL behind Trio: asyncpg's pool, called through trio-asyncio, with every foreign error mapped here.

A ``trio_asyncio.open_loop()`` must be running. The pool connects lazily, so that the gateway starts, and
fails closed, while PostgreSQL is away.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import asyncpg
import trio

from neuronetz.errors import SettingsError, StoreUnavailable
from neuronetz.stores.bridge import in_asyncio

T = TypeVar("T")

# A connection that could not be reset within this time (seconds) is closed rather than waited for:
# asyncpg would wait without end for a server that has stopped answering.
RELEASE_TIMEOUT_S = 1.0

# SQLSTATE classes that speak of the server and not of the statement: connection (08), resources (53),
# operator intervention (57), system (58), internal (XX), and a transaction rolled back for others' sake (40).
SERVER_CLASSES = ("08", "53", "57", "58", "XX", "40")
# Classes that speak of how the server is set up for us: who we are (28), which database (3D) and schema (3F),
# what is there and what we may do (42). Nothing can be checked then either, so it counts as away (G7); the
# error itself is the cause.
_SETUP_CLASSES = ("28", "3D", "3F", "42")
# The last is what a connection says whose server ended it while it was idle.
_LOST = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Postgres:
    """A pool of connections. Every call raises ``StoreUnavailable`` when the server cannot be asked.

    That includes a role, a table or a permission that is missing; asyncpg's error is then its cause.

    When a call is cancelled or times out, the statement may or may not have been carried out; the
    connection goes back to the pool, or is closed where it cannot be reset.
    """

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s

    async def fetch(self, query: str, *args: Any, timeout_s: float | None = None) -> list[asyncpg.Record]:
        """All rows of a query. ``timeout_s`` overrides the pool's (seconds)."""
        timeout = timeout_s or self._timeout_s

        async def run(connection: "asyncpg.Connection[asyncpg.Record]") -> list[asyncpg.Record]:
            return await connection.fetch(query, *args, timeout=timeout)

        return await self.run(run, timeout_s=timeout)

    async def fetchrow(self, query: str, *args: Any, timeout_s: float | None = None) -> asyncpg.Record | None:
        """The first row of a query, or None."""
        rows = await self.fetch(query, *args, timeout_s=timeout_s)
        return rows[0] if rows else None

    async def fetchval(self, query: str, *args: Any, timeout_s: float | None = None) -> Any:
        """The first column of the first row, or None."""
        row = await self.fetchrow(query, *args, timeout_s=timeout_s)
        return row[0] if row is not None else None

    async def execute(self, query: str, *args: Any, timeout_s: float | None = None) -> str:
        """Run a statement and return its command tag."""
        timeout = timeout_s or self._timeout_s

        async def run(connection: "asyncpg.Connection[asyncpg.Record]") -> str:
            return await connection.execute(query, *args, timeout=timeout)

        return await self.run(run, timeout_s=timeout)

    async def transaction(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> None:
        """Run statements in one transaction: all of them or none."""

        async def run(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
            async with connection.transaction():
                for query, args in statements:
                    await connection.execute(query, *args, timeout=self._timeout_s)

        await self.run(run)

    async def run(
        self,
        work: "Callable[[asyncpg.Connection[asyncpg.Record]], Awaitable[T]]",
        *,
        timeout_s: float | None = None,
    ) -> T:
        """Run ``work`` (asyncio flavoured) with a connection of the pool; ``timeout_s`` bounds each step."""
        timeout = timeout_s or self._timeout_s

        async def call() -> T:
            connection = await self._pool.acquire(timeout=timeout)
            try:
                return await work(connection)  # type: ignore[arg-type]  # a proxy that quacks like one
            finally:
                # What was carried out, or failed, stays so: a connection that cannot be made ready for others is
                # closed by asyncpg, and that is nobody's error.
                with suppress(*_LOST, asyncpg.PostgresError):
                    await self._pool.release(connection, timeout=RELEASE_TIMEOUT_S)

        try:
            return await in_asyncio(call)
        except _LOST as error:
            raise StoreUnavailable("postgres", type(error).__name__) from error
        except asyncpg.PostgresError as error:
            if (error.sqlstate or "XX").startswith(SERVER_CLASSES + _SETUP_CLASSES):
                raise StoreUnavailable("postgres", type(error).__name__) from error
            raise


@asynccontextmanager
async def open_postgres(
    url: str, *, size: int, timeout_s: float, read_only: bool = False
) -> AsyncIterator[Postgres]:
    """A pool of at most ``size`` connections to ``url``; it is closed when the block ends.

    ``read_only``: the server refuses to change anything for them.

    Raises ``SettingsError`` for a URL that cannot be used. Closing is shielded and takes at most about two
    seconds; connections in use by then are cut.
    """
    try:
        pool = await in_asyncio(_create_pool, url, size, timeout_s, read_only)
    except (asyncpg.ClientConfigurationError, ValueError) as error:
        # Not the error's text: it may repeat a password.
        raise SettingsError("DATABASE_URL: is not a URL that PostgreSQL's clients understand") from error
    try:
        yield Postgres(pool, timeout_s)
    finally:
        with trio.CancelScope(shield=True):
            closed = False
            # asyncpg gives up of itself, too, on a server that does not take its farewell within ``timeout_s``.
            with trio.move_on_after(2.0), suppress(OSError, TimeoutError):
                await in_asyncio(pool.close)
                closed = True
            if not closed:
                pool.terminate()


async def _create_pool(url: str, size: int, timeout_s: float, read_only: bool) -> "asyncpg.Pool[asyncpg.Record]":
    settings = {"application_name": "neuronetz"}
    if read_only:
        settings["default_transaction_read_only"] = "on"
    return await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=size,
        timeout=timeout_s,
        command_timeout=timeout_s,
        server_settings=settings,
    )
