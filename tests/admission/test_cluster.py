"""Admission while a node of a cluster is away, while one fails over, while a slot is moved."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
import trio

from neuronetz.admission import keyspace
from neuronetz.admission.admission import Admission
from neuronetz.admission.reaper import Reaper
from neuronetz.embedded.valkey_cluster import EmbeddedValkeyCluster
from neuronetz.errors import RateLimited, StoreUnavailable, Unavailable
from neuronetz.policy import Limits
from neuronetz.stores.cluster import slot_of
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis, open_redis

LIMITS = Limits(rpm=500, budget_tokens=100_000, concurrency=50)


def final_row() -> bytes:
    return b'{"outcome":"ok"}'


@pytest.fixture
async def lone_redis(own_cluster: EmbeddedValkeyCluster) -> AsyncIterator[Redis]:
    async with open_redis(own_cluster.url(), size=8, timeout_s=0.5) as redis:
        yield redis


@pytest.fixture
def lone_admission(lone_redis: Redis, postgres: Postgres) -> Admission:
    return Admission(lone_redis, postgres, instance="one", cleanup_timeout_s=0.5, store_timeout_s=0.5)


@pytest.fixture
def lone_desk(lone_redis: Redis, open_desk: Callable[[Redis], Any]) -> Any:
    return open_desk(lone_redis)


@pytest.fixture
def homes(own_cluster: EmbeddedValkeyCluster, lone_desk: Any, on_node: Callable[..., str]) -> list[Any]:
    """A tenant on each node; the node of the last has the heartbeats too."""
    cluster = own_cluster
    heart = cluster.nodes.index(cluster.node_of(slot_of(keyspace.INSTANCES)))
    order = [number for number in range(3) if number != heart] + [heart]
    return [
        lone_desk.principal(LIMITS, LIMITS, tenant_id=on_node(cluster, number, lambda: str(uuid4())))
        for number in order
    ]


def node_of(cluster: EmbeddedValkeyCluster, principal: Any) -> Any:
    return cluster.node_of(slot_of(principal.tenant_id))


async def admitted(desk: Any, admission: Admission, principal: Any) -> bool:
    ask = desk.ask(principal)
    try:
        async with admission.lease(ask, stub=desk.stub(ask), final_row=final_row):
            return True
    except Unavailable:
        return False
    except RateLimited:
        return True  # asked often enough for that, it was checked all the same


async def until(check: Callable[[], Awaitable[bool]], within_s: float = 30.0) -> None:
    with trio.fail_after(within_s):
        while not await check():
            await trio.sleep(0.05)


async def drained(admission: Admission) -> bool:
    return not admission.unsettled


async def test_all_keys_of_a_tenant_lie_on_its_node_and_tenants_on_different_ones(
    own_cluster: EmbeddedValkeyCluster, lone_desk: Any, lone_admission: Admission, homes: list[Any]
) -> None:
    for principal in homes:
        assert await admitted(lone_desk, lone_admission, principal)
    for principal in homes:
        for node in own_cluster.nodes:
            count = (
                await node.ask(
                    "EVAL", "'return #redis.call(\"KEYS\",ARGV[1])'", "0", "*" + principal.tenant_id + "*"
                )
            ).strip()
            assert (count == ":0") == (node is not node_of(own_cluster, principal))
    assert len({node_of(own_cluster, principal).port for principal in homes}) == 3


@pytest.mark.parametrize("how", ["stopped", "hung"])
async def test_with_one_node_away_its_tenants_are_denied_and_all_others_go_on(
    own_cluster: EmbeddedValkeyCluster,
    lone_redis: Redis,
    lone_desk: Any,
    lone_admission: Admission,
    homes: list[Any],
    how: str,
) -> None:
    lost, *others = homes
    node = node_of(own_cluster, lost)
    reaper = Reaper(
        lone_redis,
        instance="one",
        admission=lone_admission,
        adopt=lambda rows: None,
        heartbeat_s=0.1,
        dead_after_s=1.0,
    )
    await reaper.beat()
    held = lone_desk.ask(others[0])
    for principal in homes:
        assert await admitted(lone_desk, lone_admission, principal)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lone_admission.settle_unsettled)
        nursery.start_soon(reaper.run)
        async with lone_admission.lease(held, stub=lone_desk.stub(held), final_row=final_row):
            if how == "stopped":
                await node.stop(immediate=True)
            else:
                node.pause()
            began = trio.current_time()
            while trio.current_time() < began + 1.5:
                assert not await admitted(lone_desk, lone_admission, lost)
                for principal in others:
                    assert await admitted(lone_desk, lone_admission, principal)
            # A new tenant of a living node is let in as well.
            new = lone_desk.principal(LIMITS, tenant_id=str(uuid4()))
            while node_of(own_cluster, new) is node:
                new = lone_desk.principal(LIMITS, tenant_id=str(uuid4()))
            assert await admitted(lone_desk, lone_admission, new)
        assert await lone_desk.slots(others[0]) == (0, 0)
        # Of what was refused, only what may have been sent has to be taken back.
        assert len(lone_admission.unsettled) <= 2
        if how == "stopped":
            await node.start()
        node.resume()
        await until(lambda: admitted(lone_desk, lone_admission, lost))
        await until(lambda: drained(lone_admission))
        nursery.cancel_scope.cancel()
    for principal in homes:
        assert await lone_desk.slots(principal) == (0, 0)
        assert await lone_desk.leases(principal) == 0


async def test_an_admission_of_unknown_fate_is_taken_back_where_it_would_arrive(
    own_cluster: EmbeddedValkeyCluster, lone_desk: Any, lone_admission: Admission, homes: list[Any]
) -> None:
    lost = homes[0]
    node = node_of(own_cluster, lost)
    assert await admitted(lone_desk, lone_admission, lost)
    node.pause()
    ask = lone_desk.ask(lost)
    try:
        with pytest.raises(Unavailable):
            async with lone_admission.lease(ask, stub=lone_desk.stub(ask), final_row=final_row):
                pytest.fail("admitted")
        assert [kept.request_id for kept in lone_admission.unsettled] == [ask.request_id]
    finally:
        node.resume()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lone_admission.settle_unsettled)
        await until(lambda: drained(lone_admission))
        nursery.cancel_scope.cancel()
    assert await lone_desk.slots(lost) == (0, 0)
    tombstone = keyspace.aborted(lost.tenant_id, ask.request_id)
    assert await lone_desk.redis.command("EXISTS", tombstone) == 1
    assert lone_desk.redis.place(tombstone) == lone_desk.redis.place(keyspace.slots(lost.tenant_id))


async def test_settlements_of_a_node_that_is_away_hold_up_no_others(
    own_cluster: EmbeddedValkeyCluster, lone_desk: Any, lone_admission: Admission, homes: list[Any]
) -> None:
    first, second = homes[:2]
    nodes = [node_of(own_cluster, principal) for principal in (first, second)]
    asks = [lone_desk.ask(first), lone_desk.ask(second)]
    leases = [lone_admission.lease(ask, stub=lone_desk.stub(ask), final_row=final_row) for ask in asks]
    for lease in leases:
        await lease.__aenter__()
    for node in nodes:
        node.pause()
    for lease in leases:
        await lease.__aexit__(None, None, None)
    assert len(lone_admission.unsettled) == 2
    nodes[1].resume()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lone_admission.settle_unsettled)
        await until(lambda: free(lone_desk, second))
        assert [kept.request_id for kept in lone_admission.unsettled] == [asks[0].request_id]
        nodes[0].resume()
        await until(lambda: drained(lone_admission))
        nursery.cancel_scope.cancel()
    assert await lone_desk.slots(first) == (0, 0)


async def free(desk: Any, principal: Any) -> bool:
    try:
        return bool(await desk.slots(principal) == (0, 0))
    except StoreUnavailable:
        return False


async def test_what_a_dead_instance_holds_elsewhere_is_reaped_while_a_node_is_away(
    own_cluster: EmbeddedValkeyCluster,
    lone_redis: Redis,
    postgres: Postgres,
    lone_desk: Any,
    lone_admission: Admission,
    homes: list[Any],
) -> None:
    dead = Admission(lone_redis, postgres, instance="dead", cleanup_timeout_s=1, store_timeout_s=1)
    for principal in homes:
        ask = lone_desk.ask(principal)
        await dead.lease(ask, stub=lone_desk.stub(ask), final_row=final_row).__aenter__()
    adopted: list[bytes] = []
    reaper = Reaper(
        lone_redis,
        instance="one",
        admission=lone_admission,
        adopt=adopted.extend,
        heartbeat_s=5.0,
        dead_after_s=15.0,
    )
    lost = homes[0]
    node = node_of(own_cluster, lost)
    now_ms = await lone_desk.now_ms()
    await lone_redis.command("ZADD", keyspace.INSTANCES, now_ms - 20_000, "dead")
    node.pause()
    try:
        with pytest.raises(StoreUnavailable):
            await reaper.reap("dead", now_ms)
        for principal in homes[1:]:
            assert await lone_desk.slots(principal) == (0, 0)
        assert len(adopted) == 2
        assert await lone_redis.command("ZSCORE", keyspace.INSTANCES, "dead") is not None
    finally:
        node.resume()

    async def reaped() -> bool:
        try:
            await reaper.reap("dead", now_ms)
        except StoreUnavailable:
            return False
        return True

    await until(reaped)
    assert await lone_desk.slots(lost) == (0, 0)
    assert len(adopted) == 3
    assert await lone_redis.command("ZSCORE", keyspace.INSTANCES, "dead") is None


async def test_a_lease_is_settled_at_the_replica_that_took_over(
    own_cluster: EmbeddedValkeyCluster, lone_desk: Any, lone_admission: Admission, homes: list[Any]
) -> None:
    lost = homes[0]
    node = node_of(own_cluster, lost)
    replica = await own_cluster.add_replica(node)
    ask = lone_desk.ask(lost)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lone_admission.settle_unsettled)
        async with lone_admission.lease(ask, stub=lone_desk.stub(ask), final_row=final_row) as lease:
            lease.used(10, 20)
            assert (await node.ask("WAIT", "1", "5000")).startswith(":")
            await until(lambda: caught_up(node, replica))
            await node.stop(immediate=True)
            assert not await admitted(lone_desk, lone_admission, lost)
        await until(lambda: drained(lone_admission))
        nursery.cancel_scope.cancel()
    assert lone_desk.redis.place(keyspace.slots(lost.tenant_id)).endswith(f"{replica.port})")
    assert await lone_desk.slots(lost) == (0, 0)
    assert await lone_desk.leases(lost) == 0
    assert await lone_desk.budgets(lost, await lone_desk.now_ms()) == [(30, 0), (30, 0)]
    assert await admitted(lone_desk, lone_admission, lost)


async def test_a_replica_takes_over_from_a_node_that_was_only_learnt(
    own_cluster: EmbeddedValkeyCluster, asyncio_loop: Any, postgres: Postgres, homes: list[Any]
) -> None:
    """The URL names one node; the one that fails is known from the cluster alone, and is forgotten with it."""
    lost = homes[0]
    node = node_of(own_cluster, lost)
    replica = await own_cluster.add_replica(node)
    seed = next(other for other in own_cluster.nodes if other is not node and other is not replica)
    async with open_redis(f"redis+cluster://127.0.0.1:{seed.port}", size=4, timeout_s=1.0) as redis:
        key = keyspace.slots(lost.tenant_id)
        await redis.command("SADD", key, "one")
        assert (await node.ask("WAIT", "1", "5000")).startswith(":")
        await until(lambda: caught_up(node, replica))
        await node.stop(immediate=True)

        async def served_again() -> bool:
            try:
                return bool(await redis.command("SCARD", key) == 1)
            except StoreUnavailable:
                return False

        await until(served_again)
        assert redis.place(key).endswith(f"{replica.port})")


async def caught_up(primary: Any, replica: Any) -> bool:
    return bool(await primary.ask("DBSIZE") == await replica.ask("DBSIZE"))


async def test_while_a_slot_is_moved_key_by_key_nothing_is_half_done(
    own_cluster: EmbeddedValkeyCluster, lone_redis: Redis, postgres: Postgres, lone_desk: Any, homes: list[Any]
) -> None:
    """What scripts name without declaring it (the slots of a dead instance's keys) may have moved already."""
    principal = homes[0]
    tenant = principal.tenant_id
    source, target = node_of(own_cluster, principal), node_of(own_cluster, homes[1])
    dead = Admission(lone_redis, postgres, instance="dead", cleanup_timeout_s=1, store_timeout_s=1)
    one = Admission(lone_redis, postgres, instance="one", cleanup_timeout_s=1, store_timeout_s=1)
    asks = [lone_desk.ask(principal) for _ in range(3)]
    await dead.lease(asks[0], stub=lone_desk.stub(asks[0]), final_row=final_row).__aenter__()
    async with one.lease(asks[1], stub=lone_desk.stub(asks[1]), final_row=final_row):
        pass
    reaper = Reaper(
        lone_redis, instance="one", admission=one, adopt=lambda _: None, heartbeat_s=5, dead_after_s=15
    )
    slot = str(slot_of(tenant))
    await target.tell("CLUSTER", "SETSLOT", slot, "IMPORTING", await source.node_id())
    await source.tell("CLUSTER", "SETSLOT", slot, "MIGRATING", await target.node_id())
    await source.tell(
        "MIGRATE", "127.0.0.1", str(target.port), keyspace.slots(tenant, principal.key_id), "0", "5000"
    )
    now_ms = await lone_desk.now_ms()
    with pytest.raises(StoreUnavailable):
        await reaper.reap("dead", now_ms)
    assert await lone_desk.leases(principal, "dead") == 1
    assert await lone_desk.slots(principal) == (1, 1)
    assert not await admitted(lone_desk, one, principal)
    assert not one.unsettled

    keys = [name.decode() for name in await lone_redis.command("KEYS", f"*{tenant}*")]
    for key in keys:
        assert (await source.ask("MIGRATE", "127.0.0.1", str(target.port), key, "0", "5000")).startswith("+")
    for node in (target, *own_cluster.nodes):
        await node.tell("CLUSTER", "SETSLOT", slot, "NODE", await target.node_id())
    await reaper.reap("dead", now_ms)
    assert await lone_desk.slots(principal) == (0, 0)
    assert await lone_desk.budgets(principal, now_ms) == [(0, 0), (0, 0)]
    assert await admitted(lone_desk, one, principal)
    assert not one.unsettled
