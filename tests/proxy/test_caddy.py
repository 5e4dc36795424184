"""The gateway behind Caddy: what the shipped Caddyfile lets through, holds back, adds and takes away."""

import json
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from ipaddress import ip_network
from typing import Any

import h2.connection
import httpx
import pytest
import trio

from neuronetz.embedded.ports import held_port
from neuronetz.gateway import open_gateway
from tests.patience import until
from tests.proxy.conftest import CADDY, CADDYFILE, Proxy, RunCaddy
from tests.shapes import STREAMS, Shape, named

CHAT = Shape("/api/chat", True)
EVENTS = Shape("/v1/chat/completions", True)
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
GONE_S = 1.0


async def read_until(reply: httpx.Response, enough: Callable[[bytes], bool]) -> bytes:
    """What has come once that is enough, after which the client leaves.

    By a cancellation: else httpx's generators would be left to the garbage collector.
    """
    received = b""
    with trio.fail_after(5), trio.CancelScope() as leaving:
        async for piece in reply.aiter_raw():
            received += piece
            if enough(received):
                leaving.cancel()
    assert enough(received), received
    return received


@VERSIONS
@pytest.mark.parametrize("shape", STREAMS, ids=named)
async def test_the_first_token_comes_though_nothing_follows_it(
    proxy: Proxy, key: str, mock_ollama: Any, books: Any, shape: Shape, http2: bool
) -> None:
    prompt = "[[fail:stall_stream]] [[after:1]] [[tokens:9]] rivers"
    async with (
        proxy.client(key, http2=http2) as client,
        client.stream("POST", shape.path, json=shape.body(prompt)) as reply,
    ):
        assert reply.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        await read_until(reply, lambda received: shape.piece in received)
    await until(lambda: mock_ollama.stats.aborted == 1, GONE_S)
    await books.settled(within_s=GONE_S)


@VERSIONS
async def test_every_token_comes_when_it_is_made(proxy: Proxy, key: str, http2: bool) -> None:
    async with proxy.client(key, http2=http2) as client:
        body = CHAT.body("[[tokens:8]] [[tps:20]] rivers")
        arrived = []
        async with client.stream("POST", CHAT.path, json=body) as reply:
            async for line in reply.aiter_lines():
                arrived.append((trio.current_time(), json.loads(line)))
    assert [line["done"] for _, line in arrived] == [False] * 8 + [True]
    assert arrived[7][0] - arrived[0][0] > 0.2  # of 0.35: not in one piece at the end


@VERSIONS
@pytest.mark.parametrize("shape", [CHAT, EVENTS, Shape("/api/chat", False)], ids=named)
async def test_a_client_that_leaves_before_the_first_byte_stops_the_model(
    proxy: Proxy, key: str, mock_ollama: Any, books: Any, shape: Shape, http2: bool
) -> None:
    async with trio.open_nursery() as nursery, proxy.client(key, http2=http2) as client:
        nursery.start_soon(partial(client.post, shape.path, json=shape.body("[[ttft:30]] rivers")))
        await until(lambda: mock_ollama.stats.open == 1, 5)
        assert await books.leases() == 1
        nursery.cancel_scope.cancel()
    await until(lambda: mock_ollama.stats.aborted == 1, GONE_S)
    await books.settled(within_s=GONE_S)
    [row] = await books.rows(1)
    assert row["outcome"] == "client_disconnected"


@VERSIONS
async def test_a_client_that_leaves_in_mid_stream_stops_the_model_and_pays_for_what_it_got(
    proxy: Proxy, key: str, mock_ollama: Any, books: Any, http2: bool
) -> None:
    async with proxy.client(key, http2=http2) as client:
        body = CHAT.body("[[tokens:1000]] [[tps:200]] rivers")
        async with client.stream("POST", CHAT.path, json=body) as reply:
            await read_until(reply, lambda received: received.count(CHAT.piece) >= 10)
    await until(lambda: mock_ollama.stats.aborted == 1, GONE_S)
    await books.settled(within_s=GONE_S)
    [row] = await books.rows(1)
    assert row["outcome"] == "client_disconnected"
    assert 10 <= row["completion_tokens"] < 400


