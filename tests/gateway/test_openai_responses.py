"""``/v1/responses`` over sockets: the row, the budget, what goes upstream, and errors in OpenAI's shape."""

import json
from typing import Any

import httpx
import pytest
from openai.types.responses import Response

ASK: dict[str, Any] = {"model": "tiny", "input": "tell me of rivers"}


def last_chat(mock_ollama: Any) -> Any:
    return next(seen for seen in reversed(mock_ollama.stats.last) if seen.path == "/api/chat").json()


async def streamed(client: httpx.AsyncClient, **fields: Any) -> tuple[httpx.Response, list[dict[str, Any]]]:
    async with client.stream("POST", "/v1/responses", json={**ASK, "stream": True, **fields}) as reply:
        data = (await reply.aread()).decode()
    assert "[DONE]" not in data
    return reply, [json.loads(line[6:]) for line in data.splitlines() if line.startswith("data: ")]


async def test_a_whole_response_is_accounted(client: httpx.AsyncClient, books: Any) -> None:
    reply = await client.post("/v1/responses", json=ASK)
    told = Response.model_validate(reply.json(), strict=True)
    assert told.usage is not None
    assert (told.status, told.usage.output_tokens) == ("completed", 16)
    [row] = await books.rows(1)
    assert (row["endpoint"], row["dialect"], row["stream"]) == ("/v1/responses", "openai", False)
    assert (row["outcome"], row["model"], row["status"]) == ("completed", "tiny:latest", 200)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (told.usage.input_tokens, 16)
    assert await books.ledger() == (told.usage.input_tokens, 16, 1)
    await books.settled()


async def test_a_stream_is_accounted(client: httpx.AsyncClient, books: Any) -> None:
    reply, events = await streamed(client)
    assert reply.headers["content-type"] == "text/event-stream"
    assert events[-1]["type"] == "response.completed"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    [row] = await books.rows(1)
    assert (row["outcome"], row["stream"], row["completion_tokens"]) == ("completed", True, 16)
    assert str(row["request_id"]) == reply.headers["x-request-id"]
    await books.settled()


async def test_only_what_was_checked_goes_upstream(client: httpx.AsyncClient, mock_ollama: Any) -> None:
    await client.post(
        "/v1/responses",
        json={
            **ASK,
            "instructions": "be brief",
            "previous_response_id": "resp_1",
            "store": True,
            "tools": [{"type": "web_search"}, {"type": "mcp", "server_label": "x", "authorization": "token"}],
        },
    )
    assert last_chat(mock_ollama) == {
        "model": "tiny:latest",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": ASK["input"]}],
        "options": {"temperature": 1.0},
        "stream": False,
    }


async def test_a_cap_of_ours_makes_a_response_incomplete(
    client: httpx.AsyncClient, mock_ollama: Any, make_key: Any
) -> None:
    auth = {"authorization": f"Bearer {await make_key('capped', max_predict=5)}"}
    reply = await client.post("/v1/responses", json={**ASK, "max_output_tokens": 9}, headers=auth)
    assert last_chat(mock_ollama)["options"]["num_predict"] == 5
    assert reply.json()["incomplete_details"] == {"reason": "max_output_tokens"}
    assert reply.json()["usage"]["output_tokens"] == 5


async def test_a_spent_budget_is_a_quota(client: httpx.AsyncClient, make_key: Any) -> None:
    auth = {"authorization": f"Bearer {await make_key('poor', budget_tokens=60, budget_period='month')}"}
    for _ in range(50):
        reply = await client.post("/v1/responses", json=ASK, headers=auth)
        if reply.status_code == 429:
            break
    assert reply.json()["error"]["code"] == "insufficient_quota"
    assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, 400, "invalid_request_error"),
        ({"input": None}, 400, "invalid_request_error"),
        ({"model": "absent"}, 403, "permission_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_is_an_error_object_even_for_a_stream(
    client: httpx.AsyncClient, books: Any, fields: dict[str, Any], status: int, kind: str, stream: bool
) -> None:
    reply = await client.post("/v1/responses", json={**ASK, "stream": stream, **fields})
    assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind)
    [row] = await books.rows(1)
    assert row["status"] == status


async def test_other_methods_are_refused(client: httpx.AsyncClient) -> None:
    reply = await client.get("/v1/responses")
    assert (reply.status_code, reply.json()["error"]["type"]) == (405, "invalid_request_error")
    assert (await client.get("/v1/responses/resp_1")).status_code == 404


@pytest.mark.parametrize("failure", ["error_line", "garbage", "eof", "reset", "close"])
async def test_a_failure_in_mid_stream_is_told_and_accounted(
    client: httpx.AsyncClient, mock_ollama: Any, books: Any, failure: str
) -> None:
    mock_ollama.configure(fail=failure)
    reply, events = await streamed(client)
    assert reply.status_code == 200
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert "secret" not in json.dumps(events)
    [row] = await books.rows(1)
    assert row["outcome"].startswith("upstream")
    assert row["completion_tokens"] == 3
    await books.settled()


async def test_a_failure_before_the_first_line_has_its_status(client: httpx.AsyncClient, mock_ollama: Any) -> None:
    mock_ollama.configure(fail="500")
    reply = await client.post("/v1/responses", json={**ASK, "stream": True})
    assert reply.status_code >= 500
    assert reply.json()["error"]["type"] == "api_error"
    assert "secret" not in reply.text
