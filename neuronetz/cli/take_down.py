"""The end of a demo: whoever still runs it is stopped, and its data removed."""

import shutil
import signal
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import trio

from neuronetz.cli.confirmation import confirm
from neuronetz.cli.failure import Failure
from neuronetz.embedded.child import EmbeddedServerError, end_left_over
from neuronetz.embedded.folders import FolderLock

# A folder that may be removed bears this file, and only what is named here is removed from it.
MARK = "neuronetz-demo"
_OURS = (MARK, "pid", "postgres*", "redis*")

_STOP_WITHIN_S = 40.0


def take_down(folder: Path, *, yes: bool) -> bool:
    """Stop the run whose data lies in ``folder``, if there is one, and remove the folder; False without a folder.

    Unless ``yes``, it is asked about first. Raises ``Failure`` when the run does not stop in time; nothing is
    removed then.
    """
    if not folder.exists():
        return False
    if not (folder / MARK).is_file():
        raise Failure(f"{folder} is no folder of a demo; nothing was removed")
    if not yes:
        confirm(f"Stop the demo and remove its data in {folder}?", "nothing was removed")
    _stop_running(folder / "pid")
    locks = [FolderLock(folder / name) for name in ("postgres", "redis")]
    try:
        for lock in locks:
            lock.acquire()
        trio.run(_end_left_over, folder)
        for path in sorted(found for pattern in _OURS for found in folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    except EmbeddedServerError as error:
        raise Failure(f"{error}; nothing was removed") from None
    except OSError as error:
        raise Failure(f"cannot remove {error.filename or folder}: {error.strerror}") from None
    finally:
        for lock in locks:
            lock.release()
    return True


async def _end_left_over(folder: Path) -> None:
    for server, process in (("postgres", "postgres"), ("redis", "valkey-server")):
        await end_left_over(folder / server, process, signal.SIGINT)


def _stop_running(pid_file: Path) -> None:
    try:
        process = psutil.Process(int(pid_file.read_text()))
        words = process.cmdline()
        if "demo" not in words or not any("neuronetz" in word for word in words):
            return  # the number has been given to another program since
        process.terminate()
        process.wait(_STOP_WITHIN_S)
    except psutil.TimeoutExpired:
        raise Failure(
            f"the running demo did not stop within {_STOP_WITHIN_S:.0f} s; nothing was removed"
        ) from None
    except (OSError, ValueError, psutil.Error):
        return
