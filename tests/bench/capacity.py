"""Loads of their own kind: how many streams a peer holds, what idle ones cost, how it starts, what workers bring."""

import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from statistics import median

import trio

from tests.bench.bench import Bench
from tests.bench.peers import Direct, Neuronetz, Nginx, Peer, Serving
from tests.bench.processes import family, memory_bytes
from tests.bench.results import Finding, Held
from tests.bench.shapes import IDLE, OPENAI_IDLE, WHOLE
from tests.bench.shares import held_to

_OPEN_WITHIN_S = 60.0
_QUIET_S = 0.5
# A hiccup of the machine is not a peer's: what fails is tried once more.
_TRIES = 2
# What a worker gets where there is no whole processor for each: of two, the other half is enough for the others.
WORKER_SHARE = 0.5


async def streams_held(bench: Bench, numbers: tuple[int, ...], seconds: float) -> list[Finding]:
    """The largest of the rising numbers that each peer holds; the peers take turns at each."""
    seen: dict[str, list[Held]] = {name: [] for name in bench.peers}
    out: set[str] = set()
    for number in numbers:
        for name, (peer, serving) in bench.peers.items():
            if name not in out:
                tried = await _held(bench, peer, serving, number, seconds)
                seen[name].append(tried)
                if not tried.held:
                    out.add(name)
    return [_most(name, tries, numbers) for name, tries in seen.items()]


async def _held(bench: Bench, peer: Peer, serving: Serving, number: int, seconds: float) -> Held:
    for _ in range(_TRIES):
        tried = await bench.held(peer, serving, number, seconds)
        if tried.held:
            break
    return tried


def _most(peer: str, tries: list[Held], numbers: tuple[int, ...]) -> Finding:
    held = [tried for tried in tries if tried.held]
    most = held[-1].asked if held else 0
    said = []
    if held:
        ever = " or more" if most == numbers[-1] else ""
        said.append(f"{most}{ever} held ({_lateness(held[-1])}{_cost(peer, held[-1])})")
    if not tries[-1].held:
        said.append(f"{tries[-1].asked} not ({_lateness(tries[-1])}{_cost(peer, tries[-1])})")
    costs = {f"token_us at {tried.asked}": tried.token_us for tried in tries}
    return Finding("streams held", most, peer, "; ".join(said), {"held": most, **costs})


def _lateness(tried: Held) -> str:
    missing = [f"only {tried.open} opened"] * (tried.open < tried.asked)
    missing += [f"{tried.silent} silent"] * bool(tried.silent) + [f"{tried.ended} ended"] * bool(tried.ended)
    waits = "/".join(f"{1e3 * value:.1f}" for value in (tried.p50_s, tried.p99_s, tried.max_s))
    behind = [f"upstream itself {1e3 * tried.behind_s:.0f} ms behind"] * (tried.behind_s > 0.010)
    return ", ".join([*missing, f"{tried.late} of {tried.tokens} late", f"p50/p99/max {waits} ms", *behind])


def _cost(peer: str, tried: Held) -> str:
    return "" if peer == "direct" else f", {tried.token_us:.0f} us/token"


async def idle_streams(bench: Bench, count: int) -> list[Finding]:
    """What each of so many streams adds to the memory, over as many that are there already.

    The first ones fill pools, caches and what the allocator holds; they stay, so that the second ones find nothing that
    was given back.
    """
    found = []
    for peer, serving in bench.peers.values():
        if serving.another is not None:
            # A new one: what a load before this has given back would serve these streams, and they seem to cost nothing.
            async with serving.another(1) as new:
                found.append(await _idle(bench, peer, new, count))
        elif serving.processes:
            found.append(await _idle(bench, peer, serving, count))
    return found


async def _idle(bench: Bench, peer: Peer, serving: Serving, count: int) -> Finding:
    shape = IDLE if peer.answers(IDLE) else OPENAI_IDLE
    sizes, opened = [], 0
    try:
        for _ in range(2):
            job = await bench.load("open", serving, shape, count=count, within_s=_OPEN_WITHIN_S)
            opened = job["open"]
            await trio.sleep(_QUIET_S)
            sizes.append(memory_bytes(serving.processes))
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(_OPEN_WITHIN_S):
            await bench.gone()
    each = (sizes[1] - sizes[0]) / count / 1024
    failed = "" if opened == 2 * count else f", but only {opened} of {2 * count} opened"
    return Finding("idle streams", count, peer.name, f"{each:.1f} KiB each{failed}", {"kib": each})


