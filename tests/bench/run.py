"""A run: every peer is given the same load in turn, round after round; what counts is the median of the rounds.

A machine is never quiet, and what disturbs it lasts. So the peers take turns within each round (A B A B, not A A B B),
what a peer adds is taken over ``direct`` of the same round, and processors are counted by what the kernel charged to
a peer's processes, which neighbours disturb less than they do the clock.
"""

import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.bench.bench import WARM_S, Bench, opened
from tests.bench.capacity import idle_streams, many_streams, more_workers, start_ups, streams_held, two_workers
from tests.bench.peers import PEERS, Peer
from tests.bench.results import Finding, Left, Report, Row, Sample
from tests.bench.shapes import LINES, SHAPES, Shape

LEAVING, STREAMS, IDLE, START_UP, WORKERS, MANY = (
    "leaving",
    "streams held",
    "idle streams",
    "start-up",
    "workers",
    "many streams",
)
LOADS = (*(shape.name for shape in SHAPES), LEAVING, STREAMS, IDLE, START_UP, WORKERS, MANY)


@dataclass(frozen=True)
class Options:
    """``clients``: connections at once. ``seconds``: of each measurement. ``loads``: which of ``LOADS``.

    ``streams``: the numbers that are tried, rising, by how many each peer holds. ``many``: streams that ``workers``
    processes are to hold.
    """

    seconds: float = 2.0
    rounds: int = 3
    clients: tuple[int, ...] = (1, 16, 256)
    paced_clients: tuple[int, ...] = (1, 16, 64, 256)
    paced_lines: int = LINES
    leaving_clients: int = 200
    streams: tuple[int, ...] = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
    idle_clients: int = 256
    workers: int = 2
    workers_clients: int = 64
    many: int = 1000
    loads: tuple[str, ...] = LOADS


QUICK = Options(
    seconds=0.1,
    rounds=1,
    clients=(4,),
    paced_clients=(8,),
    paced_lines=5,
    leaving_clients=40,
    streams=(8,),
    idle_clients=16,
    workers_clients=8,
    many=16,
)


async def run(options: Options, show: Callable[[str], None], peers: tuple[type[Peer], ...] = PEERS) -> Report:
    """Measure everything; ``show`` is told what is being measured. Nothing is left at the end, or when cancelled."""
    report = Report()
    async with opened(report, peers) as bench:
        for shape in (shape for shape in SHAPES if shape.name in options.loads):
            own = dataclasses.replace(shape, lines=options.paced_lines) if shape.paced else shape
            for clients in options.paced_clients if shape.paced else options.clients:
                show(f"{shape.name}, {clients} at once")
                report.rows += await _compare(bench, own, clients, options)
        if LEAVING in options.loads:
            show("clients that leave")
            for name, (peer, serving) in bench.peers.items():
                counts = await bench.leave(peer, serving, options.leaving_clients)
                report.left.append(Left(name, options.leaving_clients, counts))
        await _own_loads(bench, options, report, show)
    return report


async def _own_loads(bench: Bench, options: Options, report: Report, show: Callable[[str], None]) -> None:
    async def add(load: str, measured: Callable[[], Awaitable[list[Finding]]]) -> None:
        if load in options.loads:
            show(load)
            report.findings += await measured()

    seconds, rounds, workers = options.seconds, options.rounds, options.workers
    await add(STREAMS, lambda: streams_held(bench, options.streams, seconds))
    await add(IDLE, lambda: idle_streams(bench, options.idle_clients))
    await add(START_UP, lambda: start_ups(bench, rounds))
    if {WORKERS, MANY} & set(options.loads):
        async with more_workers(bench, workers) as more:
            await add(WORKERS, lambda: two_workers(bench, more, workers, options.workers_clients, rounds, seconds))
            await add(MANY, lambda: many_streams(bench, more, workers, options.many, seconds))


async def _compare(bench: Bench, shape: Shape, clients: int, options: Options) -> list[Row]:
    serving = {name: serving for name, (peer, serving) in bench.peers.items() if peer.answers(shape)}
    samples: dict[str, list[Sample]] = {name: [] for name in serving}
    if not shape.paced:
        for own in serving.values():
            await bench.warm(own, shape, clients, min(WARM_S, options.seconds))
    for _ in range(options.rounds):
        for name, own in serving.items():
            samples[name].append(await bench.sample(own, shape, clients, options.seconds))
    return [Row(shape, clients, name, taken, samples["direct"]) for name, taken in samples.items()]
