"""G3, audit: exactly one row for each authenticated request, whatever became of it; none for a stranger's.

Here: one request of each kind, and its one row, found by the reply's request id; and that what is handed in twice
is one row and one entry of the ledger. Further: outages up to the ring's end (tests/gateway/test_postgres_outage.py),
`kill -9` (tests/local/test_killed.py), a graceful stop without stores (tests/gateway/test_connections.py), the
recorder itself (tests/audit/test_recorder.py), all of it at once (tests/storm/test_storm.py).
"""

from typing import Any

import httpx

from tests.patience import until
from tests.shapes import Shape
from tests.sockets import connected

CHAT = Shape("/api/chat", False)


async def test_each_authenticated_request_has_exactly_one_row(
    gateway: Any, client: httpx.AsyncClient, mock_ollama: Any, make_key: Any, books: Any
) -> None:
    once = {"authorization": f"Bearer {await make_key('once', rpm=1)}"}
    ask = CHAT.body("rivers")
    replies = [
        (await client.post("/api/chat", json=ask), "completed"),
        (await client.post("/api/chat", json=CHAT.body("[[fail:500]] rivers")), "upstream_error"),
        (await client.post("/api/chat", json={**ask, "model": "nobody-has-it"}), "model_denied"),
        (await client.post("/api/chat", content=b"{"), "invalid_request"),
        (await client.post("/api/pull", json={}), "endpoint_blocked"),
        (await client.get("/api/tags"), "completed"),
        (await client.get("/nowhere"), "not_found"),
        (await client.post("/api/chat", json=ask, headers=once), "completed"),
        (await client.post("/api/chat", json=ask, headers=once), "rate_limited"),
    ]
    stranger = await client.post("/api/chat", json=ask, headers={"authorization": "Bearer nobody"})
    assert stranger.status_code == 401
    expected = {reply.headers["x-request-id"]: outcome for reply, outcome in replies}
    rows = await books.rows(len(replies))
    assert {str(row["request_id"]): row["outcome"] for row in rows} == expected
    assert {str(row["request_id"]): row["status"] for row in rows} == {
        reply.headers["x-request-id"]: reply.status_code for reply, _ in replies
    }


async def test_a_row_that_is_handed_in_again_is_one_row_and_one_entry_of_the_ledger(
    gateway: Any, client: httpx.AsyncClient, key: str, books: Any, monkeypatch: Any
) -> None:
    copies: list[bytes] = []
    lease = gateway.admission.lease

    def kept(ask: Any, *, stub: bytes, final_row: Any) -> Any:
        def row() -> bytes:
            copies.append(final_row())
            return copies[-1]

        return lease(ask, stub=stub, final_row=row)

    monkeypatch.setattr(gateway.admission, "lease", kept)
    assert (await client.post("/api/chat", json=CHAT.body("rivers"))).status_code == 200
    await books.rows(1)
    ledger = await books.ledger()
    gateway.recorder.adopt(copies * 3)
    await until(lambda: gateway.recorder.waiting == 0, 3)
    await books.rows(1)
    assert await books.ledger() == ledger
    assert ledger[2] == 1


async def test_a_client_that_left_has_its_row(gateway: Any, mock_ollama: Any, key: str, books: Any) -> None:
    async with connected(gateway) as client:
        await client.send_all(CHAT.request(key, "[[ttft:30]] rivers"))
        await until(lambda: mock_ollama.stats.open == 1, 3)
    [row] = await books.rows(1)
    assert (row["status"], row["outcome"]) == (499, "client_disconnected")
