"""The heartbeat that says that this instance lives, and the taking over of what dead instances left (G1, G3).

An instance that was held up for longer than ``dead_after_s`` may find its leases reaped: it then ends what ran
under them, and its late settlements change nothing. It admits nothing until it has beaten again, and what it
admits from then on is safe from those who judged it before. Where nobody at all has beaten for so long, Redis was
away, or the host: then all have the time of one heartbeat to beat again before anybody counts as dead.
"""

from collections.abc import Callable

import structlog
import trio

from neuronetz.admission import keyspace
from neuronetz.admission.admission import Admission
from neuronetz.errors import StoreUnavailable
from neuronetz.stores.redis import Redis, Script

log = structlog.get_logger("neuronetz.reaper")

_BEAT = Script.load("neuronetz.admission", "scripts/beat.lua")
_REAP = Script.load("neuronetz.admission", "scripts/reap.lua")
_FORGET = Script.load("neuronetz.admission", "scripts/forget.lua")

# Leases and rows that one call takes over; Redis serves nobody else meanwhile.
_BATCH = 500

_SHORTEST_PAUSE_S = 0.05

_REMEMBERED_S = 24 * 3600


def pause(heartbeat_s: float, due_s: float) -> float:
    """Seconds until the next beat, when the next instance would be dead in ``due_s`` seconds.

    Looking just then, and not up to a heartbeat later, keeps G1's bound for killed processes.
    """
    return min(heartbeat_s, max(_SHORTEST_PAUSE_S, due_s))


def again(heartbeat_s: float) -> float:
    """Seconds until the next try after a beat that failed.

    Once Redis is back, the others spare an instance for one heartbeat's time: it must have beaten by then.
    """
    return heartbeat_s / 2


