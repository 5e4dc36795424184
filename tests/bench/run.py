"""A run: every peer is given the same load in turn, round after round; what counts is the median of the rounds.

A machine is never quiet, and what disturbs it lasts. So the peers take turns within each round (A B A B, not A A B B),
what a peer adds is taken over ``direct`` of the same round, and processors are counted by what the kernel charged to
a peer's processes, which neighbours disturb less than they do the clock.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import trio

from tests.bench.peers import PEERS, Peer, Serving
from tests.bench.processes import READY_WITHIN_S, Lines, connections, cpu_s, memory_bytes, started
from tests.bench.shapes import PACED, SHAPES, Shape

# What is done behind a reply (rows are written in batches) is counted with it.
BEHIND_REPLIES_S = 0.2
LEFT_AFTER_S = 1.0
WARM_S = 0.2


@dataclass(frozen=True)
class Options:
    """``clients``: connections at once. ``seconds``: of each measurement."""

    seconds: float = 2.0
    rounds: int = 3
    clients: tuple[int, ...] = (1, 16, 256)
    paced_clients: int = 64
    leaving_clients: int = 200


QUICK = Options(seconds=0.2, rounds=1, clients=(4,), paced_clients=16, leaving_clients=40)


@dataclass(frozen=True)
class Sample:
    """One measurement: CPU seconds of the peer, of its stores, and of the client and the upstream together.

    ``failures`` by kind: a status, or what became of the connection.
    """

    replies: int
    failures: dict[str, int]
    seconds: float
    peer_s: float
    stores_s: float
    rest_s: float
    p50_s: float
    p99_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Row:
    """A peer under a load: its samples, and those of ``direct`` in the same rounds."""

    shape: Shape
    clients: int
    peer: str
    samples: list[Sample]
    direct: list[Sample]

    def median(self, value: Callable[[Sample], float]) -> float:
        return median(value(sample) for sample in self.samples)

    def added(self, value: Callable[[Sample], float]) -> float:
        """The median of what this peer has more than ``direct``."""
        pairs = zip(self.samples, self.direct, strict=True)
        return median(value(sample) - value(direct) for sample, direct in pairs)


@dataclass(frozen=True)
class Left:
    """What there still was, a second after so many clients had left in mid-stream."""

    peer: str
    clients: int
    counts: dict[str, int]


@dataclass
class Report:
    rows: list[Row] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


class Bench:
    """The client, the upstream, and the peers that serve."""

    def __init__(self, load: Lines, upstream: Lines, upstream_port: int, peers: dict[str, tuple[Peer, Serving]]):
        self._load = load
        self._upstream = upstream
        self._upstream_port = upstream_port
        self.peers = peers

    async def _ask(self, task: str, serving: Serving, shape: Shape, **job: Any) -> dict[str, Any]:
        request = shape.request(serving.key).decode()
        asked = {"task": task, "port": serving.port, "request": request, **job}
        answer: dict[str, Any] = json.loads(await self._load.ask(json.dumps(asked).encode()))
        return answer

    async def warm(self, serving: Serving, shape: Shape, clients: int) -> None:
        await self._ask("measure", serving, shape, clients=clients, seconds=WARM_S)

    async def sample(self, serving: Serving, shape: Shape, clients: int, seconds: float) -> Sample:
        families = (serving.processes, serving.stores, (self._upstream.pid,))
        before = [cpu_s(roots) for roots in families]
        seen = await self._ask("measure", serving, shape, clients=clients, seconds=seconds)
        await trio.sleep(BEHIND_REPLIES_S)
        peer, stores, upstream = (cpu_s(roots) - then for roots, then in zip(families, before, strict=True))
        return Sample(
            replies=seen["replies"],
            failures=seen["failures"],
            seconds=seen["seconds"],
            peer_s=peer,
            stores_s=stores,
            rest_s=upstream + seen["cpu_s"],
            p50_s=seen["p50_s"],
            p99_s=seen["p99_s"],
            memory_bytes=memory_bytes(serving.processes),
        )

    async def leave(self, serving: Serving, clients: int) -> dict[str, int]:
        """What is left a second after the clients went. Raises ``RuntimeError`` where they had no streams."""
        answer = await self._ask("leave", serving, PACED, clients=clients)
        if answer["left"] != clients:
            raise RuntimeError(f"only {answer['left']} of {clients} clients had a stream to leave")
        await trio.sleep(LEFT_AFTER_S)
        counts = {"streams": await self._streams()}
        if serving.processes:
            counts["connections"] = connections(serving.processes, serving.port)
        if serving.books is not None:
            counts |= {"slots": await serving.books.slots(), "leases": await serving.books.leases()}
        return counts

    async def _streams(self) -> int:
        async with await trio.open_tcp_stream("127.0.0.1", self._upstream_port) as stream:
            await stream.send_all(b"GET /bench/streams HTTP/1.1\r\nHost: bench\r\n\r\n")
            reply = await stream.receive_some(4096)
        return int(reply.rpartition(b"\r\n\r\n")[2])


@asynccontextmanager
async def _opened(report: Report) -> AsyncIterator[Bench]:
    folder = _short_folder()
    try:
        async with AsyncExitStack() as stack:
            module = [sys.executable, "-m"]
            upstream = await stack.enter_async_context(
                started([*module, "tests.bench.upstream"], folder / "upstream.log")
            )
            with trio.fail_after(READY_WITHIN_S):
                port = int(await upstream.line())
            load = await stack.enter_async_context(started([*module, "tests.bench.load"], folder / "load.log"))
            peers = {}
            for peer in (kind() for kind in PEERS):
                if reason := peer.absent():
                    report.skipped.append(f"{peer.name} is left out: {reason}")
                else:
                    peers[peer.name] = (peer, await stack.enter_async_context(peer.opened(port, folder)))
            yield Bench(load, upstream, port, peers)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


def _short_folder() -> Path:
    # Sockets lie below it; open to the system user that PostgreSQL may have to run as.
    folder = Path(tempfile.mkdtemp(prefix="nnz-bench-"))
    folder.chmod(0o711)
    return folder


async def run(options: Options, show: Callable[[str], None]) -> Report:
    """Measure everything; ``show`` is told what is being measured. Nothing is left at the end, or when cancelled."""
    report = Report()
    async with _opened(report) as bench:
        for shape in SHAPES:
            for clients in (options.paced_clients,) if shape.paced else options.clients:
                show(f"{shape.name}, {clients} at once")
                report.rows += await _compare(bench, shape, clients, options)
        show("clients that leave")
        for name, (_, serving) in bench.peers.items():
            counts = await bench.leave(serving, options.leaving_clients)
            report.left.append(Left(name, options.leaving_clients, counts))
    return report


async def _compare(bench: Bench, shape: Shape, clients: int, options: Options) -> list[Row]:
    serving = {name: serving for name, (peer, serving) in bench.peers.items() if peer.answers(shape)}
    samples: dict[str, list[Sample]] = {name: [] for name in serving}
    if not shape.paced:
        for own in serving.values():
            await bench.warm(own, shape, clients)
    for _ in range(options.rounds):
        for name, own in serving.items():
            samples[name].append(await bench.sample(own, shape, clients, options.seconds))
    return [Row(shape, clients, name, taken, samples["direct"]) for name, taken in samples.items()]
