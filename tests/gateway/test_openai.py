"""OpenAI's endpoints over sockets: translated, accounted as Ollama's own, and kept alive while a model is silent."""

import base64
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from neuronetz.access.keys import PREFIX_LENGTH
from neuronetz.embedded.mock_replies import SECRET_TEXT, completion, embedding

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
COMMENT = b": keep-alive\n\n"
REVOKE = "INSERT INTO gateway.revocations (prefix, reason) VALUES ($1, 'test')"


def body(path: str, prompt: str = "tell me of rivers", **extra: Any) -> dict[str, Any]:
    if path == CHAT:
        return {"model": "tiny", "messages": [{"role": "user", "content": prompt}], **extra}
    if path == COMPLETIONS:
        return {"model": "tiny", "prompt": prompt, **extra}
    return {"model": "embed", "input": prompt, **extra}


def parted(data: bytes) -> list[bytes]:
    """The comments and events of a stream, each whole."""
    assert data.endswith(b"\n\n")
    return [part + b"\n\n" for part in data[:-2].split(b"\n\n")]


def events(data: bytes) -> list[Any]:
    told = [part.removeprefix(b"data: ") for part in parted(data) if part != COMMENT]
    return [json.loads(text) if text != b"[DONE]\n\n" else "[DONE]" for text in told]


def text_of(event: dict[str, Any]) -> str:
    [choice] = event["choices"]
    return str(choice["text"] if "text" in choice else choice["delta"].get("content", ""))