class Reaper:
    """Beats every ``heartbeat_s`` seconds and reaps instances without a beat for ``dead_after_s`` seconds.

    ``started`` is set by the first beat; nothing may be admitted before. ``adopt`` takes the audit rows of
    the dead as JSON; they stay in Redis under this instance until PostgreSQL has them. It may be handed a
    row twice. ``on_leases`` is told how many leases of the dead were found in a tenant, ``on_reaped`` is
    called once a dead instance is struck out; neither may block.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        instance: str,
        admission: Admission,
        adopt: Callable[[list[bytes]], None],
        heartbeat_s: float,
        dead_after_s: float,
        on_leases: Callable[[int], object] = lambda _: None,
        on_reaped: Callable[[], object] = lambda: None,
    ) -> None:
        self.started = trio.Event()
        self._on_leases = on_leases
        self._on_reaped = on_reaped
        self._redis = redis
        self._instance = instance
        self._admission = admission
        self._adopt = adopt
        self._heartbeat_s = heartbeat_s
        self._dead_after_s = dead_after_s

    @property
    def age_s(self) -> float:
        """Seconds since the last beat that Redis took; infinite before the first."""
        return trio.current_time() - (self._admission.alive_until - self._dead_after_s)

    async def run(self) -> None:
        """A service: beat and reap until cancelled. Redis being away is waited out.

        Cancelled while reaping, it leaves the rest to the next run, or to another instance.
        """
        # Reaping has a task of its own: a beat must not wait for it.
        announce, dead = trio.open_memory_channel[tuple[str, int]](100)
        async with trio.open_nursery() as nursery, announce, dead:
            nursery.start_soon(self._bury, dead)
            await self._beat(announce)

    async def _beat(self, announce: "trio.MemorySendChannel[tuple[str, int]]") -> None:
        while True:
            due_s = self._heartbeat_s
            try:
                dead, due_s = await self.beat()
                for found in dead:
                    if announce.statistics().current_buffer_used < 100:
                        announce.send_nowait(found)
            except StoreUnavailable as error:
                log.warning("reaper.no_beat", reason=error.reason)
                due_s = again(self._heartbeat_s)
            await trio.sleep(pause(self._heartbeat_s, due_s))

    async def beat(self, now_ms: int = 0) -> tuple[list[tuple[str, int]], float]:
        """One beat: the dead, each with the server's time (ms) of the judgement, and seconds until the next
        instance would be dead. ``now_ms`` replaces the server's time. Raises ``StoreUnavailable``.
        """
        sent = trio.current_time()
        if self.started.is_set() and sent >= self._admission.alive_until:
            # Known here, since the reply to a beat that was taken may be lost.
            self._admission.doubt()
        dead_after_ms = int(self._dead_after_s * 1000)
        reply = await self._redis.script(
            _BEAT,
            (keyspace.INSTANCES, keyspace.SILENCE),
            (self._instance, dead_after_ms, now_ms, int(self._heartbeat_s * 1000)),
        )
        server_ms, gap_ms, due_ms, *ids = reply
        if gap_ms < 0 or gap_ms >= dead_after_ms:
            self._admission.doubt()
        listed = await self._redis.command("SCARD", keyspace.instance_tenants(self._instance))
        if self._admission.tenants and (gap_ms < 0 or listed < len(self._admission.tenants)):
            await self._redis.command("SADD", keyspace.instance_tenants(self._instance), *self._admission.tenants)
        self._admission.alive_until = sent + self._dead_after_s
        self.started.set()
        await self._give_up_what_was_reaped()
        if gap_ms >= dead_after_ms:
            # What held this instance up (Redis away, a suspended host, a clock set forward) may have held
            # up the others too: they get the time to beat again.
            return [], due_ms / 1000
        return [(id_.decode(), server_ms - dead_after_ms) for id_ in ids], due_ms / 1000

    async def _give_up_what_was_reaped(self) -> None:
        """End what runs under leases that others gave back. A look that fails is made again at the next beat."""
        if not self._admission.doubted:
            return
        try:
            # An empty Redis knows no leases either, but nobody has given their slots to others.
            if await self._redis.command("EXISTS", keyspace.reaped(self._instance)):
                await self._admission.give_up_lost()
        except StoreUnavailable as error:
            log.warning("reaper.leases_not_looked_at", reason=error.reason)

    async def _bury(self, dead: "trio.MemoryReceiveChannel[tuple[str, int]]") -> None:
        async for instance, dead_at_ms in dead:
            try:
                await self.reap(instance, dead_at_ms)
            except StoreUnavailable as error:
                log.warning("reaper.interrupted", dead=instance, reason=error.reason)

    async def reap(self, instance: str, dead_at_ms: int) -> None:
        """Take over all that ``instance`` left, and strike it out; nothing where it beat after ``dead_at_ms``.

        Should it beat while this runs, it stays listed, and what it admitted after the judgement
        (``dead_after_s`` later than that) is left alone. Raises ``StoreUnavailable``. Cut short at any point,
        it can be done again, by anyone.
        """
        # This may come late: an instance that lives again keeps what nobody has taken yet.
        beat = await self._redis.command("ZSCORE", keyspace.INSTANCES, instance)
        if beat is not None and float(beat) > dead_at_ms:
            return
        # First: it must know of this before anything of its own is gone.
        await self._redis.command("SET", keyspace.reaped(instance), 1, "EX", _REMEMBERED_S)
        rows = leases_left = 0
        judged_ms = dead_at_ms + int(self._dead_after_s * 1000)
        away: set[str] = set()
        failure: StoreUnavailable | None = None
        for member in await self._redis.command("SMEMBERS", keyspace.instance_tenants(instance)):
            tenant = member.decode()
            place = self._redis.place(keyspace.slots(tenant))
            if place not in away:
                try:
                    adopted, left = await self._reap_tenant(instance, tenant, judged_ms)
                    rows, leases_left = rows + adopted, leases_left + left
                except StoreUnavailable as error:
                    # Tenants elsewhere in a cluster need not wait for those of a node that is away.
                    failure = error
                    away.add(place)
        if failure is not None:
            raise failure
        # With leases of a later life it stays listed, or they would be nobody's should it not beat again.
        if leases_left:
            return
        # Struck out first: were its tenants dropped first, one that beats again in between would be listed
        # without them.
        if await self._redis.script(_FORGET, (keyspace.INSTANCES,), (instance, dead_at_ms)):
            await self._redis.command("DEL", keyspace.instance_tenants(instance))
            self._on_reaped()
            log.info("reaper.reaped", dead=instance, rows=rows)

    async def _reap_tenant(self, instance: str, tenant: str, judged_ms: int) -> tuple[int, int]:
        """Rows adopted, and leases left that were admitted after the judgement."""
        keys = (
            keyspace.leases(tenant, instance),
            keyspace.rows(tenant, instance),
            keyspace.rows(tenant, self._instance),
            keyspace.slots(tenant),
            keyspace.hashes(tenant),
        )
        # The rows are handed over in this instance's name, so it must be found should it die too.
        await self._redis.command("SADD", keyspace.instance_tenants(self._instance), tenant)
        self._admission.tenants.add(tenant)
        self._on_leases(await self._redis.command("HLEN", keys[0]))
        arrived: list[bytes] = []
        adopted = 0
        while True:
            reaped, leases_left, *pairs = await self._redis.script(
                _REAP, keys, (_BATCH, keyspace.slots(tenant) + ":", judged_ms, *arrived)
            )
            arrived, rows = pairs[0::2], pairs[1::2]
            if rows:
                self._adopt(rows)
                adopted += len(rows)
            elif not reaped:
                return adopted, leases_left

    async def retire(self) -> None:
        """At a graceful stop: leave the list of instances, if nothing of this one is left in Redis.

        Otherwise it stays listed, to be reaped. Shielded, for at most the clean-up's time; never raises
        because of Redis.
        """
        with trio.move_on_after(self._admission.cleanup_timeout_s, shield=True):
            try:
                if not await self._left_behind():
                    await self._redis.command("ZREM", keyspace.INSTANCES, self._instance)
                    await self._redis.command("DEL", keyspace.instance_tenants(self._instance))
                    await self._forget_hashes()
            except StoreUnavailable as error:
                log.warning("reaper.not_retired", reason=error.reason)

    async def _forget_hashes(self) -> None:
        forget = [
            (
                "SREM",
                keyspace.hashes(tenant),
                keyspace.leases(tenant, self._instance),
                keyspace.rows(tenant, self._instance),
            )
            for tenant in sorted(self._admission.tenants)
        ]
        if forget:
            await self._redis.pipeline(forget)

    async def _left_behind(self) -> bool:
        if self._admission.held or self._admission.unsettled:
            return True
        keys = [
            key
            for tenant in sorted(self._admission.tenants)
            for key in (keyspace.leases(tenant, self._instance), keyspace.rows(tenant, self._instance))
        ]
        return bool(keys) and any(await self._redis.pipeline([("EXISTS", key) for key in keys]))
