"""A worker as its parent sees it: a number, and the process of the moment.

Parent and worker speak over a socket pair, a byte a message. That it closes is a message too: a worker
whose parent is gone ends, however the parent went.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import structlog
import trio

from neuronetz.workers.folder import forget

log = structlog.get_logger("neuronetz.workers")

# To the worker: stop accepting and drain; cancel what is left; bring the gauges up to date.
DRAIN: Final = b"d"
CANCEL: Final = b"c"
REFRESH: Final = b"m"
# From the worker: it serves; its gauges are up to date.
READY: Final = b"r"
REFRESHED: Final = b"m"

State = Literal["starting", "ready", "draining", "restarting", "stopped"]
# What the metrics tell of; a stopped one has gone from them.
STATES: Final[tuple[State, ...]] = ("starting", "ready", "draining", "restarting")

_REFRESH_S = 1.0


def command() -> list[str]:
    """How a worker is started: a fresh interpreter, that finds modules where this one does."""
    # ``-m`` alone would also look in the working folder.
    safe = [] if os.getcwd() in sys.path or "" in sys.path else ["-P"]
    return [sys.executable, *safe, "-m", "neuronetz", "worker"]


class WorkerEnded(Exception):
    """A worker's process ended though nobody asked for it."""


class Worker:
    """One of the workers. ``live`` is its process's life, to be supervised.

    ``gone`` is set while it has no process; ``was_ready`` once a process of it has served. ``judge`` is
    asked about each end that was not asked for: True when starting again cannot help.
    """

    def __init__(
        self,
        number: int,
        *,
        command: Sequence[str],
        listen: Sequence[int],
        folder: Path,
        hard_s: float,
        judge: Callable[[int], bool],
    ) -> None:
        self.number = number
        self.name = f"worker_{number}"
        self.state: State = "starting"
        self.pid: int | None = None
        self.returncode: int | None = None
        self.gone = trio.Event()
        self.gone.set()
        self.was_ready = trio.Event()
        self._command = [*command, "--number", str(number), "--folder", str(folder)]
        self._listen_to = tuple(listen)
        self._folder = folder
        self._hard_s = hard_s
        self._judge = judge
        self._ending = False
        self._process: trio.Process | None = None
        self._control: socket.socket | None = None
        self._refreshed = trio.Event()

    async def live(self) -> None:
        """Start a process and wait for its end. Raises ``WorkerEnded`` when it should be started again.

        Once its end was asked for, or cannot be helped, it waits to be cancelled. When cancelled, the
        process is ended hard.
        """
        if self._ending:
            await trio.sleep_forever()
        self.state = "starting"
        self.gone = trio.Event()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with ours:
                code = await self._one_life(ours, theirs)
        finally:
            theirs.close()
            self._process = self._control = self.pid = None
            self.state = "stopped" if self._ending else "restarting"
            forget(self._folder, self.number)
            self.gone.set()
        if self._ending or self._judge(code):
            await trio.sleep_forever()
        raise WorkerEnded

    async def _one_life(self, ours: socket.socket, theirs: socket.socket) -> int:
        with trio.CancelScope(shield=True):  # a process that was started must become known
            process = await self._spawn(theirs)
        theirs.close()
        self._process, self._control, self.pid = process, ours, process.pid
        log.info("worker.started", worker=self.number, pid=process.pid)
        try:
            if self._ending:
                self._say(DRAIN)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, ours)
                code = await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            if process.returncode is None:
                await self._end_hard(process)
            self.returncode = process.returncode
            say = log.info if self._ending and not self.returncode else log.warning
            say("worker.ended", worker=self.number, pid=process.pid, how=_how(process.returncode or 0))
        return code

    async def _spawn(self, control: socket.socket) -> trio.Process:
        listen = [word for descriptor in self._listen_to for word in ("--listen", str(descriptor))]
        return await trio.lowlevel.open_process(
            [*self._command, "--control", str(control.fileno()), *listen],
            stdin=subprocess.DEVNULL,
            pass_fds=(control.fileno(), *self._listen_to),
            # A terminal's Ctrl-C goes to a whole process group: the parent alone decides what it means.
            start_new_session=True,
        )

    async def _listen(self, control: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(control)
            try:
                said = control.recv(64)
            except OSError:
                return  # it died with something unread
            if not said:
                return
            if READY in said:
                self.state = "draining" if self._ending else "ready"
                self.was_ready.set()
            if REFRESHED in said:
                self._refreshed.set()
                self._refreshed = trio.Event()

    def _say(self, message: bytes) -> None:
        if self._control is not None:
            with suppress(OSError):  # it is gone, or so stuck that it has not read anything for long
                self._control.send(message)

    async def refresh(self) -> None:
        """Have the worker bring its gauges up to date; one that does not within a second is left alone."""
        if self._control is None or self.state not in ("ready", "draining"):
            return
        refreshed = self._refreshed
        self._say(REFRESH)
        with trio.move_on_after(_REFRESH_S):
            await refreshed.wait()

    def drain(self) -> None:
        """Ask for the end: no new connections, and the drain's time for running exchanges."""
        self._ending = True
        self.state = "stopped" if self.gone.is_set() else "draining"
        self._say(DRAIN)

    def kill(self) -> None:
        """End the process at once, if there is one."""
        self._ending = True
        if self._process is not None:
            self._process.kill()

    async def _end_hard(self, process: trio.Process) -> None:
        self._ending = True
        self._say(CANCEL)
        with trio.CancelScope(shield=True):
            with trio.move_on_after(self._hard_s):
                await process.wait()
                return
            process.kill()
            await process.wait()


def _how(code: int) -> str:
    return f"exit {code}" if code >= 0 else signal.Signals(-code).name
