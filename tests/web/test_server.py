"""The server's connections: every write ends, whatever the client does. Guards what is used of hypercorn."""

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from neuronetz.exchange.delivery import Line
from neuronetz.web.server import Server, open_server

CHUNK = b"x" * 65536
REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"

App = Callable[[Any, Any, Any], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(app: App, write_timeout_s: float = 5.0, max_connections: int = 10) -> AsyncIterator[Server]:
    async with open_server(
        app, "127.0.0.1", 0, write_timeout_s=write_timeout_s, max_connections=max_connections
    ) as server:
        yield server


async def connect(port: int, small_window: bool = False) -> trio.SocketStream:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if small_window:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    try:
        await sock.connect(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def endless(send: Any, sent: list[int]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        sent.append(1)


async def test_a_client_that_stops_reading_is_found_at_the_write_deadline() -> None:
    seen: list[tuple[str, bool, float]] = []
    done = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        line: Line = scope["state"]["line"]
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(endless, send, [])
            await receive()
            message = await receive()
            seen.append((message["type"], line.stalled, trio.current_time() - began))
            nursery.cancel_scope.cancel()
        done.set()

    async with serving(app, write_timeout_s=0.3) as server:
        client = await connect(server.port, small_window=True)
        async with client:
            await client.send_all(REQUEST)
            with trio.fail_after(3):
                await done.wait()
    assert seen[0][:2] == ("http.disconnect", True)
    assert 0.3 <= seen[0][2] < 1.5


async def test_a_torn_whole_reply_leaves_no_idle_connection_behind() -> None:
    done = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": CHUNK * 200, "more_body": False})
        done.set()

    async with (
        serving(app, write_timeout_s=0.3) as server,
        await connect(server.port, small_window=True) as client,
    ):
        await client.send_all(REQUEST)
        with trio.fail_after(5):
            await done.wait()
            while server.open:
                await trio.sleep(0.001)


async def test_a_slow_reader_that_makes_progress_is_served_to_the_end() -> None:
    body = b"y" * (4 * 65536)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async with (
        serving(app, write_timeout_s=0.5) as server,
        await connect(server.port, small_window=True) as client,
    ):
        await client.send_all(REQUEST)
        received = bytearray()
        with trio.fail_after(20):
            while not received.endswith(b"y" * 10) or len(received) < len(body):
                received += await client.receive_some(16384)
                await trio.sleep(0.02)
    assert received.count(b"y") >= len(body)


async def test_connections_beyond_the_limit_are_closed_at_once() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    async with serving(app, max_connections=1) as server, await connect(server.port) as first:
        await first.send_all(REQUEST)
        with trio.fail_after(2):
            while server.open < 1:
                await trio.sleep(0.001)
        async with await connect(server.port) as second:
            with trio.fail_after(2), contextlib.suppress(trio.BrokenResourceError):
                assert await second.receive_some(1) == b""


async def test_a_crashing_app_is_a_bare_500_and_the_server_goes_on(caplog: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/crash":
            raise RuntimeError("secret detail")
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async with serving(app) as server:
        async with await connect(server.port) as client:
            await client.send_all(b"GET /crash HTTP/1.1\r\nHost: test\r\n\r\n")
            with trio.fail_after(2):
                reply = await client.receive_some(4096)
        assert b" 500 " in reply
        assert b"secret" not in reply
        async with await connect(server.port) as client:
            await client.send_all(REQUEST)
            with trio.fail_after(2):
                assert b" 204 " in await client.receive_some(4096)


async def test_a_connection_that_fails_as_the_server_is_cut_does_not_fail_the_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = trio.Event()

    async def fail_when_cut() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            served.set()
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("a bug")

    monkeypatch.setattr("neuronetz.web.server.Channel.run", lambda channel: fail_when_cut())
    async with serving(endless) as server, await connect(server.port):
        await served.wait()
    assert "connection failed" in caplog.text


async def test_after_stop_accepting_a_running_request_ends_and_new_connections_are_refused() -> None:
    go, inside = trio.Event(), trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        inside.set()
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": False})

    async with serving(app) as server, await connect(server.port) as client:
        await client.send_all(REQUEST)
        await inside.wait()
        await server.stop_accepting()
        go.set()
        received = b""
        with trio.fail_after(2):
            while chunk := await client.receive_some(4096):
                received += chunk
        assert received.endswith(b"ok")
        with pytest.raises(OSError, match="refused"):
            await connect(server.port)
