"""``python -m tests.bench.soak``: half of what the gateway can do, for minutes: memory and descriptors must stay flat."""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from neuronetz.telemetry.logs import configure_logs
from tests.bench.bench import Bench, opened
from tests.bench.peers import Neuronetz, Serving
from tests.bench.processes import descriptors, many_descriptors, memory_bytes
from tests.bench.results import Report
from tests.bench.shapes import BURST

_CAPACITY_CLIENTS, _CAPACITY_S = 16, 3.0
_SHARE = 0.5
_CONNECTIONS = 32
_SAMPLES, _SHOWN = 240, 20
# Looking into a process costs too.
_EVERY_S = 0.05
# Until caches, pools and the allocator have what they will have.
_WARM_UP = 0.25


@dataclass(frozen=True)
class Trend:
    """How a figure went after the warm-up: its median, and by how much it grew over the time, robustly."""

    name: str
    middle: float
    growth: float
    allowed: float

    @property
    def flat(self) -> bool:
        return self.growth <= self.allowed


@dataclass(frozen=True)
class Soak:
    rate: float
    seen: dict[str, Any]
    memory: Trend
    descriptors: Trend

    @property
    def flat(self) -> bool:
        return self.memory.flat and self.descriptors.flat and not self.seen["failures"]


def growth(values: list[float]) -> float:
    """By how much values rise from the first to the last, by the median of the slopes between all pairs (Theil-Sen):
    neither a spike nor a burst of them moves it.
    """
    pairs = itertools.combinations(enumerate(values), 2)
    slopes = [(later - earlier) / (at - before) for (before, earlier), (at, later) in pairs]
    return statistics.median(slopes) * (len(values) - 1) if slopes else 0.0


def trend(name: str, values: list[float], allowed: float) -> Trend:
    """Of what came after the warm-up; ``allowed`` is a share of the median."""
    kept = values[int(len(values) * _WARM_UP) :]
    middle = statistics.median(kept)
    return Trend(name, middle, growth(kept), allowed * middle)


async def soak(minutes: float, show: Callable[[str], None]) -> Soak:
    """Nothing is left at the end, or when cancelled."""
    async with opened(Report(), (Neuronetz,)) as bench:
        _, serving = bench.peers[Neuronetz.name]
        await bench.warm(serving, BURST, _CAPACITY_CLIENTS)
        most = await bench.sample(serving, BURST, _CAPACITY_CLIENTS, min(_CAPACITY_S, 60 * minutes))
        rate = _SHARE * most.rate
        show(f"{most.rate:.0f} streams a second at most; now {rate:.0f} a second for {minutes:g} minutes")
        return await _steady(bench, serving, rate, 60 * minutes, show)


async def _steady(
    bench: Bench, serving: Serving, rate: float, seconds: float, show: Callable[[str], None]
) -> Soak:
    memory: list[float] = []
    files: list[float] = []
    every_s = max(_EVERY_S, seconds / _SAMPLES)

    async def sample() -> None:
        for number in itertools.count(1):
            await trio.sleep(every_s)
            memory.append(memory_bytes(serving.processes) / 2**20)
            files.append(descriptors(serving.processes))
            if number % max(1, round(seconds / every_s / _SHOWN)) == 0:
                show(f"{number * every_s:.0f} s: {memory[-1]:.1f} MiB, {files[-1]:.0f} descriptors")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sample)
        seen = await bench.load("steady", serving, BURST, connections=_CONNECTIONS, rate=rate, seconds=seconds)
        nursery.cancel_scope.cancel()
    # A tenth of the memory in ten minutes would be all of it in two hours; the descriptors go with the requests
    # that happen to be under way.
    return Soak(rate, seen, trend("MiB", memory, 0.03), trend("descriptors", files, 0.10))


def told(result: Soak) -> str:
    lines = [f"{result.seen['replies']} replies at {result.rate:.0f} a second"]
    if result.seen["failures"]:
        lines.append(f"failed: {result.seen['failures']}")
    if result.seen["skipped"]:
        lines.append(
            f"{result.seen['skipped']} could not be asked in time: the machine was busy with other things"
        )
    for one in (result.memory, result.descriptors):
        word = "flat" if one.flat else "NOT FLAT"
        lines.append(
            f"{one.name}: median {one.middle:.1f}, grew by {one.growth:+.2f} ({one.allowed:.2f} allowed): {word}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="just soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="default 10")
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error("--minutes must be more than 0")

    def show(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    configure_logs("warning")
    many_descriptors()
    result = None
    try:
        result = trio.run(soak, arguments.minutes, show)
    except* KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
    if result is None:
        return 130
    sys.stdout.write(f"{told(result)}\n")
    return 0 if result.flat else 1


if __name__ == "__main__":
    sys.exit(main())
