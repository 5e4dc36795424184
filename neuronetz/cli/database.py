"""A command's visit to the stores: one Trio run, and every foreign error as one line."""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

import typer

from neuronetz.cli import completion
from neuronetz.cli.failure import Failure
from neuronetz.cli.output import quoted
from neuronetz.errors import SettingsError, StoreUnavailable

if TYPE_CHECKING:
    import asyncpg

    from neuronetz.stores.postgres import Postgres
    from neuronetz.stores.redis import Redis

T = TypeVar("T")

TIMEOUT_S = 10.0

DatabaseUrl = Annotated[
    str | None,
    typer.Option(envvar="DATABASE_URL", show_default=False, metavar="URL", help="PostgreSQL, postgresql://…"),
]
RedisUrl = Annotated[
    str | None, typer.Option(envvar="REDIS_URL", show_default=False, metavar="URL", help="Redis, redis://…")
]

OfTenant = Annotated[
    str | None,
    typer.Option("--tenant", metavar="TENANT", help="Only this tenant.", autocompletion=completion.tenants),
]
OfKey = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="Only this key (prefix or id).", autocompletion=completion.keys),
]

# SQLSTATE, or its class, to what an operator can do about it.
_REFUSALS = {
    "28": "PostgreSQL refused the user or the password in DATABASE_URL",
    "3D000": "the database that DATABASE_URL names does not exist",
    "3F000": "the database has no gateway schema: run 'neuronetz migrate' first",
    "42P01": "the database lacks gateway tables: run 'neuronetz migrate' first",
    "42703": "the gateway schema is older than this neuronetz: run 'neuronetz migrate' first",
    "42501": "the user in DATABASE_URL lacks the permission for this",
    "25006": "this PostgreSQL is read-only (a standby?): DATABASE_URL must name the primary",
}


def with_postgres(
    url: str | None,
    work: "Callable[[Postgres], Awaitable[T]]",
    *,
    doing: str | None = "asking PostgreSQL …",
    timeout_s: float = TIMEOUT_S,
) -> T:
    """Run ``work`` in a Trio run of its own; raises ``Failure`` or ``SettingsError`` with one line.

    Whoever waits for it at a terminal is told what it is ``doing``. ``timeout_s`` bounds each statement.
    """
    checked = postgres_url(url)

    async def session() -> T:
        from neuronetz.stores.postgres import open_postgres

        async with open_postgres(checked, size=1, timeout_s=timeout_s) as postgres:
            return await work(postgres)

    return with_loop(session, doing=doing)


def with_redis(
    url: str | None,
    work: "Callable[[Redis], Awaitable[T]]",
    *,
    doing: str | None = "asking Redis …",
    timeout_s: float = TIMEOUT_S,
) -> T:
    """The same, with Redis."""
    schemes = ("redis://", "rediss://", "unix://", "redis+cluster://", "rediss+cluster://")
    checked = _checked("REDIS_URL", url, schemes)

    async def session() -> T:
        from neuronetz.stores.redis import open_redis

        async with open_redis(checked, size=1, timeout_s=timeout_s) as redis:
            return await work(redis)

    return with_loop(session, doing=doing)


def postgres_url(url: str | None) -> str:
    """The value of DATABASE_URL, checked. Raises ``SettingsError``."""
    return _checked("DATABASE_URL", url, ("postgresql://", "postgres://"))


def _checked(name: str, url: str | None, schemes: tuple[str, ...]) -> str:
    if not url:
        raise SettingsError(f"{name}: is not set (or pass --{name.lower().replace('_', '-')})")
    if not url.startswith(schemes):
        raise SettingsError(f"{name}: must start with {' or '.join(schemes)}")
    try:
        # A cluster's URL names several hosts.
        for host in urlsplit(url).netloc.rpartition("@")[2].split(","):
            urlsplit(f"//{host}").port  # noqa: B018 - reading it checks it
    except ValueError:
        raise SettingsError(f"{name}: is not a valid URL") from None
    return url


def with_loop(work: Callable[[], Awaitable[T]], *, doing: str | None = None) -> T:
    """The same, for work that opens its own connections."""

    async def session() -> T:
        import trio_asyncio

        from neuronetz.cli import progress

        async with progress.shown(doing) if doing else nullcontext(), trio_asyncio.open_loop():
            return await work()

    return _run(session)


def _run(session: Callable[[], Awaitable[T]]) -> T:
    import asyncpg
    import trio

    try:
        return trio.run(session)
    except BaseExceptionGroup as group:
        error = _first(group)
    except (StoreUnavailable, asyncpg.PostgresError) as alone:
        error = alone
    raise explained(error) from None


def away(error: BaseException) -> bool:
    """Whether a store is merely not there now, and not set up wrong."""
    import asyncpg

    from neuronetz.stores.postgres import SERVER_CLASSES

    cause = error.__cause__ if isinstance(error, StoreUnavailable) else error
    return not isinstance(cause, asyncpg.PostgresError) or (cause.sqlstate or "XX").startswith(SERVER_CLASSES)


def explained(error: BaseException) -> BaseException:
    """The error as a ``Failure`` with what to do about it, where a store is at fault; else as it is."""
    import asyncpg

    cause = error.__cause__ if isinstance(error, StoreUnavailable) else error
    if isinstance(cause, asyncpg.PostgresError) and not away(error):
        return Failure(_refused(cause))
    if isinstance(error, StoreUnavailable):
        return Failure(_unreachable(error))
    return error


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _unreachable(error: StoreUnavailable) -> str:
    name, variable = {"postgres": ("PostgreSQL", "DATABASE_URL"), "redis": ("Redis", "REDIS_URL")}[error.store]
    return (
        f"{name} is not reachable ({error.reason}): check that it runs and that {variable} names its host, "
        "port and user"
    )


def _refused(error: "asyncpg.PostgresError") -> str:
    state = error.sqlstate or ""
    known = _REFUSALS.get(state) or _REFUSALS.get(state[:2])
    return known or f"PostgreSQL refused this: {type(error).__name__} ({state})"


async def find_tenant(postgres: "Postgres", name: str) -> Any:
    """The id and name of a tenant, by either. Raises ``Failure`` when there is none."""
    found = await postgres.fetchrow(
        "SELECT id, name FROM gateway.tenants WHERE name = $1 OR id::text = lower($1)", name
    )
    if found is None:
        raise Failure(f"no tenant {quoted(name)}; 'neuronetz tenant list' shows them all")
    return found


async def find_key(postgres: "Postgres", name: str) -> Any:
    """The id, prefix and tenant of a key, by its prefix or id. Raises ``Failure`` when there is none."""
    if name.startswith("nnz_") and len(name) > 12:
        # Not repeated: it holds the secret.
        raise Failure("a key is named by its prefix, the first 12 characters; never pass the whole key")
    found = await postgres.fetchrow(
        "SELECT id, prefix, tenant_id FROM gateway.api_keys WHERE prefix = $1 OR id::text = lower($1)",
        name,
    )
    if found is None:
        raise Failure(f"no key {quoted(name)}; 'neuronetz key list' shows them all")
    return found


async def selected(postgres: "Postgres", tenant: str | None, key: str | None) -> tuple[Any, Any]:
    """The ids of a tenant and a key that options name, None where they do not. Raises ``Failure``."""
    tenant_id = (await find_tenant(postgres, tenant))["id"] if tenant is not None else None
    key_id = (await find_key(postgres, key))["id"] if key is not None else None
    return tenant_id, key_id