async def streamed(client: httpx.AsyncClient, path: str, prompt: str) -> tuple[httpx.Response, bytes]:
    reply = await client.post(path, json=body(path, prompt, stream=True))
    return reply, reply.content


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_stream_is_translated_and_accounted(client: httpx.AsyncClient, books: Any, path: str) -> None:
    reply = await client.post(path, json=body(path, stream=True, stream_options={"include_usage": True}))
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["cache-control"] == "no-cache"
    *chunks, usage, done = events(reply.content)
    assert done == "[DONE]"
    assert "".join(map(text_of, chunks)) == completion(16)
    assert {chunk["model"] for chunk in chunks} == {"tiny"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"

    [row] = await books.rows(1)
    assert (row["endpoint"], row["dialect"], row["model"]) == (path, "openai", "tiny:latest")
    assert (row["outcome"], row["status"], row["stream"], row["tokens_exact"]) == ("completed", 200, True, True)
    assert str(row["request_id"]) == reply.headers["x-request-id"]
    assert row["first_byte_ms"] is not None
    assert usage["usage"] == {
        "prompt_tokens": row["prompt_tokens"],
        "completion_tokens": row["completion_tokens"],
        "total_tokens": row["prompt_tokens"] + row["completion_tokens"],
    }
    assert row["completion_tokens"] == 16
    assert await books.ledger() == (row["prompt_tokens"], 16, 1)
    await books.settled()


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_whole_reply_is_translated_and_accounted(client: httpx.AsyncClient, books: Any, path: str) -> None:
    reply = await client.post(path, json=body(path, max_tokens=5))
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("application/json")
    told = reply.json()
    [choice] = told["choices"]
    assert (choice["text"] if path == COMPLETIONS else choice["message"]["content"]) == completion(5)
    assert (told["model"], choice["finish_reason"]) == ("tiny", "length")

    [row] = await books.rows(1)
    assert (row["endpoint"], row["dialect"], row["model"]) == (path, "openai", "tiny:latest")
    assert (row["outcome"], row["status"], row["stream"], row["tokens_exact"]) == ("completed", 200, False, True)
    usage = told["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (row["prompt_tokens"], 5)
    assert await books.ledger() == (row["prompt_tokens"], 5, 1)
    await books.settled()


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings_are_translated_and_accounted(
    client: httpx.AsyncClient, books: Any, encoding: str
) -> None:
    asked = {"model": "embed", "input": ["one", "two"], "dimensions": 4, "encoding_format": encoding}
    reply = await client.post(EMBEDDINGS, json=asked)
    assert reply.status_code == 200
    told = reply.json()
    expected = [embedding("one", 4), embedding("two", 4)]
    for entry, vector in zip(told["data"], expected, strict=True):
        found = entry["embedding"]
        if encoding == "base64":
            assert base64.b64decode(found) == struct.pack("<4f", *vector)
        else:
            assert found == vector
    assert told["model"] == "embed"

    [row] = await books.rows(1)
    assert (row["endpoint"], row["dialect"], row["model"]) == (EMBEDDINGS, "openai", "embed:latest")
    assert (row["outcome"], row["stream"], row["tokens_exact"]) == ("completed", False, True)
    assert told["usage"] == {"prompt_tokens": row["prompt_tokens"], "total_tokens": row["prompt_tokens"]}
    assert await books.ledger() == (row["prompt_tokens"], 0, 1)
    await books.settled()


async def test_an_empty_prompt_only_loads_the_model(client: httpx.AsyncClient, books: Any) -> None:
    told = (await client.post(COMPLETIONS, json=body(COMPLETIONS, ""))).json()
    assert told["choices"] == [{"text": "", "index": 0, "finish_reason": "stop"}]
    _, data = await streamed(client, COMPLETIONS, "")
    assert [event if event == "[DONE]" else event["choices"] for event in events(data)] == [
        [{"text": "", "index": 0, "finish_reason": "stop"}],
        "[DONE]",
    ]
    for row in await books.rows(2):
        assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("completed", 0, 0)


EARLY = [
    ("[[fail:refuse]]", 502, "api_error", "upstream_error"),
    ("[[fail:500]]", 502, "api_error", "upstream_error"),
    ("[[fail:503]]", 503, "api_error", "upstream_busy"),
    ("[[fail:400]]", 400, "invalid_request_error", "upstream_rejected"),
]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
@pytest.mark.parametrize(("prompt", "status", "kind", "outcome"), EARLY)
async def test_a_failure_before_the_stream_is_an_error_with_its_status(
    client: httpx.AsyncClient, books: Any, path: str, prompt: str, status: int, kind: str, outcome: str
) -> None:
    reply, _ = await streamed(client, path, prompt)
    assert reply.status_code == status
    assert reply.headers["content-type"].startswith("application/json")
    told = reply.json()
    assert told["error"].keys() == {"message", "type", "param", "code"}
    assert (told["error"]["type"], told["error"]["param"], told["error"]["code"]) == (kind, None, None)
    assert SECRET_TEXT not in reply.text
    [row] = await books.rows(1)
    assert (row["outcome"], row["status"], row["endpoint"]) == (outcome, status, path)
    assert await books.ledger() == (0, 0, 1)
    await books.settled()


async def test_refusals_have_openais_shape(client: httpx.AsyncClient, make_key: Any, books: Any) -> None:
    def of(reply: httpx.Response) -> tuple[int, str, str | None, str | None]:
        error = reply.json()["error"]
        return reply.status_code, error["type"], error["param"], error["code"]

    async def ask(key: str | None = None, path: str = CHAT, **changes: Any) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return await client.post(path, json={**body(path), **changes}, headers=headers)

    assert of(await ask("nnz_nothing")) == (401, "authentication_error", None, "invalid_api_key")
    assert of(await ask(n=2)) == (400, "invalid_request_error", "n", None)
    assert of(await ask(path=EMBEDDINGS, input=None)) == (400, "invalid_request_error", "input", None)
    assert of(await ask(model="nowhere")) == (403, "permission_error", None, "model_not_available")
    once = await make_key("once", rpm=1)
    assert (await ask(once)).status_code == 200
    limited = await ask(once)
    assert of(limited) == (429, "rate_limit_error", None, "rate_limit_exceeded")
    assert int(limited.headers["retry-after"]) > 0
    spent = await ask(await make_key("spent", budget_tokens=1))
    assert of(spent) == (429, "insufficient_quota", None, "insufficient_quota")
    assert spent.headers["x-should-retry"] == "false"
    rows = await books.rows(6)
    assert {row["dialect"] for row in rows} == {"openai"}
    await books.settled()


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("failure", ["error_line", "garbage", "reset", "close", "eof"])
async def test_a_failure_in_mid_stream_is_an_event_and_no_done(
    client: httpx.AsyncClient, books: Any, path: str, failure: str
) -> None:
    reply, data = await streamed(client, path, f"[[fail:{failure}]] [[after:3]]")
    assert reply.status_code == 200
    *told, error = events(data)
    assert "".join(map(text_of, told)) == completion(3)
    assert error == {"error": {"message": "upstream failed", "type": "api_error", "param": None, "code": None}}
    assert SECRET_TEXT not in reply.text
    [row] = await books.rows(1)
    assert (row["outcome"], row["status"], row["completion_tokens"]) == ("upstream_error", 502, 3)
    assert not row["tokens_exact"]
    await books.settled()


@pytest.fixture
async def beating(asyncio_loop: Any, settings: Any, run_gateway: Any) -> AsyncIterator[Any]:
    """A gateway that sends a comment after 50 ms of silence."""
    async with run_gateway(settings.model_copy(update={"sse_heartbeat_s": 0.05})) as gateway:
        yield gateway


@asynccontextmanager
async def asking(gateway: Any, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=gateway.base_url, headers={"authorization": f"Bearer {key}"}, timeout=30, trust_env=False
    ) as client:
        yield client


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_comments_come_while_the_model_is_silent_and_are_no_first_byte(
    beating: Any, key: str, books: Any, path: str
) -> None:
    async with asking(beating, key) as client:
        arrived: list[tuple[float, bytes]] = []
        async with client.stream("POST", path, json=body(path, "[[ttft:0.5]]", stream=True)) as reply:
            assert reply.status_code == 200
            assert reply.headers["content-type"] == "text/event-stream"
            async for data in reply.aiter_raw():
                arrived.append((trio.current_time(), data))
        parts = parted(b"".join(data for _, data in arrived))
        assert arrived[0][1].startswith(COMMENT)
        # They came while the model was silent, and not with its first word.
        assert arrived[0][0] < next(at for at, data in arrived if b"data:" in data)
        assert parts[:2] == [COMMENT, COMMENT]
        told = events(b"".join(parts))
        assert told[-1] == "[DONE]"
        assert "".join(map(text_of, told[:-1])) == completion(16)
    [row] = await books.rows(1)
    assert (row["outcome"], row["status"], row["tokens_exact"]) == ("completed", 200, True)
    assert row["first_byte_ms"] >= 500


async def test_comments_come_in_a_pause_of_the_stream_and_never_within_an_event(
    beating: Any, key: str, books: Any
) -> None:
    async with asking(beating, key) as client:
        _, data = await streamed(client, CHAT, "[[tokens:5]] [[tps:8]]")
    parts = parted(data)
    told = [place for place, part in enumerate(parts) if part != COMMENT]
    assert COMMENT in parts[told[0] : told[-1]]
    assert parts[-1] == b"data: [DONE]\n\n"
    assert "".join(map(text_of, events(data)[:-1])) == completion(5)
    await books.rows(1)


LATE = [
    ("[[ttft:0.3]] [[fail:error_line]] [[after:0]]", "upstream failed", ("upstream_error", 502)),
    ("[[ttft:0.3]] [[fail:garbage]] [[after:0]]", "upstream failed", ("upstream_error", 502)),
    ("[[ttft:0.3]] [[fail:eof]] [[after:0]]", "upstream failed", ("upstream_error", 502)),
    ("[[ttft:30]]", "upstream did not answer in time", ("upstream_timeout", 504)),
]


@pytest.mark.parametrize(("prompt", "message", "ending"), LATE)
async def test_a_failure_after_a_comment_is_an_event_and_the_row_still_tells_it(
    asyncio_loop: Any,
    settings: Any,
    run_gateway: Any,
    key: str,
    books: Any,
    prompt: str,
    message: str,
    ending: tuple[str, int],
) -> None:
    changes = {"sse_heartbeat_s": 0.05, "first_byte_timeout_s": 1.0}
    async with run_gateway(settings.model_copy(update=changes)) as gateway, asking(gateway, key) as client:
        reply, data = await streamed(client, CHAT, prompt)
        parts = parted(data)
        assert reply.status_code == 200
        assert set(parts[:-1]) == {COMMENT}
        [event] = events(data)
        assert (event["error"]["message"], event["error"]["type"]) == (message, "api_error")
        [row] = await books.rows(1)
        assert (row["outcome"], row["status"]) == ending
        assert row["first_byte_ms"] is None
        assert await books.ledger() == (row["prompt_tokens"], row["completion_tokens"], 1)
        await books.settled()


async def test_the_deadline_of_an_exchange_after_comments_is_an_event(
    asyncio_loop: Any, settings: Any, run_gateway: Any, mock_ollama: Any, key: str, books: Any
) -> None:
    changes = {"sse_heartbeat_s": 0.05, "exchange_timeout_s": 0.5}
    async with run_gateway(settings.model_copy(update=changes)) as gateway, asking(gateway, key) as client:
        _, data = await streamed(client, CHAT, "[[ttft:30]]")
        assert parted(data)[0] == COMMENT
        assert [event["error"]["message"] for event in events(data)] == ["request took longer than allowed"]
        [row] = await books.rows(1)
        assert (row["outcome"], row["first_byte_ms"]) == ("deadline_exceeded", None)
        await books.settled()


async def test_a_key_that_is_revoked_after_comments_ends_in_an_event(
    beating: Any, key: str, books: Any, mock_ollama: Any
) -> None:
    async with asking(beating, key) as client:
        parts: list[bytes] = []
        async with client.stream("POST", CHAT, json=body(CHAT, "[[ttft:30]]", stream=True)) as reply:
            async for data in reply.aiter_raw():
                if not parts:
                    await books.postgres.execute(REVOKE, key[:PREFIX_LENGTH])
                parts.append(data)
    [event] = events(b"".join(parts))
    assert event["error"]["code"] == "invalid_api_key"
    [row] = await books.rows(1)
    assert (row["outcome"], row["first_byte_ms"]) == ("revoked", None)
    assert row["prompt_tokens"] > 0
    await books.settled()


async def test_no_comments_where_they_have_no_place(beating: Any, key: str, books: Any) -> None:
    asked = [
        ("/api/chat", {**body(CHAT, "[[ttft:0.3]]"), "stream": True}),
        ("/api/generate", {**body(COMPLETIONS, "[[ttft:0.3]]"), "stream": True}),
        (CHAT, body(CHAT, "[[ttft:0.3]]")),
        (COMPLETIONS, body(COMPLETIONS, "[[ttft:0.3]]")),
        (EMBEDDINGS, body(EMBEDDINGS, "[[ttft:0.3]]", stream=True)),
    ]
    async with asking(beating, key) as client:
        for path, asked_body in asked:
            reply = await client.post(path, json=asked_body)
            assert reply.status_code == 200
            assert b"keep-alive" not in reply.content
            for line in reply.content.splitlines():
                json.loads(line)
    await books.rows(len(asked))


@asynccontextmanager
async def connected(gateway: Any, window_bytes: int | None = None) -> AsyncIterator[trio.SocketStream]:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if window_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
    await sock.connect(("127.0.0.1", int(gateway.base_url.rsplit(":", 1)[1])))
    async with trio.SocketStream(sock) as stream:
        yield stream


def request(path: str, key: str, prompt: str) -> bytes:
    data = json.dumps(body(path, prompt, stream=True)).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def until(condition: Any, within_s: float) -> None:
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.002)


async def received(client: trio.SocketStream, end: bytes) -> bytes:
    parts: list[bytes] = []
    with trio.fail_after(60):
        while not b"".join(parts[-2:]).endswith(end):
            part = await client.receive_some(65536)
            assert part, "closed before its end"
            parts.append(part)
    return b"".join(parts)


def dechunked(reply: bytes) -> bytes:
    parts, place = [], reply.index(b"\r\n\r\n") + 4
    while place < len(reply):
        head_end = reply.index(b"\r\n", place)
        start, size = head_end + 2, int(reply[place:head_end], 16)
        parts.append(reply[start : start + size])
        place = start + size + 2
    return b"".join(parts)


async def test_a_client_that_leaves_between_comments_stops_the_model_and_frees_its_slot(
    beating: Any, mock_ollama: Any, key: str, books: Any
) -> None:
    async with connected(beating) as client:
        await client.send_all(request(CHAT, key, "[[ttft:30]] rivers"))
        seen = b""
        with trio.fail_after(5):
            while seen.count(COMMENT) < 3:
                seen += await client.receive_some(65536)
        assert await books.slots() == 1
    await until(lambda: mock_ollama.stats.aborted == 1, 0.1)
    await books.settled()
    [row] = await books.rows(1)
    assert (row["outcome"], row["status"], row["first_byte_ms"]) == ("client_disconnected", 499, None)
    assert (row["completion_tokens"], row["tokens_exact"]) == (0, False)
    assert row["prompt_tokens"] > 0


async def test_a_hundred_clients_that_leave_around_their_first_comment_leave_no_slot(
    beating: Any, mock_ollama: Any, make_key: Any, books: Any
) -> None:
    key = await make_key("crowd", concurrency=64, budget_tokens=10**9)

    async def one(number: int, limiter: trio.CapacityLimiter) -> None:
        async with limiter, connected(beating) as client:
            await client.send_all(request(CHAT, key, "[[ttft:0.06]] [[tokens:20]] [[tps:15]] rivers"))
            with trio.move_on_after(0.03 + number * 0.0005):
                while await client.receive_some(65536):
                    pass
        # Clients that leave faster than the gateway can see it would only test its overload.
        while beating.connections > 24:
            await trio.sleep(0.005)

    limiter = trio.CapacityLimiter(16)
    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(one, number, limiter)
    await until(lambda: beating.connections == 0, 10)
    await books.settled(within_s=2)
    assert mock_ollama.stats.open == 0
    rows = await books.postgres.fetch("SELECT DISTINCT outcome FROM gateway.audit_log")
    assert {row["outcome"] for row in rows} == {"client_disconnected"}


async def test_comments_do_no_harm_while_the_clients_window_is_full(
    asyncio_loop: Any, settings: Any, run_gateway: Any, mock_ollama: Any, key: str, books: Any
) -> None:
    tokens = 20_000
    mock_ollama.configure(lines_per_write=100)
    async with (
        run_gateway(settings.model_copy(update={"sse_heartbeat_s": 0.02})) as gateway,
        connected(gateway, window_bytes=128 * 1024) as client,
    ):
        await client.send_all(request(CHAT, key, f"[[tokens:{tokens}]] rivers"))
        await until(lambda: mock_ollama.stats.open == 1, 3)
        seen = -1
        with trio.fail_after(10):
            while seen != mock_ollama.stats.tokens or not seen:
                seen = mock_ollama.stats.tokens
                await trio.sleep(0.3)
        assert seen < tokens
        data = dechunked(await received(client, b"0\r\n\r\n"))
    told = events(data)
    assert told[-1] == "[DONE]"
    assert "".join(map(text_of, told[:-1])) == completion(tokens)
    [row] = await books.rows(1)
    assert (row["outcome"], row["completion_tokens"]) == ("completed", tokens)


async def test_a_client_that_stops_reading_is_not_kept_by_comments(
    asyncio_loop: Any, settings: Any, run_gateway: Any, mock_ollama: Any, key: str, books: Any
) -> None:
    changes = {"sse_heartbeat_s": 0.02, "write_timeout_s": 0.4}
    async with (
        run_gateway(settings.model_copy(update=changes)) as gateway,
        connected(gateway, window_bytes=4096) as client,
    ):
        await client.send_all(request(CHAT, key, "[[tokens:1000000]] rivers"))
        await until(lambda: mock_ollama.stats.open == 1, 3)
        await until(lambda: mock_ollama.stats.aborted == 1, 8)
        await books.settled(within_s=0.2)
        [row] = await books.rows(1)
        assert row["outcome"] == "client_stalled"


async def test_a_reply_of_a_million_numbers_is_translated_whole(client: httpx.AsyncClient, books: Any) -> None:
    asked = {"model": "embed", "input": ["rivers"] * 50, "dimensions": 4000}
    floats = (await client.post("/v1/embeddings", json=asked)).json()["data"]
    packed = (await client.post("/v1/embeddings", json={**asked, "encoding_format": "base64"})).json()["data"]
    assert [len(item["embedding"]) for item in floats] == [4000] * 50
    for one, other in zip(floats, packed, strict=True):
        numbers = struct.unpack("<4000f", base64.b64decode(other["embedding"]))
        assert numbers == pytest.approx(one["embedding"], rel=1e-6)
    assert [row["outcome"] for row in await books.rows(2)] == ["completed"] * 2
