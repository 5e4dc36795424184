"""The circuit breaker in a whole gateway: it opens, lets one request probe, and says so."""

import re
from typing import Any

import httpx
import pytest
import trio

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}
FAILING = CHAT | {"messages": [{"role": "user", "content": "[[fail:500]]"}]}
OPEN_S = 30.0


def slow(seconds: float) -> dict[str, Any]:
    return CHAT | {"messages": [{"role": "user", "content": f"[[ttft:{seconds}]]"}]}


class Clock:
    """The breaker's clock, which a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(gateway.breaker, "_clock", clock)
    return clock


async def ask(client: httpx.AsyncClient, body: dict[str, Any] = CHAT) -> httpx.Response:
    return await client.post("/api/chat", json=body)


async def shown(gateway: Any) -> tuple[str, str, str]:
    """What ``/readyz`` says in all and of the upstream, and the state of which the metrics say 1."""
    async with httpx.AsyncClient(trust_env=False) as client:
        ready = await client.get(gateway.base_url + "/readyz")
        text = (await client.get(gateway.metrics_url)).text
    assert ready.status_code == 200
    [state] = re.findall(r'^gateway_breaker_state\{state="(\w+)"\} 1\.0$', text, re.MULTILINE)
    return ready.json()["status"], ready.json()["checks"]["upstream"], state


async def open_it(client: httpx.AsyncClient) -> None:
    for _ in range(5):
        assert (await ask(client, FAILING)).status_code == 502


async def test_five_failures_in_a_row_open_it_and_nothing_goes_upstream_for_its_time(
    gateway: Any, client: httpx.AsyncClient, clock: Clock, mock_ollama: Any, books: Any
) -> None:
    for _ in range(4):
        assert (await ask(client, FAILING)).status_code == 502
    assert (await ask(client)).status_code == 200
    assert await shown(gateway) == ("ready", "ok", "closed")
    await open_it(client)
    assert await shown(gateway) == ("degraded", "breaker_open", "open")
    generated = mock_ollama.stats.requests["/api/chat"]
    clock.now += OPEN_S - 10
    reply = await ask(client)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "10")
    assert reply.json() == {"error": "upstream is failing: circuit open"}
    assert mock_ollama.stats.requests["/api/chat"] == generated
    rows = await books.rows(11)
    assert rows[-1]["outcome"] == "breaker_open"
    assert (rows[-1]["prompt_tokens"], rows[-1]["completion_tokens"]) == (0, 0)
    await books.settled()


async def test_after_its_time_one_request_probes_while_others_are_refused(
    gateway: Any, client: httpx.AsyncClient, clock: Clock, mock_ollama: Any
) -> None:
    await open_it(client)
    clock.now += OPEN_S
    assert await shown(gateway) == ("degraded", "breaker_half_open", "half_open")
    generated = mock_ollama.stats.requests["/api/chat"]
    statuses: list[int] = []

    async def one() -> None:
        statuses.append((await ask(client, slow(2.5))).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(one)
        with trio.fail_after(5):
            while len(statuses) < 7:
                await trio.sleep(0.005)
        assert statuses == [503] * 7
        assert mock_ollama.stats.requests["/api/chat"] == generated + 1
        assert await shown(gateway) == ("degraded", "breaker_half_open", "half_open")
    assert statuses[-1] == 200
    assert await shown(gateway) == ("ready", "ok", "closed")
    assert (await ask(client)).status_code == 200


async def test_a_failed_probe_opens_it_for_the_whole_time_again(
    gateway: Any, client: httpx.AsyncClient, clock: Clock
) -> None:
    await open_it(client)
    clock.now += OPEN_S
    assert (await ask(client, FAILING)).status_code == 502
    assert await shown(gateway) == ("degraded", "breaker_open", "open")
    clock.now += OPEN_S - 1
    assert (await ask(client)).status_code == 503
    clock.now += 1
    assert (await ask(client)).status_code == 200
    assert await shown(gateway) == ("ready", "ok", "closed")


async def test_a_probe_whose_client_leaves_gives_its_place_to_the_next(
    gateway: Any, client: httpx.AsyncClient, clock: Clock, mock_ollama: Any, books: Any
) -> None:
    await open_it(client)
    clock.now += OPEN_S
    with trio.move_on_after(5) as leaving:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, client, slow(30))
            while mock_ollama.stats.open == 0:
                await trio.sleep(0.005)
            leaving.cancel()
    rows = await books.rows(6)
    assert rows[-1]["outcome"] == "client_disconnected"
    assert await shown(gateway) == ("degraded", "breaker_half_open", "half_open")
    assert (await ask(client)).status_code == 200
    assert await shown(gateway) == ("ready", "ok", "closed")


async def test_an_upstream_that_is_gone_opens_it_and_one_that_is_back_closes_it(
    gateway: Any, client: httpx.AsyncClient, clock: Clock, mock_ollama: Any
) -> None:
    await mock_ollama.stop()
    assert [(await ask(client)).status_code for _ in range(6)] == [502] * 5 + [503]
    await mock_ollama.start()
    assert (await ask(client)).status_code == 503
    clock.now += OPEN_S
    assert (await ask(client)).status_code == 200
    assert (await shown(gateway))[1:] == ("ok", "closed")