async def test_a_socket_that_closes_without_a_word_frees_the_slot(
    proxy: Proxy, key: str, mock_ollama: Any, books: Any
) -> None:
    async with proxy.connected() as client:
        await client.send_all(
            CHAT.request(key, "[[ttft:30]] rivers").replace(b"Host: gateway", b"Host: localhost")
        )
        await until(lambda: mock_ollama.stats.open == 1, 5)
    await until(lambda: mock_ollama.stats.aborted == 1, GONE_S)
    await books.settled(within_s=GONE_S)


async def test_a_stream_reset_in_http2_frees_its_slot_and_leaves_its_connection(
    proxy: Proxy, key: str, mock_ollama: Any, books: Any
) -> None:
    body = json.dumps(CHAT.body("[[ttft:30]] rivers")).encode()
    head = {":method": "POST", ":scheme": "https", ":authority": "localhost", ":path": CHAT.path}
    head |= {"authorization": f"Bearer {key}", "content-type": "application/json"}
    async with proxy.connected("h2") as client:
        session = h2.connection.H2Connection()
        session.initiate_connection()
        session.send_headers(1, list(head.items()))
        session.send_data(1, body, end_stream=True)
        await client.send_all(session.data_to_send())
        await until(lambda: mock_ollama.stats.open == 1, 5)
        session.reset_stream(1)
        await client.send_all(session.data_to_send())
        await until(lambda: mock_ollama.stats.aborted == 1, GONE_S)
        await books.settled(within_s=GONE_S)
        session.send_headers(3, [*{**head, ":method": "GET", ":path": "/api/version"}.items()], end_stream=True)
        await client.send_all(session.data_to_send())
        with trio.fail_after(5):
            replied: list[Any] = []
            while not any(isinstance(event, h2.events.ResponseReceived) for event in replied):
                replied += session.receive_data(await client.receive_some(65536))


@VERSIONS
async def test_heartbeats_of_a_silent_model_come_through(
    run_gateway: Any, settings: Any, caddy: RunCaddy, key: str, asyncio_loop: Any, http2: bool
) -> None:
    quick = settings.model_copy(update={"sse_heartbeat_s": 0.1})
    async with (
        run_gateway(quick) as gateway,
        caddy(gateway.base_url) as proxy,
        proxy.client(key, http2=http2) as client,
        client.stream("POST", EVENTS.path, json=EVENTS.body("[[ttft:30]] rivers")) as reply,
    ):
        await read_until(reply, lambda received: received.count(b": keep-alive\n\n") >= 3)
        assert reply.headers["content-type"] == "text/event-stream"


@VERSIONS
async def test_the_clients_address_is_the_one_that_caddy_saw_whatever_the_client_says(
    run_gateway: Any, settings: Any, caddy: RunCaddy, key: str, books: Any, asyncio_loop: Any, http2: bool
) -> None:
    trusting = settings.model_copy(update={"trusted_proxies": (ip_network("127.0.0.1"),)})
    made_up = {"x-forwarded-for": "203.0.113.9", "forwarded": "for=203.0.113.9", "x-real-ip": "203.0.113.9"}
    async with run_gateway(trusting) as gateway, caddy(gateway.base_url) as proxy:
        transport = httpx.AsyncHTTPTransport(
            verify=proxy.trusting(), http1=not http2, http2=http2, local_address="127.0.0.9"
        )
        async with proxy.client(key, transport=transport) as client:
            reply = await client.get(
                f"https://127.0.0.1:{proxy.port}/api/version",
                headers={"host": "localhost", **made_up},
                extensions={"sni_hostname": "localhost"},
            )
            assert reply.status_code == 200
        # Whoever reaches the gateway beside the proxy, from an address that is not trusted, is not believed.
        straight = httpx.AsyncHTTPTransport(local_address="127.0.0.8")
        async with httpx.AsyncClient(transport=straight, headers={"authorization": f"Bearer {key}"}) as client:
            reply = await client.get(f"{gateway.base_url}/api/version", headers=made_up)
            assert reply.status_code == 200
        assert [row["client_ip"] for row in await books.rows(2)] == ["127.0.0.9", "127.0.0.8"]


