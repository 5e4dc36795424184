"""Peace: the wait until nothing is left of any request, anywhere."""

import httpx
import psutil
import trio

from neuronetz.errors import StoreUnavailable
from tests.chaos.samples import counters
from tests.chaos.world import GATEWAYS, World
from tests.gateway_fixtures import Books

QUIET_WITHIN_S = 40.0


async def rest(world: World) -> dict[str, int]:
    """Wait until nothing is left of any request; what is left for too long."""
    books = Books(world.postgres, world.redis)
    left: dict[str, int] = {}
    with trio.move_on_after(QUIET_WITHIN_S):
        while True:
            try:
                left = await _left(world, books)
            except (StoreUnavailable, httpx.HTTPError) as error:
                left = {f"{type(error).__name__} away": 1}
            if not any(left.values()):
                break
            await trio.sleep(0.1)
    return {name: count for name, count in left.items() if count}


async def _left(world: World, books: Books) -> dict[str, int]:
    beating = await world.redis.command("ZCARD", "gateway:instances")
    drift = 0
    for account in world.accounts:
        for scope in ("tenant", "key"):
            for counter in await world.redis.command("KEYS", counters(account, scope)):
                used = await world.redis.command("HGET", counter, "used")
                drift += abs(int(used) - await spent(world, scope, account.tenant_id, account.key_id))
    return {
        "slots": await books.slots(),
        "leases": await books.leases(),
        "reserved tokens": await books.reserved(),
        "copies of rows": await books.copies(),
        "requests at the mock": await world.mock.open(),
        "instances too many or few": abs(beating - sum(GATEWAYS)),
        "tokens between Redis and the ledger": drift,
        "workers of killed parents": sum(
            _lives(orphan) for gateway in world.gateways for orphan in gateway.orphans
        ),
    }


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


async def spent(world: World, scope: str, tenant_id: str, key_id: str) -> int:
    spent = await world.postgres.fetchval(
        "SELECT coalesce(sum(prompt_tokens + completion_tokens), 0)::bigint FROM gateway.budget_usage"
        " WHERE tenant_id = $1::uuid AND ($2::uuid IS NULL OR key_id = $2::uuid)",
        tenant_id,
        key_id if scope == "key" else None,
    )
    assert isinstance(spent, int)
    return spent
