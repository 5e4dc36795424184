"""Fixtures shared by all tests: real servers of this session, and of each test a database of its own.

The servers are started once for each worker, without anything that makes data durable. A test's database
is a copy of a migrated template, made and dropped outside the test's Trio run.
"""

import asyncio
import gc
import itertools
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import hypothesis
import pytest
import redis as redis_py
import trio
import trio_asyncio

from neuronetz.embedded.child import EmbeddedServerError
from neuronetz.embedded.folders import FolderLock
from neuronetz.embedded.postgres import EmbeddedPostgres
from neuronetz.embedded.valkey import EmbeddedValkey
from neuronetz.embedded.valkey_cluster import EmbeddedValkeyCluster
from neuronetz.settings import Settings
from neuronetz.stores.cluster import slot_of
from neuronetz.stores.migrations import migrate
from neuronetz.stores.postgres import Postgres, open_postgres
from neuronetz.stores.redis import Redis, open_redis

# A property that is slow once, on a machine that stands still for a moment, is no less true.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

pytest_plugins = ("tests.gateway_fixtures",)

# The server's first database, migrated; nobody connects to it while tests copy it.
TEMPLATE = "postgres"
DATABASES = 10_000
MEMORY_NEEDED_BYTES = 2 * 1024**3


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: much of a test's time is spent waiting for real processes and deadlines."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """Collections of garbage need not look at all that the suite has imported: they would hold up what is timed."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell what the proofs in ``tests/guarantees`` covered, whichever worker they ran in."""
    points = [
        value
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == "checkpoints"
    ]
    if points:
        terminalreporter.write_line(f"cancelled at {sum(points)} checkpoints of {len(points)} exchanges")


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A folder of this session, removed at its end, or by a later session if this one is killed."""
    parent = _scratch_parent()
    _sweep(parent)
    folder = parent / f"nnz-test-{secrets.token_hex(4)}"
    lock = FolderLock(folder)
    lock.acquire()
    folder.mkdir(mode=0o711)
    yield folder
    _remove(folder)
    lock.release()


@dataclass
class Cluster:
    """The session's PostgreSQL, with an administrator's connection that no test's event loop knows."""

    server: EmbeddedPostgres
    seed: Path
    run: Callable[[Coroutine[Any, Any, Any]], Any]
    admin: "asyncpg.Connection[asyncpg.Record]"

    def execute(self, statement: str) -> None:
        self.run(self.admin.execute(statement))


@pytest.fixture(scope="session")
def postgres_cluster(scratch: Path) -> Iterator[Cluster]:
    server = EmbeddedPostgres(scratch / "postgres", fsync=False)
    trio.run(_migrated, server)
    # Copied while it is stopped: making a data folder anew takes much longer.
    seed = _copied(server.data_dir, scratch / "seed")
    trio.run(server.start)
    try:
        # Not the policy's loop: trio-asyncio sets the policy.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            first = runner.run(asyncpg.connect(server.dsn()))
            runner.run(first.execute("CREATE DATABASE admin TEMPLATE postgres"))
            runner.run(first.close())
            admin = runner.run(asyncpg.connect(server.dsn("admin")))
            yield Cluster(server, seed, runner.run, admin)
            runner.run(admin.close(timeout=2))
    finally:
        trio.run(server.stop, True)


@pytest.fixture(scope="session")
def valkey_server(scratch: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(scratch / "valkey", persist=False, databases=DATABASES)
    trio.run(server.start)
    try:
        yield server
    finally:
        trio.run(server.stop, True)


@pytest.fixture(scope="session")
def serial() -> Iterator[int]:
    """Numbers for the databases of the tests of this worker."""
    return itertools.count(1)


@pytest.fixture
def database_url(postgres_cluster: Cluster, serial: Iterator[int]) -> Iterator[str]:
    """The URL of a fresh, migrated PostgreSQL database of this test."""
    name = f"test_{next(serial)}"
    postgres_cluster.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY")
    yield postgres_cluster.server.dsn(name)
    postgres_cluster.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def single_url(valkey_server: EmbeddedValkey, serial: Iterator[int]) -> Iterator[str]:
    """The URL of an empty database of this test on a single server."""
    url = valkey_server.url(next(serial) % DATABASES)
    with redis_py.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


@pytest.fixture
def redis_url(single_url: str) -> str:
    """The URL of an empty Redis database of this test."""
    return single_url


@pytest.fixture(scope="session")
def valkey_cluster(scratch: Path) -> Iterator[EmbeddedValkeyCluster]:
    """Three nodes, started when a test of this worker first asks for them."""
    cluster = EmbeddedValkeyCluster(scratch / "cluster")
    trio.run(cluster.start)
    try:
        yield cluster
    finally:
        trio.run(cluster.stop)


@pytest.fixture
def cluster_url(valkey_cluster: EmbeddedValkeyCluster) -> Iterator[str]:
    """The URL of the session's cluster, empty. A test that stops a node has it back in order at its end."""
    _flush_cluster(valkey_cluster)
    yield valkey_cluster.url()
    _flush_cluster(valkey_cluster)


@pytest.fixture(params=["single", "cluster"])
def each_redis_url(request: pytest.FixtureRequest) -> str:
    """An empty single server, then an empty cluster: a room's ``redis_url`` where its tests hold on both."""
    return str(request.getfixturevalue(f"{request.param}_url"))


def _flush_cluster(cluster: EmbeddedValkeyCluster) -> None:
    for node in cluster.nodes:
        with redis_py.Redis.from_url(f"unix://{node.socket_path}") as client:
            client.flushall()


@pytest.fixture
async def asyncio_loop() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """An asyncio loop inside the test's Trio run. Take it as an argument: pytest-trio ignores ``usefixtures``."""
    async with trio_asyncio.open_loop() as loop:
        yield loop


@pytest.fixture
async def postgres(asyncio_loop: asyncio.AbstractEventLoop, database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url, size=8, timeout_s=5.0) as store:
        yield store


@pytest.fixture
async def redis(asyncio_loop: asyncio.AbstractEventLoop, redis_url: str) -> AsyncIterator[Redis]:
    async with open_redis(redis_url, size=32, timeout_s=5.0) as store:
        yield store


@pytest.fixture
async def mock_ollama() -> AsyncIterator[Any]:
    from neuronetz.embedded.ollama import MockOptions, run_mock_ollama

    async with run_mock_ollama(MockOptions()) as mock:
        yield mock


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, database_url: str, redis_url: str, mock_ollama: Any) -> Settings:
    """Settings for this test's databases and mock, with keys that are cheap to hash."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)
    return Settings.load(
        database_url=database_url,
        redis_url=redis_url,
        ollama_url=mock_ollama.url,
        listen_port=0,
        metrics_port=0,
        argon2_time_cost=1,
        argon2_memory_kib=8,
        argon2_parallelism=1,
        model_discovery_interval_s=0.2,
    )


@pytest.fixture(scope="session")
def postgres_seed(postgres_cluster: Cluster) -> Path:
    """A stopped server's data folder with one database, ``postgres``, migrated; to be copied with ``cp -a``."""
    return postgres_cluster.seed


