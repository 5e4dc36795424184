"""The metrics by which an operator sees that a guarantee holds, or does not."""

from typing import Any

import pytest
import trio

from neuronetz.admission import keyspace
from neuronetz.errors import GatewayError
from neuronetz.exchange.registry import Running
from neuronetz.telemetry.metrics import CAUSES
from tests.shapes import Shape

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}
LONG = "[[tokens:1000]] [[tps:100]] rivers"


def value(gateway: Any, name: str, **labels: str) -> float:
    gateway.read_gauges()
    found = gateway.metrics.registry.get_sample_value(name, labels)
    assert found is not None, (name, labels)
    return float(found)


async def unwound(gateway: Any, cause: str) -> float:
    """How long the one exchange that ended for ``cause`` took to give everything back."""
    with trio.fail_after(5):
        while not value(gateway, "gateway_unwinding_seconds_count", cause=cause):
            await trio.sleep(0.005)
    assert value(gateway, "gateway_unwinding_seconds_count", cause=cause) == 1
    return value(gateway, "gateway_unwinding_seconds_sum", cause=cause)


async def streaming(gateway: Any, key: str, prompt: str = LONG) -> trio.SocketStream:
    client = await trio.open_tcp_stream("127.0.0.1", int(gateway.base_url.rsplit(":", 1)[1]))
    await client.send_all(Shape("/api/chat", True).request(key, prompt))
    await client.receive_some()
    return client


def test_the_causes_of_cancellations_are_outcomes_of_errors_and_each_is_exposed_from_the_start() -> None:
    from neuronetz import errors
    from neuronetz.telemetry.metrics import Metrics

    outcomes = {
        each.outcome for each in vars(errors).values() if isinstance(each, type) and issubclass(each, GatewayError)
    }
    assert set(CAUSES) <= outcomes
    text = Metrics().exposition().decode()
    assert all(f'gateway_cancellations_total{{cause="{cause}"}} 0.0' in text for cause in CAUSES)


async def test_a_completed_request_unwinds_nothing(client: Any, gateway: Any) -> None:
    assert (await client.post("/api/chat", json=CHAT)).status_code == 200
    text = gateway.exposition().decode()
    assert "gateway_unwinding_seconds_count" in text
    assert not [
        line
        for line in text.splitlines()
        if line.startswith("gateway_unwinding_seconds_count") and line[-3:] != "0.0"
    ]


async def test_a_client_that_leaves(gateway: Any, key: str, books: Any) -> None:
    await trio.aclose_forcefully(await streaming(gateway, key))
    took_s = await unwound(gateway, "client_disconnected")
    assert 0 < took_s < 2
    assert await books.leases() == 0
    assert value(gateway, "gateway_cancellations_total", cause="client_disconnected") == 1


async def test_a_settlement_that_takes_long_shows(gateway: Any, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settle = gateway.admission._settler.settle

    async def slowly(settlement: Any) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.3)
        await settle(settlement)

    monkeypatch.setattr(gateway.admission._settler, "settle", slowly)
    await trio.aclose_forcefully(await streaming(gateway, key))
    assert await unwound(gateway, "client_disconnected") >= 0.3
    assert value(gateway, "gateway_unwinding_seconds_bucket", cause="client_disconnected", le="0.25") == 0


async def test_a_revocation_cuts_its_streams_and_tells_how_late_it_was(
    gateway: Any, key: str, postgres: Any
) -> None:
    with trio.fail_after(5):
        await gateway.listener.listening.wait()
    async with await streaming(gateway, key):
        await postgres.execute("INSERT INTO gateway.revocations (prefix) VALUES ($1)", key[:12])
        await unwound(gateway, "revoked")
    with trio.fail_after(5):
        while not value(gateway, "gateway_revocation_lag_seconds_count"):
            await trio.sleep(0.005)
    assert 0 < value(gateway, "gateway_revocation_lag_seconds_sum") < 5


async def test_a_revocation_of_a_while_ago_is_late_and_told_once(gateway: Any, key: str, postgres: Any) -> None:
    with trio.fail_after(5):
        await gateway.listener.listening.wait()
    await postgres.execute(
        "INSERT INTO gateway.revocations (prefix, created_at) VALUES ($1, now() - interval '40 seconds')", key[:12]
    )
    with trio.fail_after(5):
        while not value(gateway, "gateway_revocation_lag_seconds_count"):
            await trio.sleep(0.005)
    assert value(gateway, "gateway_revocation_lag_seconds_bucket", le="30.0") == 0
    assert value(gateway, "gateway_revocation_lag_seconds_bucket", le="60.0") == 1
    listening = gateway.listener.listening
    await postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'neuronetz listener' AND datname = current_database()"
    )
    with trio.fail_after(10):
        while gateway.listener.listening is listening or not gateway.listener.listening.is_set():
            await trio.sleep(0.005)
    assert value(gateway, "gateway_revocation_lag_seconds_count") == 1


