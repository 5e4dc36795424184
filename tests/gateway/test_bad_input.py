"""Bad input: the right status, one sanitized line in the caller's dialect, no slot, one row if authenticated."""

import json
from typing import Any

import httpx
import pytest
import trio
import trio.lowlevel

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}

BROKEN_BODIES: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("malformed", b'{"model": "tiny"'),
    ("no object", b"[1, 2]"),
    ("no model", b'{"messages": []}'),
    ("model of the wrong type", b'{"model": 7, "messages": []}'),
    ("messages of the wrong type", b'{"model": "tiny", "messages": "hello"}'),
    ("temperature of the wrong type", b'{"model":"tiny","messages":[],"options":{"temperature":"hot"}}'),
    ("stop of the wrong type", b'{"model":"tiny","messages":[],"options":{"stop":"x"}}'),
    ("format of the wrong type", b'{"model":"tiny","messages":[],"format":7}'),
    ("deep", b'{"model":"tiny","messages":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    ("deep and huge", b'{"model":"tiny","messages":' + b"[" * 3_000_000),
    ("not UTF-8", b'{"model":"tiny","messages":[{"role":"user","content":"\xff"}]}'),
    ("not a number", b'{"model":"tiny","messages":[],"options":{"temperature":NaN}}'),
    ("huge number", b'{"model":"tiny","messages":[],"options":{"seed":' + b"9" * 400 + b"}}"),
    ("null byte in the model", b'{"model":"tiny\\u0000","messages":[]}'),
    ("unload", b'{"model":"tiny","messages":[],"keep_alive":0}'),
]


@pytest.mark.parametrize("body", [body for _, body in BROKEN_BODIES], ids=[name for name, _ in BROKEN_BODIES])
async def test_a_broken_body_is_a_400_with_one_line_and_one_row(
    client: httpx.AsyncClient, books: Any, body: bytes
) -> None:
    reply = await client.post("/api/chat", content=body)
    assert reply.status_code == 400
    error = reply.json()
    assert set(error) == {"error"}
    assert error["error"]
    assert "\n" not in error["error"]
    assert "Traceback" not in reply.text
    [row] = await books.rows(1)
    assert (row["outcome"], row["status"]) == ("invalid_request", 400)
    await books.settled()


async def test_a_body_that_says_it_is_too_large_is_a_413(
    client: httpx.AsyncClient, books: Any, make_key: Any
) -> None:
    small = await make_key("small", max_body_bytes=1000)
    auth = {"authorization": f"Bearer {small}"}
    reply = await client.post("/api/chat", content=b"x" * 2000, headers=auth)
    assert reply.status_code == 413
    assert reply.json() == {"error": "request body too large"}
    [row] = await books.rows(1)
    assert row["outcome"] == "body_too_large"
    await books.settled()


async def test_a_chunked_body_that_grows_too_large_is_a_413(
    client: httpx.AsyncClient, books: Any, make_key: Any
) -> None:
    small = await make_key("small", max_body_bytes=1000)

    async def chunks() -> Any:
        for _ in range(20):
            yield b"x" * 1000

    reply = await client.post("/api/chat", content=chunks(), headers={"authorization": f"Bearer {small}"})
    assert reply.status_code == 413
    await books.rows(1)
    await books.settled()


async def test_a_compressed_body_is_a_clear_415(client: httpx.AsyncClient, books: Any) -> None:
    reply = await client.post("/api/chat", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert reply.status_code == 415
    [row] = await books.rows(1)
    assert row["outcome"] == "unsupported_encoding"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        "Basic dXNlcjpwYXNz",
        "Bearer nnz_00000000",
        "Bearer nnz_000000000000000000000000000000000000000000000000000",
        "bearer \u00e4",
    ],
)
async def test_every_missing_or_wrong_key_is_the_same_401_without_a_row(
    gateway: Any, books: Any, header: str | None
) -> None:
    headers = [] if header is None else [(b"authorization", header.encode())]
    async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as stranger:
        for method, path in (
            ("POST", "/api/chat"),
            ("GET", "/api/tags"),
            ("POST", "/api/pull"),
            ("GET", "/nowhere"),
        ):
            reply = await stranger.request(method, path, headers=headers)
            assert reply.status_code == 401
            assert reply.content == b'{"error":"invalid API key"}'
            assert reply.headers["x-request-id"]
    assert await books.postgres.fetchval("SELECT count(*) FROM gateway.audit_log") == 0


