"""neuronetz itself, as it is served in production, before embedded stores."""

import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import trio
import trio_asyncio

from neuronetz.access.keys import Hasher
from neuronetz.embedded.postgres import EmbeddedPostgres
from neuronetz.embedded.valkey import EmbeddedValkey
from neuronetz.stores.migrations import migrate
from neuronetz.stores.postgres import open_postgres
from neuronetz.stores.redis import open_redis
from tests.bench.peers.peer import Peer, Serving
from tests.bench.processes import READY_WITHIN_S, started
from tests.gateway_fixtures import Books, insert_key
from tests.local.conftest import environment

WIDE: dict[str, int | str] = {
    "rpm": 2_000_000_000,
    "concurrency": 1_000_000,
    "budget_tokens": 10**15,
    "budget_period": "month",
}


class Neuronetz(Peer):
    """One ``neuronetz serve``, with its defaults and a key that has every limit there is, none of which is reached."""

    name: ClassVar[str] = "neuronetz"

    @asynccontextmanager
    async def opened(self, upstream_port: int, folder: Path) -> AsyncIterator[Serving]:
        database, valkey = EmbeddedPostgres(folder / "postgres"), EmbeddedValkey(folder / "valkey")
        try:
            await valkey.start()
            await database.start()
            async with trio_asyncio.open_loop():
                await migrate(database.dsn())
                async with (
                    open_postgres(database.dsn(), size=1, timeout_s=5.0) as postgres,
                    open_redis(valkey.url(), size=1, timeout_s=5.0) as redis,
                ):
                    own = {f"key_{name}": value for name, value in WIDE.items()}
                    key = await insert_key(postgres, Hasher(1, 8, 1, 1, 8), "bench", **WIDE, **own)
                    env = environment(
                        DATABASE_URL=database.dsn(),
                        REDIS_URL=valkey.url(),
                        OLLAMA_URL=f"http://127.0.0.1:{upstream_port}",
                        LISTEN_PORT="0",
                        METRICS_PORT="0",
                        LOG_FORMAT="json",
                    )
                    stores = tuple(server.pid for server in (database, valkey) if server.pid)

                    @asynccontextmanager
                    async def serving(workers: int) -> AsyncIterator[Serving]:
                        async with _serves(env, workers, folder / "neuronetz.log") as (port, pid, took):
                            yield Serving(port, (pid,), key, (), stores, Books(postgres, redis), took, serving)

                    async with serving(1) as first:
                        yield first
        finally:
            with trio.CancelScope(shield=True):
                await database.stop(immediate=True)
                await valkey.stop(immediate=True)


@asynccontextmanager
async def _serves(env: Mapping[str, str], workers: int, log: Path) -> AsyncIterator[tuple[int, int, float]]:
    """Its port, its process, and the seconds from its start to its ready line."""
    command = [sys.executable, "-m", "neuronetz", "serve", "--json", "--workers", str(workers)]
    began = time.perf_counter()
    async with started(command, log, env) as process:
        try:
            with trio.fail_after(READY_WITHIN_S):
                ready = json.loads(await process.line())
        except EOFError:
            raise RuntimeError(f"neuronetz ended: {(await trio.Path(log).read_text())[-2000:]}") from None
        took = time.perf_counter() - began
        yield int(ready["base_url"].rpartition(":")[2]), process.pid, took
