"""What counts as flat, and that a soak and a flame graph work."""

import random
import shutil
import sys
from pathlib import Path

import pytest

from tests.bench.profile import CannotProfile, Options, explained, profile
from tests.bench.soak import Soak, growth, soak, told, trend

linux = pytest.mark.skipif(sys.platform != "linux", reason="the load client waits with epoll")


def test_growth_sees_a_leak_and_neither_noise_nor_spikes() -> None:
    noise = random.Random(7)
    flat = [80 + noise.gauss(0, 0.5) for _ in range(240)]
    assert abs(growth(flat)) < 0.5
    spiked = [value + 40 * (index % 10 == 0) for index, value in enumerate(flat)]
    assert abs(growth(spiked)) < 0.5
    leaking = [value + index * 0.02 for index, value in enumerate(flat)]
    assert growth(leaking) == pytest.approx(4.8, abs=0.5)
    assert growth([80.0]) == 0


def test_a_warm_up_does_not_count_and_a_leak_does() -> None:
    warming = [50 + 0.5 * min(index, 59) for index in range(240)]
    assert trend("MiB", warming, 0.03).flat
    assert not trend("MiB", [80 + 0.02 * index for index in range(240)], 0.03).flat


def test_failures_are_not_flat() -> None:
    level = trend("MiB", [80.0] * 20, 0.03)
    result = Soak(10.0, {"replies": 100, "failures": {}, "skipped": 0}, level, level)
    assert result.flat
    assert not Soak(10.0, {"replies": 99, "failures": {"503": 1}, "skipped": 0}, level, level).flat
    assert "NOT FLAT" in told(Soak(10.0, result.seen, level, trend("descriptors", [*range(240)], 0.1)))


@linux
async def test_a_short_soak_samples_and_replies_without_failure() -> None:
    said: list[str] = []
    result = await soak(0.025, said.append)
    assert result.seen["failures"] == {}
    assert result.seen["replies"] > 0
    assert result.memory.middle > 10
    assert result.descriptors.middle > 10
    assert len(said) > 3


@linux
async def test_a_flame_graph_is_drawn_or_it_is_said_what_forbids_it(tmp_path: Path) -> None:
    if shutil.which("py-spy", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("py-spy is not installed")
    to = tmp_path / "graph.svg"
    try:
        found, sample = await profile(Options(clients=4, seconds=1.0, to=to))
    except CannotProfile as error:
        assert "ptrace_scope" in str(error)  # noqa: PT017 - forbidden by this machine, and said so
        return
    assert found == to
    assert "<svg" in to.read_text()
    assert sample.replies > 0


def test_a_kernel_that_forbids_it_is_named() -> None:
    assert "ptrace_scope" in explained("Error: Permission Denied: Try running again with elevated permissions")
    assert explained("Error: No such process").startswith("py-spy failed: Error: No such process")
