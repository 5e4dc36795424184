"""The main job: an authenticated, limited, budgeted, leased, counted and audited exchange with the model."""

import json
from typing import Any

import httpx
import pytest
import trio

CHAT = {"model": "tiny:latest", "messages": [{"role": "user", "content": "tell me of rivers"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/api/chat": CHAT,
    "/api/generate": {"model": "tiny:latest", "prompt": "tell me of rivers"},
    "/api/embed": {"model": "embed", "input": ["one", "two"]},
    "/api/embeddings": {"model": "embed", "prompt": "one"},
}


def without_times(line: bytes) -> dict[str, Any]:
    value = json.loads(line)
    return {name: v for name, v in value.items() if name != "created_at" and not name.endswith("_duration")}


def last_chat(mock_ollama: Any) -> Any:
    """The last chat that the mock saw: discovery asks it too, at any time."""
    return next(seen for seen in reversed(mock_ollama.stats.last) if seen.path == "/api/chat")


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_a_stream_is_passed_through_and_accounted(
    client: httpx.AsyncClient, mock_ollama: Any, books: Any, path: str
) -> None:
    async with client.stream("POST", path, json=BODIES[path]) as reply:
        lines = [line.encode() async for line in reply.aiter_lines()]
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/x-ndjson"
    async with httpx.AsyncClient(base_url=mock_ollama.url, trust_env=False) as direct:
        expected = (await direct.post(path, json=BODIES[path])).content.splitlines()
    assert [without_times(line) for line in lines] == [without_times(line) for line in expected]

    last = json.loads(lines[-1])
    [row] = await books.rows(1)
    assert row["outcome"] == "completed"
    assert row["status"] == 200
    assert str(row["request_id"]) == reply.headers["x-request-id"]
    assert (row["endpoint"], row["dialect"], row["model"], row["stream"]) == (path, "ollama", "tiny:latest", True)
    assert row["prompt_tokens"] == last["prompt_eval_count"]
    assert row["completion_tokens"] == last["eval_count"]
    assert row["tokens_exact"]
    assert row["first_byte_ms"] is not None
    assert row["client_ip"] == "127.0.0.1"
    assert await books.ledger() == (last["prompt_eval_count"], last["eval_count"], 1)
    await books.settled()


@pytest.mark.parametrize("path", list(BODIES))
async def test_a_whole_reply_is_passed_through_and_accounted(
    client: httpx.AsyncClient, books: Any, path: str
) -> None:
    reply = await client.post(path, json=BODIES[path] | {"stream": False})
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("application/json")
    assert reply.json()
    [row] = await books.rows(1)
    assert (row["outcome"], row["endpoint"], row["stream"]) == ("completed", path, False)
    await books.settled()


async def test_num_predict_upstream_never_exceeds_what_was_reserved(
    client: httpx.AsyncClient, mock_ollama: Any, gateway: Any, make_key: Any
) -> None:
    capped = await make_key("capped", max_predict=5)
    auth = {"authorization": f"Bearer {capped}"}
    for asked in (None, 3, 5, 500, -1, -2):
        options = {} if asked is None else {"options": {"num_predict": asked}}
        reply = await client.post("/api/chat", json=CHAT | options | {"stream": False}, headers=auth)
        assert reply.status_code == 200
        sent = last_chat(mock_ollama).json()["options"]["num_predict"]
        assert sent == (3 if asked == 3 else 5)
        assert reply.json()["eval_count"] <= 5


async def test_without_budget_or_cap_the_clients_own_bound_is_left_alone(
    client: httpx.AsyncClient, mock_ollama: Any
) -> None:
    await client.post("/api/chat", json=CHAT | {"options": {"num_predict": 7}, "stream": False})
    assert last_chat(mock_ollama).json()["options"]["num_predict"] == 7
    await client.post("/api/chat", json=CHAT | {"stream": False})
    assert "num_predict" not in last_chat(mock_ollama).json().get("options", {})


async def test_the_clients_headers_and_bytes_never_go_upstream(
    client: httpx.AsyncClient, mock_ollama: Any, key: str
) -> None:
    await client.post(
        "/api/chat",
        json=CHAT | {"stream": False, "_debug_render_only": True, "unknown": 1},
        headers={"x-openwebui-user-name": "someone", "cookie": "a=b"},
    )
    seen = last_chat(mock_ollama)
    assert key not in str(seen.headers)
    assert not {"authorization", "cookie", "x-openwebui-user-name"} & {name.lower() for name in dict(seen.headers)}
    assert set(seen.json()) <= {"model", "messages", "stream", "options"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"tiny","MODEL":"acme/other","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"tiny","model":"acme/other","messages":[{"role":"user","content":"x"}]}',
        '{"model":"tiny","messages":[{"role":"user","content":"x"}],"\u212aeep_alive":-1}'.encode(),
        '{"model":"tiny","messages":[{"role":"user","content":"x"}],"\u017ftream":false}'.encode(),
        b'{"model":"tiny","messages":[{"role":"user","content":"x"}]} {"model":"acme/other"}',
    ],
)
async def test_a_smuggled_model_never_runs(
    client: httpx.AsyncClient, mock_ollama: Any, make_key: Any, body: bytes, books: Any
) -> None:
    narrow = await make_key("narrow", allow_all_models=False, models=["tiny:latest"])
    before = sum(n for path, n in mock_ollama.stats.requests.items() if path == "/api/chat")
    reply = await client.post("/api/chat", content=body, headers={"authorization": f"Bearer {narrow}"})
    assert reply.status_code == 400
    assert sum(n for path, n in mock_ollama.stats.requests.items() if path == "/api/chat") == before
    [row] = await books.rows(1)
    assert row["outcome"] == "invalid_request"
    await books.settled()


async def test_not_installed_and_not_permitted_models_are_one_answer(
    client: httpx.AsyncClient, make_key: Any, books: Any
) -> None:
    narrow = await make_key("narrow", allow_all_models=False, models=["tiny:latest", "ghost:latest"])
    auth = {"authorization": f"Bearer {narrow}"}
    replies = [
        await client.post("/api/chat", json=CHAT | {"model": model}, headers=auth)
        for model in ("acme/other", "ghost", "nowhere", "big:cloud")
    ]
    assert {reply.status_code for reply in replies} == {403}
    assert len({reply.content for reply in replies}) == 1
    rows = await books.rows(4)
    assert {row["outcome"] for row in rows} == {"model_denied"}
    await books.settled()


async def test_the_end_of_a_reply_comes_after_its_slot_is_free(client: httpx.AsyncClient, make_key: Any) -> None:
    single = await make_key("single", concurrency=1)
    auth = {"authorization": f"Bearer {single}"}
    for _ in range(25):
        reply = await client.post("/api/chat", json=CHAT, headers=auth)
        assert reply.status_code == 200
        reply = await client.post("/api/chat", json=CHAT | {"stream": False}, headers=auth)
        assert reply.status_code == 200


async def test_upstream_connections_are_used_again(client: httpx.AsyncClient, mock_ollama: Any) -> None:
    await client.post("/api/chat", json=CHAT)
    before = mock_ollama.stats.connections
    for _ in range(5):
        await client.post("/api/chat", json=CHAT)
    # One more may have been opened beside a look at the models.
    assert mock_ollama.stats.connections <= before + 1


async def test_copies_of_rows_leave_redis_once_postgresql_has_them(client: httpx.AsyncClient, books: Any) -> None:
    await client.post("/api/chat", json=CHAT)
    await books.rows(1)
    for _ in range(200):
        if await books.copies() == 0:
            return
        await trio.sleep(0.01)
    assert await books.copies() == 0
