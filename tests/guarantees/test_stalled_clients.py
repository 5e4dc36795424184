"""Clients that stop reading, over real TCP with a full window: what they held is back in time, and nobody else waits."""

import gc
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from neuronetz.errors import ClientStalled
from neuronetz.web import server
from neuronetz.web.connection import Connection
from tests.guarantees.at_rest import quiet
from tests.patience import until
from tests.shapes import Shape, named
from tests.sockets import connected

WRITE_TIMEOUT_S = 0.5
BOUND_S = 0.1
CROWD = 20
FEW = 8
SEND_BUFFER_BYTES = 16 * 1024
MOST_BYTES = 512 * 1024

NDJSON = Shape("/api/chat", True)
EVENTS = Shape("/v1/chat/completions", True)
WHOLE = Shape("/api/embed", False)

# More than every buffer on the way holds.
ENDLESS = "[[tokens:1000000]] rivers"
# The same for many at once: unpaced, they would leave the thread that all of the test runs on no time.
PACED = "[[tokens:1000000]] [[tps:100]] rivers"
VECTORS = {"input": ["rivers"] * 200, "dimensions": 512}


@pytest.fixture
async def gateway(asyncio_loop: Any, settings: Any, run_gateway: Any) -> AsyncIterator[Any]:
    async with run_gateway(settings.model_copy(update={"write_timeout_s": WRITE_TIMEOUT_S})) as gateway:
        # Accepted sockets inherit it: so little makes a window full that no test waits for megabytes.
        gateway._server._listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        yield gateway


@pytest.fixture
def stalled_at(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each stall was found: the moment from which the bounds count."""
    found: list[float] = []

    def init(self: ClientStalled, *args: Any, **kwargs: Any) -> None:
        found.append(trio.current_time())
        super(ClientStalled, self).__init__(*args, **kwargs)

    monkeypatch.setattr(ClientStalled, "__init__", init)
    return found


async def test_a_client_that_reads_slowly_is_no_silence_of_the_upstream(
    asyncio_loop: Any, settings: Any, run_gateway: Any, key: str, books: Any
) -> None:
    quick = settings.model_copy(update={"write_timeout_s": 30.0, "chunk_timeout_s": 1.0})
    async with run_gateway(quick) as gateway:
        gateway._server._listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        async with connected(gateway, small_window=True) as client:
            await client.send_all(NDJSON.request(key, "[[tokens:20000]] rivers"))
            read = bytearray(await client.receive_some(65536))
            await trio.sleep(2)
            with trio.fail_after(30):
                while not read.endswith(b"0\r\n\r\n"):
                    read += await client.receive_some(65536)
    [row] = await books.rows(1)
    assert (row["outcome"], row["completion_tokens"]) == ("completed", 20000)


@pytest.mark.parametrize("shape", [NDJSON, EVENTS], ids=named)
async def test_a_stream_that_is_not_read_gives_its_slot_back_at_the_write_deadline_and_its_connection(
    gateway: Any, mock_ollama: Any, key: str, books: Any, stalled_at: list[float], shape: Shape
) -> None:
    async with connected(gateway, small_window=True) as client:
        await client.send_all(shape.request(key, ENDLESS))
        await until(lambda: bool(stalled_at), 8)
        await until(lambda: not gateway.admission.held and mock_ollama.stats.open == 0, BOUND_S)
        await books.settled(within_s=BOUND_S)
        # It is reset, not left to a client that may never say a word again.
        await until(lambda: gateway.connections == 0, 2 * BOUND_S)
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012
            while await client.receive_some(65536):
                pass
    await quiet(gateway, mock_ollama)
    [row] = await books.rows(1)
    assert (row["status"], row["outcome"], row["tokens_exact"]) == (499, "client_stalled", False)
    assert row["completion_tokens"] > 0


async def test_a_large_whole_reply_that_is_not_read_holds_no_slot_at_all_and_no_connection_for_long(
    gateway: Any, mock_ollama: Any, key: str, books: Any
) -> None:
    async with connected(gateway, small_window=True) as client:
        await client.send_all(WHOLE.request(key, "", **VECTORS))
        # The lease is settled before the reply is sent: what the model made is made, whoever reads it.
        [row] = await books.rows(1)
        assert (row["status"], row["outcome"]) == (200, "completed")
        await books.settled(within_s=BOUND_S)
        assert gateway.connections == 1
        await until(lambda: gateway.connections == 0, WRITE_TIMEOUT_S + 3)
    assert len(gateway.registry) == 0


async def test_a_crowd_of_stalled_clients_does_not_slow_a_healthy_one(
    gateway: Any, mock_ollama: Any, make_key: Any, key: str, books: Any, stalled_at: list[float]
) -> None:
    crowd = await make_key("crowd", concurrency=CROWD)
    async with AsyncExitStack() as stack:
        for number in range(CROWD):
            client = await stack.enter_async_context(connected(gateway, small_window=True))
            await client.send_all((NDJSON, EVENTS)[number % 2].request(crowd, PACED))
        beside: list[float] = []
        with trio.fail_after(30):
            while len(stalled_at) < CROWD:
                beside.append(await seconds_for_one(gateway, key))
        await until(lambda: not gateway.admission.held and not gateway.connections, 1)
    # On the same thread as twenty that wait for their deadline, it waits for none.
    assert min(beside) < WRITE_TIMEOUT_S / 2
    await books.settled(within_s=BOUND_S)
    outcomes = await books.postgres.fetch("SELECT outcome FROM gateway.audit_log WHERE status <> 200")
    assert [row["outcome"] for row in outcomes] == ["client_stalled"] * CROWD


async def test_the_memory_of_stalled_clients_is_that_of_a_few_buffers_each(
    gateway: Any, mock_ollama: Any, key: str, stalled_at: list[float]
) -> None:
    await seconds_for_one(gateway, key)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        async with AsyncExitStack() as stack:
            for _ in range(FEW):
                client = await stack.enter_async_context(connected(gateway, small_window=True))
                await client.send_all(NDJSON.request(key, PACED))
            await until(lambda: len(stalled_at) == FEW, 20)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    # The mock's and the clients' ends included, of replies that have none.
    assert peak < FEW * MOST_BYTES


async def seconds_for_one(gateway: Any, key: str) -> float:
    """How long a short stream takes from its request to its last byte."""
    began = trio.current_time()
    received = b""
    async with connected(gateway) as client:
        await client.send_all(NDJSON.request(key, "[[tokens:5]] rivers"))
        with trio.fail_after(10):
            while not received.endswith(b"0\r\n\r\n"):
                received += await client.receive_some(65536)
    return trio.current_time() - began


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="not an option of this system")
async def test_a_peer_that_has_vanished_is_given_little_longer_than_the_write_deadline(
    gateway: Any, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system is told of each accepted socket. (That it obeys takes a firewall to show.)"""
    seen: list[tuple[int, int]] = []

    def connection(stream: trio.SocketStream, write_timeout_s: float) -> Connection:
        option = stream.socket.getsockopt
        seen.append(
            (
                option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                option(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            )
        )
        return Connection(stream, write_timeout_s)

    monkeypatch.setattr(server, "Connection", connection)
    await seconds_for_one(gateway, key)
    assert seen == [(int((WRITE_TIMEOUT_S + server.VANISHED_S) * 1000), 1)]
