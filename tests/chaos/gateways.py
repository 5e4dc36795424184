"""Gateways as processes: started, stopped, frozen, killed and started again."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil
import trio

from tests.local.conftest import environment

READY_WITHIN_S = 60.0
ENDED_WITHIN_S = 30.0
_READY = re.compile(rb'"base_url":"http://[^"]+:(\d+)"')


class Span(NamedTuple):
    """From when to when, in seconds of the epoch."""

    begun: float
    ended: float


@dataclass
class Gateway:
    """``neuronetz serve`` under a number.

    ``kills``: when it, or a worker of it, was killed. ``freezes``: when it stood still. ``troubles``: what went
    wrong where nothing may. ``log`` is one file for all of its lives.
    """

    number: int
    workers: int
    env: dict[str, str]
    log: Path
    port: int = 0
    process: trio.Process | None = None
    kills: list[float] = field(default_factory=list)
    freezes: list[Span] = field(default_factory=list)
    orphans: list[psutil.Process] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def serving(self) -> list[psutil.Process]:
        """The processes that serve: itself, or its workers."""
        mine = psutil.Process(self.pid)
        return [mine] if self.workers == 1 else [child for child in mine.children() if _is_worker(child)]

    async def start(self) -> None:
        """Start it and wait until it listens; with the stores away this may take several times."""
        with trio.fail_after(READY_WITHIN_S):
            while not await self._started():
                await trio.sleep(0.2)

    async def _started(self) -> bool:
        offset = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "neuronetz", "serve", "--workers", str(self.workers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment(**self.env),
                start_new_session=True,
            )
        while True:
            with self.log.open("rb") as written:
                written.seek(offset)
                if found := _READY.search(written.read()):
                    self.port = int(found[1])
                    return True
            if self.process.returncode is not None:
                return False
            await trio.sleep(0.05)

    async def kill(self) -> None:
        """SIGKILL; its workers, if it has any, are left to themselves."""
        assert self.process is not None
        self.orphans += self.serving() if self.workers > 1 else []
        self.process.kill()
        await self.process.wait()
        self.kills.append(time.time())

    def kill_worker(self, index: int) -> None:
        serving = self.serving()
        if serving:
            serving[index % len(serving)].kill()
            self.kills.append(time.time())

    async def freeze(self, seconds: float, index: int) -> None:
        """SIGSTOP, and SIGCONT after so long; of several workers one."""
        serving = self.serving()
        if not serving:
            return
        frozen = serving[index % len(serving)]
        begun = time.time()
        try:
            with suppress(psutil.NoSuchProcess):
                frozen.suspend()
            await trio.sleep(seconds)
        finally:
            with suppress(psutil.NoSuchProcess):
                frozen.resume()
            self.freezes.append(Span(begun, time.time()))

    async def drain(self) -> None:
        """SIGTERM; it must end by itself, with status 0."""
        assert self.process is not None
        self.process.terminate()
        with trio.move_on_after(ENDED_WITHIN_S):
            if (code := await self.process.wait()) != 0:
                self.troubles.append(f"gateway {self.number} ended with status {code} on SIGTERM")
            return
        self.troubles.append(f"gateway {self.number} did not end within {ENDED_WITHIN_S} s of SIGTERM")
        self.end()

    def end(self) -> None:
        """The end of the run, whatever state it is in: nothing of it stays."""
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if self.process is not None:
                os.killpg(self.process.pid, signal.SIGKILL)
        for orphan in self.orphans:
            with suppress(psutil.NoSuchProcess):
                orphan.kill()


def _is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "worker" in process.cmdline()
    return False
