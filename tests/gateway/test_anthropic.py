"""Anthropic's messages over sockets: the same exchange, in another dialect."""

import json
from typing import Any

import httpx
import pytest

PATH = "/v1/messages"
ASKED: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "tell me of rivers"}],
}


def asking(prompt: str, **more: Any) -> dict[str, Any]:
    return {**ASKED, "messages": [{"role": "user", "content": prompt}], **more}


def events_of(body: bytes) -> list[dict[str, Any]]:
    """The events of a stream, without comments."""
    events = []
    for event in body.decode().split("\n\n"):
        if event and not event.startswith(":"):
            name, _, data = event.partition("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
    return events


def last_chat(mock_ollama: Any) -> dict[str, Any]:
    """The last chat that the mock was asked for; a look at the models may have come after it."""
    found: dict[str, Any] = next(
        seen.json() for seen in reversed(mock_ollama.stats.last) if seen.path == "/api/chat"
    )
    return found


async def test_a_whole_message_is_accounted(client: httpx.AsyncClient, mock_ollama: Any, books: Any) -> None:
    reply = await client.post(PATH, json=ASKED)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("application/json")
    message = reply.json()
    assert message["model"] == "tiny"
    [block] = message["content"]
    assert block["type"] == "text"
    assert last_chat(mock_ollama) == {
        "model": "tiny:latest",
        "stream": False,
        "messages": ASKED["messages"],
        "options": {"num_predict": 100},
    }
    [row] = await books.rows(1)
    assert (row["endpoint"], row["dialect"], row["model"]) == (PATH, "anthropic", "tiny:latest")
    assert (row["outcome"], row["status"], row["stream"], row["tokens_exact"]) == ("completed", 200, False, True)
    assert str(row["request_id"]) == reply.headers["x-request-id"]
    usage = message["usage"]
    assert (row["prompt_tokens"], row["completion_tokens"]) == (usage["input_tokens"], usage["output_tokens"])
    assert await books.ledger() == (usage["input_tokens"], usage["output_tokens"], 1)
    await books.settled()


async def test_a_stream_is_accounted_and_says_the_same(client: httpx.AsyncClient, books: Any) -> None:
    whole = (await client.post(PATH, json=ASKED)).json()
    async with client.stream("POST", PATH, json=ASKED | {"stream": True}) as reply:
        events = events_of(await reply.aread())
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["cache-control"] == "no-cache"
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    text = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    assert text == whole["content"][0]["text"]
    assert events[-2]["usage"] == whole["usage"]
    row = (await books.rows(2))[1]
    assert (row["dialect"], row["outcome"], row["stream"], row["tokens_exact"]) == (
        "anthropic",
        "completed",
        True,
        True,
    )
    assert row["completion_tokens"] == whole["usage"]["output_tokens"]
    await books.settled()


@pytest.mark.parametrize("failure", ["error_line", "garbage", "eof", "reset"])
async def test_a_failure_in_mid_stream_is_an_event_of_our_own(
    client: httpx.AsyncClient, books: Any, failure: str
) -> None:
    reply = await client.post(PATH, json=asking(f"[[fail:{failure}]]", stream=True))
    assert reply.status_code == 200
    assert "secret" not in reply.text
    *before, last = events_of(reply.content)
    assert last == {"type": "error", "error": {"type": "api_error", "message": "upstream failed"}}
    assert before[0]["type"] == "message_start"
    assert "message_stop" not in {event["type"] for event in before}
    [row] = await books.rows(1)
    assert (row["outcome"], row["status"]) == ("upstream_error", 502)
    await books.settled()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "status", "outcome"),
    [
        ({"max_tokens": 0}, 400, "invalid_request"),
        ({"messages": []}, 400, "invalid_request"),
        ({"model": "missing"}, 403, "model_denied"),
        ({"messages": [{"role": "user", "content": "[[fail:500]]"}]}, 502, "upstream_error"),
        ({"messages": [{"role": "user", "content": "[[fail:503]]"}]}, 503, "upstream_busy"),
    ],
)
async def test_a_failure_before_the_reply_has_its_status(
    client: httpx.AsyncClient, books: Any, body: dict[str, Any], status: int, outcome: str, stream: bool
) -> None:
    reply = await client.post(PATH, json={**ASKED, **body, "stream": stream})
    assert reply.status_code == status
    assert reply.json()["type"] == "error"
    assert reply.json()["request_id"] == reply.headers["request-id"]
    assert "secret" not in reply.text
    [row] = await books.rows(1)
    assert (row["dialect"], row["outcome"], row["status"], row["stream"]) == (
        "anthropic",
        outcome,
        status,
        stream,
    )
    await books.settled()


@pytest.mark.parametrize("asked", [{"thinking": {"type": "enabled"}}, {"output_config": {"effort": "low"}}])
async def test_a_model_thinks_where_it_can_and_is_not_asked_where_it_cannot(
    client: httpx.AsyncClient, mock_ollama: Any, asked: dict[str, Any]
) -> None:
    reply = await client.post(PATH, json={**ASKED, **asked})
    assert reply.status_code == 200
    assert "think" not in last_chat(mock_ollama)
    reply = await client.post(PATH, json={**ASKED, **asked, "model": "thinker"})
    assert [block["type"] for block in reply.json()["content"]] == ["thinking", "text"]
    assert last_chat(mock_ollama)["think"] in (True, "low")


async def test_a_model_that_thinks_can_be_told_not_to(client: httpx.AsyncClient, mock_ollama: Any) -> None:
    for model in ("tiny", "thinker"):
        reply = await client.post(PATH, json={**ASKED, "model": model, "thinking": {"type": "disabled"}})
        assert [block["type"] for block in reply.json()["content"]] == ["text"]
        assert last_chat(mock_ollama)["think"] is False


async def test_a_servers_own_search_never_gets_upstream(client: httpx.AsyncClient, mock_ollama: Any) -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    reply = await client.post(PATH, json={**ASKED, "tools": [search]})
    assert reply.status_code == 200
    assert "tools" not in last_chat(mock_ollama)


async def test_a_keys_own_limit_is_what_the_upstream_is_asked_for(
    client: httpx.AsyncClient, mock_ollama: Any, make_key: Any
) -> None:
    capped = await make_key("capped", max_predict=5)
    reply = await client.post(PATH, json=ASKED, headers={"authorization": f"Bearer {capped}"})
    assert last_chat(mock_ollama)["options"]["num_predict"] == 5
    assert reply.json()["stop_reason"] == "max_tokens"
    assert reply.json()["usage"]["output_tokens"] == 5


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/messages/count_tokens"), ("POST", "/v1/messages/batches"), ("GET", PATH)]
)
async def test_nothing_else_of_that_api_is_there(
    client: httpx.AsyncClient, mock_ollama: Any, method: str, path: str
) -> None:
    reply = await client.request(method, path, json=ASKED)
    assert reply.status_code == (405 if path == PATH else 404)
    assert mock_ollama.stats.requests.get("/api/chat", 0) == 0
