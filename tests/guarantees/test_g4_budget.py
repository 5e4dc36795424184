"""G4, budget: what is used and what is reserved are together never more than the budget, at any instant.

Here: a crowd at a budget on two gateways, with Redis's counter looked at all the while, and what the rows then say.
Further: any order of admissions, settlements and deaths (tests/admission/test_budget_properties.py), instants under
load (tests/admission/test_lease.py), `num_predict` upstream (tests/gateway/test_inference.py), the ledger and its
check (tests/admission/test_ledger.py, tests/admission/test_ledger_check.py), periods
(tests/admission/test_roll_over.py), a Redis that forgot (tests/gateway/test_redis_outage.py).
"""

from typing import Any

import httpx
import trio

from tests.shapes import Shape

BUDGET = 200
CROWD = 24
CHAT = Shape("/api/chat", False)


async def test_a_crowd_on_two_gateways_never_holds_or_spends_more_than_the_budget(
    asyncio_loop: Any, settings: Any, run_gateway: Any, mock_ollama: Any, make_key: Any, books: Any
) -> None:
    auth = {"authorization": f"Bearer {await make_key('frugal', budget_tokens=BUDGET, max_predict=16)}"}
    seen: list[int] = []
    statuses: list[int] = []
    over = trio.Event()

    async def look() -> None:
        while not over.is_set():
            for name in await books.redis.command("KEYS", "gateway:{*}:budget:*"):
                used, reserved = await books.redis.command("HMGET", name, "used", "reserved")
                seen.append(int(used or 0) + int(reserved or 0))
            await trio.lowlevel.checkpoint()

    async def ask(gateway: Any) -> None:
        url = gateway.base_url + "/api/chat"
        statuses.append((await client.post(url, headers=auth, json=CHAT.body("[[ttft:0.02]] rivers"))).status_code)

    async with (
        run_gateway(settings) as one,
        run_gateway(settings) as two,
        httpx.AsyncClient(trust_env=False, timeout=30) as client,
        trio.open_nursery() as looking,
    ):
        looking.start_soon(look)
        async with trio.open_nursery() as nursery:
            for number in range(CROWD):
                nursery.start_soon(ask, (one, two)[number % 2])
        over.set()
    assert set(statuses) == {200, 429}
    assert BUDGET / 2 < max(seen) <= BUDGET
    rows = await books.rows(CROWD)
    spent = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
    assert 0 < spent <= BUDGET
    assert sum((await books.ledger())[:2]) == spent
    await books.settled()