@pytest.fixture
def own_folder(scratch: Path, serial: Iterator[int]) -> Iterator[Path]:
    """A folder of this test, with a short path that a server's system user may enter."""
    folder = scratch / f"own{next(serial)}"
    folder.mkdir(mode=0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def own_postgres(
    asyncio_loop: asyncio.AbstractEventLoop, own_folder: Path, postgres_seed: Path
) -> AsyncIterator[EmbeddedPostgres]:
    """A running PostgreSQL of this test alone, to be stopped, paused and killed; its ``dsn()`` is migrated."""
    folder = await trio.to_thread.run_sync(_copied, postgres_seed, own_folder / "postgres")
    server = EmbeddedPostgres(folder, fsync=False)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(immediate=True)


@pytest.fixture
async def own_valkey(asyncio_loop: asyncio.AbstractEventLoop, own_folder: Path) -> AsyncIterator[EmbeddedValkey]:
    """A running Valkey of this test alone, to be stopped, paused and killed; it keeps its data over a restart."""
    server = EmbeddedValkey(own_folder / "valkey")
    await server.start()
    try:
        yield server
    finally:
        await server.stop(immediate=True)


@pytest.fixture
async def own_cluster(
    asyncio_loop: asyncio.AbstractEventLoop, own_folder: Path
) -> AsyncIterator[EmbeddedValkeyCluster]:
    """A running cluster of this test alone, whose slots and nodes it may move about."""
    cluster = EmbeddedValkeyCluster(own_folder / "cluster")
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()


@pytest.fixture
def on_node() -> Callable[..., str]:
    """Makes text whose slot a node of a cluster owns: ``on_node(cluster, 1, make)``."""

    def find(cluster: EmbeddedValkeyCluster, number: int, make: Callable[[], str]) -> str:
        while cluster.node_of(slot_of(text := make())) is not cluster.nodes[number]:
            pass
        return text

    return find


def _scratch_parent() -> Path:
    # In memory where there is plenty: copying a database makes hundreds of files, and disks can be slow at it.
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > MEMORY_NEEDED_BYTES:
        return memory
    return Path(tempfile.gettempdir())


def _sweep(parent: Path) -> None:
    for file in parent.glob("nnz-test-*.lock"):
        with suppress(OSError, EmbeddedServerError):
            if time.time() - file.stat().st_mtime > 60:
                folder = file.with_suffix("")
                lock = FolderLock(folder)
                lock.acquire()
                _remove(folder)
                lock.release()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)


def _copied(source: Path, target: Path) -> Path:
    # Not shutil's copy: the files may belong to another user.
    subprocess.check_call(["cp", "-a", str(source), str(target)])
    return target


async def _migrated(server: EmbeddedPostgres) -> None:
    await server.start()
    try:
        async with trio_asyncio.open_loop():
            await migrate(server.dsn())
            await trio_asyncio.aio_as_trio(_drop_other_databases)(server.dsn())
    finally:
        await server.stop()


async def _drop_other_databases(url: str) -> None:
    # Two thirds of the files that each copy of the seed would have to write.
    connection = await asyncpg.connect(url)
    for name in ("template0", "template1"):
        await connection.execute(f"ALTER DATABASE {name} IS_TEMPLATE false")
        await connection.execute(f"DROP DATABASE {name}")
    await connection.close()
