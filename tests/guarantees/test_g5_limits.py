"""G5, limits: never more than N admitted in any 60 s, nor N at once, over all processes; a refusal took nothing.

Here: a crowd on two gateways against one key, with the slots looked at all the while. Further: any 60 s
(tests/admission/test_rate.py), all or nothing (tests/admission/test_admit.py), keys and tenants
(tests/gateway/test_limits.py), whole processes (tests/local/test_workers.py, tests/local/test_serve.py).
"""

from typing import Any

import httpx
import trio

from tests.shapes import Shape

RATE = 12
SLOTS = 3
CROWD = 24
CHAT = Shape("/api/chat", False)


async def test_a_crowd_on_two_gateways_is_held_to_the_limits_and_a_refusal_costs_nothing(
    asyncio_loop: Any, settings: Any, run_gateway: Any, mock_ollama: Any, make_key: Any, books: Any
) -> None:
    auth = {"authorization": f"Bearer {await make_key('busy', rpm=RATE, concurrency=SLOTS)}"}
    seen: list[int] = []
    outcomes: list[int] = []
    over = trio.Event()

    async def look() -> None:
        while not over.is_set():
            seen.append(await books.slots())
            await trio.lowlevel.checkpoint()

    async def ask(gateway: Any) -> None:
        url = gateway.base_url + "/api/chat"
        outcomes.append((await client.post(url, headers=auth, json=CHAT.body("[[ttft:0.3]] rivers"))).status_code)

    async with (
        run_gateway(settings) as one,
        run_gateway(settings) as two,
        httpx.AsyncClient(trust_env=False, timeout=30) as client,
        trio.open_nursery() as looking,
    ):
        looking.start_soon(look)
        # The first crowd is refused for want of slots. Were that counted as rate, the others would find none.
        for crowd in (CROWD, *[SLOTS] * 3):
            async with trio.open_nursery() as nursery:
                for number in range(crowd):
                    nursery.start_soon(ask, (one, two)[number % 2])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, one)
        over.set()
    assert max(seen) == SLOTS
    assert outcomes.count(200) == RATE
    assert outcomes[-1] == 429
    await books.settled()
