"""Connections end when they should: after a reply, when idle, in a drain, and when the client has left."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from neuronetz.exchange.delivery import Delivery
from neuronetz.gateway import open_gateway
from neuronetz.stores.postgres import open_postgres

H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def chat(key: str, prompt: str = "rivers", version: str = "1.1", headers: str = "", **extra: Any) -> bytes:
    data = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": prompt}], **extra}).encode()
    head = f"POST /api/chat HTTP/{version}\r\nHost: g\r\nAuthorization: Bearer {key}\r\n{headers}"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


@asynccontextmanager
async def connected(gateway: Any) -> AsyncIterator[trio.SocketStream]:
    port = int(gateway.base_url.rsplit(":", 1)[1])
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        yield stream


async def rest(stream: trio.SocketStream, within_s: float) -> bytes:
    """What comes until the server closes; fails when it does not."""
    received = b""
    with trio.fail_after(within_s):
        try:
            while chunk := await stream.receive_some(65536):
                received += chunk
        except trio.BrokenResourceError:
            pass
    return received


async def until(condition: Any, within_s: float) -> float:
    began = trio.current_time()
    while not condition():
        assert trio.current_time() - began < within_s, "not within the bound"
        await trio.sleep(0.005)
    return trio.current_time() - began


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("version", "headers"), [("1.0", ""), ("1.1", "Connection: close\r\n")])
async def test_a_reply_that_the_close_delimits_is_closed(
    gateway: Any, key: str, version: str, headers: str, stream: bool
) -> None:
    async with connected(gateway) as client:
        await client.send_all(chat(key, version=version, headers=headers, stream=stream))
        reply = await rest(client, 5)
    assert b" 200 " in reply
    assert b'"done":true' in reply


@pytest.mark.parametrize("path", ["/api/tags", "/healthz", "/nowhere"])
async def test_a_kept_connection_is_closed_when_it_is_idle(gateway: Any, key: str, path: str) -> None:
    gateway._server._config.keep_alive_timeout = 0.3
    async with connected(gateway) as client:
        await client.send_all(f"GET {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
        assert b"HTTP/1.1 " in await rest(client, 5)


async def test_a_page_for_http_1_0_is_closed(gateway: Any) -> None:
    async with connected(gateway) as client:
        await client.send_all(b"GET /healthz HTTP/1.0\r\nHost: g\r\n\r\n")
        assert b" 200 " in await rest(client, 5)


async def test_a_handshake_for_a_websocket_is_no_way_to_stay(gateway: Any) -> None:
    gateway._server._config.keep_alive_timeout = 0.3
    async with connected(gateway) as client:
        await client.send_all(b"GET / HTTP/1.1\r\nHost: g\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert b" 200 " in await rest(client, 5)


async def test_http_2_is_not_spoken(gateway: Any) -> None:
    gateway._server._config.keep_alive_timeout = 0.3
    async with connected(gateway) as client:
        await client.send_all(H2_PREFACE)
        assert not (await rest(client, 5)).startswith(b"\x00\x00")


@pytest.mark.parametrize(
    ("headers", "behind"),
    [
        ("", b"\r\n"),
        ("", b"GET / HTTP/1.1\r\nHost: g\r\n\r\n" * 3000),
        ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n", b""),
        ("Connection: upgrade\r\nUpgrade: something\r\n", b""),
    ],
    ids=[
        "a stray newline",
        "three thousand pipelined requests",
        "an upgrade to HTTP/2",
        "an upgrade to something",
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_is_seen_to_leave_whatever_it_sent_behind_its_request(
    gateway: Any, key: str, mock_ollama: Any, books: Any, headers: str, behind: bytes, stream: bool
) -> None:
    async with connected(gateway) as client:
        await client.send_all(chat(key, "[[ttft:8]]", headers=headers, stream=stream) + behind)
        await until(lambda: mock_ollama.stats.open == 1, 3)
    await until(lambda: mock_ollama.stats.open == 0, 0.2)
    await books.settled()
    [row] = await books.rows(1)
    assert row["outcome"] == "client_disconnected"


async def test_pipelined_requests_are_answered_one_after_the_other(gateway: Any, key: str, books: Any) -> None:
    async with connected(gateway) as client:
        await client.send_all(chat(key, stream=False) * 3)
        received = b""
        with trio.fail_after(5):
            while received.count(b"HTTP/1.1 200") < 3 or not received.endswith(b"}"):
                received += await client.receive_some(65536)
    rows = await books.rows(3)
    assert {row["outcome"] for row in rows} == {"completed"}


async def test_connections_of_clients_that_left_are_let_go(gateway: Any) -> None:
    for first in (b"", b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n", b"POST /api/chat HTTP/1.1\r\nHost: g\r\n"):
        for _ in range(10):
            async with connected(gateway) as client:
                if first:
                    await client.send_all(first)
        await until(lambda: gateway.connections == 0, 2)


async def test_an_idle_connection_is_closed_in_a_drain_and_a_running_stream_ends(
    asyncio_loop: Any, settings: Any, key: str, mock_ollama: Any
) -> None:
    stop = trio.Event()
    async with open_gateway(settings) as gateway, trio.open_nursery() as nursery:
        await nursery.start(gateway.run, stop)
        await gateway.discovery.wait_until_known(5)
        async with connected(gateway) as running, connected(gateway) as kept:
            await kept.send_all(chat(key, stream=False))
            assert b" 200 " in await kept.receive_some(65536)
            await running.send_all(chat(key, "[[tokens:60]] [[tps:100]]"))
            await until(lambda: mock_ollama.stats.open == 1, 3)
            stop.set()
            await rest(kept, 0.5)
            assert b'"done":true' in await rest(running, 5)


async def test_a_drain_answers_a_request_that_is_being_authenticated(
    asyncio_loop: Any, settings: Any, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, started = trio.Event(), trio.Event()
    async with open_gateway(settings) as gateway, trio.open_nursery() as nursery:
        verify = gateway.directory._hasher.verify

        async def slow(*args: Any) -> bool:
            started.set()
            await trio.sleep(0.2)
            return await verify(*args)

        monkeypatch.setattr(gateway.directory._hasher, "verify", slow)
        await nursery.start(gateway.run, stop)
        await gateway.discovery.wait_until_known(5)
        async with connected(gateway) as client:
            await client.send_all(chat(key))
            await started.wait()
            stop.set()
            assert (await rest(client, 5)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("moment", ["start", "finish"])
async def test_a_revocation_between_a_read_and_a_send_does_not_tear_the_reply(
    gateway: Any, key: str, books: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any, moment: str
) -> None:
    original = getattr(Delivery, moment)

    async def revoked(self: Delivery, *args: Any) -> None:
        monkeypatch.setattr(Delivery, moment, original)
        gateway.registry.revoke(key[:12])
        await original(self, *args)

    monkeypatch.setattr(Delivery, moment, revoked)
    async with connected(gateway) as client:
        await client.send_all(chat(key, "[[tokens:5]]", headers="Connection: close\r\n"))
        reply = await rest(client, 5)
    [row] = await books.rows(1)
    if moment == "start":
        assert reply.startswith(b"HTTP/1.1 401")
        assert row["outcome"] == "revoked"
    else:
        assert row["outcome"] == "completed"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    await books.settled()


async def test_rows_that_no_store_took_are_left_to_others_at_a_graceful_stop(
    asyncio_loop: Any, settings: Any, own_postgres: Any, run_gateway: Any, books: Any, make_key_in: Any, key: str
) -> None:
    """PostgreSQL refuses at the stop: rows of requests that never reached admission go to Redis, too."""
    changes = {"database_url": own_postgres.dsn(), "audit_commit_timeout_s": 0.5, "store_timeout_s": 0.5}
    mine = settings.model_copy(update=changes)
    async with open_postgres(own_postgres.dsn(), size=4, timeout_s=5) as postgres:
        key = await make_key_in(postgres)
        stop = trio.Event()
        async with open_gateway(mine) as gateway, trio.open_nursery() as nursery:
            await nursery.start(gateway.run, stop)
            await gateway.discovery.wait_until_known(5)
            auth = {"authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(base_url=gateway.base_url, headers=auth, trust_env=False) as client:
                assert (await client.get("/api/tags")).status_code == 200
                await postgres.execute("ALTER TABLE gateway.audit_log RENAME TO away")
                async with connected(gateway) as leaving:
                    await leaving.send_all(chat(key)[:-3])
                    await trio.sleep(0.1)
                assert (await client.get("/api/tags")).status_code == 200
            stop.set()
        await postgres.execute("ALTER TABLE gateway.away RENAME TO audit_log")
        async with run_gateway(mine.model_copy(update={"heartbeat_s": 0.2, "dead_after_s": 0.5})):
            with trio.fail_after(10):
                while await postgres.fetchval("SELECT count(*) FROM gateway.audit_log") < 3:
                    await trio.sleep(0.05)
        rows = await postgres.fetch("SELECT outcome FROM gateway.audit_log")
    assert sorted(row["outcome"] for row in rows) == ["client_disconnected", "completed", "completed"]


async def test_a_drain_that_goes_wrong_does_not_keep_the_process(
    asyncio_loop: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_timeout_s: float) -> int:
        raise RuntimeError("a bug")

    stop = trio.Event()
    with trio.fail_after(10), pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
        async with open_gateway(settings) as gateway, trio.open_nursery() as nursery:
            monkeypatch.setattr(gateway.recorder, "drain", broken)
            await nursery.start(gateway.run, stop)
            stop.set()


async def test_while_postgresql_refuses_rows_wait_in_redis_too(
    asyncio_loop: Any, settings: Any, own_postgres: Any, run_gateway: Any, books: Any, make_key_in: Any
) -> None:
    """Even a request that never got as far as admission would have its row after a kill."""
    async with open_postgres(own_postgres.dsn(), size=4, timeout_s=5) as postgres:
        key = await make_key_in(postgres)
        async with run_gateway(settings.model_copy(update={"database_url": own_postgres.dsn()})) as gateway:
            await postgres.execute("ALTER TABLE gateway.audit_log RENAME TO away")
            async with connected(gateway) as leaving:
                await leaving.send_all(chat(key)[:-3])
                await trio.sleep(0.1)
            with trio.fail_after(5):
                while await books.copies() != 1:
                    await trio.sleep(0.02)
            await postgres.execute("ALTER TABLE gateway.away RENAME TO audit_log")
            with trio.fail_after(10):
                while gateway.recorder.waiting or await books.copies():
                    await trio.sleep(0.02)
        assert await postgres.fetchval("SELECT count(*) FROM gateway.audit_log") == 1


async def test_a_reply_that_is_too_large_and_an_image_that_breaks_the_model_leave_the_breaker_shut(
    asyncio_loop: Any, settings: Any, run_gateway: Any, key: str
) -> None:
    small = settings.model_copy(update={"max_reply_bytes": 20_000})
    auth = {"authorization": f"Bearer {key}"}
    async with (
        run_gateway(small) as gateway,
        httpx.AsyncClient(base_url=gateway.base_url, headers=auth, trust_env=False, timeout=30) as client,
    ):
        for _ in range(6):
            reply = await client.post("/api/embed", json={"model": "embed", "input": ["x"] * 3000})
            assert reply.status_code == 502
            message = {"role": "user", "content": "[[fail:500]]", "images": ["aGVsbG8="]}
            reply = await client.post("/api/chat", json={"model": "tiny", "messages": [message]})
            assert reply.status_code == 502
        assert gateway.breaker.state == "closed"


async def test_a_chunked_body_that_is_refused_early_does_not_hang(gateway: Any, key: str) -> None:
    """Ten chunks fill the server's queue, behind which it would say that the client has left."""
    for token in ("wrong", key):
        head = f"POST /api/pull HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with connected(gateway) as client:
            await client.send_all(head.encode() + b"1\r\nx\r\n" * 100)
            with trio.fail_after(5):
                assert (await client.receive_some(65536)).startswith((b"HTTP/1.1 401", b"HTTP/1.1 403"))
        await until(lambda: gateway.connections == 0, 3)
