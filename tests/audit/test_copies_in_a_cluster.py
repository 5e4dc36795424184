"""The rows' copies lie with their tenants, on all nodes of a cluster; one that is away holds up no others."""

from collections.abc import Callable
from uuid import uuid4

import trio

from neuronetz.audit.copies import Copies, rows_key
from neuronetz.embedded.valkey_cluster import EmbeddedValkeyCluster
from neuronetz.errors import StoreUnavailable
from neuronetz.stores.redis import Redis, open_redis


async def left(redis: Redis, tenant: str) -> int:
    return int(await redis.command("HLEN", rows_key(tenant, "one")))


async def test_copies_go_from_every_node_and_those_of_one_that_is_away_go_later(
    asyncio_loop: object,
    cluster_url: str,
    valkey_cluster: EmbeddedValkeyCluster,
    on_node: Callable[..., str],
) -> None:
    tenants = [on_node(valkey_cluster, number, lambda: str(uuid4())) for number in range(3)]
    async with open_redis(cluster_url, size=4, timeout_s=0.5) as redis:
        copies = Copies(redis, "one")
        for tenant in tenants:
            for number in range(3):
                await redis.command("HSET", rows_key(tenant, "one"), f"r{number}", "{}")
        node = valkey_cluster.nodes[0]
        node.pause()
        try:
            # More rows of the node that is away than fit one batch stand before the others'.
            copies.superfluous((tenants[0], f"r{number}") for number in range(1000))
            copies.superfluous((tenant, f"r{number}") for tenant in tenants[1:] for number in range(3))
            await copies.remove()
            assert [await left(redis, tenant) for tenant in tenants[1:]] == [0, 0]
            assert len(copies) == 1000
        finally:
            node.resume()
            await valkey_cluster.wait_in_order()
        with trio.fail_after(10):
            while len(copies):
                try:
                    await copies.remove()
                except StoreUnavailable:
                    await trio.sleep(0.05)
                await trio.sleep(0.02)
        assert await left(redis, tenants[0]) == 0