async def test_a_mistyped_a_revoked_and_an_expired_key_are_the_same_401(
    gateway: Any, books: Any, make_key: Any, client: httpx.AsyncClient
) -> None:
    keys = {name: await make_key(name) for name in ("typo", "revoked", "expired", "suspended", "wrong_secret")}
    await books.postgres.execute("INSERT INTO gateway.revocations (prefix) VALUES ($1)", keys["revoked"][:12])
    await books.postgres.execute(
        "UPDATE gateway.api_keys SET expires_at = now() - interval '1 second' WHERE prefix = $1",
        keys["expired"][:12],
    )
    await books.postgres.execute("UPDATE gateway.tenants SET suspended_at = now() WHERE name = 'suspended'")
    keys["typo"] = keys["typo"][:-1] + ("A" if keys["typo"][-1] != "A" else "B")
    from neuronetz.access.keys import generate

    keys["unknown"] = generate().text
    replies = {
        name: await client.get("/api/tags", headers={"authorization": f"Bearer {key}"})
        for name, key in keys.items()
        if name != "wrong_secret"
    }
    assert {reply.status_code for reply in replies.values()} == {401}
    assert len({reply.content for reply in replies.values()}) == 1
    metrics = gateway.exposition().decode()
    assert f"gateway_unauthenticated_total {float(len(replies))}" in metrics


async def test_two_authorization_headers_are_none(gateway: Any, key: str) -> None:
    async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as client:
        headers = [("authorization", f"Bearer {key}"), ("authorization", f"Bearer {key}")]
        assert (await client.get("/api/tags", headers=headers)).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "status", "outcome"),
    [
        ("POST", "/api/pull", 403, "endpoint_blocked"),
        ("DELETE", "/api/delete", 403, "endpoint_blocked"),
        ("POST", "/api/blobs/sha256:0", 403, "endpoint_blocked"),
        ("POST", "/api/me", 403, "endpoint_blocked"),
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/v1/nowhere", 404, "not_found"),
        ("GET", "/api/chat", 405, "method_not_allowed"),
        ("DELETE", "/api/tags", 405, "method_not_allowed"),
    ],
)
async def test_closed_doors_have_their_status_and_one_row(
    client: httpx.AsyncClient, mock_ollama: Any, books: Any, method: str, path: str, status: int, outcome: str
) -> None:
    reply = await client.request(method, path, content=b'{"model":"tiny"}' if method != "GET" else b"")
    assert reply.status_code == status
    assert reply.json()["error"]
    assert not any(path.startswith(seen) for seen in mock_ollama.stats.requests if seen != "/api/tags")
    [row] = await books.rows(1)
    assert (row["outcome"], row["status"]) == (outcome, status)
    await books.settled()


async def test_errors_under_v1_have_openais_shape(client: httpx.AsyncClient) -> None:
    error = (await client.get("/v1/nowhere")).json()["error"]
    assert error == {"message": "not found", "type": "not_found_error", "param": None, "code": None}