async def test_an_upstream_that_fails_counts_as_other(client: Any, gateway: Any) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": "[[fail:500]]"}]}
    assert (await client.post("/api/chat", json=body)).status_code == 502
    assert await unwound(gateway, "other") < 2
    assert sum(value(gateway, "gateway_cancellations_total", cause=cause) for cause in CAUSES) == 0


async def test_a_handler_that_fails(client: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any) -> str:
        raise RuntimeError("a bug")

    monkeypatch.setattr(gateway.discovery, "resolve", explode)
    assert (await client.post("/api/chat", json=CHAT)).status_code == 500
    await unwound(gateway, "internal_error")
    assert value(gateway, "gateway_cancellations_total", cause="internal_error") == 1


async def test_a_refusal_before_admission_unwinds_nothing(gateway: Any, make_key: Any) -> None:
    import httpx

    key = await make_key("slow", rpm=1)
    async with httpx.AsyncClient(trust_env=False, headers={"authorization": f"Bearer {key}"}) as client:
        statuses = [(await client.get(gateway.base_url + "/api/tags")).status_code for _ in range(2)]
    assert statuses == [200, 429]
    assert value(gateway, "gateway_unwinding_seconds_count", cause="other") == 0


async def test_since_when_an_exchange_unwinds() -> None:
    now = trio.current_time()
    stopped, late, cut = (Running(now + seconds) for seconds in (100, -3, 100))
    stopped.stop(GatewayError())
    before = stopped.since(trio.Cancelled._create())
    assert now <= before
    await trio.sleep(0.01)
    assert stopped.since(trio.Cancelled._create()) == before, "the moment it was stopped, however late it is asked"
    assert stopped.since(GatewayError()) > before, "an error of its own is of now"
    assert late.since(trio.Cancelled._create()) == now - 3, "the deadline"
    assert cut.since(trio.Cancelled._create()) >= now + 0.01, "cut down from outside, nobody knows when"


async def test_an_instance_that_lives_says_so_and_one_that_does_not_too(gateway: Any) -> None:
    assert value(gateway, "gateway_alive") == 1
    assert 0 <= value(gateway, "gateway_heartbeat_age_seconds") < value(gateway, "gateway_heartbeat_limit_seconds")
    gateway.admission.alive_until = trio.current_time() - 1
    assert value(gateway, "gateway_alive") == 0
    assert value(gateway, "gateway_heartbeat_age_seconds") > value(gateway, "gateway_heartbeat_limit_seconds")


async def test_what_dead_instances_left_is_counted(gateway: Any, redis: Any) -> None:
    tenant = "00000000-0000-0000-0000-000000000001"
    for request in ("one", "two"):
        await redis.command("HSET", keyspace.leases(tenant, "gone"), request, "key|1|0|0|1||||")
    await redis.command("SADD", keyspace.instance_tenants("gone"), tenant)
    await gateway.reaper.reap("gone", 1)
    assert value(gateway, "gateway_reaped_instances_total") == 1
    assert value(gateway, "gateway_reaped_leases_total") == 2


async def test_rows_that_were_committed_are_counted(client: Any, gateway: Any, books: Any) -> None:
    for _ in range(3):
        await client.post("/api/chat", json=CHAT)
    await books.rows(3)
    with trio.fail_after(5):
        while value(gateway, "gateway_audit_committed_total") < 3:
            await trio.sleep(0.005)


async def test_a_budget_that_is_overspent_shows_after_the_next_round(
    gateway: Any, make_key: Any, postgres: Any, books: Any, redis: Any
) -> None:
    import httpx

    key = await make_key("thrifty", budget_tokens=10**6)
    async with httpx.AsyncClient(trust_env=False, headers={"authorization": f"Bearer {key}"}) as client:
        await client.post(gateway.base_url + "/api/chat", json=CHAT)
    [row] = await books.rows(1)

    async def overspent() -> float:
        for name in await redis.command("KEYS", "*:checked"):
            await redis.command("DEL", name)
        await gateway.ledger_check.round()
        return value(gateway, "gateway_budget_overspent_tokens", scope="tenant")

    assert await overspent() == 0
    await postgres.execute("UPDATE gateway.tenant_limits SET budget_tokens = 1")
    assert await overspent() == row["prompt_tokens"] + row["completion_tokens"] - 1


async def test_a_drain_says_how_long_it_has_been(settings: Any, asyncio_loop: Any) -> None:
    from neuronetz.gateway import open_gateway

    stop = trio.Event()
    async with open_gateway(settings) as gateway, trio.open_nursery() as nursery:
        await nursery.start(gateway.run, stop)
        assert value(gateway, "gateway_draining_seconds") == 0
        assert value(gateway, "gateway_models_fresh") == 1
        assert value(gateway, "gateway_connections_limit") == settings.max_connections
        stop.set()
        with trio.fail_after(5):
            while value(gateway, "gateway_draining_seconds") == 0:
                await trio.sleep(0.001)
        assert (
            value(gateway, "gateway_drain_limit_seconds") == settings.drain_timeout_s + settings.cleanup_timeout_s
        )
