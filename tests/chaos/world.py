"""What a run runs before: stores, the mock and the gateways, all as processes, in a folder of its own."""

import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import trio
import trio_asyncio

from neuronetz.embedded.ports import held_port
from neuronetz.embedded.postgres import EmbeddedPostgres
from neuronetz.embedded.valkey import EmbeddedValkey
from neuronetz.stores.migrations import migrate
from neuronetz.stores.postgres import Postgres, open_postgres
from neuronetz.stores.redis import Redis, open_redis
from tests.chaos.accounts import Account, open_accounts
from tests.chaos.gateways import Gateway, Span
from tests.chaos.witness import Work, read_notes
from tests.local.conftest import environment

HEARTBEAT_S = 1.0
DEAD_AFTER_S = 4.0
STORE_TIMEOUT_S = 1.0
# Number 0 is only ever frozen: its memory is watched from the first to the last request.
GATEWAYS = (1, 1, 2)

_WITNESS = (sys.executable, "-m", "tests.chaos.witness")
_ENV = {
    "LISTEN_PORT": "0",
    "METRICS_PORT": "0",
    "DRAIN_TIMEOUT_S": "2",
    "HEARTBEAT_S": str(HEARTBEAT_S),
    "DEAD_AFTER_S": str(DEAD_AFTER_S),
    "STORE_TIMEOUT_S": str(STORE_TIMEOUT_S),
    "BODY_TIMEOUT_S": "3",
    "FIRST_BYTE_TIMEOUT_S": "3",
    "CHUNK_TIMEOUT_S": "2",
    "WRITE_TIMEOUT_S": "2",
    "SSE_HEARTBEAT_S": "1",
    "BREAKER_OPEN_S": "1",
    "MODEL_DISCOVERY_INTERVAL_S": "1",
    "LEDGER_CHECK_INTERVAL_S": "2",
    "LOG_FORMAT": "json",
}


@dataclass
class Mock:
    """The witness in its process, on one port for all of its lives."""

    folder: Path
    models: list[str]
    port: int
    process: trio.Process | None = None
    lives: list[Span] = field(default_factory=list)
    _begun: float = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _notes(self, life: int) -> Path:
        return self.folder / f"mock-{life}.notes"

    async def start(self) -> None:
        self._begun = time.time()
        self.process = await trio.lowlevel.open_process(
            [*_WITNESS, "--port", str(self.port), "--notes", str(self._notes(len(self.lives))), *self.models],
            env=environment(),
            start_new_session=True,
        )
        with trio.fail_after(30):
            while not await self._listens():
                await trio.sleep(0.05)

    async def _listens(self) -> bool:
        try:
            async with await trio.open_tcp_stream("127.0.0.1", self.port):
                return True
        except OSError:
            return False

    async def stop(self) -> None:
        """As a crash would."""
        if self.process is not None:
            self.process.kill()
            await self.process.wait()
            self.process = None
            self.lives.append(Span(self._begun, time.time()))

    async def configure(self, **options: object) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            await client.post(self.url + "/_mock/configure", json=options)

    async def open(self) -> int:
        """How many inference requests it is at."""
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            return int((await client.get(self.url + "/_mock/stats")).json()["open"])

    def works(self) -> list[Work]:
        """All that it was ever at, once it has stopped."""
        return [work for life, span in enumerate(self.lives) for work in read_notes(self._notes(life), span.ended)]


@dataclass
class World:
    """All that runs. ``outages``: when Redis was away, in seconds of the epoch."""

    postgres_server: EmbeddedPostgres
    valkey_server: EmbeddedValkey
    mock: Mock
    gateways: list[Gateway]
    accounts: list[Account]
    postgres: Postgres
    redis: Redis
    outages: list[Span] = field(default_factory=list)

    def logs(self) -> bytes:
        return b"\n".join(gateway.log.read_bytes() for gateway in self.gateways)


@asynccontextmanager
async def open_world(keep: Path | None = None) -> AsyncIterator[World]:
    """Everything, up; at the block's end nothing of it is left, but for the logs in ``keep``."""
    folder = _short_folder()
    postgres_server = EmbeddedPostgres(folder / "postgres")
    valkey_server = EmbeddedValkey(folder / "valkey")
    gateways: list[Gateway] = []
    mock: Mock | None = None
    try:
        await valkey_server.start()
        await postgres_server.start()
        async with trio_asyncio.open_loop():
            await migrate(postgres_server.dsn())
            with held_port() as mock_port:
                async with (
                    open_postgres(postgres_server.dsn(), size=2, timeout_s=5.0) as postgres,
                    open_redis(valkey_server.url(), size=4, timeout_s=5.0) as redis,
                ):
                    accounts = await open_accounts(postgres)
                    mock = Mock(folder, [account.model for account in accounts], mock_port)
                    await mock.start()
                    stores = {"DATABASE_URL": postgres_server.dsn(), "REDIS_URL": valkey_server.url()}
                    env = _ENV | stores | {"OLLAMA_URL": mock.url}
                    gateways += [
                        Gateway(number, workers, env, folder / f"gateway-{number}.log")
                        for number, workers in enumerate(GATEWAYS)
                    ]
                    async with trio.open_nursery() as nursery:
                        for gateway in gateways:
                            nursery.start_soon(gateway.start)
                    yield World(postgres_server, valkey_server, mock, gateways, accounts, postgres, redis)
    finally:
        with trio.CancelScope(shield=True):
            for gateway in gateways:
                gateway.end()
            if mock is not None:
                await mock.stop()
            await postgres_server.stop(immediate=True)
            await valkey_server.stop(immediate=True)
            if keep is not None:
                await trio.to_thread.run_sync(_keep_logs, folder, keep)
            await trio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


def _keep_logs(folder: Path, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    for file in (*folder.glob("*.log"), *folder.glob("*.notes")):
        shutil.copy(file, kept)


def _short_folder() -> Path:
    # Sockets lie below it; open to the system user that PostgreSQL may have to run as.
    folder = Path(tempfile.mkdtemp(prefix="nnz-chaos-"))
    folder.chmod(0o711)
    return folder
