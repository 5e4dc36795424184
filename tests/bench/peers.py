"""What is measured beside each other. To add a peer, write a class as short as ``Nginx`` and list it in ``PEERS``."""

import os
import re
import shutil
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
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
from tests.bench.processes import READY_WITHIN_S, Lines, started
from tests.bench.shapes import Shape
from tests.gateway_fixtures import Books, insert_key
from tests.local.conftest import environment

_SERVES = re.compile(rb'"base_url":"http://[^"]+:(\d+)"')


@dataclass(frozen=True)
class Serving:
    """A peer that serves. ``processes`` and ``stores`` are roots of families; ``books`` where it keeps any."""

    port: int
    processes: tuple[int, ...]
    key: str | None = None
    stores: tuple[int, ...] = ()
    books: Books | None = None


class Peer(ABC):
    """Something between a client and the upstream."""

    name: ClassVar[str]

    def absent(self) -> str | None:
        """Why it cannot be measured here, or None."""
        return None

    def answers(self, shape: Shape) -> bool:
        """Whether it has an endpoint of this shape."""
        return True

    @abstractmethod
    def opened(self, upstream_port: int, folder: Path) -> AbstractAsyncContextManager[Serving]:
        """Serve within the block, with all files in ``folder``."""


class Direct(Peer):
    """Nothing in between: what the others add is over this."""

    name = "direct"

    @asynccontextmanager
    async def opened(self, upstream_port: int, folder: Path) -> AsyncIterator[Serving]:
        yield Serving(upstream_port, ())


class Nginx(Peer):
    """A bare reverse proxy: no keys, no limits, no books. The floor for what only passes bytes on."""

    name = "nginx"
    _CONFIGURATION = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 1000000;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    upstream model {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        location / {{
            proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering off; proxy_read_timeout 60s;
        }}
    }}
}}
"""

    def __init__(self) -> None:
        # Where distributions put it, which is not in everybody's path.
        self._program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")

    def absent(self) -> str | None:
        return None if self._program else "nginx is not installed: apt-get install nginx-light"

    @asynccontextmanager
    async def opened(self, upstream_port: int, folder: Path) -> AsyncIterator[Serving]:
        port = _free_port()
        configuration = folder / "nginx.conf"
        configuration.write_text(self._CONFIGURATION.format(upstream=upstream_port, port=port))
        command = [str(self._program), "-p", str(folder), "-c", str(configuration), "-e", "stderr"]
        async with started(command, folder / "nginx.log") as process:
            with trio.fail_after(READY_WITHIN_S):
                while not await _listens(port):
                    await trio.sleep(0.02)
            yield Serving(port, (process.pid,))


class Neuronetz(Peer):
    """One ``neuronetz serve``, with its defaults and a key that has every limit there is, none of which is reached."""

    name = "neuronetz"
    _WIDE: ClassVar[dict[str, int | str]] = {
        "rpm": 2_000_000_000,
        "concurrency": 1_000_000,
        "budget_tokens": 10**15,
        "budget_period": "month",
    }

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
                    own = {f"key_{name}": value for name, value in self._WIDE.items()}
                    key = await insert_key(postgres, Hasher(1, 8, 1, 1, 8), "bench", **self._WIDE, **own)
                    env = environment(
                        DATABASE_URL=database.dsn(),
                        REDIS_URL=valkey.url(),
                        OLLAMA_URL=f"http://127.0.0.1:{upstream_port}",
                        LISTEN_PORT="0",
                        METRICS_PORT="0",
                        LOG_FORMAT="json",
                    )
                    command = [sys.executable, "-m", "neuronetz", "serve"]
                    async with started(command, folder / "neuronetz.log", env) as process:
                        port = await _announced(process, trio.Path(folder / "neuronetz.log"))
                        stores = tuple(server.pid for server in (database, valkey) if server.pid)
                        yield Serving(port, (process.pid,), key, stores, Books(postgres, redis))
        finally:
            with trio.CancelScope(shield=True):
                await database.stop(immediate=True)
                await valkey.stop(immediate=True)


PEERS: tuple[type[Peer], ...] = (Direct, Nginx, Neuronetz)


async def _announced(process: Lines, log: trio.Path) -> int:
    """The port that the gateway says it serves at, once it does. Raises ``RuntimeError`` where it ends before."""
    with trio.fail_after(READY_WITHIN_S):
        while (found := _SERVES.search(await log.read_bytes())) is None:
            if process.ended:
                raise RuntimeError(f"neuronetz ended: {(await log.read_text())[-2000:]}")
            await trio.sleep(0.05)
    return int(found[1])


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def _listens(port: int) -> bool:
    try:
        async with await trio.open_tcp_stream("127.0.0.1", port):
            return True
    except OSError:
        return False
