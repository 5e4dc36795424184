"""The private folder of a parent and its workers: their metrics, and their loads, in memory that all map.

prometheus_client's multiprocess mode keeps each value in a mapped file, so a killed worker's counts are
not lost, and whoever reads the folder has the sum. A file belongs to a worker's number and not to its
process id: a replacement goes on counting where its predecessor stopped, and nothing piles up.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, multiprocess, values

from neuronetz.web.sharing import Load

_PREFIX = "neuronetz-workers-"
_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_FIRST_PERSON = 1000
_DYNAMIC = range(61184, 65520)  # systemd's DynamicUser


@contextmanager
def shared_folder(workers: int) -> Iterator[Path]:
    """A folder for this parent and so many workers, removed at the block's end.

    What parents left that were killed together with their workers is removed first.
    """
    parent = _place()
    for left_over in parent.glob(_PREFIX + "*"):
        remove_if_unused(left_over)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with in_use(folder):
            Load.prepare(folder, workers)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Nobody removes the folder meanwhile, as long as this process lives."""
    # A lock, since the system drops it however the process ends; systemd-tmpfiles heeds it as well.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def remove_if_unused(folder: Path) -> None:
    """Remove a folder whose parent and workers are all gone."""
    # Another user's, or one that is in use or was removed meanwhile, is none of ours.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            # One that another parent has just made, and not locked yet, is empty.
            if os.fstat(descriptor).st_uid == os.geteuid() and os.listdir(descriptor):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def count_into(folder: Path, number: int) -> None:
    """Have this process's metrics, which must not have been made yet, counted in the folder."""
    os.environ[_VARIABLE] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


def collect_from(folder: Path, registry: CollectorRegistry) -> None:
    """Have the sums over all workers in the registry."""
    multiprocess.MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]


def forget(folder: Path, number: int) -> None:
    """A worker is gone: its gauges vanish, its counters stay, and it takes no connections."""
    multiprocess.mark_process_dead(number, str(folder))  # type: ignore[no-untyped-call]
    Load(folder, number).tell(None)


def _place() -> Path:
    # In memory, so that counting neither waits for a disk nor dies of a full one; but logind removes what
    # a person has there when that person logs out.
    memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a private one
    service = os.geteuid() < _FIRST_PERSON or os.geteuid() in _DYNAMIC
    return memory if service and os.access(memory, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
