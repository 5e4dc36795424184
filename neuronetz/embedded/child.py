"""A server process that is a direct child of this one, and the end of those that an earlier run left behind.

A child has a session of its own, so that a terminal's Ctrl-C reaches this process alone and the order of
stopping stays ours. Where the system allows it (Linux) it is signalled when its parent dies; whatever
slips through is found and ended by the next run on the same folder.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]
import structlog
import trio

log = structlog.get_logger("neuronetz.embedded")

POLL_S = 0.02
LEFT_OVER_TIMEOUT_S = 10.0
_LAST_WORDS_BYTES = 400

# Gives up root where asked, asks for a signal when the parent dies, and becomes the server. A program of its
# own, since a preexec_fn runs Python between fork and exec, which is unsafe once there are threads; and
# after the change of user, since that clears the request.
_LAUNCH = """
import ctypes, os, sys
parent, death, uid, gid = map(int, sys.argv[1:5])
if uid >= 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, death)
if os.getppid() == parent:
    os.execv(sys.argv[5], sys.argv[5:])
"""


class EmbeddedServerError(Exception):
    """A server could not be started, or ended on its own; the message is one line."""


class Account(NamedTuple):
    """The system user that a child runs as, where it is not our own."""

    uid: int
    gid: int


class Child:
    """A running child process. ``ending`` is True once its end was asked for."""

    def __init__(self, process: "subprocess.Popen[bytes]", log_file: Path, log_begins: int) -> None:
        self._process = process
        self._log_file = log_file
        self._log_begins = log_begins
        self.pid = process.pid
        self.ending = False

    @classmethod
    def spawn(
        cls,
        args: Sequence[str],
        *,
        log_file: Path,
        death_signal: signal.Signals,
        account: Account | None = None,
    ) -> "Child":
        """Start ``args``, its output appended to ``log_file``; ``death_signal`` reaches it if this thread ends.

        It blocks for the few milliseconds of a fork: in a worker thread, the child would be signalled as
        soon as that thread is no longer needed.
        """
        uid, gid = account or (-1, -1)
        launch = [str(os.getpid()), str(int(death_signal)), str(uid), str(gid)]
        with log_file.open("ab") as output:
            log_begins = output.tell()
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCH, *launch, *args],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath},
                cwd="/",
                start_new_session=True,
            )
        return cls(process, log_file, log_begins)

    @property
    def returncode(self) -> int | None:
        """The exit status; negative for a signal, None while it runs."""
        return self._process.poll()

    def last_words(self) -> str:
        """The last line that it wrote, as a part of a message's line; empty where it wrote nothing."""
        with suppress(OSError), self._log_file.open("rb") as file:
            file.seek(max(self._log_begins, self._log_file.stat().st_size - _LAST_WORDS_BYTES))
            for line in reversed(file.read().decode(errors="replace").splitlines()):
                if words := line.strip():
                    return f" ({words})"
        return ""

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens where the child has ended."""
        self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait for the end and return the exit status. When cancelled, the child runs on."""
        while (code := self._process.poll()) is None:
            await _exited_or_pause(self.pid)
        return code

    async def end(self, steps: Sequence[tuple[signal.Signals, float]]) -> None:
        """Send each signal in turn, waiting so many seconds after it; the last resort is SIGKILL.

        It takes at most the sum of the steps, and is shielded from cancellation.
        """
        self.ending = True
        with trio.CancelScope(shield=True):
            for number, patience_s in steps:
                self.send(number)
                with trio.move_on_after(patience_s):
                    await self.wait()
                if self.returncode is not None:
                    return
            self.send(signal.SIGKILL)
            await self.wait()


async def _exited_or_pause(pid: int) -> None:
    if sys.platform == "linux":
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            descriptor = -1  # a kernel or sandbox without it
        if descriptor >= 0:
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
            return
    await trio.sleep(POLL_S)


def wheel_folder(package: str) -> Path:
    """Where a wheel's package lies. Raises ``ModuleNotFoundError`` where it is not installed.

    Found and not imported: these packages load clients, make folders and warn as soon as they are imported.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(spec.submodule_search_locations[0])


def processes_in(folder: Path, process_name: str) -> list["psutil.Process"]:
    """The processes of that name whose working folder is ``folder``: servers change into their data folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.name() == process_name and process.cwd() == str(folder):
                found.append(process)
    return found


def family_of(pid: int) -> list["psutil.Process"]:
    """A process and all below it, itself first."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


async def end_left_over(folder: Path, process_name: str, gentle: signal.Signals) -> None:
    """End the servers that an earlier run left in ``folder``: gently, and after ten seconds by SIGKILL.

    When cancelled, some may be running still.
    """
    left = await trio.to_thread.run_sync(processes_in, folder, process_name)
    if not left:
        return
    pids = {process.pid for process in left}
    log.warning("embedded.left_over", server=process_name, pids=sorted(pids))
    for process in left:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGCONT)
            if process.ppid() not in pids:
                process.send_signal(gentle)
    with trio.move_on_after(LEFT_OVER_TIMEOUT_S):
        await _gone(left)
        return
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    with trio.move_on_after(LEFT_OVER_TIMEOUT_S):
        await _gone(left)
        return
    raise EmbeddedServerError(f"{process_name}: processes of an earlier run do not end: {sorted(pids)}")


async def _gone(processes: Sequence["psutil.Process"]) -> None:
    # These are nobody's children any more: the system tells no one of their end.
    while any(_alive(process) for process in processes):  # noqa: ASYNC110
        await trio.sleep(POLL_S)


def _alive(process: "psutil.Process") -> bool:
    try:
        # A zombie is somebody else's to reap and holds nothing any more.
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