async def test_a_gateway_that_trusts_nobody_sees_caddy(proxy: Proxy, key: str, books: Any) -> None:
    async with proxy.client(key) as client:
        await client.get("/api/version", headers={"x-forwarded-for": "203.0.113.9"})
    [row] = await books.rows(1)
    assert row["client_ip"] == "127.0.0.1"


INNER = [
    "/metrics",
    "/healthz",
    "/readyz",
    "/READYZ",
    "/%72eadyz",
    "/readyz/",
    "/x/../readyz",
    "/readyz?x=1",
]


@VERSIONS
async def test_what_is_for_the_inner_network_is_not_reached(proxy: Proxy, http2: bool) -> None:
    async with proxy.client(http2=http2) as client:
        for path in INNER:
            reply = await client.get(path)
            assert reply.status_code == 404, path
            assert reply.json() == {"error": "Not Found"}
        for path in ("/", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
            assert (await client.head(path)).status_code == 200


async def test_a_whole_url_in_the_request_line_does_not_reach_it_either(proxy: Proxy) -> None:
    for target in (
        "http://localhost/readyz",
        "https://localhost/%72eadyz",
        "/%2Freadyz",
        "//readyz",
        "/x/../readyz",
        "/.//readyz",
        "/v1/..%2Freadyz",
    ):
        async with proxy.connected() as client:
            await client.send_all(
                f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
            )
            reply = b""
            while data := await client.receive_some(65536):
                reply += data
        assert reply.startswith((b"HTTP/1.1 4", b"HTTP/1.1 3")), (target, reply)
        assert b"checks" not in reply


@VERSIONS
async def test_every_reply_bears_the_headers_of_security(proxy: Proxy, key: str, http2: bool) -> None:
    async with proxy.client(key, http2=http2) as client:
        for reply in (
            await client.get("/"),
            await client.get("/readyz"),
            await client.get("/nothing"),
            await client.post(CHAT.path, json=CHAT.body("rivers")),
        ):
            assert reply.headers["strict-transport-security"] == "max-age=31536000"
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["x-frame-options"] == "DENY"
            assert reply.headers["referrer-policy"] == "no-referrer"
            assert reply.headers["content-security-policy"]
            assert 'h3=":' in reply.headers["alt-svc"]
            assert "server" not in reply.headers
            assert "via" not in reply.headers


async def test_versions_of_http_that_are_not_wanted_are_not_offered(gateway: Any, caddy: RunCaddy) -> None:
    async with caddy(gateway.base_url, PROTOCOLS="h1 h2") as proxy, proxy.client(http2=True) as client:
        reply = await client.get("/")
    assert reply.status_code == 200
    assert "alt-svc" not in reply.headers


async def test_plain_http_is_sent_to_https(proxy: Proxy) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        reply = await client.get(f"http://localhost:{proxy.http_port}/api/version", headers={"host": "localhost"})
    assert reply.status_code == 308
    assert reply.headers["location"].startswith("https://localhost")


@VERSIONS
async def test_a_body_beyond_the_gateways_limit_is_refused_in_its_clients_dialect(
    run_gateway: Any, settings: Any, caddy: RunCaddy, key: str, asyncio_loop: Any, http2: bool
) -> None:
    small = settings.model_copy(update={"max_body_bytes": 1000})
    async with (
        run_gateway(small) as gateway,
        caddy(gateway.base_url) as proxy,
        proxy.client(key, http2=http2) as client,
    ):
        reply = await client.post(EVENTS.path, json=EVENTS.body("rivers " * 1000))
        assert reply.status_code == 413
        assert reply.json()["error"]["type"] == "invalid_request_error"


@VERSIONS
async def test_a_body_beyond_caddys_limit_is_refused_there(
    gateway: Any, caddy: RunCaddy, key: str, http2: bool, books: Any
) -> None:
    async with caddy(gateway.base_url, MAX_BODY="1000") as proxy, proxy.client(key, http2=http2) as client:
        for shape in (CHAT, EVENTS, Shape("/v1/messages", True)):
            reply = await client.post(shape.path, json=shape.body("rivers " * 1000))
            assert reply.status_code == 413
            assert reply.json()["error"]

        async def parts() -> AsyncIterator[bytes]:
            yield b"rivers " * 100
            yield b"rivers " * 100

        # Caddy 2.6 calls it the gateway's failure; what matters is that the gateway is spared.
        assert (await client.post(CHAT.path, content=parts())).status_code in (413, 502)
        assert (await client.post(CHAT.path, json=CHAT.body("rivers"))).status_code == 200
    await books.settled(within_s=GONE_S)


@VERSIONS
async def test_headers_without_end_are_refused(proxy: Proxy, http2: bool) -> None:
    async with proxy.client(http2=http2) as client:
        try:
            reply = await client.get("/", headers={"x-much": "a" * 64 * 1024})
            assert reply.status_code == 431
        except httpx.RemoteProtocolError:
            assert http2  # where the refusal may be the connection's end
        assert (await client.get("/", headers={"x-some": "a" * 16 * 1024})).status_code == 200


@VERSIONS
async def test_a_gateway_that_is_gone_is_a_clear_answer_and_soon(caddy: RunCaddy, http2: bool) -> None:
    with held_port() as nobody:
        async with caddy(f"127.0.0.1:{nobody}") as proxy, proxy.client(http2=http2) as client:
            for path, shape in (
                ("/api/tags", {"error"}),
                ("/v1/models", {"message", "type", "param", "code"}),
                ("/v1/messages", {"type", "message"}),
            ):
                with trio.fail_after(5):
                    reply = await client.get(path)
                assert reply.status_code in (502, 503)
                error = reply.json()["error"]
                assert set(error if isinstance(error, dict) else reply.json()) == shape
                assert reply.headers["cache-control"] == "no-store"


@VERSIONS
async def test_a_gateway_that_goes_in_mid_stream_ends_its_clients_stream(
    settings: Any, caddy: RunCaddy, key: str, asyncio_loop: Any, http2: bool
) -> None:
    async with trio.open_nursery() as nursery, open_gateway(settings) as gateway:
        ended = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with ended:
                await gateway.run(trio.Event(), task_status=task_status)

        await nursery.start(run)
        await until(lambda: gateway.discovery.fresh, 5)
        async with caddy(gateway.base_url) as proxy, proxy.client(key, http2=http2) as client:
            body = CHAT.body("[[tokens:1000]] [[tps:50]] rivers")
            async with client.stream("POST", CHAT.path, json=body) as reply:
                received = b""
                with trio.fail_after(5), suppress(httpx.RemoteProtocolError):
                    async for piece in reply.aiter_raw():
                        received += piece
                        ended.cancel()
            assert CHAT.piece in received
            assert b'"done":true' not in received
            with trio.fail_after(5):
                assert (await client.get("/api/version")).status_code in (502, 503)


async def test_another_gateway_takes_what_one_that_is_gone_cannot(gateway: Any, caddy: RunCaddy, key: str) -> None:
    async with caddy("127.0.0.1:1", gateway.base_url) as proxy, proxy.client(key) as client:
        replies = [await client.post(CHAT.path, json=CHAT.body("rivers")) for _ in range(6)]
    assert [reply.status_code for reply in replies] == [200] * 6


@pytest.mark.skipif(CADDY is None, reason="caddy is not installed: apt-get install caddy")
def test_the_file_is_in_caddys_own_format() -> None:
    done = subprocess.run([str(CADDY), "fmt", str(CADDYFILE)], capture_output=True, text=True, timeout=30)
    assert done.stdout == CADDYFILE.read_text()
