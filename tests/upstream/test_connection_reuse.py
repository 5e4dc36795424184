"""When a connection serves again, and when it does not; what is kept, for how long, and that nothing leaks."""

from collections.abc import Callable

import pytest
import trio
import trio.testing

from neuronetz.errors import GatewayError, ModelDenied, UpstreamFailed
from neuronetz.upstream import ollama
from neuronetz.upstream.pool import Pool
from neuronetz.upstream.wire import Origin
from tests.patience import until
from tests.upstream.scripted import CHUNKED, END, Handler, Peer, chunk, chunks, opened, serving, sized, sockets

HEAD = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n"


def answering(reply: bytes) -> Handler:
    async def handler(peer: Peer) -> None:
        while await peer.request():
            await peer.say(reply)

    return handler


@pytest.mark.parametrize(
    "reply",
    [
        sized(b"ok"),
        CHUNKED + chunk(b"ok") + END,
        CHUNKED + chunk(b"ok") + b"0\r\nX: y\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + sized(b"ok"),
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    ],
)
async def test_a_reply_read_to_its_end_leaves_a_connection_that_serves_again(reply: bytes) -> None:
    async with serving(answering(reply)) as served, opened(served) as upstream:
        for _ in range(5):
            assert await chunks(upstream) == [b"ok"]
            assert await upstream.fetch("GET", "/api/tags", timeout_s=5, limit=100) == b"ok"
    assert len(served.peers) == 1


