"""neuronetz's own processes, as a user starts them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

READY_WITHIN_S = 60
STOPPED_WITHIN_S = 30


@dataclass
class Run:
    """A running command: its ready line, its process, and what it wrote to stderr so far."""

    process: trio.Process
    ready: dict[str, Any]
    stdout: bytes
    errors: bytearray = field(default_factory=bytearray)

    async def end(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self.process.send_signal(signum)
        with trio.fail_after(STOPPED_WITHIN_S):
            return await self.process.wait()


def environment(**extra: str) -> dict[str, str]:
    from neuronetz.settings import Settings

    kept = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    cheap = {"ARGON2_TIME_COST": "1", "ARGON2_MEMORY_KIB": "8", "ARGON2_PARALLELISM": "1"}
    return kept | cheap | extra


@asynccontextmanager
async def launched(*args: str, **env: str) -> AsyncIterator[tuple[trio.Process, bytearray]]:
    """A command with its stderr gathered; killed at the block's end if it still runs."""
    errors = bytearray()
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "neuronetz", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(**env),
            start_new_session=True,
        )

        async def gather() -> None:
            assert process.stderr is not None
            async for chunk in process.stderr:
                errors.extend(chunk)

        nursery.start_soon(gather)
        try:
            yield process, errors
        finally:
            with trio.CancelScope(shield=True):
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            nursery.cancel_scope.cancel()
    assert process.stdout is not None
    await process.stdout.aclose()
    assert process.stderr is not None
    await process.stderr.aclose()


@asynccontextmanager
async def running(*args: str, **env: str) -> AsyncIterator[Run]:
    """A command that announces itself with a JSON line."""
    async with launched(*args, **env) as (process, errors):
        line = bytearray()
        assert process.stdout is not None
        with trio.fail_after(READY_WITHIN_S):
            while not line.endswith(b"\n"):
                chunk = await process.stdout.receive_some(65536)
                assert chunk, errors.decode()
                line += chunk
        yield Run(process, json.loads(line), bytes(line), errors)


@pytest.fixture
def start() -> Callable[..., AbstractAsyncContextManager[Run]]:
    return running


@pytest.fixture
def launch() -> Callable[..., AbstractAsyncContextManager[tuple[trio.Process, bytearray]]]:
    return launched


@pytest.fixture
def run() -> Callable[..., Any]:
    """Runs a command to its end: exit code, stdout, stderr."""

    async def run(*args: str, **env: str) -> tuple[int, str, str]:
        with trio.fail_after(READY_WITHIN_S):
            done = await trio.run_process(
                [sys.executable, "-m", "neuronetz", *args],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=environment(**env),
            )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return run


@pytest.fixture
def left_over() -> Callable[[Path], list[str]]:
    """The processes that still have something to do with a folder."""

    def left_over(folder: Path) -> list[str]:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if any(str(folder) in word for word in words):
                found.append(" ".join(words))
        return found

    return left_over