async def test_errors_under_v1_messages_have_anthropics_shape_and_headers(
    client: httpx.AsyncClient, gateway: Any, books: Any
) -> None:
    path = "/v1/messages/nowhere"
    reply = await client.post(path, json={"model": "tiny"})
    request_id = reply.headers["request-id"]
    assert request_id == reply.headers["x-request-id"]
    assert (reply.status_code, reply.json()) == (
        404,
        {
            "type": "error",
            "error": {"type": "not_found_error", "message": "not found"},
            "request_id": request_id,
        },
    )
    [row] = await books.rows(1)
    assert (str(row["request_id"]), row["dialect"], row["endpoint"]) == (request_id, "anthropic", "unknown")
    async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as stranger:
        reply = await stranger.post(path, headers={"x-api-key": "wrong", "anthropic-version": "2023-06-01"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (401, "authentication_error")
    assert reply.json()["request_id"] == reply.headers["request-id"]


async def test_refusals_come_in_the_order_of_the_specification(client: httpx.AsyncClient, make_key: Any) -> None:
    """401, 429, 403 for the model, 403 for the endpoint, 400: a flood of broken bodies is limited too."""
    limited = await make_key("limited", rpm=1, allow_all_models=False, models=["tiny:latest"])
    auth = {"authorization": f"Bearer {limited}"}
    denied_and_broken = {"model": "acme/other", "messages": 7}
    assert (await client.post("/api/chat", json=denied_and_broken, headers=auth)).status_code == 403
    assert (await client.post("/api/chat", json=denied_and_broken, headers=auth)).status_code == 429
    assert (await client.post("/api/chat", content=b"{", headers=auth)).status_code == 429
    assert (await client.post("/api/pull", headers=auth)).status_code == 429


@pytest.mark.parametrize(
    ("marker", "status", "outcome"),
    [
        ("[[fail:500]]", 502, "upstream_error"),
        ("[[fail:503]]", 503, "upstream_busy"),
        ("[[fail:refuse]]", 502, "upstream_error"),
        ("[[fail:400]]", 400, "upstream_rejected"),
        ("[[fail:404]]", 403, "model_denied"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_upstream_failure_before_the_first_byte_keeps_its_status(
    client: httpx.AsyncClient, books: Any, marker: str, status: int, outcome: str, stream: bool
) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": marker}], "stream": stream}
    reply = await client.post("/api/chat", json=body)
    assert reply.status_code == status
    assert set(reply.json()) == {"error"}
    assert "secret" not in reply.text
    if status in (502, 503):
        assert int(reply.headers["retry-after"]) >= 1
    [row] = await books.rows(1)
    assert row["outcome"] == outcome
    assert await books.ledger() == (0, 0, 1)
    await books.settled()


@pytest.mark.parametrize("failure", ["reset", "close", "garbage", "error_line", "eof"])
async def test_an_upstream_failure_in_mid_stream_ends_the_stream_with_our_own_error(
    client: httpx.AsyncClient, mock_ollama: Any, books: Any, failure: str
) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": f"[[fail:{failure}]] [[after:5]]"}]}
    async with client.stream("POST", "/api/chat", json=body) as reply:
        lines = [json.loads(line) async for line in reply.aiter_lines()]
    assert reply.status_code == 200
    assert lines[-1] == {"error": "upstream failed"}
    assert all("error" not in line for line in lines[:-1])
    assert len(lines) == 6
    [row] = await books.rows(1)
    assert row["outcome"] == "upstream_error"
    assert row["completion_tokens"] == 5
    assert not row["tokens_exact"]
    await books.settled()


@pytest.mark.parametrize("failure", ["reset", "close", "garbage", "error_line", "eof"])
async def test_an_upstream_failure_in_a_whole_reply_is_a_502(
    client: httpx.AsyncClient, books: Any, failure: str
) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": f"[[fail:{failure}]]"}], "stream": False}
    reply = await client.post("/api/chat", json=body)
    assert (
        reply.status_code in (200, 502)
        if failure in ("eof", "garbage", "error_line")
        else reply.status_code == 502
    )
    assert "secret" not in reply.text
    await books.rows(1)
    await books.settled()


async def test_five_requests_that_a_client_broke_leave_the_breaker_shut(
    client: httpx.AsyncClient, gateway: Any
) -> None:
    for _ in range(6):
        reply = await client.post("/api/chat", json=CHAT | {"options": {"temperature": "hot"}})
        assert reply.status_code == 400
    assert gateway.breaker.state == "closed"
    assert (await client.post("/api/chat", json=CHAT)).status_code == 200


async def test_five_upstream_failures_open_the_breaker_and_then_it_denies_at_once(
    client: httpx.AsyncClient, gateway: Any, mock_ollama: Any
) -> None:
    broken = CHAT | {"messages": [{"role": "user", "content": "[[fail:500]]"}]}
    for _ in range(5):
        assert (await client.post("/api/chat", json=broken)).status_code == 502
    before = mock_ollama.stats.requests["/api/chat"]
    reply = await client.post("/api/chat", json=CHAT)
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert mock_ollama.stats.requests["/api/chat"] == before
    assert gateway.breaker.state == "open"
    assert (await gateway.readiness()).status == "degraded"


async def test_an_internal_error_is_a_plain_500_with_a_row(
    client: httpx.AsyncClient, gateway: Any, books: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: Any) -> str:
        raise RuntimeError("a detail that nobody may read")

    monkeypatch.setattr(gateway.discovery, "resolve", explode)
    reply = await client.post("/api/chat", json=CHAT)
    assert reply.status_code == 500
    assert reply.json() == {"error": "internal error"}
    [row] = await books.rows(1)
    assert row["outcome"] == "internal_error"
    await books.settled()
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "breakage",
    ["ALTER TABLE gateway.api_keys RENAME TO away", "ALTER TABLE gateway.key_limits DROP COLUMN rpm"],
)
async def test_a_database_that_is_set_up_wrong_denies_like_one_that_is_away(
    gateway: Any, make_key: Any, postgres: Any, breakage: str
) -> None:
    key = await make_key()
    await postgres.execute(breakage)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=gateway.base_url, headers=headers, trust_env=False) as client:
        reply = await client.get("/api/tags")
    assert reply.status_code == 503
    assert reply.json() == {"error": "service temporarily unavailable"}
    assert reply.headers["retry-after"]


async def test_a_request_line_with_the_whole_url_is_taken(gateway: Any, key: str) -> None:
    port = int(gateway.base_url.rsplit(":", 1)[1])
    async with await trio.open_tcp_stream("127.0.0.1", port) as client:
        head = f"GET http://g/api/tags HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        await client.send_all(head.encode())
        with trio.fail_after(5):
            assert (await client.receive_some(65536)).startswith(b"HTTP/1.1 200")


async def test_several_content_encodings_are_not_taken_for_none(client: httpx.AsyncClient) -> None:
    headers = [("content-encoding", "gzip"), ("content-encoding", "identity")]
    assert (await client.post("/api/chat", content=b"x", headers=headers)).status_code == 415
