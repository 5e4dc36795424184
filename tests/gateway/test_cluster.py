"""A whole gateway on a Redis Cluster: chat, limits, revocation, and a node that goes and comes back."""

from typing import Any

import httpx
import pytest
import trio

from neuronetz.access.keys import PREFIX_LENGTH
from neuronetz.admission import keyspace
from neuronetz.embedded.valkey_cluster import EmbeddedValkeyCluster
from neuronetz.gateway import Gateway
from neuronetz.settings import Settings
from neuronetz.stores.cluster import slot_of

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}


@pytest.fixture
def redis_url(cluster_url: str) -> str:
    return cluster_url


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"store_timeout_s": 0.5, "heartbeat_s": 0.3, "dead_after_s": 5.0})


async def chat(client: httpx.AsyncClient, key: str) -> httpx.Response:
    return await client.post("/api/chat", json=CHAT, headers={"authorization": f"Bearer {key}"})


async def until_status(client: httpx.AsyncClient, key: str, status: int, within_s: float) -> None:
    with trio.fail_after(within_s):
        while (await chat(client, key)).status_code != status:
            await trio.sleep(0.02)


async def test_chat_limits_and_revocation_work_on_a_cluster(
    client: httpx.AsyncClient, gateway: Gateway, make_key: Any, postgres: Any, books: Any
) -> None:
    keys = [await make_key(f"tenant-{number}", rpm=3, budget_tokens=100_000, concurrency=2) for number in range(4)]
    for key in keys:
        replies = [await chat(client, key) for _ in range(4)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
    other = await make_key("other")
    assert (await chat(client, other)).status_code == 200
    await postgres.execute("INSERT INTO gateway.revocations (prefix) VALUES ($1)", other[:PREFIX_LENGTH])
    await until_status(client, other, 401, 5)
    rows = await books.rows(17)
    assert [row["outcome"] for row in rows].count("rate_limited") == 4
    await books.settled()
    with trio.fail_after(5):
        while await books.copies():
            await trio.sleep(0.02)
    readiness = await gateway.readiness()
    assert (readiness.checks["redis"], readiness.checks["redis_nodes"]) == ("ok", "ok")


async def test_a_node_that_is_away_denies_its_tenants_alone_and_they_come_back(
    client: httpx.AsyncClient,
    gateway: Gateway,
    make_key: Any,
    postgres: Any,
    valkey_cluster: EmbeddedValkeyCluster,
    books: Any,
) -> None:
    heart = valkey_cluster.node_of(slot_of(keyspace.INSTANCES))
    lost = next(node for node in valkey_cluster.nodes if node is not heart)

    async def home(key: str) -> set[Any]:
        prefix = key[:PREFIX_LENGTH]
        tenant = await postgres.fetchval("SELECT tenant_id::text FROM gateway.api_keys WHERE prefix = $1", prefix)
        return {valkey_cluster.node_of(slot_of(name)) for name in (tenant, f"gateway:key:{prefix}")}

    # A key's cached entry and its tenant may lie on different nodes: a request needs both.
    there = elsewhere = ""
    number = 0
    while not (there and elsewhere):
        number += 1
        key = await make_key(f"tenant-{number}", concurrency=3)
        nodes = await home(key)
        if nodes == {lost}:
            there = key
        elif lost not in nodes:
            elsewhere = key
    assert [(await chat(client, key)).status_code for key in (there, elsewhere)] == [200, 200]
    await lost.stop(immediate=True)
    try:
        for _ in range(5):
            denied = await chat(client, there)
            assert denied.status_code == 503
            assert denied.headers["retry-after"]
            assert (await chat(client, elsewhere)).status_code == 200
        readiness = await gateway.readiness()
        assert readiness.status == "degraded"
        assert readiness.checks["redis"] == "ok"
        assert readiness.checks["redis_nodes"] == "1 of 3 nodes away"
    finally:
        await lost.start()
        await valkey_cluster.wait_in_order()
    await until_status(client, there, 200, 15)
    await books.settled(within_s=5)
