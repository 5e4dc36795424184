"""``python -m tests.bench.counts``: what the gateway does for a request, counted instead of timed.

How long a request takes depends on the machine and on who else is on it; what is called, written and asked for does not.
So the tests guard counts: of Python's and C's functions that are called in the gateway's thread, of writes to the
client's socket, and of reads by Redis, which are round trips. A change that makes a request dearer almost always calls
more, and is seen on any machine. Bounds lie in ``bounds.json``; ``--set`` writes them anew, with head room.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
import trio
import trio_asyncio

from neuronetz.access.keys import Hasher
from neuronetz.embedded.postgres import EmbeddedPostgres
from neuronetz.embedded.valkey import EmbeddedValkey
from neuronetz.settings import Settings
from neuronetz.stores.migrations import migrate
from neuronetz.stores.postgres import Postgres, open_postgres
from neuronetz.stores.redis import Redis, open_redis
from neuronetz.telemetry.logs import configure_logs
from neuronetz.web.connection import Connection
from tests.bench.bench import LATE_S, Bench
from tests.bench.peers import Serving
from tests.bench.peers.neuronetz import WIDE
from tests.bench.processes import started
from tests.bench.shapes import BURST, HELD, OPENAI_BURST, OPENAI_WHOLE, WHOLE, Shape
from tests.gateway_fixtures import insert_key, running

BOUNDS = Path(__file__).with_name("bounds.json")
HEAD_ROOM = 1.25
_WARM_S, _COUNTED_S, _BEHIND_S, _PACED_S = 0.3, 0.6, 0.1, 0.8
# So far apart that nothing of one request is done together with the next one's, which would count for less.
_RATE = 20.0
_STREAMS = 8
# The least of them: what the services do beside requests falls into some, and not into all.
_REPEATS = 3
# Where the gateway writes to clients.
_WRITER = Connection._write.__code__


class Counter:
    """A profile function: calls, and writes to clients."""

    def __init__(self) -> None:
        self.calls = 0
        self.writes = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.calls += 1
        elif event == "c_call":
            self.calls += 1
            if argument is os.write and frame.f_code is _WRITER:
                self.writes += 1


@contextmanager
def counting() -> Iterator[Counter]:
    """Count in this thread, within the block."""
    counter, before = Counter(), sys.getprofile()
    sys.setprofile(counter)
    try:
        yield counter
    finally:
        sys.setprofile(before)


async def counts(settings: Settings, postgres: Postgres, redis: Redis, folder: Path) -> dict[str, float]:
    """Of a gateway in this thread, before these stores: upstream and client are processes of their own."""
    key = await insert_key(
        postgres, Hasher(1, 8, 1, 1, 8), "bench", **WIDE, **{f"key_{n}": v for n, v in WIDE.items()}
    )
    module = [sys.executable, "-m"]
    async with AsyncExitStack() as stack:
        stack.enter_context(_served_level())
        upstream = await stack.enter_async_context(
            started([*module, "tests.bench.upstream"], folder / "upstream.log")
        )
        client = await stack.enter_async_context(started([*module, "tests.bench.client"], folder / "client.log"))
        port = int(await upstream.line())
        settings = settings.model_copy(update={"ollama_url": f"http://127.0.0.1:{port}"})
        gateway = await stack.enter_async_context(running(settings))
        serving = Serving(int(gateway.base_url.rpartition(":")[2]), (), key)
        bench = Bench(client, upstream, port, {})
        found: dict[str, float] = {}
        for shape in (WHOLE, BURST, OPENAI_WHOLE, OPENAI_BURST):
            await _job(bench, serving, shape, _WARM_S)
            repeats = [await _per_reply(bench, serving, shape, redis) for _ in range(_REPEATS)]
            found |= {name: min(repeat[name] for repeat in repeats) for name in repeats[0]}
        found["paced: calls per token"] = await _per_token(bench, serving)
    return found


@contextmanager
def _served_level() -> Iterator[None]:
    """Events are left out as ``serve`` leaves them out by default: tests have another level, and writing is dear."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    try:
        yield
    finally:
        structlog.configure(**before)


