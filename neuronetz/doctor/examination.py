"""The examination of a deployment: all checks, each under a deadline, none of which changes anything."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import asyncpg
import msgspec
import trio

from neuronetz.doctor import books, database, host, leases, ollama, redis
from neuronetz.doctor.finding import Check, Finding, Patient, failed, warning
from neuronetz.errors import StoreUnavailable
from neuronetz.settings import Settings
from neuronetz.stores.postgres import open_postgres
from neuronetz.stores.redis import open_redis
from neuronetz.upstream.ollama import open_upstream


@dataclass(frozen=True)
class Step:
    """One check. ``needs``: steps without whose success it could say nothing."""

    name: str
    check: Check
    needs: tuple[str, ...] = ()


STEPS: Sequence[Step] = (
    Step("postgres", database.server),
    Step("schema", database.schema, ("postgres",)),
    Step("rights", database.rights, ("schema",)),
    Step("partitions", database.partitions, ("schema",)),
    Step("redis", redis.server),
    Step("redis memory", redis.memory, ("redis",)),
    Step("redis persistence", redis.persistence, ("redis",)),
    Step("clocks", host.clocks, ("postgres", "redis")),
    Step("leases", leases.leases, ("redis",)),
    Step("slots", leases.slots, ("redis",)),
    Step("audit rows", leases.rows, ("redis",)),
    Step("ledger", books.ledger, ("schema",)),
    Step("budgets", books.budgets, ("schema", "redis")),
    Step("revocations", books.revocations, ("schema", "redis")),
    Step("ollama", ollama.reachable),
    Step("ollama exposure", ollama.exposure),
    Step("metrics", host.metrics),
    Step("open files", host.files),
    Step("gateway", host.running),
)

_HINTS = {
    "postgres": "see that PostgreSQL runs, and that DATABASE_URL names its host, port, user and database",
    "redis": "see that Redis runs, and that REDIS_URL names its host, port and password",
}


async def examine(settings: Settings, tell: Callable[[Finding], None], *, days: int, timeout_s: float) -> None:
    """Call ``tell`` with each finding as it is made; ``timeout_s`` seconds for each check at most.

    A ``trio_asyncio.open_loop()`` must be running. Raises ``SettingsError`` for a URL that cannot be used.
    Cancelled at any point, it has changed nothing.
    """
    async with (
        open_postgres(settings.database_url, size=2, timeout_s=timeout_s, read_only=True) as postgres,
        open_redis(settings.redis_url, size=2, timeout_s=timeout_s) as store,
        open_upstream(
            settings.ollama_url,
            connect_timeout_s=settings.connect_timeout_s,
            first_byte_timeout_s=timeout_s,
            chunk_timeout_s=timeout_s,
        ) as upstream,
    ):
        patient = Patient(settings, postgres, store, upstream, days)
        healthy: set[str] = set()
        for step in STEPS:
            lacking = [name for name in step.needs if name not in healthy]
            if lacking:
                found = [warning(f"not checked, for {lacking[0]} failed", "mend that first")]
            else:
                found = await _carry_out(step, patient, timeout_s)
                if all(each.state != "failed" for each in found):
                    healthy.add(step.name)
            for each in found:
                tell(msgspec.structs.replace(each, check=step.name))


async def _carry_out(step: Step, patient: Patient, timeout_s: float) -> list[Finding]:
    try:
        with trio.fail_after(timeout_s):
            return await step.check(patient)
    except trio.TooSlowError:
        return [failed(f"no answer within {timeout_s:g} s", "try again with a longer --timeout")]
    except StoreUnavailable as error:
        return [failed(f"{error.store} does not answer: {error.reason}", _HINTS[error.store])]
    except asyncpg.PostgresError as error:
        # Only the class: the error's own words may quote what is in the tables.
        return [failed(f"PostgreSQL refused the question: {type(error).__name__}", _HINTS["postgres"])]
