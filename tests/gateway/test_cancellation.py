"""Whatever ends a request: the model stops, the slot is free within 100 ms, and one row tells what happened."""

import time
from typing import Any

import pytest
import trio

from tests.patience import until
from tests.shapes import SHAPES, STREAMING, STREAMS, Shape, named
from tests.sockets import connected

CHAT = Shape("/api/chat", True)
EVENTS = Shape("/v1/chat/completions", True)


@pytest.mark.parametrize("shape", SHAPES, ids=named)
async def test_a_client_that_leaves_before_the_first_byte_stops_the_model(
    gateway: Any, mock_ollama: Any, key: str, books: Any, shape: Shape
) -> None:
    async with connected(gateway) as client:
        await client.send_all(shape.request(key, "[[fail:stall]] [[ttft:30]] rivers"))
        await until(lambda: mock_ollama.stats.open == 1, 3)
        assert await books.leases() == 1
    await until(lambda: mock_ollama.stats.aborted == 1, 0.1)
    await books.settled()
    [row] = await books.rows(1)
    assert row["outcome"] == "client_disconnected"
    assert row["status"] == 499
    assert row["first_byte_ms"] is None
    # The model may have read the prompt, so its estimate is charged, or else leaving in time would be free.
    assert row["prompt_tokens"] > 0
    assert row["completion_tokens"] == 0
    assert not row["tokens_exact"]


@pytest.mark.parametrize("shape", STREAMS, ids=named)
async def test_a_client_that_leaves_in_mid_stream_stops_the_model_and_pays_for_what_it_got(
    gateway: Any, mock_ollama: Any, key: str, books: Any, shape: Shape
) -> None:
    async with connected(gateway) as client:
        await client.send_all(shape.request(key, "[[tokens:1000]] [[tps:200]] rivers"))
        received = b""
        while received.count(shape.piece) < 10:
            received += await client.receive_some(65536)
    await until(lambda: mock_ollama.stats.aborted == 1, 0.1)
    await books.settled()
    [row] = await books.rows(1)
    assert row["outcome"] == "client_disconnected"
    assert not row["tokens_exact"]
    assert 5 <= row["completion_tokens"] < 200
    assert row["prompt_tokens"] > 0
    assert await books.ledger() == (row["prompt_tokens"], row["completion_tokens"], 1)


@pytest.mark.parametrize("path", sorted(STREAMING & {shape.path for shape in SHAPES}))
async def test_a_client_that_leaves_while_a_whole_reply_is_made_stops_the_model(
    gateway: Any, mock_ollama: Any, key: str, books: Any, path: str
) -> None:
    async with connected(gateway) as client:
        await client.send_all(Shape(path, False).request(key, "[[tokens:1000]] [[tps:100]] rivers"))
        await until(lambda: mock_ollama.stats.open == 1, 3)
        await trio.sleep(0.05)
    await until(lambda: mock_ollama.stats.aborted == 1, 0.1)
    await books.settled()
    [row] = await books.rows(1)
    assert (row["outcome"], row["stream"]) == ("client_disconnected", False)


async def test_a_half_closed_connection_counts_as_a_client_that_left(
    gateway: Any, mock_ollama: Any, key: str, books: Any
) -> None:
    async with connected(gateway) as client:
        await client.send_all(CHAT.request(key, "[[ttft:30]] rivers"))
        await until(lambda: mock_ollama.stats.open == 1, 3)
        await client.send_eof()
        await until(lambda: mock_ollama.stats.aborted == 1, 0.2)
    await books.settled()
    await books.rows(1)


async def test_a_client_that_leaves_while_sending_its_body_leaves_a_row_and_nothing_else(
    gateway: Any, key: str, books: Any
) -> None:
    async with connected(gateway) as client:
        await client.send_all(CHAT.request(key, "rivers")[:-5])
        await trio.sleep(0.05)
    [row] = await books.rows(1)
    assert row["outcome"] == "client_disconnected"
    await books.settled()


