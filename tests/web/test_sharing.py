"""A listening socket that several workers accept from."""

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from neuronetz.web.listening import Listener
from neuronetz.web.sharing import Load


@pytest.mark.parametrize(
    ("counts", "leaves_it"),
    [
        ([0], False),
        ([5, 5], False),
        ([5, 6], False),
        ([6, 5], True),
        ([6, None], False),
        ([6, 9, 0], True),
        ([0, 0, 0], False),
    ],
)
def test_who_has_more_connections_than_another_worker_leaves_the_next_to_it(
    tmp_path: Path, counts: list[int | None], leaves_it: bool
) -> None:
    Load.prepare(tmp_path, len(counts))
    for number, count in enumerate(counts):
        Load(tmp_path, number).tell(count)
    assert Load(tmp_path, 0).others_have_less() is leaves_it


def test_workers_that_have_not_said_anything_do_not_count(tmp_path: Path) -> None:
    Load.prepare(tmp_path, 3)
    load = Load(tmp_path, 2)
    load.tell(7)
    assert not load.others_have_less()


@asynccontextmanager
async def shared(tmp_path: Path) -> AsyncIterator[tuple[list[Listener], list[Load], int]]:
    Load.prepare(tmp_path, 2)
    loads = [Load(tmp_path, number) for number in range(2)]
    with socket.create_server(("127.0.0.1", 0)) as bound:
        listeners = [Listener(bound.dup(), load) for load in loads]
        try:
            yield listeners, loads, bound.getsockname()[1]
        finally:
            for listener in listeners:
                await listener.aclose()


async def test_the_worker_with_fewer_connections_gets_the_next(tmp_path: Path) -> None:
    taken: list[int] = []
    async with shared(tmp_path) as (listeners, loads, port), trio.open_nursery() as nursery:

        async def accept(number: int) -> None:
            while True:
                async with await listeners[number].accept():
                    taken.append(number)
                # It has gone again, as a server tells then.
                loads[number].tell(counts[number])

        counts = [3, 2]
        for number in range(2):
            loads[number].tell(counts[number])
            nursery.start_soon(accept, number)
        for turn in range(10):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                assert await stream.receive_some() == b""
            # The one that left this connection to the other looks for it once more before the next comes.
            await trio.sleep(0.01)
            if turn == 4:
                counts[1] = 4
                loads[1].tell(4)
        nursery.cancel_scope.cancel()
    assert taken == [1] * 5 + [0] * 5


async def test_when_the_one_with_fewer_is_stuck_another_takes_the_connection(tmp_path: Path) -> None:
    async with shared(tmp_path) as (listeners, loads, port), trio.open_nursery() as nursery:
        loads[0].tell(3)
        loads[1].tell(0)  # says so, and does not accept

        async def connect() -> None:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.receive_some()

        nursery.start_soon(connect)
        with trio.fail_after(5):
            async with await listeners[0].accept():
                pass


async def test_a_cancelled_accept_leaves_the_connection_to_others_and_the_socket_open(tmp_path: Path) -> None:
    async with shared(tmp_path) as (listeners, _, port):
        with trio.move_on_after(0.05):
            await listeners[0].accept()
        await listeners[0].aclose()
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with trio.fail_after(5):
                async with await listeners[1].accept():
                    pass
                assert await stream.receive_some() == b""


async def test_connections_that_come_together_are_spread(tmp_path: Path) -> None:
    taken = [0, 0]
    async with shared(tmp_path) as (listeners, loads, port), AsyncExitStack() as open_ones:
        for load in loads:
            load.tell(0)
        for _ in range(10):
            await open_ones.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))

        async def accept(number: int) -> None:
            while True:
                await open_ones.enter_async_context(await listeners[number].accept())
                taken[number] += 1

        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(accept, number)
            with trio.fail_after(5):
                while sum(taken) < 10:
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
    # A process that stands still for a moment lets the wrong one of them take one more.
    assert max(taken) <= 6


def test_a_connection_more_is_told_by_workers_that_serve_alone(tmp_path: Path) -> None:
    Load.prepare(tmp_path, 2)
    drained, serving = Load(tmp_path, 0), Load(tmp_path, 1)
    serving.tell(1)
    drained.tell(None)
    drained.tell_of_another()
    assert not serving.others_have_less()
    serving.tell_of_another()
    drained.tell(1)
    assert serving.others_have_less()