@pytest.mark.parametrize(
    "reply",
    [
        sized(b"ok", b"Connection: close\r\n"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        sized(b"ok") + b"more",
        sized(b"ok") + sized(b"of another"),
        CHUNKED + chunk(b"ok") + END + b"x",
    ],
)
async def test_a_connection_with_more_to_say_or_about_to_close_is_not_used_again(reply: bytes) -> None:
    async with serving(answering(reply)) as served, opened(served) as upstream:
        for _ in range(3):
            assert await chunks(upstream) == [b"ok"]
    assert len(served.peers) == 3


async def test_what_comes_while_a_connection_is_idle_is_no_reply_to_the_next_request() -> None:
    late = trio.Event()

    async def handler(peer: Peer) -> None:
        while await peer.request():
            await peer.say(sized(b"%d" % peer.number))
            if peer.number == 1:
                await peer.say(sized(b"late"))
                late.set()

    async with serving(handler) as served, opened(served) as upstream:
        await chunks(upstream)
        await late.wait()
        await trio.sleep(0.01)
        assert await chunks(upstream) == [b"2"]


@pytest.mark.parametrize("status", [404, 200])
async def test_a_body_that_nobody_read_is_no_part_of_the_next_reply(status: int) -> None:
    asked = 0

    async def handler(peer: Peer) -> None:
        nonlocal asked
        while await peer.request():
            asked += 1
            await peer.say(
                sized(b"ok") if asked > 1 else b"HTTP/1.1 %d X\r\nContent-Length: 6\r\n\r\nunread" % status
            )

    async with serving(handler) as served, opened(served) as upstream:
        if status == 404:
            with pytest.raises(ModelDenied):
                await chunks(upstream)
        else:
            async with upstream.stream("/api/chat", b"{}"):
                pass
        assert await chunks(upstream) == [b"ok"]
    # All of it had come, so that the connection could serve again.
    assert len(served.peers) == 1


@pytest.mark.parametrize("left", ["before its head", "in its middle", "refused"])
async def test_a_reply_that_is_left_closes_its_connection_at_once(left: str) -> None:
    gone = trio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        if left == "in its middle":
            await peer.say(CHUNKED + chunk(b"ok"))
        elif left == "refused":
            await peer.say(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
        await peer.closed()
        gone.set()

    async with serving(handler) as served, opened(served) as upstream:
        if left == "before its head":
            with trio.move_on_after(0.05):
                await chunks(upstream)
        elif left == "refused":
            with pytest.raises(GatewayError):
                await chunks(upstream)
        else:
            async with upstream.stream("/api/chat", b"{}") as stream:
                assert await stream.read() == b"ok"
        with trio.fail_after(1):
            await gone.wait()


@pytest.mark.parametrize("rest", [(END,), (b"0", b"\r", b"\n\r", b"\n"), (b"0\r\nX: y\r\n", b"\r\n")])
async def test_a_drained_stream_leaves_a_connection_that_serves_again(
    rest: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama, "_DRAIN_TIMEOUT_S", 5.0)  # how brief it is has a test of its own

    async def handler(peer: Peer) -> None:
        while await peer.request():
            await peer.say(CHUNKED + chunk(b"last\n"), *rest)

    async with serving(handler) as served, opened(served) as upstream:
        for _ in range(3):
            async with upstream.stream("/api/chat", b"{}") as stream:
                assert await stream.read() == b"last\n"
                await stream.drain()
    assert len(served.peers) == 1


@pytest.mark.parametrize("rest", [b"", chunk(b"more"), b"garbage"])
async def test_draining_is_brief_and_what_does_not_end_is_closed(rest: bytes) -> None:
    gone = trio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED + chunk(b"last\n"), rest)
        await peer.closed()
        gone.set()

    async with serving(handler) as served, opened(served) as upstream:
        async with upstream.stream("/api/chat", b"{}") as stream:
            await stream.read()
            began = trio.current_time()
            await stream.drain()
            assert trio.current_time() - began < 0.5
        with trio.fail_after(1):
            await gone.wait()


async def test_a_connection_that_the_upstream_closed_while_idle_is_not_used() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(sized(b"ok"))

    async with serving(handler) as served, opened(served) as upstream:
        for _ in range(5):
            assert await chunks(upstream) == [b"ok"]
            await trio.testing.wait_all_tasks_blocked()
    assert len(served.peers) == 5


async def test_a_request_is_never_sent_twice() -> None:
    asked = 0

    async def handler(peer: Peer) -> None:
        nonlocal asked
        while await peer.request():
            asked += 1
            if asked == 2:
                return  # read, and closed without a word
            await peer.say(sized(b"ok"))

    async with serving(handler) as served, opened(served) as upstream:
        assert await chunks(upstream) == [b"ok"]
        with pytest.raises(UpstreamFailed):
            await chunks(upstream)
        assert asked == 2
        assert await chunks(upstream) == [b"ok"]


def pool_of(port: int, **options: float) -> Pool:
    return Pool(Origin("127.0.0.1", port), connect_timeout_s=2, **options)  # type: ignore[arg-type]


async def serve_once(pool: Pool) -> None:
    connection = await pool.ask(HEAD, b"{}")
    try:
        while await connection.read():
            pass
    finally:
        pool.release(connection)


async def serve_at_once(pool: Pool, count: int) -> None:
    connections = [await pool.ask(HEAD, b"{}") for _ in range(count)]
    for connection in connections:
        assert await connection.read() == b"ok"
        pool.release(connection)


async def test_idle_connections_expire_and_are_closed_when_the_pool_is_touched(
    mock_clock: trio.testing.MockClock,
) -> None:
    mock_clock.rate = 1.0  # sockets take their time; the rest is jumped over
    gone: list[int] = []

    async def handler(peer: Peer) -> None:
        while await peer.request():
            await peer.say(sized(b"ok"))
        gone.append(peer.number)

    async with serving(handler) as served:
        with pool_of(served.port, idle_s=200.0) as pool:
            await serve_at_once(pool, 3)
            assert pool.idle == 3
            mock_clock.jump(100.0)
            # The one that was used last serves first, so that the others can expire.
            await serve_once(pool)
            mock_clock.jump(150.0)
            await serve_once(pool)
            await until(lambda: len(gone) == 2, 1)
            assert (pool.idle, len(served.peers)) == (1, 3)
            assert sorted(gone) == [1, 2]
            mock_clock.jump(250.0)
            await serve_once(pool)
            assert len(served.peers) == 4


async def test_no_more_than_the_limit_is_kept_and_none_after_the_end() -> None:
    before = sockets()
    async with serving(answering(sized(b"ok"))) as served:
        with pool_of(served.port, idle_limit=4) as pool:
            await serve_at_once(pool, 9)
            assert pool.idle == 4
            in_use = await pool.ask(HEAD, b"{}")
            assert await in_use.read() == b"ok"
        pool.release(in_use)
        assert pool.idle == 0
        await trio.sleep(0.01)
    assert sockets() == before


@pytest.mark.parametrize("ends", [True, False])
async def test_256_at_once_leak_no_socket(ends: bool) -> None:
    before = sockets()

    async def handler(peer: Peer) -> None:
        while await peer.request():
            await peer.say(CHUNKED, *(chunk(b"%d\n" % number) for number in range(5)))
            if not ends:
                await peer.closed()
            await peer.say(END)

    async def one(done: Callable[[], None]) -> None:
        async with upstream.stream("/api/chat", b"{}") as stream:
            read = b""
            while ends or len(read) < 10:
                if not (piece := await stream.read()):
                    break
                read += piece
            assert read == b"0\n1\n2\n3\n4\n"
            done()
            if not ends:
                await trio.sleep_forever()

    async with serving(handler) as served:
        async with opened(served, first_byte_timeout_s=30) as upstream:
            finished: list[None] = []
            async with trio.open_nursery() as nursery:
                for _ in range(256):
                    nursery.start_soon(one, lambda: finished.append(None))
                await until(lambda: len(finished) == 256, 30)
                nursery.cancel_scope.cancel()
        await trio.sleep(0.05)
    assert sockets() == before
