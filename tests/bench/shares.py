"""Processes held to a share of a processor each, as if every one had a small processor of its own.

On a machine whose processors are all taken by client, stores and upstream, no number of workers can be seen to serve more
than one does. Held to a small share, they leave the rest its room, and what is measured is them.
"""

import errno
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
# Short, so that who has used up its share waits for milliseconds and not for a tenth of a second.
_PERIOD_US = 10_000

_numbers = itertools.count()


@contextmanager
def held_to(share: float, pids: Sequence[int]) -> Iterator[None]:
    """Within the block each of these processes gets at most that share of a processor.

    By control groups, of version 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html, ``cpu.max``) or 1
    (https://docs.kernel.org/scheduler/sched-bwc.html). Raises ``OSError`` where none can be made, as for most users but
    root.
    """
    unified = (_CGROUPS / "cgroup.controllers").exists()
    home = _CGROUPS if unified else _CGROUPS / "cpu"
    quota_us = round(share * _PERIOD_US)
    with ExitStack() as stack:
        if unified:
            (home / "cgroup.subtree_control").write_text("+cpu")
        for pid in pids:
            group = home / f"neuronetz-bench-{os.getpid()}-{next(_numbers)}"
            before = home / _group_of(pid, unified=unified)
            # Where it is not to be seen from here, as in some containers, nobody could go back there.
            (before / "cgroup.procs").stat()
            group.mkdir()
            stack.callback(_end, group, before)
            if unified:
                (group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
            else:
                (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota_us))
            (group / "cgroup.procs").write_text(str(pid))
        yield


def _group_of(pid: int, *, unified: bool) -> str:
    """Where its control group lies below the root (https://man7.org/linux/man-pages/man7/cgroups.7.html)."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(",") or (unified and not controllers):
            return path.lstrip("/")
    raise FileNotFoundError(errno.ENOENT, "no control group")


def _end(group: Path, before: Path) -> None:
    for pid in (group / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):  # it has ended by now
            (before / "cgroup.procs").write_text(pid)
    group.rmdir()
