"""The schema's numbered SQL, applied by pogo: idempotent, and safe when two start at once."""

import logging
from pathlib import Path

import asyncpg
import structlog
from pogo_core.error import BadMigrationError
from pogo_core.util import migrate as pogo
from pogo_core.util import sql

import neuronetz
from neuronetz.errors import StoreUnavailable
from neuronetz.stores.bridge import in_asyncio
from neuronetz.stores.postgres import Postgres

SCHEMA = "gateway"
CLOSE_TIMEOUT_S = 2.0

# Any constant that nobody else locks in this database: "neuronet" in ASCII.
_LOCK = 0x6E6575726F6E6574

log = structlog.get_logger("neuronetz.stores")

# pogo warns of each migration that it applies; that is no warning, and we tell it ourselves.
_pogo_log = logging.getLogger("neuronetz.stores.pogo")
_pogo_log.setLevel(logging.ERROR)

_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
)


class MigrationError(Exception):
    """A migration could not be applied; the message is one line."""


def schema_folder() -> Path:
    """The folder of the numbered SQL: inside an installed package, beside it in a source checkout."""
    package = Path(neuronetz.__file__).parent
    installed = package / "schema"
    return installed if installed.is_dir() else package.parent / "schema"


def known_migrations() -> list[str]:
    """The ids of all migrations of this version, in order."""
    return sorted(path.stem for path in schema_folder().glob("*.sql"))


async def migrate(database_url: str, *, timeout_s: float = 60.0) -> list[str]:
    """Apply what is not applied yet and return those ids, in order; an empty list where nothing was to do.

    ``timeout_s`` bounds each step, the wait for another one that is migrating included. Raises
    ``StoreUnavailable`` where the server cannot be asked, ``MigrationError`` where it refuses. When
    cancelled, each migration is either applied whole or not at all.
    """
    try:
        applied = await in_asyncio(_migrate, database_url, timeout_s)
    except (*_AWAY, asyncpg.PostgresError) as error:
        raise _mapped(error, "migration failed") from error
    except BadMigrationError as error:
        raise _mapped(error.__cause__ or error, str(error)) from error
    log.info("migrations.applied", migrations=applied)
    return applied


async def pending(postgres: Postgres) -> list[str]:
    """The ids that are not applied yet, in order. Raises ``StoreUnavailable``."""
    try:
        rows = await postgres.fetch(
            "SELECT migration_id FROM public._pogo_migration WHERE schema_name = $1", SCHEMA
        )
    except StoreUnavailable as error:
        if isinstance(error.__cause__, asyncpg.UndefinedTableError):
            return known_migrations()
        raise
    applied = {row["migration_id"] for row in rows}
    return [name for name in known_migrations() if name not in applied]


async def _migrate(database_url: str, timeout_s: float) -> list[str]:
    connection = await asyncpg.connect(database_url, timeout=timeout_s, command_timeout=timeout_s)
    try:
        # A session's lock: it outlives the migrations' transactions, and ends with the connection.
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        await sql.ensure_pogo_sync(connection)
        before = await sql.get_applied_migrations(connection, schema_name=SCHEMA)
        await pogo.apply(connection, schema_folder(), schema_name=SCHEMA, logger=_pogo_log)
        return sorted(await sql.get_applied_migrations(connection, schema_name=SCHEMA) - before)
    finally:
        try:
            await connection.close(timeout=CLOSE_TIMEOUT_S)
        finally:
            connection.terminate()


def _mapped(error: BaseException, what: str) -> Exception:
    if isinstance(error, _AWAY):
        return StoreUnavailable("postgres", type(error).__name__)
    return MigrationError(f"{what}: {error}".splitlines()[0])
