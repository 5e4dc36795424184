"""The prompt log of a whole gateway: for keys that opted in alone, what was delivered, and nowhere else."""

import io
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import structlog
import trio

from neuronetz.gateway import open_gateway
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis
from neuronetz.telemetry.logs import configure_logs

MARKER = "quetzalcoatl-7731"


async def opt(postgres: Postgres, key: str, value: bool = True) -> None:
    await postgres.execute("UPDATE gateway.api_keys SET log_prompts = $2 WHERE prefix = $1", key[:12], value)


@pytest.fixture
async def opted(make_key: Any, postgres: Postgres) -> str:
    """A key that opted in."""
    key: str = await make_key("opted")
    await opt(postgres, key)
    return key


def auth(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": prompt}], **more}


async def logged(postgres: Postgres, count: int) -> list[dict[str, Any]]:
    """The prompt log, oldest first, once it has ``count`` rows; fails when it has not, or has more."""
    deadline = trio.current_time() + 5
    while True:
        rows = await postgres.fetch("SELECT * FROM gateway.prompt_log ORDER BY created_at")
        if len(rows) >= count or trio.current_time() > deadline:
            break
        await trio.sleep(0.01)
    assert len(rows) == count
    return [dict(row) for row in rows]


async def only_sentinel(client: httpx.AsyncClient, key: str, postgres: Postgres) -> None:
    """Fails unless a request made now is the only one that is logged: rows are written in their order."""
    await client.post("/api/chat", json=chat("sentinel"), headers=auth(key))
    [row] = await logged(postgres, 1)
    assert row["prompt"] == "user: sentinel"


@asynccontextmanager
async def connected(gateway: Any, key: str, body: dict[str, Any]) -> AsyncIterator[trio.SocketStream]:
    """A connection that has sent a chat request."""
    data = json.dumps(body).encode()
    head = f"POST /api/chat HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n"
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    await sock.connect(("127.0.0.1", int(gateway.base_url.rsplit(":", 1)[1])))
    async with trio.SocketStream(sock) as stream:
        await stream.send_all(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        yield stream


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_what_was_asked_and_answered_is_logged(
    client: httpx.AsyncClient, opted: str, postgres: Postgres, path: str, stream: bool
) -> None:
    body = chat("tell me\nof rivers") if path == "/api/chat" else {"model": "tiny", "prompt": "tell me\nof rivers"}
    reply = await client.post(path, json=body | {"stream": stream}, headers=auth(opted))
    lines = [json.loads(line) for line in reply.text.splitlines()] if stream else [reply.json()]
    answer = "".join(line["message"]["content"] if path == "/api/chat" else line["response"] for line in lines)
    [row] = await logged(postgres, 1)
    assert str(row["request_id"]) == reply.headers["x-request-id"]
    assert row["prompt"] == ("user" if path == "/api/chat" else "prompt") + ": tell me\n  of rivers"
    assert row["completion"] == answer
    assert answer
    assert not row["prompt_truncated"]
    assert not row["completion_truncated"]
    left = await postgres.fetchval("SELECT expires_at - created_at FROM gateway.prompt_log")
    assert left.total_seconds() == 7 * 24 * 3600


async def test_of_embeddings_the_prompt_alone_is_logged(
    client: httpx.AsyncClient, opted: str, postgres: Postgres
) -> None:
    body = {"model": "embed", "input": ["one", "two"]}
    assert (await client.post("/api/embed", json=body, headers=auth(opted))).status_code == 200
    [row] = await logged(postgres, 1)
    assert (row["prompt"], row["completion"]) == ("input: one\ninput: two", "")


async def test_a_key_that_did_not_opt_in_is_never_logged(
    client: httpx.AsyncClient, opted: str, postgres: Postgres
) -> None:
    await client.post("/api/chat", json=chat("rivers"))
    await only_sentinel(client, opted, postgres)


@pytest.mark.parametrize(
    "body",
    [
        chat("rivers", options={"temperature": "hot"}),
        chat("rivers", model="nowhere"),
        chat("[[fail:500]] rivers"),
        chat("[[fail:400]] rivers"),
        {"model": "tiny", "messages": []},
    ],
    ids=[
        "a wrong body",
        "a denied model",
        "an upstream that failed",
        "a refusal of the upstream's",
        "a mere load",
    ],
)
async def test_a_request_that_the_model_did_not_answer_is_not_logged(
    client: httpx.AsyncClient, opted: str, postgres: Postgres, body: dict[str, Any]
) -> None:
    await client.post("/api/chat", json=body, headers=auth(opted))
    await only_sentinel(client, opted, postgres)


async def test_a_limited_request_is_not_logged(
    client: httpx.AsyncClient, gateway: Any, make_key: Any, postgres: Postgres
) -> None:
    key = await make_key("limited", rpm=1)
    await opt(postgres, key)
    statuses = [
        (await client.post("/api/chat", json=chat(prompt), headers=auth(key))).status_code for prompt in "ab"
    ]
    assert statuses == [200, 429]
    [row] = await logged(postgres, 1)
    assert row["prompt"] == "user: a"


async def test_of_a_stream_that_its_client_left_what_was_delivered_is_logged(
    gateway: Any, opted: str, postgres: Postgres, mock_ollama: Any, books: Any
) -> None:
    async with connected(gateway, opted, chat("[[tokens:1000]] [[tps:200]] rivers")) as client:
        received = b""
        while received.count(b'"done":false') < 5:
            received += await client.receive_some(65536)
    seen = "".join(
        json.loads(line)["message"]["content"] for line in received.splitlines() if line.startswith(b'{"model"')
    )
    [row] = await logged(postgres, 1)
    [audited] = await books.rows(1)
    assert audited["outcome"] == "client_disconnected"
    assert row["prompt"] == "user: [[tokens:1000]] [[tps:200]] rivers"
    assert row["completion"].startswith(seen)
    assert len(row["completion"].split()) <= audited["completion_tokens"] < 200


async def test_of_a_stream_that_failed_what_came_before_is_logged(
    client: httpx.AsyncClient, opted: str, postgres: Postgres
) -> None:
    reply = await client.post("/api/chat", json=chat("[[fail:error_line]] [[after:3]]"), headers=auth(opted))
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert lines[-1] == {"error": "upstream failed"}
    [row] = await logged(postgres, 1)
    assert row["completion"] == "".join(line["message"]["content"] for line in lines[:-1])


async def test_both_texts_are_cut_at_their_bound(
    asyncio_loop: Any, settings: Any, run_gateway: Any, opted: str, postgres: Postgres
) -> None:
    async with (
        run_gateway(settings.model_copy(update={"prompt_log_max_bytes": 21})) as gateway,
        httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as client,
    ):
        reply = await client.post("/api/chat", json=chat("é" * 100, stream=False), headers=auth(opted))
        [row] = await logged(postgres, 1)
    assert row["prompt"] == "user: " + "é" * 7
    assert row["completion"] == reply.json()["message"]["content"][:21]
    assert row["prompt_truncated"]
    assert row["completion_truncated"]


async def test_a_key_that_opts_out_is_not_logged_from_then_on(
    client: httpx.AsyncClient, gateway: Any, opted: str, postgres: Postgres, make_key: Any
) -> None:
    await client.post("/api/chat", json=chat("before"), headers=auth(opted))
    await logged(postgres, 1)
    # A stream that began before is not logged either.
    async with connected(gateway, opted, chat("[[tokens:40]] [[tps:200]] during")) as stream:
        while b'"done":false' not in await stream.receive_some(65536):
            pass
        await opt(postgres, opted, False)
        await client.post("/api/chat", json=chat("after"), headers=auth(opted))
        while b'"done":true' not in await stream.receive_some(65536):
            pass
    other = await make_key("other")
    await opt(postgres, other)
    await client.post("/api/chat", json=chat("sentinel"), headers=auth(other))
    assert [row["prompt"] for row in await logged(postgres, 2)] == ["user: before", "user: sentinel"]


async def test_opting_in_takes_effect_at_once(
    client: httpx.AsyncClient, gateway: Any, key: str, postgres: Postgres
) -> None:
    await client.post("/api/chat", json=chat("before"))
    await opt(postgres, key)
    deadline = trio.current_time() + 5
    while not await postgres.fetchval("SELECT count(*) FROM gateway.prompt_log"):
        assert trio.current_time() < deadline
        await client.post("/api/chat", json=chat("after"))
        await trio.sleep(0.02)
    assert {row["prompt"] for row in await postgres.fetch("SELECT prompt FROM gateway.prompt_log")} == {
        "user: after"
    }


async def test_expired_rows_are_purged(
    asyncio_loop: Any, settings: Any, run_gateway: Any, opted: str, postgres: Postgres
) -> None:
    async with (
        run_gateway(settings.model_copy(update={"prompt_purge_interval_s": 0.05})) as gateway,
        httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as client,
    ):
        await client.post("/api/chat", json=chat("rivers"), headers=auth(opted))
        await logged(postgres, 1)
        await postgres.execute("UPDATE gateway.prompt_log SET expires_at = now()")
        with trio.fail_after(5):
            while await postgres.fetchval("SELECT count(*) FROM gateway.prompt_log"):
                await trio.sleep(0.01)


@pytest.fixture(params=["json", "console"])
def written(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """Everything that is logged, at the lowest level."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logs("debug", request.param, stream)
    root.setLevel(logging.DEBUG)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


async def everything_in(redis: Redis) -> bytes:
    """The whole keyspace: names and values."""
    found = []
    for name in await redis.command("KEYS", "*"):
        kind = (await redis.command("TYPE", name)).decode()
        read = {
            "string": ("GET", name),
            "hash": ("HGETALL", name),
            "set": ("SMEMBERS", name),
            "zset": ("ZRANGE", name, 0, -1),
            "list": ("LRANGE", name, 0, -1),
            "stream": ("XRANGE", name, "-", "+"),
            "none": ("GET", name),  # gone meanwhile
        }[kind]
        found.append(repr((name, await redis.command(*read))))
    return "\n".join(found).encode()


async def test_a_prompt_is_in_the_prompt_log_and_nowhere_else(
    written: io.StringIO,
    client: httpx.AsyncClient,
    gateway: Any,
    opted: str,
    postgres: Postgres,
    redis: Redis,
    mock_ollama: Any,
    books: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = b""
    replies = []
    async with connected(gateway, opted, chat(f"{MARKER} [[tokens:100000]] [[tps:100]]")) as stream:
        while b'"done":false' not in await stream.receive_some(65536):
            pass
        held += await everything_in(redis)
        for body in (
            chat(MARKER),
            chat(MARKER, stream=False),
            chat(f"{MARKER} [[fail:error_line]]"),
            chat(f"{MARKER} [[fail:garbage]]"),
            chat(f"{MARKER} [[fail:500]]"),
            chat(MARKER, options={"temperature": MARKER}),
            chat(MARKER, model=f"no-{'x' * 300}"),
        ):
            replies.append(await client.post("/api/chat", json=body, headers=auth(opted)))
    await logged(postgres, 5)
    # PostgreSQL refuses rows: its own words, which quote the row, are not repeated.
    await postgres.execute("ALTER TABLE gateway.prompt_log ADD CONSTRAINT none CHECK (false) NOT VALID")
    replies.append(await client.post("/api/chat", json=chat(MARKER), headers=auth(opted)))
    with trio.fail_after(5):
        while gateway.prompts.dropped != 1:
            await trio.sleep(0.005)

    def explode(*_: Any) -> str:
        raise RuntimeError("a detail")

    monkeypatch.setattr(gateway.discovery, "resolve", explode)
    replies.append(await client.post("/api/chat", json=chat(MARKER), headers=auth(opted)))
    assert replies[-1].status_code == 500
    await books.rows(10)
    held += await everything_in(redis)
    log = written.getvalue()
    assert "exchange.failed" in log
    assert "prompts.dropped" in log
    assert MARKER not in log
    assert b"gateway:key:" in held
    assert MARKER.encode() not in held
    assert MARKER.encode() not in gateway.exposition()
    assert all(MARKER not in reply.text and MARKER not in str(reply.headers) for reply in replies)
    for table in ("audit_log", "budget_usage", "api_keys", "tenants"):
        assert MARKER not in repr(await postgres.fetch(f"SELECT * FROM gateway.{table}"))
    assert "gateway_prompts_dropped_total 1.0" in gateway.exposition().decode()


async def test_a_slow_prompt_log_holds_up_neither_reply_nor_slot_nor_audit(
    client: httpx.AsyncClient, gateway: Any, opted: str, postgres: Postgres, books: Any
) -> None:
    async def hold(connection: Any) -> None:
        async with connection.transaction():
            await connection.execute("LOCK TABLE gateway.prompt_log IN ACCESS EXCLUSIVE MODE")
            trio_held.set()
            await connection.execute("SELECT pg_sleep(30)", timeout=60)

    trio_held = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(postgres.run, hold)
        await trio_held.wait()
        began = trio.current_time()
        for _ in range(3):
            assert (await client.post("/api/chat", json=chat("rivers"), headers=auth(opted))).status_code == 200
            await books.settled()
        await books.rows(3)
        assert trio.current_time() - began < 2
        with trio.fail_after(5):
            while gateway.prompts.waiting != 3:
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    await logged(postgres, 3)


async def test_a_shutdown_writes_what_is_left(
    asyncio_loop: Any, settings: Any, mock_ollama: Any, opted: str, postgres: Postgres
) -> None:
    stop = trio.Event()
    quick = settings.model_copy(update={"drain_timeout_s": 0.2})
    async with open_gateway(quick) as gateway, trio.open_nursery() as nursery:
        await nursery.start(gateway.run, stop)
        while not gateway.discovery.fresh:
            await trio.sleep(0.01)
        async with connected(gateway, opted, chat("[[tokens:10000]] [[tps:100]] rivers")) as stream:
            while b'"done":false' not in await stream.receive_some(65536):
                pass
            stop.set()
            while await stream.receive_some(65536):
                pass
    [row] = await logged(postgres, 1)
    assert row["completion"]
    assert gateway.prompts.waiting == gateway.prompts.dropped == 0