async def _job(bench: Bench, serving: Serving, shape: Shape, seconds: float) -> int:
    seen = await bench.load("steady", serving, shape, connections=1, rate=_RATE, seconds=seconds)
    if seen["failures"] or not seen["replies"]:
        raise RuntimeError(f"{shape.name}: {seen}")
    return int(seen["replies"])


async def _per_reply(bench: Bench, serving: Serving, shape: Shape, redis: Redis) -> dict[str, float]:
    before = await _reads(redis)
    with counting() as counter:
        replies = await _job(bench, serving, shape, _COUNTED_S)
        # What is done behind the last reply is counted with it.
        await trio.sleep(_BEHIND_S)
    # The second look is a read itself.
    reads = await _reads(redis) - before - 1
    return {
        f"{shape.name}: calls per request": counter.calls / replies,
        f"{shape.name}: writes per reply": counter.writes / replies,
        f"{shape.name}: Redis round trips per request": reads / replies,
    }


async def _per_token(bench: Bench, serving: Serving) -> float:
    repeats: list[float] = []
    try:
        await bench.load("open", serving, HELD, count=_STREAMS, within_s=10.0)
        for _ in range(_REPEATS):
            with counting() as counter:
                seen = await bench.ask("watch", seconds=_PACED_S, late_s=LATE_S)
            repeats.append(counter.calls / max(1, seen["tokens"]))
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(10.0):
            await bench.gone()
    return min(repeats)


async def _reads(redis: Redis) -> int:
    told = await redis.command("INFO", "stats")
    return int(told["total_reads_processed"])


def exceeded(found: dict[str, float], bounds: dict[str, float]) -> list[str]:
    """Of each count that is above its bound, or has none, a line that says so."""
    none = [f"{name} has no bound" for name in found if name not in bounds]
    above = [(name, value) for name, value in found.items() if value > bounds.get(name, value)]
    return none + [f"{name}: {value:.2f}, and at most {bounds[name]} are allowed" for name, value in above]


def bounds_of(found: dict[str, float]) -> dict[str, float]:
    """With head room."""
    return {name: round(value * HEAD_ROOM, 0 if value > 20 else 2) for name, value in found.items()}


@asynccontextmanager
async def _stores(folder: Path) -> AsyncIterator[tuple[Settings, Postgres, Redis]]:
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
                yield counted_settings(database.dsn(), valkey.url()), postgres, redis
    finally:
        with trio.CancelScope(shield=True):
            await database.stop(immediate=True)
            await valkey.stop(immediate=True)


def counted_settings(database_url: str, redis_url: str) -> Settings:
    """Defaults, with keys that are cheap to hash: hashing is not counted, since the key comes from the cache."""
    cheap = {"argon2_time_cost": 1, "argon2_memory_kib": 8, "argon2_parallelism": 1}
    ports = {"listen_port": 0, "metrics_port": 0}
    return Settings.load(
        database_url=database_url,
        redis_url=redis_url,
        ollama_url="http://127.0.0.1:1",
        log_format="json",
        **ports,
        **cheap,
    )


async def _counted(folder: Path) -> dict[str, float]:
    async with _stores(folder) as (settings, postgres, redis):
        return await counts(settings, postgres, redis, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--set", action="store_true", help=f"write {BOUNDS.name}, with {HEAD_ROOM:.0%} of what was counted"
    )
    arguments = parser.parse_args()
    configure_logs("info", "json")
    with tempfile.TemporaryDirectory(prefix="nnz-counts-") as folder:
        Path(folder).chmod(0o711)
        found = trio.run(_counted, Path(folder))
    bounds = json.loads(BOUNDS.read_text()) if BOUNDS.exists() else {}
    for name, value in found.items():
        sys.stdout.write(f"{name:50} {value:10.2f}   at most {bounds.get(name, '-')}\n")
    if arguments.set:
        BOUNDS.write_text(json.dumps(bounds_of(found), indent=4) + "\n")


if __name__ == "__main__":
    main()