async def test_a_thousand_random_cancellations_leave_no_slot(
    gateway: Any, mock_ollama: Any, make_key: Any, books: Any
) -> None:
    import random

    random_ = random.Random(20)
    key = await make_key("crowd", concurrency=64, budget_tokens=10**9)
    total = 1000

    async def one(limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            async with connected(gateway) as client:
                shape = random_.choice(SHAPES)
                await client.send_all(shape.request(key, "[[tokens:20]] [[tps:1000]] rivers"))
                with trio.move_on_after(random_.random() * 0.04):
                    while await client.receive_some(65536):
                        pass
            # Clients that leave faster than the gateway can see it would only test its overload.
            while gateway.connections > 24:
                await trio.sleep(0.005)

    limiter = trio.CapacityLimiter(16)
    async with trio.open_nursery() as nursery:
        for _ in range(total):
            nursery.start_soon(one, limiter)
    await books.settled(within_s=2)
    rows = await books.postgres.fetch("SELECT outcome, count(*) AS n FROM gateway.audit_log GROUP BY 1")
    # A client that left before its request was read was never authenticated: it has no row.
    assert {row["outcome"] for row in rows} <= {"completed", "client_disconnected"}
    assert sum(row["n"] for row in rows) <= total
    assert sum(row["n"] for row in rows) > total / 2
    await until(lambda: mock_ollama.stats.open == 0, 2)


@pytest.fixture
def quick(settings: Any) -> Any:
    return settings.model_copy(
        update={
            "first_byte_timeout_s": 0.3,
            "chunk_timeout_s": 0.3,
            "exchange_timeout_s": 1.0,
            "write_timeout_s": 0.4,
            "body_timeout_s": 0.3,
            "drain_timeout_s": 0.3,
        }
    )


async def receive_all(client: trio.SocketStream) -> bytes:
    received = b""
    with trio.fail_after(10):
        while chunk := await client.receive_some(65536):
            received += chunk
            if received.endswith((b"0\r\n\r\n", b"}")) and b"content-length" in received.lower():
                break
            if received.endswith(b"0\r\n\r\n"):
                break
    return received


@pytest.mark.parametrize(
    ("prompt", "status", "outcome"),
    [
        ("[[ttft:30]]", b"504", "upstream_timeout"),
        ("[[fail:stall]]", b"504", "upstream_timeout"),
        ("[[fail:stall_stream]]", b"200", "upstream_timeout"),
        ("[[tokens:10000]] [[tps:50]]", b"200", "deadline_exceeded"),
    ],
)
async def test_deadlines_end_an_exchange(
    asyncio_loop: Any,
    quick: Any,
    run_gateway: Any,
    mock_ollama: Any,
    key: str,
    books: Any,
    prompt: str,
    status: bytes,
    outcome: str,
) -> None:
    if outcome == "deadline_exceeded":
        quick = quick.model_copy(update={"chunk_timeout_s": 5.0})
    async with run_gateway(quick) as gateway, connected(gateway) as client:
        await client.send_all(CHAT.request(key, prompt))
        reply = await receive_all(client)
        assert reply.startswith(b"HTTP/1.1 " + status)
        assert b'{"error":"' in reply
        await until(lambda: mock_ollama.stats.open == 0, 0.2)
        await books.settled()
        [row] = await books.rows(1)
        assert row["outcome"] == outcome


@pytest.mark.parametrize("shape", [CHAT, EVENTS], ids=named)
async def test_a_client_that_stops_reading_loses_its_slot_at_the_write_deadline(
    asyncio_loop: Any, quick: Any, run_gateway: Any, mock_ollama: Any, key: str, books: Any, shape: Shape
) -> None:
    slow = quick.model_copy(update={"exchange_timeout_s": 60.0})
    async with run_gateway(slow) as gateway, connected(gateway, small_window=True) as client:
        await client.send_all(shape.request(key, "[[tokens:1000000]] rivers"))
        await until(lambda: mock_ollama.stats.open == 1, 3)
        await until(lambda: mock_ollama.stats.aborted == 1, 8)
        await books.settled(within_s=0.2)
        [row] = await books.rows(1)
        assert row["outcome"] == "client_stalled"


async def test_a_stuck_write_does_not_hold_the_slot_past_the_deadline_of_the_exchange(
    asyncio_loop: Any, quick: Any, run_gateway: Any, mock_ollama: Any, key: str, books: Any
) -> None:
    stuck = quick.model_copy(update={"write_timeout_s": 60.0})
    async with run_gateway(stuck) as gateway, connected(gateway, small_window=True) as client:
        await client.send_all(CHAT.request(key, "[[tokens:1000000]] rivers"))
        await until(lambda: mock_ollama.stats.open == 1, 3)
        took = await until(lambda: mock_ollama.stats.open == 0, 3)
        assert took < 1.2
        await books.settled(within_s=0.2)
        [row] = await books.rows(1)
        assert row["outcome"] == "deadline_exceeded"


async def test_a_body_that_does_not_come_is_a_408_with_a_row(
    asyncio_loop: Any, quick: Any, run_gateway: Any, key: str, books: Any
) -> None:
    async with run_gateway(quick) as gateway, connected(gateway) as client:
        await client.send_all(CHAT.request(key, "rivers")[:-5])
        reply = await receive_all(client)
        assert reply.startswith(b"HTTP/1.1 408")
        [row] = await books.rows(1)
        assert row["outcome"] == "body_timeout"
        await books.settled()


async def test_a_shutdown_drains_then_cuts_with_rows_written(
    asyncio_loop: Any, quick: Any, mock_ollama: Any, key: str, books: Any
) -> None:
    from neuronetz.gateway import open_gateway

    stop = trio.Event()
    slow = quick.model_copy(update={"exchange_timeout_s": 60.0, "chunk_timeout_s": 60.0, "drain_timeout_s": 1.5})
    async with open_gateway(slow) as gateway, trio.open_nursery() as nursery:
        await nursery.start(gateway.run, stop)
        while not gateway.discovery.fresh:
            await trio.sleep(0.01)
        async with connected(gateway) as short, connected(gateway) as long:
            await short.send_all(CHAT.request(key, "[[tokens:50]] [[tps:100]] rivers"))
            await long.send_all(CHAT.request(key, "[[tokens:10000]] [[tps:50]] rivers"))
            await until(lambda: mock_ollama.stats.open == 2, 3)
            stop.set()
            began = trio.current_time()
            assert (await receive_all(short)).endswith(b"0\r\n\r\n")
            cut = await receive_all(long)
            assert b'{"error":"gateway is shutting down"}' in cut
    assert trio.current_time() - began < 3
    rows = await books.rows(2)
    assert sorted(row["outcome"] for row in rows) == ["completed", "shutdown"]
    await books.settled()
    assert await books.copies() == 0


async def test_a_hard_cancellation_from_outside_still_writes_the_row(
    asyncio_loop: Any, settings: Any, mock_ollama: Any, key: str, books: Any
) -> None:
    from neuronetz.gateway import open_gateway

    async with open_gateway(settings) as gateway:
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.run, trio.Event())
            while not gateway.discovery.fresh:
                await trio.sleep(0.01)
            async with connected(gateway) as client:
                await client.send_all(CHAT.request(key, "[[ttft:30]] rivers"))
                await until(lambda: mock_ollama.stats.open == 1, 3)
                began = trio.current_time()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await until(lambda: mock_ollama.stats.aborted == 1, 0.2)
        assert trio.current_time() - began < 3
    [row] = await books.rows(1)
    assert row["outcome"] == "shutdown"
    await books.settled()


async def test_a_process_that_others_took_for_dead_ends_its_streams_when_it_comes_back(
    asyncio_loop: Any, settings: Any, run_gateway: Any, mock_ollama: Any, key: str, books: Any
) -> None:
    beating = settings.model_copy(update={"heartbeat_s": 0.1, "dead_after_s": 0.5})
    async with run_gateway(beating) as gateway, run_gateway(settings) as other, connected(gateway) as client:
        await client.send_all(EVENTS.request(key, "[[tokens:1000]] [[tps:50]] rivers"))
        await until(lambda: mock_ollama.stats.tokens > 2, 3)
        await other.reaper.reap(gateway.instance, int(time.time() * 1000) + 60_000)
        await until(lambda: mock_ollama.stats.open == 0, 1)
        assert b'"message":"request given up: the gateway was held up"' in await receive_all(client)
        await books.settled()
    rows = await books.rows(1)
    assert {row["outcome"] for row in rows} <= {"lease_lost", "abandoned"}
