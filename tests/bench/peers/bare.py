"""A bare relay on Trio: what anything on this stack costs at least."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import trio

from tests.bench.peers.peer import Peer, Serving
from tests.bench.processes import READY_WITHIN_S, started


class BareTrio(Peer):
    """Bytes are passed on, and nobody looks at them. The floor of the stack, as nginx is the floor of all."""

    name: ClassVar[str] = "bare trio"

    @asynccontextmanager
    async def opened(self, upstream_port: int, folder: Path) -> AsyncIterator[Serving]:
        command = [sys.executable, "-m", "tests.bench.relay", str(upstream_port)]
        async with started(command, folder / "relay.log") as process:
            with trio.fail_after(READY_WITHIN_S):
                port = int(await process.line())
            yield Serving(port, (process.pid,))
