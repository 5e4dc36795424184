"""Requests that take their time, or never end: every wait for a client has a bound."""

import socket
import struct
from contextlib import suppress
from typing import Any

import pytest
import trio

from tests.hostile.test_requests import BODY, CHUNKED, KEY, LENGTH, TAGS, post
from tests.hostile.wire import converse
from tests.patience import until
from tests.shapes import STREAMS, Shape, named
from tests.sockets import connected

BOUND_S = 0.4


@pytest.fixture
async def impatient(asyncio_loop: Any, settings: Any, run_gateway: Any) -> Any:
    async with run_gateway(settings.model_copy(update={"body_timeout_s": BOUND_S})) as gateway:
        gateway._server._config.keep_alive_timeout = BOUND_S
        yield gateway


async def trickle(client: trio.SocketStream, drop: bytes) -> None:
    """Send drops until the server has had enough; fails when it never has."""
    with trio.fail_after(10), suppress(trio.BrokenResourceError):
        while True:
            await client.send_all(drop)
            await trio.sleep(BOUND_S / 20)


@pytest.mark.parametrize("before", [b"", TAGS], ids=["first", "second"])
@pytest.mark.parametrize("drip", [b"a", b"X: y\r\n"], ids=["letters", "headers"])
async def test_a_head_that_comes_in_drops_does_not_keep_its_connection(
    impatient: Any, key: str, before: bytes, drip: bytes
) -> None:
    async with connected(impatient) as client:
        await client.send_all(before.replace(KEY, key.encode()) + b"GET /healthz HTTP/1.1\r\nHost: g\r\n")
        await trickle(client, drip)
    await until(lambda: impatient.connections == 0, 3)


@pytest.mark.parametrize(
    "data",
    [
        post(b"Content-Length: %d" % (len(BODY) + 1)),
        post(b"Content-Length: %d" % (len(BODY) + len(TAGS) + 1)) + TAGS,
        post(CHUNKED, body=b"5\r\nhell"),
        post(CHUNKED, body=b"5"),
        post(CHUNKED, body=b"5\r\nhello\r\n0\r\n"),
        post(CHUNKED, body=b"ffffffffff\r\n" + TAGS),
        post(b"Content-Length: 5", b"Expect: 100-continue", body=b""),
    ],
    ids=["a byte", "a request in it", "a chunk", "a size", "a trailer", "a huge chunk", "an expectation"],
)
async def test_a_body_that_does_not_end_is_a_408_and_nothing_in_it_is_run(
    impatient: Any, mock_ollama: Any, key: str, books: Any, data: bytes
) -> None:
    heard = await converse(impatient, data.replace(KEY, key.encode()), closed=True, replies=1)
    assert heard.statuses[-1] == 408
    [row] = await books.rows(1)
    assert row["outcome"] == "body_timeout"
    assert mock_ollama.stats.requests["/api/chat"] == 0
    await books.settled()


async def test_a_body_in_drops_has_one_bound_for_all_of_it(impatient: Any, key: str, books: Any) -> None:
    async with connected(impatient) as client:
        await client.send_all(post(b"Content-Length: 1000", body=b"").replace(KEY, key.encode()))
        await trickle(client, b"x")
    [row] = await books.rows(1)
    assert (row["outcome"], row["status"]) == ("body_timeout", 408)
    await books.settled()


@pytest.mark.parametrize("behind", [b"\r\n", TAGS * 50], ids=["a newline", "requests"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_what_follows_a_request_that_ends_its_connection_does_not_disturb_it(
    gateway: Any, key: str, books: Any, behind: bytes, version: bytes
) -> None:
    data = post(LENGTH, b"Connection: close", line=b"POST /api/chat HTTP/" + version) + behind
    heard = await converse(gateway, data.replace(KEY, key.encode()), closed=True, replies=1)
    assert heard.statuses == (200,)
    [row] = await books.rows(1)
    assert row["outcome"] == "completed"


@pytest.mark.parametrize("behind", [TAGS, TAGS * 300], ids=["one", "hundreds"])
@pytest.mark.parametrize("shape", STREAMS, ids=named)
async def test_a_client_that_leaves_with_requests_waiting_leaves_no_connection_behind(
    gateway: Any, mock_ollama: Any, key: str, books: Any, shape: Shape, behind: bytes
) -> None:
    async with connected(gateway) as client:
        asked = shape.request(key, "[[tokens:100000]] [[tps:2000]] rivers")
        await client.send_all(asked + behind.replace(KEY, key.encode()))
        await client.receive_some(1)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await until(lambda: gateway.connections == 0, 3)
    assert mock_ollama.stats.open == 0
    await books.rows(1)
    await books.settled()
