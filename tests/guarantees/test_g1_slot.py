"""G1, slot: the slot of an admitted request is free within 100 ms of whatever ended it.

Here: one key with one slot, the ways in which a running request ends, and the time from each to a free slot, as
Redis has it. Further: every checkpoint (tests/guarantees/test_exhaustive_cancellation.py), every fault at every
stage (tests/guarantees/test_fault_matrix.py), clients that stop reading (tests/guarantees/test_stalled_clients.py),
a thousand random cancellations (tests/gateway/test_cancellation.py), a killed process, whose slots are free within
20 s (tests/local/test_killed.py, tests/admission/test_reaper.py).
"""

import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio

from tests.patience import until
from tests.shapes import Shape
from tests.sockets import connected

BOUND_S = 0.1
CHAT = Shape("/api/chat", True)
RUNNING = "[[tokens:10000]] [[tps:100]] rivers"
SILENT = "[[ttft:30]] rivers"


async def close(client: trio.SocketStream, _: Any) -> None:
    await client.aclose()


async def half_close(client: trio.SocketStream, _: Any) -> None:
    await client.send_eof()


async def pass_the_deadline(_: trio.SocketStream, gateway: Any) -> None:
    for running in [running for peers in gateway.registry._running.values() for running in peers]:
        running.scope.deadline = trio.current_time()


async def shut_down(_: trio.SocketStream, gateway: Any) -> None:
    gateway.registry.stop_all()


async def cut_the_model(_: trio.SocketStream, gateway: Any) -> None:
    for connection in gateway._upstream._pool.in_use:
        connection._wire._socket.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("prompt", [RUNNING, SILENT], ids=["mid-stream", "before the first byte"])
@pytest.mark.parametrize("end", [close, half_close, pass_the_deadline, shut_down, cut_the_model])
async def test_the_slot_is_free_within_the_bound_and_the_next_request_gets_it(
    gateway: Any,
    mock_ollama: Any,
    make_key: Any,
    books: Any,
    end: Callable[[trio.SocketStream, Any], Any],
    prompt: str,
) -> None:
    key = await make_key("single", concurrency=1)
    async with connected(gateway) as client:
        await client.send_all(CHAT.request(key, prompt))
        await until(lambda: mock_ollama.stats.open == 1, 3)
        if prompt == RUNNING:
            await client.receive_some(65536)
        assert await books.slots() == 1
        await end(client, gateway)
        await books.settled(within_s=BOUND_S)
        async with connected(gateway) as next_client:
            await next_client.send_all(CHAT.request(key, "rivers"))
            assert (await next_client.receive_some(4096)).startswith(b"HTTP/1.1 200")
