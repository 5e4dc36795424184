"""What becomes of a connection after a reply: it is closed where it should be, and does not stay for ever."""

import json
from typing import Any

import pytest
import trio

from neuronetz.web import server

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


def request(key: str, stream: bool, version: str = "1.1", *headers: str) -> bytes:
    body = json.dumps(BODY | {"stream": stream}).encode()
    head = (
        f"POST /api/chat HTTP/{version}",
        "Host: gateway",
        f"Authorization: Bearer {key}",
        f"Content-Length: {len(body)}",
        *headers,
    )
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


async def received(gateway: Any, data: bytes, within_s: float) -> bytes:
    """All that comes until the gateway closes the connection."""
    reply = b""
    async with await trio.open_tcp_stream("127.0.0.1", int(gateway.base_url.rsplit(":", 1)[1])) as client:
        await client.send_all(data)
        with trio.fail_after(within_s):
            while chunk := await client.receive_some(65536):
                reply += chunk
    return reply


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("version", "headers"), [("1.1", ["Connection: close"]), ("1.0", [])])
async def test_a_client_that_wants_no_further_request_finds_the_connection_closed(
    gateway: Any, key: str, books: Any, version: str, headers: list[str], stream: bool
) -> None:
    reply = await received(gateway, request(key, stream, version, *headers), 5)
    assert b'"done":true' in reply
    [row] = await books.rows(1)
    assert row["outcome"] == "completed"
    with trio.fail_after(5):
        while gateway.connections:
            await trio.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_connection_that_is_idle_after_a_reply_is_closed_in_time(
    asyncio_loop: Any,
    settings: Any,
    run_gateway: Any,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    monkeypatch.setattr(server, "_IDLE_S", 0.3)
    async with run_gateway(settings) as gateway:
        began = trio.current_time()
        reply = await received(gateway, request(key, stream), 5)
        assert b'"done":true' in reply
        assert trio.current_time() - began >= 0.3
