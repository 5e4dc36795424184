"""Each of a gateway's services crashes on demand: it comes back, and the gateway says how it is meanwhile."""

import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import httpx
import pytest
import trio

from neuronetz import gateway as composition
from neuronetz.gateway import Gateway
from neuronetz.services import supervise

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}

# How a service's run is found in a gateway that was not started yet. A new service needs a row here.
SERVICES: dict[str, Callable[[Gateway], tuple[object, str]]] = {
    "recorder": lambda gateway: (gateway.recorder, "run"),
    "heartbeat": lambda gateway: (gateway.reaper, "run"),
    "discovery": lambda gateway: (gateway.discovery, "run"),
    "policy_listener": lambda gateway: (gateway.listener, "run"),
    "settlement": lambda gateway: (gateway.admission, "settle_unsettled"),
    "partitions": lambda gateway: (gateway.partitions, "run"),
    "prompt_log": lambda gateway: (gateway.prompts, "run"),
    "prompt_purge": lambda gateway: (gateway.prompt_purge, "run"),
    "ledger_check": lambda gateway: (gateway.ledger_check, "run"),
}


class OutOfOrder(Exception):
    """What the services of these tests crash with."""


class Saboteur:
    """Has one service of every gateway crash; ``cured`` lets it run."""

    def __init__(self, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.crashes = 0
        self.cured = False
        made = Gateway.__init__

        def make(gateway: Gateway, *args: Any) -> None:
            made(gateway, *args)
            owner, name = SERVICES[service](gateway)
            monkeypatch.setattr(owner, name, partial(self._run, getattr(owner, name)))

        monkeypatch.setattr(Gateway, "__init__", make)

    async def _run(self, run: Callable[[], Any]) -> None:
        await trio.lowlevel.checkpoint()
        if not self.cured:
            self.crashes += 1
            raise OutOfOrder("with a secret in its text")
        await run()


@pytest.fixture
def quick_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    async def quick(name: str, run: Any, board: Any, *, cap_s: float = 0.0) -> None:
        await supervise(name, run, board, base_s=0.02, cap_s=0.05, healthy_after_s=0.5)

    monkeypatch.setattr(composition, "supervise", quick)


@pytest.fixture
async def open_gateway(asyncio_loop: Any, settings: Any) -> AsyncIterator[Callable[[], Any]]:
    """Starts a gateway without waiting for anything that a crashing service would have to do."""

    async with trio.open_nursery() as nursery:

        async def start() -> Gateway:
            return await nursery.start(run)  # type: ignore[no-any-return]

        async def run(task_status: Any) -> None:
            async with composition.open_gateway(settings) as gateway:
                await gateway.run(stop, task_status=task_status)

        stop = trio.Event()
        yield start
        stop.set()


async def seen(gateway: Gateway, service: str) -> tuple[str, str, dict[str, float]]:
    """Of ``/readyz`` the whole status and the service's; of the metrics what they say of the service."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        ready = (await client.get(gateway.base_url + "/readyz")).json()
        text = (await client.get(gateway.metrics_url)).text
    assert "secret" not in str(ready) + text
    metrics = {
        name: float(value)
        for name, value in re.findall(
            rf'^(gateway_service_\w+\{{.*service="{service}"\}}) (\S+)$', text, re.MULTILINE
        )
    }
    return ready["status"], ready["services"].get(service, "missing"), metrics


async def test_every_service_of_the_gateway_is_in_this_table(gateway: Gateway) -> None:
    assert set(gateway.board.services) == set(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_that_crashes_comes_back_and_says_so_until_it_is_well(
    service: str, open_gateway: Any, quick_supervision: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composition, "_START_PATIENCE_S", 0.1)
    saboteur = Saboteur(service, monkeypatch)
    gateway = await open_gateway()
    with trio.fail_after(5):
        while saboteur.crashes < 4:
            await trio.sleep(0.005)
    # One that keeps failing shows, whenever one looks.
    for _ in range(3):
        status, state, metrics = await seen(gateway, service)
        assert status in ("degraded", "unavailable")
        assert state in ("restarting: OutOfOrder", "recovering: OutOfOrder")
        assert metrics[f'gateway_service_failing{{reason="OutOfOrder",service="{service}"}}'] == 1
        assert metrics[f'gateway_service_up{{service="{service}"}}'] == 0
        assert metrics[f'gateway_service_restarts{{service="{service}"}}'] >= 3
    saboteur.cured = True
    with trio.fail_after(10):
        while (await seen(gateway, service))[1] != "running":
            await trio.sleep(0.02)
    _, state, metrics = await seen(gateway, service)
    assert metrics[f'gateway_service_up{{service="{service}"}}'] == 1
    assert metrics[f'gateway_service_failing{{reason="OutOfOrder",service="{service}"}}'] == 0
    with trio.fail_after(5):
        while (await seen(gateway, service))[0] != "ready":
            await trio.sleep(0.02)


@pytest.mark.parametrize(
    ("service", "answer"),
    [
        # Who cannot say that it lives admits nothing; who knows no models permits none.
        ("heartbeat", 503),
        ("discovery", 403),
        # Rows wait for a recorder, and a listener's absence is bounded by the cache's time.
        ("recorder", 200),
        ("policy_listener", 200),
        ("settlement", 200),
        ("partitions", 200),
    ],
)
async def test_a_gateway_without_a_service_fails_closed_where_it_must(
    service: str,
    answer: int,
    open_gateway: Any,
    quick_supervision: None,
    monkeypatch: pytest.MonkeyPatch,
    make_key: Any,
    books: Any,
) -> None:
    if answer != 200:
        monkeypatch.setattr(composition, "_START_PATIENCE_S", 0.5)
    saboteur = Saboteur(service, monkeypatch)
    gateway = await open_gateway()
    headers = {"authorization": f"Bearer {await make_key()}"}
    if service != "heartbeat":
        with trio.fail_after(10):
            await gateway.reaper.started.wait()
    async with httpx.AsyncClient(base_url=gateway.base_url, headers=headers, trust_env=False) as client:
        assert (await client.post("/api/chat", json=CHAT)).status_code == answer
        saboteur.cured = True
        with trio.fail_after(10):
            while (await client.post("/api/chat", json=CHAT)).status_code != 200:
                await trio.sleep(0.02)
    with trio.fail_after(10):
        while gateway.recorder.waiting or gateway.recorder.open_entries:
            await trio.sleep(0.01)
    await books.settled()


async def test_the_listener_is_never_away_for_long_after_an_outage(
    open_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    caps: dict[str, float] = {}

    async def noted(name: str, run: Any, board: Any, *, cap_s: float = 10.0) -> None:
        caps[name] = cap_s
        await supervise(name, run, board, cap_s=cap_s)

    monkeypatch.setattr(composition, "supervise", noted)
    await open_gateway()
    assert caps["policy_listener"] <= 1.0
    assert set(caps) == set(SERVICES)
