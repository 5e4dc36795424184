"""Ending leases in Redis, and remembering those whose end Redis did not take."""

from collections import deque
from contextlib import suppress

import msgspec
import structlog
import trio

from neuronetz.admission import keyspace
from neuronetz.errors import StoreUnavailable
from neuronetz.stores.redis import Redis, Script

log = structlog.get_logger("neuronetz.admission")

_SETTLE = Script.load("neuronetz.admission", "scripts/settle.lua")


class Settlement(msgspec.Struct, frozen=True):
    """How one lease ends: ``tokens`` used, and the audit row's JSON (empty: the stub stays).

    ``abort``: the admission's fate is unknown; should it still arrive, it is to be refused.
    """

    request_id: str
    tenant_id: str
    key_id: str
    counters: tuple[str, str]
    tokens: int = 0
    row: bytes = b""
    abort: bool = False


class Settler:
    """Settles leases. A settlement that fails stays in ``unsettled`` until Redis has taken it.

    Repeating one is harmless: the script changes nothing once the lease is gone.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        instance: str,
        cleanup_timeout_s: float,
        backoff_s: float = 0.05,
        backoff_cap_s: float = 1.0,
    ) -> None:
        self.unsettled: deque[Settlement] = deque()
        self._redis = redis
        self._instance = instance
        self._cleanup_timeout_s = cleanup_timeout_s
        self._backoff_s = backoff_s
        self._backoff_cap_s = backoff_cap_s
        self._arrived = trio.Event()

    async def settle(self, settlement: Settlement) -> None:
        """Settle now, or keep it for ``run``. Never raises.

        Shielded from cancellation, for at most ``cleanup_timeout_s`` seconds.
        """
        done = False
        try:
            with trio.move_on_after(self._cleanup_timeout_s, shield=True), suppress(StoreUnavailable):
                await self._send(settlement)
                done = True
        except Exception:
            # A reply that is complete must not be torn for it, nor its row belied: it is kept like any other.
            log.exception("admission.settle_failed", request_id=settlement.request_id)
        finally:
            if not done:
                log.warning("admission.settle_kept", request_id=settlement.request_id)
                self.unsettled.append(settlement)
                self._arrived.set()

    async def run(self) -> None:
        """A service: repeat what is unsettled, in order, until Redis has it.

        When cancelled it tries once more, shielded, for at most ``cleanup_timeout_s`` seconds.
        """
        pause = self._backoff_s
        try:
            while True:
                await self._arrived.wait()
                try:
                    await self._drain()
                except StoreUnavailable:
                    await trio.sleep(pause)
                    pause = min(self._backoff_cap_s, 2 * pause)
                else:
                    pause = self._backoff_s
        finally:
            with trio.move_on_after(self._cleanup_timeout_s, shield=True), suppress(StoreUnavailable):
                await self._drain()

    async def _drain(self) -> None:
        """Try each once, but none of a place that is away already: the others must not wait behind it."""
        away: set[str] = set()
        failure: StoreUnavailable | None = None
        for _ in range(len(self.unsettled)):
            place = self._redis.place(keyspace.slots(self.unsettled[0].tenant_id))
            if place not in away:
                try:
                    await self._send(self.unsettled[0])
                except StoreUnavailable as error:
                    failure = error
                    if error.reason != "ResponseError":  # else Redis is there and refuses this one
                        away.add(place)
                except Exception as error:
                    # It must hold up no other, and is tried again with them.
                    log.exception("admission.settle_failed", request_id=self.unsettled[0].request_id)
                    failure = StoreUnavailable("redis", type(error).__name__)
                else:
                    self.unsettled.popleft()
                    continue
            self.unsettled.rotate(-1)
        if failure is not None:
            raise failure
        if not self.unsettled:
            self._arrived = trio.Event()

    async def _send(self, settlement: Settlement) -> None:
        tenant, key, request = settlement.tenant_id, settlement.key_id, settlement.request_id
        await self._redis.script(
            _SETTLE,
            (
                keyspace.slots(tenant),
                keyspace.slots(tenant, key),
                keyspace.leases(tenant, self._instance),
                keyspace.rows(tenant, self._instance),
                keyspace.aborted(tenant, request),
                *settlement.counters,
            ),
            (request, settlement.tokens, settlement.row, int(settlement.abort)),
        )
