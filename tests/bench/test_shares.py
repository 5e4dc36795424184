"""A process that is held to a share of a processor gets that share, and all of one again afterwards."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from tests.bench.processes import cpu_s, started
from tests.bench.shares import held_to

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")

_SHARE = 0.2
_BUSY = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]


@contextmanager
def held(pid: int) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(held_to(_SHARE, [pid]))
        except OSError as error:
            pytest.skip(f"no control group can be made here ({error.strerror}): run it as root")
        yield


def group_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def groups(name: str) -> list[Path]:
    """Those of this name, in whichever hierarchy."""
    root = Path("/sys/fs/cgroup")
    return [*root.glob(name), *root.glob(f"*/{name}")]


async def test_it_gets_its_share_and_goes_back_to_where_it_was(tmp_path: Path) -> None:
    async with started(_BUSY, tmp_path / "log") as busy:
        await busy.line()
        before = group_of(busy.pid)
        with held(busy.pid):
            assert group_of(busy.pid) != before
            began, used = time.monotonic(), cpu_s([busy.pid])
            await trio.sleep(0.5)
            # A little more: the processor's time is told in hundredths of a second.
            assert cpu_s([busy.pid]) - used <= _SHARE * (time.monotonic() - began) + 0.03
        assert group_of(busy.pid) == before


async def test_one_that_ends_meanwhile_leaves_no_group(tmp_path: Path) -> None:
    with ExitStack() as stack:
        async with started(_BUSY, tmp_path / "log") as busy:
            await busy.line()
            stack.enter_context(held(busy.pid))
            [name] = {line.rpartition("/")[2] for line in group_of(busy.pid).splitlines() if "neuronetz" in line}
            assert groups(name)
    assert not groups(name)