async def start_ups(bench: Bench, rounds: int) -> list[Finding]:
    """From the start of ``serve`` to its ready line, beside stores that are up."""
    serving = _ours(bench)
    assert serving.another is not None
    times = []
    for _ in range(rounds):
        async with serving.another(1) as other:
            times.append(other.ready_s)
    took = median(times)
    return [Finding("start-up", 1, Neuronetz.name, f"{took:.2f} s from exec to the ready line", {"seconds": took})]


@asynccontextmanager
async def more_workers(bench: Bench, workers: int) -> AsyncIterator[Serving]:
    """Another of ours with so many processes."""
    ours = _ours(bench)
    assert ours.another is not None
    async with ours.another(workers) as more:
        yield more


async def two_workers(
    bench: Bench, more: Serving, workers: int, clients: int, rounds: int, seconds: float
) -> list[Finding]:
    """So many workers against one, in turns: rate, and CPU for each request.

    Where client, stores and upstream leave them too few processors, once more with each worker held to a share of one.
    """
    one = _ours(bench)
    for serving in (one, more):
        await bench.warm(serving, WHOLE, clients)

    async def compared() -> tuple[float, float, float]:
        pairs = []
        for _ in range(rounds):
            pairs.append([await bench.sample(serving, WHOLE, clients, seconds) for serving in (one, more)])
        rate = median(many.rate / single.rate for single, many in pairs)
        cost = median(
            (many.peer_s / max(1, many.replies)) / max(1e-9, single.peer_s / max(1, single.replies))
            for single, many in pairs
        )
        return rate, cost, median((many.rest_s + many.stores_s) / many.seconds for _, many in pairs)

    processors = os.cpu_count() or 1
    rate, cost, others = await compared()
    text = (
        f"{rate:.2f} times the rate of one, {cost:.2f} times the CPU a request; "
        f"client, upstream and stores took {others:.1f} of {processors} processors"
    )
    figures = {"rate": rate, "cost": cost, "free": processors - others, "workers": workers}
    if processors - others < workers:
        with ExitStack() as held:
            try:
                held.enter_context(held_to(WORKER_SHARE, [*_serving(one), *_serving(more)]))
            except OSError as error:
                text += f"; workers could not be held to a share of a processor ({error.strerror}), which root can"
            else:
                rate, cost, others = await compared()
                share = f"{WORKER_SHARE:.0%} of a processor"
                text += f"; each held to {share}: {rate:.2f} times, the others {others:.1f}"
                figures |= {"rate": rate, "free": processors - others, "share": WORKER_SHARE}
    return [Finding("workers", workers, Neuronetz.name, text, figures)]


def _serving(serving: Serving) -> list[int]:
    """The processes that serve requests: a parent of workers does not."""
    [root, *workers] = [process.pid for process in family(serving.processes)]
    return workers or [root]


async def many_streams(bench: Bench, more: Serving, workers: int, count: int, seconds: float) -> list[Finding]:
    """So many streams at once, held by so many of our processes; beside them those of the others that are the floor."""
    floor = {name: bench.peers[name] for name in (Direct.name, Nginx.name) if name in bench.peers}
    tried = {name: await _held(bench, *peer, count, seconds) for name, peer in floor.items()}
    peer, _ = bench.peers[Neuronetz.name]
    tried[f"{Neuronetz.name} x{workers}"] = await _held(bench, peer, more, count, seconds)
    return [_told(name, held) for name, held in tried.items()]


def _told(name: str, tried: Held) -> Finding:
    taken = (tried.peer_s, tried.stores_s, tried.rest_s)
    shares = "/".join(f"{part / tried.seconds:.2f}" for part in taken)
    text = f"{'held' if tried.held else 'not held'} ({_lateness(tried)}{_cost(name, tried)}"
    text += f"; peer/stores/rest took {shares} of {os.cpu_count()} processors)"
    missed = tried.late + tried.silent + tried.ended + tried.asked - tried.open
    return Finding("many streams", tried.asked, name, text, {"missed": missed, "p99_ms": 1e3 * tried.p99_s})


def _ours(bench: Bench) -> Serving:
    return bench.peers[Neuronetz.name][1]
