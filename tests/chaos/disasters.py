"""What goes wrong in a run: each kind at least once in a long one, in an order drawn from the seed.

Redis is stopped as an operator would, with its append-only file written: what a lost Redis loses is no part of
this. PostgreSQL may crash, too.
"""

import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from neuronetz.errors import StoreUnavailable
from tests.chaos.clients import Crowd
from tests.chaos.gateways import Gateway, Span
from tests.chaos.visits import endless
from tests.chaos.world import DEAD_AFTER_S, World

REVOKED_WITHIN_S = 15.0


@dataclass
class Disasters:
    """``counts``: how many of each kind there were. ``last``: the one of the moment, in words."""

    world: World
    crowd: Crowd
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    last: str = ""
    _busy: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._dice = random.Random(f"{self.seed}-disasters")

    async def run(self, seconds: float) -> None:
        """Disasters, several at once, for so long; when it returns all is up again."""
        ends = trio.current_time() + seconds
        deck: list[Callable[[], Awaitable[None]]] = []
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(0.4 + self._dice.random() * 0.8)
                if trio.current_time() >= ends:
                    return
                if not deck:
                    deck = self._deck()
                    self._dice.shuffle(deck)
                nursery.start_soon(deck.pop())

    def _deck(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            *[self.kill] * 2,
            self.kill_worker,
            self.kill_streaming,
            *[self.freeze] * 2,
            *[self.freeze_to_death] * 2,
            self.drain,
            self.stop_postgres,
            self.crash_postgres,
            self.pause_postgres,
            self.stop_valkey,
            self.pause_valkey,
            self.lose_valkey,
            self.crash_mock,
            self.fail_mock,
            *[self.revoke] * 2,
        ]

    @asynccontextmanager
    async def _alone(self, target: str, kind: str) -> AsyncIterator[bool]:
        """Yields whether the target is free for a disaster; it is not while another has it."""
        if target in self._busy:
            yield False
            return
        self._busy.add(target)
        self.counts[kind] += 1
        self.last = f"{kind} {target}"
        try:
            yield True
        finally:
            self._busy.discard(target)

    def _mortal(self) -> Gateway:
        return self._dice.choice(self.world.gateways[1:])

    async def kill(self) -> None:
        gateway, pause_s = self._mortal(), self._dice.random()
        async with self._alone(f"gateway-{gateway.number}", "kill") as free:
            if free:
                await gateway.kill()
                await trio.sleep(pause_s)
                await gateway.start()

    async def kill_streaming(self) -> None:
        """Kill a gateway that surely streams."""
        gateway = self._mortal()
        async with self._alone(f"gateway-{gateway.number}", "kill") as free, trio.open_nursery() as nursery:
            if free:
                for _ in range(3):
                    account = self._dice.choice(self.world.accounts[:3])
                    nursery.start_soon(
                        self.crowd.perform, endless(self.crowd.next_number(), account, gateway.number)
                    )
                await trio.sleep(0.7)
                await gateway.kill()
                await gateway.start()
                nursery.cancel_scope.cancel()

    async def kill_worker(self) -> None:
        gateway, index = self.world.gateways[-1], self._dice.randrange(2)
        async with self._alone(f"gateway-{gateway.number}", "kill") as free:
            if free:
                gateway.kill_worker(index)

    async def freeze(self) -> None:
        await self._freeze(0.2 + self._dice.random() * 1.5)

    async def freeze_to_death(self) -> None:
        """Long enough to be declared dead, or almost; what it held is reaped, and then it comes back."""
        await self._freeze(DEAD_AFTER_S - 0.5 + self._dice.random() * 2.5)

    async def _freeze(self, seconds: float) -> None:
        gateway, index = self._dice.choice(self.world.gateways), self._dice.randrange(2)
        async with self._alone(f"gateway-{gateway.number}", "freeze") as free:
            if free:
                await gateway.freeze(seconds, index)

    async def drain(self) -> None:
        gateway = self._mortal()
        async with self._alone(f"gateway-{gateway.number}", "drain") as free:
            if free:
                await gateway.drain()
                await gateway.start()

    async def stop_postgres(self) -> None:
        await self._restart_postgres(0.2 + self._dice.random() * 2, immediate=False)

    async def crash_postgres(self) -> None:
        await self._restart_postgres(self._dice.random(), immediate=True)

    async def _restart_postgres(self, seconds: float, immediate: bool) -> None:
        async with self._alone("postgres", "restart") as free:
            if free:
                await self.world.postgres_server.stop(immediate)
                await trio.sleep(seconds)
                await self.world.postgres_server.start()

    async def pause_postgres(self) -> None:
        seconds = 0.5 + self._dice.random()
        async with self._alone("postgres", "outage") as free:
            if free:
                self.world.postgres_server.pause()
                await trio.sleep(seconds)
                self.world.postgres_server.resume()

    async def stop_valkey(self) -> None:
        seconds = 0.2 + self._dice.random()
        async with self._alone("valkey", "restart") as free:
            if free:
                began = time.time()
                await self.world.valkey_server.stop()
                await trio.sleep(seconds)
                await self.world.valkey_server.start()
                self.world.outages.append(Span(began, time.time()))

    async def lose_valkey(self) -> None:
        """For so long that nobody's heartbeat counts any more; another gateway is started meanwhile."""
        gateway, seconds = self._mortal(), DEAD_AFTER_S + self._dice.random()
        async with self._alone("valkey", "restart") as free:
            if not free:
                return
            began = time.time()
            await self.world.valkey_server.stop()
            async with self._alone(f"gateway-{gateway.number}", "kill") as mortal:
                if mortal:
                    await gateway.kill()
                async with trio.open_nursery() as nursery:
                    if mortal:
                        nursery.start_soon(gateway.start)
                    await trio.sleep(seconds)
                    await self.world.valkey_server.start()
                    self.world.outages.append(Span(began, time.time()))

    async def pause_valkey(self) -> None:
        seconds = 0.5 + self._dice.random()
        async with self._alone("valkey", "outage") as free:
            if free:
                began = time.time()
                self.world.valkey_server.pause()
                await trio.sleep(seconds)
                self.world.valkey_server.resume()
                self.world.outages.append(Span(began, time.time()))

    async def crash_mock(self) -> None:
        seconds = self._dice.random()
        async with self._alone("mock", "restart") as free:
            if free:
                await self.world.mock.stop()
                await trio.sleep(seconds)
                await self.world.mock.start()

    async def fail_mock(self) -> None:
        """All requests fail for a while, which opens the breaker."""
        seconds, failure = 0.5 + self._dice.random(), self._dice.choice(("500", "503", "reset", "stall"))
        async with self._alone("mock", "outage") as free:
            if free:
                await self.world.mock.configure(fail=failure)
                await trio.sleep(seconds)
                await self.world.mock.configure(fail=None)

    async def revoke(self) -> None:
        """Revoke a key that streams on every gateway; the streams must end by that, or by what else befalls them."""
        left = [account for account in self.world.accounts if account.tenant == "fleeting" and not account.revoked]
        if len(left) < 2:
            return
        account = left[0]
        account.revoked = True
        async with self._alone(account.prefix, "revocation"), trio.open_nursery() as nursery:
            for gateway in self.world.gateways:
                nursery.start_soon(self.crowd.perform, endless(self.crowd.next_number(), account, gateway.number))
            await trio.sleep(0.5)
            with trio.fail_after(REVOKED_WITHIN_S):
                while not await self._revoked(account.prefix):
                    await trio.sleep(0.1)

    async def _revoked(self, prefix: str) -> bool:
        try:
            await self.world.postgres.execute(
                "INSERT INTO gateway.revocations (prefix, reason) VALUES ($1, 'chaos')", prefix
            )
        except StoreUnavailable:
            return False
        return True
