"""The Redis store before three real nodes: what concerns one node is its own keys' trouble alone."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import pytest
import trio

from neuronetz.embedded.valkey_cluster import ClusterNode, EmbeddedValkeyCluster
from neuronetz.errors import StoreUnavailable
from neuronetz.stores.cluster import slot_of
from neuronetz.stores.redis import ClusterRedis, Redis, Script, open_redis

NOT_KNOWN_YET = Script("once", "return {KEYS[1], ARGV[1]}")
Keys = Callable[..., list[str]]


@pytest.fixture
async def clustered(asyncio_loop: Any, cluster_url: str) -> AsyncIterator[Redis]:
    async with open_redis(cluster_url, size=4, timeout_s=0.5) as redis:
        yield redis


@pytest.fixture
def keys(valkey_cluster: EmbeddedValkeyCluster, on_node: Callable[..., str]) -> list[str]:
    """One key on each node."""
    return [on_node(valkey_cluster, number, lambda: f"k:{uuid4()}") for number in range(3)]


@pytest.fixture
def away(
    valkey_cluster: EmbeddedValkeyCluster,
) -> Callable[[int, str], AbstractAsyncContextManager[ClusterNode]]:
    """A node stopped or hung for the length of a block, and back in order behind it."""

    @asynccontextmanager
    async def block(number: int, how: str) -> AsyncIterator[ClusterNode]:
        node = valkey_cluster.nodes[number]
        if how == "stopped":
            await node.stop(immediate=True)
        else:
            node.pause()
        try:
            yield node
        finally:
            with trio.CancelScope(shield=True):
                if how == "stopped":
                    await node.start()
                node.resume()
                await valkey_cluster.wait_in_order()

    return block


async def walked(redis: Redis, pattern: str, found: list[bytes] | None = None) -> list[bytes]:
    found = [] if found is None else found

    async def visit(names: list[bytes]) -> None:
        found.extend(names)

    await redis.scan(pattern, visit)
    return found


async def test_commands_scripts_and_pipelines_reach_the_nodes_of_their_keys(
    clustered: Redis, valkey_cluster: EmbeddedValkeyCluster, keys: list[str]
) -> None:
    for key in keys:
        await clustered.command("SET", key, key)
    assert await clustered.pipeline([("GET", key) for key in keys * 2]) == [key.encode() for key in keys] * 2
    for node in valkey_cluster.nodes:
        assert (await node.ask("DBSIZE")).strip() == ":1"
    assert await clustered.command("DBSIZE") == 3
    assert sorted(await clustered.command("KEYS", "k:*")) == sorted(key.encode() for key in keys)
    assert await clustered.command("PING")
    assert not clustered.follows
    assert await clustered.read_followed(("GET", keys[0]), ("PTTL", keys[0])) == ([keys[0].encode(), -1], False)
    assert len({clustered.place(key) for key in keys}) == 3


async def test_each_node_learns_a_script_by_itself(clustered: Redis, keys: list[str]) -> None:
    script = Script("fresh", f"-- {uuid4()}\n{NOT_KNOWN_YET.text}")
    for _ in range(2):
        for key in keys:
            assert await clustered.script(script, (key,), ("x",)) == [key.encode(), b"x"]


async def test_an_error_of_one_command_is_raised_after_all_were_run(clustered: Redis, keys: list[str]) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        await clustered.pipeline([("SET", keys[0], "1"), ("HGET", keys[0], "f"), ("SET", keys[2], "2")])
    assert caught.value.reason == "ResponseError"
    assert await clustered.command("GET", keys[2]) == b"2"


async def test_keys_of_several_slots_are_refused_in_one_command(clustered: Redis, keys: list[str]) -> None:
    with pytest.raises(StoreUnavailable):
        await clustered.command("MGET", *keys)


async def test_a_scan_walks_all_nodes(clustered: Redis) -> None:
    await clustered.pipeline([("SET", f"walk:{number}", "1") for number in range(2500)])
    await clustered.command("SET", "other", "1")
    found = await walked(clustered, "walk:*")
    assert len(found) == 2500
    assert set(found) == {f"walk:{number}".encode() for number in range(2500)}


async def test_a_call_waits_for_a_connection_where_all_are_busy(clustered: Redis, keys: list[str]) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(clustered.command, "INCR", keys[0])
    assert await clustered.command("GET", keys[0]) == b"50"


@pytest.mark.parametrize("how", ["stopped", "hung"])
async def test_a_node_that_is_away_fails_its_own_keys_alone_and_recovers(
    clustered: Redis, keys: list[str], away: Any, how: str
) -> None:
    assert isinstance(clustered, ClusterRedis)
    for key in keys:
        await clustered.command("SET", key, "1")
    await clustered.check_nodes()
    async with away(1, how):
        for _ in range(3):
            with pytest.raises(StoreUnavailable) as caught:
                await clustered.command("GET", keys[1])
            with trio.fail_after(0.4):
                assert await clustered.command("INCR", keys[0])
                assert await clustered.command("INCR", keys[2])
        # By now it is known to be away: nothing is sent, so that nothing can be carried out late.
        assert not caught.value.sent
        with pytest.raises(StoreUnavailable, match="1 of 3 nodes away"):
            await clustered.check_nodes()
        with pytest.raises(StoreUnavailable):
            await clustered.pipeline([("INCR", key) for key in keys])
        assert await clustered.command("GET", keys[2]) == b"5"
        found: list[bytes] = []

        with pytest.raises(StoreUnavailable):
            await walked(clustered, "k:*", found)
        assert set(found) >= {keys[0].encode(), keys[2].encode()}
    with trio.fail_after(10):
        while True:
            try:
                await clustered.command("SET", keys[1], "back")
                break
            except StoreUnavailable:
                await trio.sleep(0.05)
    await clustered.check_nodes()


async def test_a_cancelled_call_leaves_the_calls_of_others_alone(
    clustered: Redis, keys: list[str], away: Any
) -> None:
    await clustered.command("SET", keys[0], "1")
    async with away(1, "hung"), trio.open_nursery() as nursery:
        done = []

        async def steady() -> None:
            for _ in range(100):
                done.append(await clustered.command("INCR", keys[0]))

        nursery.start_soon(steady)
        for _ in range(20):
            # Python 3.11's asyncio may lose a cancellation, so that the call ends at its own deadline.
            with trio.move_on_after(0.005), suppress(StoreUnavailable):
                await clustered.command("GET", keys[1])
    assert done == list(range(2, 102))


async def test_a_server_that_is_no_cluster_is_an_error(asyncio_loop: Any, valkey_server: Any) -> None:
    async with open_redis("redis+cluster://127.0.0.1:1", size=1, timeout_s=0.3) as redis:
        with pytest.raises(StoreUnavailable) as caught:
            await redis.command("GET", "k")
    assert caught.value.store == "redis"


async def move(cluster: EmbeddedValkeyCluster, slot: int, source: int, target: int, keys: list[str]) -> None:
    """Begin to move a slot, key by key: some of its keys have gone, the slot has not."""
    old, new = cluster.nodes[source], cluster.nodes[target]
    await new.tell("CLUSTER", "SETSLOT", str(slot), "IMPORTING", await old.node_id())
    await old.tell("CLUSTER", "SETSLOT", str(slot), "MIGRATING", await new.node_id())
    for key in keys:
        await old.tell("MIGRATE", "127.0.0.1", str(new.port), key, "0", "5000")


async def end_move(cluster: EmbeddedValkeyCluster, slot: int, target: int) -> None:
    name = await cluster.nodes[target].node_id()
    for node in (cluster.nodes[target], *cluster.nodes):
        await node.tell("CLUSTER", "SETSLOT", str(slot), "NODE", name)


async def test_a_slot_that_is_being_moved_is_followed(
    own_cluster: EmbeddedValkeyCluster, on_node: Callable[..., str]
) -> None:
    tag = on_node(own_cluster, 0, lambda: str(uuid4()))
    here, gone = f"{{{tag}}}:here", f"{{{tag}}}:gone"
    both = Script("both", "return {redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])}")
    async with open_redis(own_cluster.url(), size=4, timeout_s=2.0) as redis:
        for key in (here, gone):
            await redis.command("SET", key, "1")
        await move(own_cluster, slot_of(tag), 0, 1, [gone])
        assert await redis.command("GET", gone) == b"1"
        assert await redis.command("GET", here) == b"1"
        assert await redis.pipeline([("GET", gone), ("GET", here), ("GET", gone)]) == [b"1"] * 3
        # Half of the keys are here, half there: nobody can run it, and nobody has.
        with pytest.raises(StoreUnavailable, match="TryAgainError") as caught:
            await redis.script(both, (here, gone), ())
        assert not caught.value.sent
        assert set(await walked(redis, "*")) == {here.encode(), gone.encode()}
        await own_cluster.nodes[0].tell("MIGRATE", "127.0.0.1", str(own_cluster.nodes[1].port), here, "0", "5000")
        await end_move(own_cluster, slot_of(tag), 1)
        assert await redis.script(both, (here, gone), ()) == [b"1", b"1"]
        assert await redis.pipeline([("GET", gone), ("GET", here)]) == [b"1"] * 2
