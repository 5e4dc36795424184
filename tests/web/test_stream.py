"""Replies that are written directly: how they are framed, in how many sends, and what ends a write."""

import contextlib
import itertools
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import h11
import pytest
import trio
import trio.testing

from neuronetz.web import connection as connection_module
from neuronetz.web.head import header_lines
from neuronetz.web.server import Server, open_server
from neuronetz.web.stream import Stream
from tests import patience

REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
HEADERS = [(b"content-type", b"text/plain")]
CHUNK = b"x" * 65536

Talk = Callable[[Stream], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(talk: Talk, write_timeout_s: float = 5.0) -> AsyncIterator[Server]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await talk(scope["state"]["line"])

    async with open_server(app, "127.0.0.1", 0, write_timeout_s=write_timeout_s, max_connections=10) as server:
        yield server


async def connect(port: int, small_window: bool = False) -> trio.SocketStream:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if small_window:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", port))
    return trio.SocketStream(sock)


async def until(client: trio.SocketStream, end: bytes) -> bytes:
    received = b""
    with trio.fail_after(5):
        while not received.endswith(end):
            data = await client.receive_some(65536)
            assert data, received
            received += data
    return received


async def rest(client: trio.SocketStream) -> bytes:
    received = b""
    with trio.fail_after(5), contextlib.suppress(trio.BrokenResourceError):
        while data := await client.receive_some(65536):
            received += data
    return received


def understood(method: str, wire: bytes) -> tuple[int, bytes]:
    """A reply as h11 reads it, from its first byte to its last and with nothing behind: status and body."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "test")]))
    client.send(h11.EndOfMessage())
    client.receive_data(wire)
    client.receive_data(b"")
    status, body = 0, b""
    while True:
        event = client.next_event()
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert client.trailing_data[0] == b""
            return status, body


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was given to the system by the server, each write apart."""
    made: list[bytes] = []

    class System:
        read = staticmethod(os.read)

        @staticmethod
        def write(fd: int, data: bytes) -> int:
            made.append(bytes(data))
            return os.write(fd, data)

    monkeypatch.setattr(connection_module, "os", System)
    return made


async def test_a_whole_reply_is_one_send(sends: list[bytes]) -> None:
    async def talk(line: Stream) -> None:
        await line.write((200, HEADERS, 5), b"hello", more=False)

    async with serving(talk) as server, await connect(server.port) as client:
        for _ in range(3):
            await client.send_all(REQUEST)
            assert understood("GET", await until(client, b"hello")) == (200, b"hello")
    assert len(sends) == 3


async def test_a_stream_is_one_send_for_each_chunk_and_one_for_the_end(sends: list[bytes]) -> None:
    async def talk(line: Stream) -> None:
        await line.write((200, HEADERS, None), b"one", more=True)
        await line.write(None, b"two", more=True)
        await line.write(None, b"", more=True)
        await line.write(None, b"three", more=False)

    async with serving(talk) as server, await connect(server.port) as client:
        for _ in range(2):
            await client.send_all(REQUEST)
            assert understood("GET", await until(client, b"0\r\n\r\n")) == (200, b"onetwothree")
    assert len(sends) == 6
    assert sends[0].endswith(b"\r\n\r\n3\r\none\r\n")
    assert sends[1:3] == [b"3\r\ntwo\r\n", b"5\r\nthree\r\n0\r\n\r\n"]


@pytest.mark.parametrize("length", [3, None])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [200, 204, 304, 503])
async def test_replies_are_framed_as_h11_frames_them(method: str, status: int, length: int | None) -> None:
    async def talk(line: Stream) -> None:
        await line.write((status, HEADERS, length), b"abc", more=False)

    async def next_reply(client: trio.SocketStream) -> bytes:
        await client.send_all(f"{method} / HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        await trio.testing.wait_all_tasks_blocked(0.02)
        return bytes(await client.receive_some(65536))

    async with serving(talk) as server, await connect(server.port) as client:
        bodyless = method == "HEAD" or status in (204, 304)
        for _ in range(2):
            wire = await next_reply(client)
            assert understood(method, wire) == (status, b"" if bodyless else b"abc")
    theirs = h11.Connection(h11.SERVER)
    theirs.receive_data(f"{method} / HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    theirs.next_event()
    theirs.next_event()
    headers = [*HEADERS, *([(b"content-length", b"3")] if length is not None else [])]
    head = theirs.send(h11.Response(status_code=status, headers=headers))
    ours = re.sub(rb"date: [^\r]*\r\n", b"", wire[: wire.index(b"\r\n\r\n") + 4])
    assert sorted(ours.lower().split(b"\r\n")) == sorted(head.lower().split(b"\r\n"))


@pytest.mark.parametrize("length", [3, None])
@pytest.mark.parametrize("request_line", ["GET / HTTP/1.0\r\n", "GET / HTTP/1.1\r\nConnection: close\r\n"])
async def test_a_connection_that_does_not_stay_is_closed_behind_the_reply(
    request_line: str, length: int | None
) -> None:
    async def talk(line: Stream) -> None:
        await line.write((200, HEADERS, length), b"a", more=True)
        await line.write(None, b"bc", more=False)

    async with serving(talk) as server, await connect(server.port) as client:
        await client.send_all(f"{request_line}Host: test\r\n\r\n".encode())
        wire = await rest(client)
        assert b"connection: close\r\n" in wire
        assert (b"chunked" in wire) is ("1.1" in request_line and length is None)
        assert understood("GET", wire) == (200, b"abc")
        with trio.fail_after(2):
            while server.open:
                await trio.sleep(0.001)


async def test_the_last_request_that_a_connection_may_make_closes_it() -> None:
    async def talk(line: Stream) -> None:
        await line.write((200, HEADERS, 2), b"ok", more=False)

    async with serving(talk) as server, await connect(server.port) as client:
        server._config.keep_alive_max_requests = 2
        await client.send_all(REQUEST * 2)
        wire = await rest(client)
    assert wire.count(b"connection: close\r\n") == 1
    assert wire.endswith(b"ok")


@pytest.mark.parametrize("data", [b"abcd", b"ab"])
async def test_a_body_longer_or_shorter_than_told_is_not_sent(data: bytes) -> None:
    raised: list[str] = []

    async def talk(line: Stream) -> None:
        with pytest.raises(RuntimeError):
            await line.write((200, HEADERS, 3), data, more=False)
        raised.append("raised")

    async with serving(talk) as server, await connect(server.port) as client:
        await client.send_all(REQUEST)
        assert await rest(client) == b""
    assert raised == ["raised"]


@pytest.mark.parametrize(
    "header",
    [
        (b"x", b"1\r\ny: 2"),
        (b"x", b"1\ny: 2"),
        (b"x", b"1\r"),
        (b"x", b"\x00"),
        (b"x y", b"1"),
        (b"", b"1"),
        (b"Content-Length", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"close"),
    ],
)
def test_what_is_no_header_or_frames_the_reply_gets_into_no_head(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="not a header"):
        header_lines([(b"x-fine", b"a b\tc"), header])
    assert header_lines([(b"x-fine", b"a b\tc"), (b"y", b"")]) == b"x-fine: a b\tc\r\ny: \r\n"


async def stuck(line: Stream, sent: list[int]) -> None:
    await line.write((200, HEADERS, None), b"", more=True)
    while True:
        if not await line.write(None, CHUNK, more=True):
            return
        sent.append(1)


async def wait_stuck(sent: list[int]) -> None:
    progress = -1
    while len(sent) != progress:
        progress = len(sent)
        await trio.sleep(0.1)


async def test_a_cancellation_ends_a_stuck_write_and_resets_the_connection() -> None:
    took: list[float] = []
    done = trio.Event()

    async def talk(line: Stream) -> None:
        sent: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stuck, line, sent)
            await wait_stuck(sent)
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        took.append(trio.current_time() - began)
        done.set()

    async with (
        serving(talk, write_timeout_s=60) as server,
        await connect(server.port, small_window=True) as client,
    ):
        await client.send_all(REQUEST)
        with trio.fail_after(10):
            await done.wait()
            with pytest.raises(trio.BrokenResourceError):  # noqa: PT012
                while await client.receive_some(65536):
                    pass
            while server.open:
                await trio.sleep(0.001)
    assert took[0] < 0.1


async def test_a_client_that_stops_reading_is_told_of_as_stalled() -> None:
    gone: list[tuple[bool, float]] = []
    done = trio.Event()

    async def talk(line: Stream) -> None:
        began = trio.current_time()
        line.watch(lambda: gone.append((line.stalled, trio.current_time() - began)))
        await stuck(line, [])
        done.set()

    async with (
        serving(talk, write_timeout_s=0.3) as server,
        await connect(server.port, small_window=True) as client,
    ):
        await client.send_all(REQUEST)
        with trio.fail_after(3):
            await done.wait()
    assert [stalled for stalled, _ in gone] == [True]
    assert 0.3 <= gone[0][1] < 1.5


@pytest.mark.parametrize("behind", [b"", b"\r\n", REQUEST], ids=["nothing", "a newline", "a request"])
@pytest.mark.parametrize("how", ["closes", "half-closes", "resets"])
async def test_a_client_is_seen_to_leave_within_100_ms(how: str, behind: bytes) -> None:
    left, waiting = trio.Event(), trio.Event()

    async def talk(line: Stream) -> None:
        line.watch(left.set)
        waiting.set()
        await trio.sleep_forever()

    async with serving(talk) as server, await connect(server.port) as client:
        await client.send_all(REQUEST + behind)
        with trio.fail_after(2):
            await waiting.wait()
        await trio.sleep(0.02)
        assert not left.is_set()
        if how == "half-closes":
            await client.send_eof()
        else:
            if how == "resets":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            await client.aclose()
        await patience.until(left.is_set, 0.1)


async def test_the_end_of_a_reply_is_no_leaving() -> None:
    gone: list[str] = []

    async def talk(line: Stream) -> None:
        line.watch(lambda: gone.append("gone"))
        await line.write((200, HEADERS, 2), b"ok", more=False)

    async with serving(talk) as server:
        async with await connect(server.port) as client:
            await client.send_all(REQUEST)
            await until(client, b"ok")
        with trio.fail_after(2):
            while server.open:
                await trio.sleep(0.001)
    assert gone == []


async def test_an_offer_that_is_cancelled_goes_ahead_of_what_comes_next() -> None:
    async def talk(line: Stream) -> None:
        await line.write((200, HEADERS, None), b"first", more=True)
        with trio.move_on_after(0.2) as patience:
            while True:
                await line.offer(None, CHUNK)
        assert patience.cancelled_caught
        await line.write(None, b"last", more=False)

    async with serving(talk) as server, await connect(server.port, small_window=True) as client:
        await client.send_all(REQUEST)
        await trio.sleep(0.3)
        status, body = understood("GET", await until(client, b"\r\n0\r\n\r\n"))
    assert status == 200
    assert body.startswith(b"first")
    assert body.endswith(b"last")
    assert set(body[5:-4]) == {ord("x")}
    assert len(body[5:-4]) % len(CHUNK) == 0


async def test_writes_of_two_tasks_come_one_after_the_other() -> None:
    async def talk(line: Stream) -> None:
        await line.write((200, HEADERS, None), b"first", more=True)

        async def offer() -> None:
            for _ in range(40):
                await line.offer(None, b"a" * 65536)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(offer)
            for _ in range(40):
                await line.write(None, b"b" * 65536, more=True)
        await line.write(None, b"", more=False)

    async with serving(talk) as server, await connect(server.port, small_window=True) as client:
        await client.send_all(REQUEST)
        _, body = understood("GET", await until(client, b"\r\n0\r\n\r\n"))
    runs = re.findall(rb"a+|b+", body[5:])
    assert {len(run) % 65536 for run in runs} == {0}
    assert len(body) == 5 + 80 * 65536


async def test_writing_lets_others_have_their_turn() -> None:
    turns: list[int] = []

    async def talk(line: Stream) -> None:
        written = 0

        async def count() -> None:
            while True:
                await trio.lowlevel.checkpoint()
                turns.append(written)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await line.write((200, HEADERS, None), b"", more=True)
            for _ in range(100):
                await line.write(None, b"x", more=True)
                written += 1
            await line.write(None, b"", more=False)
            nursery.cancel_scope.cancel()

    async with serving(talk) as server, await connect(server.port) as client:
        await client.send_all(REQUEST)
        await until(client, b"\r\n0\r\n\r\n")
    # A turn in 16 writes; whose comes first in a turn of Trio's is left to chance.
    assert max(after - before for before, after in itertools.pairwise([0, *turns, 100])) <= 3 * 16


async def test_who_goes_on_writing_to_a_client_that_has_left_is_no_burden() -> None:
    over = trio.Event()

    async def talk(line: Stream) -> None:
        with trio.move_on_after(0.2):
            await line.write((200, HEADERS, None), b"", more=True)
            while True:
                await line.write(None, b"x", more=True)
        over.set()

    async with serving(talk) as server:
        async with await connect(server.port) as client:
            await client.send_all(REQUEST)
        with trio.fail_after(2):
            await over.wait()


async def test_a_body_is_read_no_further_than_it_is_taken() -> None:
    ahead: list[int] = []
    size = 2**24

    async def talk(line: Stream) -> None:
        await trio.sleep(0.2)
        total = 0
        while not line.body.ended:
            part = await line.body.take()
            assert part is not None
            ahead.append(len(part))
            total += len(part)
        await line.write((200, HEADERS, None), str(total).encode(), more=False)

    async with serving(talk) as server, await connect(server.port) as client:
        await client.send_all(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % size)
        await client.send_all(b"x" * size)
        assert understood("GET", await until(client, b"0\r\n\r\n")) == (200, str(size).encode())
    assert max(ahead) <= 2 * 65536


async def test_a_connection_closes_when_it_was_idle_for_so_long() -> None:
    async def talk(line: Stream) -> None:
        await trio.sleep(0.5)
        await line.write((200, HEADERS, 2), b"ok", more=False)

    async with serving(talk) as server:
        server._config.keep_alive_timeout = 0.3
        async with await connect(server.port) as client:
            for _ in range(2):
                began = trio.current_time()
                await client.send_all(REQUEST)
                await until(client, b"ok")
            assert await rest(client) == b""
            assert 0.2 < trio.current_time() - began < 1.0
        async with await connect(server.port) as silent:
            began = trio.current_time()
            await silent.send_all(REQUEST[:5])
            assert await rest(silent) == b""
            assert 0.2 < trio.current_time() - began < 1.0


async def test_a_body_in_tiny_chunks_lets_others_have_their_turn() -> None:
    seen: list[int] = []

    async def talk(line: Stream) -> None:
        line.body.drop()

        async def look() -> None:
            while True:
                seen.append(line.body.dropped)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            while await line.body.news():
                pass
            nursery.cancel_scope.cancel()
        await line.write((200, HEADERS, 2), b"ok", more=False)

    async with serving(talk) as server, await connect(server.port) as client:
        await client.send_all(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        await client.send_all(b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n")
        await until(client, b"ok")
    assert seen[-1] > 9_900
    assert max(after - before for before, after in itertools.pairwise(seen)) <= 64


async def test_requests_that_come_when_the_patience_ends_are_all_answered() -> None:
    async def talk(line: Stream) -> None:
        await trio.sleep(0.05)
        await line.write((200, HEADERS, 2), b"ok", more=False)

    async with serving(talk) as server:
        server._config.keep_alive_timeout = 1.0
        async with await connect(server.port) as client:
            await trio.sleep(0.4)
            server._config.keep_alive_timeout = 5.0
            # Not by Trio, which would give the server its turn; then both are due in one and the same turn.
            os.write(client.socket.fileno(), REQUEST * 2)
            time.sleep(0.7)  # noqa: ASYNC251 - it is to block
            received = b""
            with trio.fail_after(2):
                while received.count(b"ok") < 2:
                    data = await client.receive_some(65536)
                    assert data, received
                    received += data


async def test_nothing_comes_in_between_while_the_server_says_what_it_cannot_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[bool] = []
    asked, full = trio.Event(), False

    class System:
        read = staticmethod(os.read)

        @staticmethod
        def write(fd: int, data: bytes) -> int:
            if full:
                raise BlockingIOError
            return os.write(fd, data)

    async def talk(line: Stream) -> None:
        nonlocal full
        full = True
        asked.set()
        await trio.sleep(0.1)
        for head in ((200, HEADERS, None), None):
            taken.append(await line.write(head, b"no", more=True))
        full = False
        await line.body.wait_closed()

    monkeypatch.setattr(connection_module, "os", System)
    async with serving(talk) as server, await connect(server.port) as client:
        await client.send_all(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        await asked.wait()
        await client.send_all(b"not a chunk\r\n")
        received = await rest(client)
    assert taken == [False, False]
    assert (received[:13], b"no" in received) == (b"HTTP/1.1 400 ", False)
