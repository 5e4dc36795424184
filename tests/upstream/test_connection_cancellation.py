"""Cancelled at every checkpoint in turn, an exchange with the upstream leaves no socket and no half-used connection."""

import gc
from collections.abc import Awaitable, Callable

import pytest
import trio

from neuronetz.upstream.ollama import Upstream
from tests.guarantees.checkpoints import Steps
from tests.patience import until
from tests.upstream.scripted import CHUNKED, END, Peer, chunk, chunks, opened, serving, sized, sockets

LARGE = b"x" * 4_000_000


async def slow(peer: Peer) -> None:
    while request := await peer.request():
        if b"/api/tags" in request:
            await peer.say(sized(b"tags"))
            continue
        await peer.say(CHUNKED[:20], CHUNKED[20:], chunk(b"one\n"), chunk(b"two\n")[:4], chunk(b"two\n")[4:], END)


async def streamed(upstream: Upstream) -> None:
    assert b"".join(await chunks(upstream)) == b"one\ntwo\n"


async def drained(upstream: Upstream) -> None:
    async with upstream.stream("/api/chat", b"{}") as stream:
        read = b""
        while not read.endswith(b"two\n"):
            read += await stream.read()
        await stream.drain()


async def uploaded(upstream: Upstream) -> None:
    assert b"".join(await chunks(upstream, LARGE)) == b"one\ntwo\n"


async def fetched(upstream: Upstream) -> None:
    assert await upstream.fetch("GET", "/api/tags", timeout_s=5, limit=100) == b"tags"


async def fetched_slowly(upstream: Upstream) -> None:
    assert await upstream.fetch("POST", "/api/show", b"{}", timeout_s=5, limit=100) == b"one\ntwo\n"


@pytest.mark.parametrize("exchange", [streamed, drained, uploaded, fetched, fetched_slowly])
@pytest.mark.parametrize("warm", [False, True])
async def test_a_cancellation_at_any_checkpoint_leaves_nothing_behind(
    exchange: Callable[[Upstream], Awaitable[None]], warm: bool
) -> None:
    before = sockets()
    stopped = 0
    while True:
        async with serving(slow) as served, opened(served) as upstream:
            if warm:
                await fetched(upstream)
            with trio.CancelScope() as scope:
                steps = Steps(stopped + 1, scope.cancel)
                await steps.run(lambda upstream=upstream: exchange(upstream))  # type: ignore[misc]
            assert steps.left == 0
            assert not upstream._pool.in_use
            # Whatever it left in the pool gives the next one its own reply.
            await fetched(upstream)
            await streamed(upstream)
        await until(lambda: sockets() == before, 1)
        if not steps.stopped:
            break
        stopped += 1
    assert stopped >= 1
    gc.collect()


async def test_a_cancelled_exchange_is_seen_by_the_upstream_at_once() -> None:
    took: list[float] = []
    cancelled_at = 0.0

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED + chunk(b"one\n"))
        await peer.closed()
        took.append(trio.current_time() - cancelled_at)

    async with serving(handler) as served, opened(served) as upstream:
        for _ in range(20):
            with trio.CancelScope() as scope:
                async with upstream.stream("/api/chat", b"{}") as stream:
                    assert await stream.read() == b"one\n"
                    cancelled_at = trio.current_time()
                    scope.cancel()
                    await stream.read()
            assert scope.cancelled_caught
            await until(lambda: len(took) == len(served.peers), 1)
    assert sorted(took)[10] < 0.05


async def test_a_read_gives_way_to_others() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.stream.send_all(CHUNKED)
        for _ in range(400):
            await peer.stream.send_all(chunk(b"x" * 100_000))
        await peer.stream.send_all(END)

    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with serving(handler) as served, opened(served) as upstream, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        async with upstream.stream("/api/chat", b"{}") as stream:
            reads = 0
            while await stream.read():
                reads += 1
        nursery.cancel_scope.cancel()
    assert reads > 100
    # All but what came with the head was a turn of the scheduler's.
    assert turns >= reads - 2
