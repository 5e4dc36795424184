"""What the shell completes: names from the stores, if they answer at once; else nothing, and no word of it."""

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from neuronetz.stores.postgres import Postgres
    from neuronetz.stores.redis import Redis

T = TypeVar("T")

# Somebody sits before a shell that stands still.
PATIENCE_S = 1.0
_MOST = 200

# A prefix by its characters: names have underscores, which LIKE would take for anything.
_TENANTS = """
SELECT name, CASE WHEN suspended_at IS NULL THEN 'active' ELSE 'suspended' END
FROM gateway.tenants WHERE starts_with(name, $1) ORDER BY name LIMIT $2
"""
_KEYS = """
SELECT k.prefix, t.name || ': ' || k.name
FROM gateway.api_keys k JOIN gateway.tenants t ON t.id = k.tenant_id
WHERE starts_with(k.prefix, $1) AND k.revoked_at IS NULL ORDER BY k.created_at DESC LIMIT $2
"""


def tenants(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of tenants."""
    return _named(context, _TENANTS, incomplete)


def keys(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Prefixes of keys that are not revoked."""
    return _named(context, _KEYS, incomplete)


def models(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of installed models."""
    from neuronetz.cli.database import with_redis
    from neuronetz.models.discovery import REDIS_KEY

    url = context.params.get("redis_url") or os.environ.get("REDIS_URL")

    async def read(redis: "Redis") -> list[str]:
        import msgspec

        return msgspec.json.decode(await redis.command("GET", REDIS_KEY) or b"[]", type=list[str])

    names = _quietly(lambda: with_redis(url, _at_once(read), doing=None, timeout_s=PATIENCE_S))
    return [(name, "") for name in sorted(names) if name.startswith(incomplete) and name.isprintable()][:_MOST]


def _named(context: typer.Context, query: str, incomplete: str) -> list[tuple[str, str]]:
    from neuronetz.cli.database import with_postgres
    from neuronetz.cli.output import printable

    url = context.params.get("database_url") or os.environ.get("DATABASE_URL")

    async def read(postgres: "Postgres") -> list[tuple[str, str]]:
        return [(name, printable(about)) for name, about in await postgres.fetch(query, incomplete, _MOST)]

    return _quietly(lambda: with_postgres(url, _at_once(read), doing=None, timeout_s=PATIENCE_S))


def _at_once(read: "Callable[[Any], Awaitable[T]]") -> "Callable[[Any], Awaitable[T]]":
    import trio

    async def bounded(store: Any) -> T:
        with trio.fail_after(PATIENCE_S):
            return await read(store)

    return bounded


def _quietly(ask: "Callable[[], list[T]]") -> list[T]:
    try:
        return ask()
    except Exception:  # noqa: BLE001 - its Trio run is over, and an error's text would land in the command line
        return []
