"""Looks at Redis while all goes on: what must hold at every instant is looked at in many."""

from dataclasses import dataclass, field

import psutil
import trio

from neuronetz.admission import keyspace
from neuronetz.errors import StoreUnavailable
from tests.chaos.accounts import Account
from tests.chaos.world import World

EVERY_S = 0.2


@dataclass
class Samples:
    """``worst``: the most that was seen of each limited thing, beside its limit. ``memory``: bytes of gateway 0."""

    world: World
    looks: int = 0
    worst: dict[str, tuple[int, int]] = field(default_factory=dict)
    memory: list[int] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            try:
                for account in self.world.accounts:
                    await self._look(account)
                self.looks += 1
            except StoreUnavailable:
                pass
            self.memory.append(psutil.Process(self.world.gateways[0].pid).memory_info().rss)
            await trio.sleep(EVERY_S)

    async def _look(self, account: Account) -> None:
        redis, tenant = self.world.redis, account.tenant_id
        for scope, key in (("tenant", None), ("key", account.key_id)):
            name = account.tenant if key is None else account.model
            if (limit := account.limit(scope, "concurrency")) is not None:
                taken = await redis.command("SCARD", keyspace.slots(tenant, key))
                self._note(f"slots of {scope} {name}", int(taken), limit)
            if (limit := account.limit(scope, "rpm")) is not None:
                window = await redis.command("HGET", keyspace.rpm(tenant, key), "sum")
                self._note(f"requests per minute of {scope} {name}", int(window or 0), limit)
            if (limit := account.limit(scope, "budget_tokens")) is not None:
                for counter in await redis.command("KEYS", counters(account, scope)):
                    used, reserved = await redis.command("HMGET", counter, "used", "reserved")
                    self._note(f"tokens of {scope} {name}", int(used or 0) + int(reserved or 0), limit)

    def _note(self, what: str, seen: int, limit: int) -> None:
        self.worst[what] = max((seen, limit), self.worst.get(what, (0, limit)))

    def allow(self, what: str, more: int) -> None:
        """Let its limit be so much higher."""
        if what in self.worst:
            seen, limit = self.worst[what]
            self.worst[what] = (seen, limit + more)

    def excesses(self) -> dict[str, tuple[int, int]]:
        """What was ever seen above its limit."""
        return {what: (seen, limit) for what, (seen, limit) in self.worst.items() if seen > limit}


def counters(account: Account, scope: str) -> str:
    """The pattern of the names of its budget's counters."""
    part = "t" if scope == "tenant" else f"k:{account.key_id}"
    return f"gateway:{{{account.tenant_id}}}:budget:{part}:*"
