"""Processes of a run: started, asked, and what they cost."""

import os
import resource
import signal
import subprocess
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import trio

READY_WITHIN_S = 60.0
ENDED_WITHIN_S = 10.0
_OPEN = {psutil.CONN_ESTABLISHED, psutil.CONN_CLOSE_WAIT}


class Lines:
    """A process's stdin and stdout, a line at a time."""

    def __init__(self, process: trio.Process) -> None:
        self.pid = process.pid
        self._process = process
        self._read = b""

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    async def line(self) -> bytes:
        """The next line. Raises ``EOFError`` where the process has ended."""
        assert self._process.stdout is not None
        while b"\n" not in self._read:
            data = await self._process.stdout.receive_some(65536)
            if not data:
                raise EOFError(f"{self._process.args[:4]} has ended")
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line

    async def ask(self, line: bytes) -> bytes:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(line + b"\n")
        return await self.line()


@asynccontextmanager
async def started(
    command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, *, heard: bool = True
) -> AsyncIterator[Lines]:
    """A process whose stderr goes to ``log``; at the block's end it is ended, gently, then not.

    Nobody reads the stdout of one that is not ``heard``: it goes to ``log`` too, where it cannot fill a pipe.
    """
    with log.open("ab") as errors:
        process = await trio.lowlevel.open_process(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if heard else errors,
            stderr=errors,
            env=env,
            start_new_session=True,
        )
    try:
        yield Lines(process)
    finally:
        with trio.CancelScope(shield=True):
            process.terminate()
            with trio.move_on_after(ENDED_WITHIN_S):
                await process.wait()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()


def many_descriptors() -> None:
    """Allow as many open files as there may be, to this process and those it starts: a stream needs two."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def family(roots: Iterable[int]) -> list[psutil.Process]:
    """The processes of these numbers, with all below them."""
    found = []
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(root)
            found += [process, *process.children(recursive=True)]
    return found


def cpu_s(roots: Iterable[int]) -> float:
    """CPU seconds that the families have used, those of children that have ended included."""
    total = 0.0
    for process in family(roots):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_bytes(roots: Iterable[int]) -> int:
    """Resident memory of the families."""
    total = 0
    for process in family(roots):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def descriptors(roots: Iterable[int]) -> int:
    """Open file descriptors of the families."""
    total = 0
    for process in family(roots):
        with suppress(psutil.NoSuchProcess):
            total += process.num_fds()
    return total


def connections(roots: Iterable[int], port: int) -> int:
    """Connections of clients that the families hold at their own port."""
    found = set()
    for process in family(roots):
        with suppress(psutil.NoSuchProcess):
            for held in process.net_connections("tcp"):
                if held.status in _OPEN and held.laddr.port == port:
                    found.add(held.raddr)
    return len(found)
