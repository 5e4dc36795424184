"""What the embedded servers have in common: start, stop, pause, and an end that nobody asked for."""

import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import psutil  # type: ignore[import-untyped]
import structlog
import trio

from neuronetz.embedded.child import POLL_S, Account, Child, EmbeddedServerError, end_left_over, family_of
from neuronetz.embedded.folders import FolderLock, SocketFolder

log = structlog.get_logger("neuronetz.embedded")

START_TIMEOUT_S = 60.0
PROBE_TIMEOUT_S = 1.0

Steps = Sequence[tuple[signal.Signals, float]]


class EmbeddedServer(ABC):
    """A server on a data folder, reachable through a Unix socket alone.

    It may be started and stopped any number of times, from one Trio run or several. ``log_file`` takes
    what the server writes.
    """

    name: ClassVar[str]
    process_name: ClassVar[str]
    socket_name: ClassVar[str]
    gentle_stop: ClassVar[Steps]
    immediate_stop: ClassVar[Steps]

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self.log_file = self.data_dir.with_name(self.data_dir.name + ".log")
        self._sockets = SocketFolder(self.data_dir, self.socket_name)
        self._lock = FolderLock(self.data_dir)
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._child.pid if self._child else None

    @property
    def socket_path(self) -> Path:
        return self._sockets.path / self.socket_name

    async def start(self) -> None:
        """Start the server and wait until it takes connections.

        What an earlier run left on this folder is ended first. Raises ``EmbeddedServerError`` when it
        does not come up, or when another living run has the folder. When cancelled, it is stopped.
        """
        if self._child is not None:
            raise RuntimeError(f"{self.name} is running")
        began = trio.current_time()
        log.info(f"{self.name}.starting", data_dir=str(self.data_dir))
        self._lock.acquire()
        try:
            await end_left_over(self.data_dir, self.process_name, self.gentle_stop[0][0])
            account = await self._prepare()
            self._sockets.prepare(account)
            self._child = Child.spawn(
                self._command(), log_file=self.log_file, death_signal=self.gentle_stop[0][0], account=account
            )
            await self._ready(self._child)
        except BaseException:
            await self.stop(immediate=True)
            raise
        log.info(f"{self.name}.ready", pid=self._child.pid, seconds=round(trio.current_time() - began, 3))

    async def stop(self, immediate: bool = False) -> None:
        """Stop the server and wait until all its processes are gone; ``immediate``: as a crash would.

        Shielded from cancellation; it takes at most the steps' deadlines and a constant.
        """
        if self._child is not None:
            self.resume()
            family = family_of(self._child.pid)
            await self._child.end(self.immediate_stop if immediate else self.gentle_stop)
            for process in family:
                with suppress(psutil.Error):
                    process.kill()
            self._child = None
            log.info(f"{self.name}.stopped")
        if self._lock.held:
            self._sockets.remove()
            self._lock.release()

    def pause(self) -> None:
        """Freeze the server: it holds its connections and answers nothing."""
        # The parent first, so that it makes no further child meanwhile.
        if self._child is not None:
            self._child.send(signal.SIGSTOP)
            for process in family_of(self._child.pid)[1:]:
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on; nothing happens where it is not paused."""
        if self._child is not None:
            for process in reversed(family_of(self._child.pid)):
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGCONT)

    async def watch(self) -> None:
        """Wait for the server's end: returns after ``stop``, raises ``EmbeddedServerError`` for any other."""
        child = self._child
        if child is None:
            return
        code = await child.wait()
        if not child.ending:
            raise EmbeddedServerError(
                f"{self.name} ended with status {code}{child.last_words()}; see {self.log_file}"
            )

    async def _ready(self, child: Child) -> None:
        with trio.move_on_after(START_TIMEOUT_S):
            while child.returncode is None:
                with trio.move_on_after(PROBE_TIMEOUT_S):
                    if await self._probe():
                        return
                await trio.sleep(POLL_S)
            raise EmbeddedServerError(
                f"{self.name} ended with status {child.returncode} while starting{child.last_words()}; "
                f"see {self.log_file}"
            )
        raise EmbeddedServerError(f"{self.name} took too long to start; see {self.log_file}")

    @abstractmethod
    async def _prepare(self) -> Account | None:
        """Make the data folder; return the system user that the server must run as, None for ours."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The server's program and arguments."""

    @abstractmethod
    async def _probe(self) -> bool:
        """Whether the server takes connections now. Raises nothing but a cancellation."""


async def exchange(path: Path, request: bytes) -> bytes:
    """Send a few bytes to a Unix socket and return the first that come back; empty where nobody answers."""
    try:
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(request)
            return bytes(await stream.receive_some(512))
    except (OSError, trio.BrokenResourceError):
        return b""
