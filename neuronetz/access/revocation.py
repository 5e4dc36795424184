"""The listener: what changes in PostgreSQL reaches the cache and the running exchanges at once.

Notifications are a hurry-up, the tables are the truth: after every (re)connect the outbox is read, and after
a reconnect every cached policy is dropped. While nobody listens, a cached key lives for its TTL at most.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from uuid import UUID

import structlog
import trio

from neuronetz.access.directory import Directory
from neuronetz.access.keys import is_prefix
from neuronetz.errors import StoreUnavailable
from neuronetz.stores.listener import Notification, listen
from neuronetz.stores.postgres import Postgres

log = structlog.get_logger("neuronetz.access")

# Revocations this recent (seconds) are read again on every connect.
REPLAY_S = 900.0

# An id is given before its transaction commits, so a lower one may appear after a higher one: on every
# connect so many ids before the last one seen are read again. Revoking twice is harmless.
OVERLAP = 1_000

# Revocations whose tombstones are waited for at once; more wait for one of these.
AT_ONCE = 100

# How long (seconds) what runs may wait for the tombstone: after it, nobody who was cut can come in again.
TOMBSTONE_PATIENCE_S = 0.05

_LATEST = "SELECT coalesce(max(id), 0) FROM gateway.revocations"
_REVOKED = """
SELECT id, prefix FROM gateway.revocations
WHERE id > $1 OR created_at > now() - make_interval(secs => $2)
ORDER BY id
"""
_AGES = """
SELECT id, extract(epoch FROM clock_timestamp() - created_at)::float8 AS age_s
FROM gateway.revocations WHERE id = ANY($1::bigint[])
"""
_AFFECTED = "SELECT prefix FROM gateway.api_keys WHERE tenant_id = ANY($1::uuid[]) OR id = ANY($2::uuid[])"


def parse_revocation(payload: str) -> tuple[int, str] | None:
    """``ID:PREFIX`` of channel ``key_revoked``, or None. Anyone in the database may notify anything."""
    number, _, prefix = payload.partition(":")
    if not (number.isascii() and number.isdigit() and len(number) <= 18 and is_prefix(prefix)):
        return None
    return int(number), prefix


def parse_change(payload: str) -> tuple[str, UUID] | None:
    """``tenant:UUID`` or ``key:UUID`` of channel ``policy_changed``, or None."""
    scope, _, name = payload.partition(":")
    if scope not in ("tenant", "key"):
        return None
    try:
        return scope, UUID(name)
    except ValueError:
        return None


class PolicyListener:
    """A service to be supervised. ``on_revoked`` is called with the prefix of every revoked key, on each
    connect with those of late again; it must not block and not raise.

    ``on_lag`` is called for each revocation with how old its row was (seconds, by PostgreSQL's clock) when it
    took effect here.

    ``on_changed`` is called likewise with what the policy was changed of: ``"tenant"`` or ``"key"``, and its id.

    ``timeout_s`` bounds each answer of PostgreSQL, ``keepalive_s`` is how often its connection is tried.
    """

    def __init__(
        self,
        database_url: str,
        postgres: Postgres,
        directory: Directory,
        on_revoked: Callable[[str], None],
        *,
        timeout_s: float = 2.0,
        keepalive_s: float = 5.0,
        on_changed: Callable[[str, UUID], None] = lambda _scope, _name: None,
        on_lag: Callable[[float], object] = lambda _: None,
    ) -> None:
        self._on_lag = on_lag
        self._effective: dict[int, float] = {}
        self._took_effect = trio.Event()
        self._on_changed = on_changed
        self._database_url = database_url
        self._postgres = postgres
        self._directory = directory
        self._on_revoked = on_revoked
        self._timeout_s = timeout_s
        self._keepalive_s = keepalive_s
        self._last_id: int | None = None
        self._ran = False
        self._sweep = False
        self._changes: set[tuple[str, UUID]] = set()
        self._changed = trio.Event()
        self.listening = trio.Event()

    async def run(self) -> None:
        """Listen until cancelled.

        Raises when it cannot work (``StoreUnavailable``, perhaps in an ``ExceptionGroup``); run again, it
        catches up. ``listening`` is set while it listens and has dealt with everything of before.
        """
        # Set until it has been done: a run that fails on the way leaves it to the next. A process's first
        # run drops nothing, or every restart would have every key proven by argon2 again.
        self._sweep = self._sweep or self._ran
        self._ran = True
        try:
            async with listen(
                self._database_url,
                ("key_revoked", "policy_changed"),
                timeout_s=self._timeout_s,
                keepalive_s=self._keepalive_s,
            ) as notifications:
                await self._catch_up()
                # Several tasks, since a revocation must not wait behind a tenant's thousand keys, nor behind
                # another's tombstone.
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._evict_changed)
                    nursery.start_soon(self._tell_lags)
                    async for notification in notifications:
                        await self._take(notification, nursery)
                    nursery.cancel_scope.cancel()
        finally:
            if self.listening.is_set():
                self.listening = trio.Event()

    async def _catch_up(self) -> None:
        latest: int = await self._postgres.fetchval(_LATEST)
        since = latest if self._last_id is None else min(self._last_id, latest) - OVERLAP
        rows = await self._postgres.fetch(_REVOKED, since, REPLAY_S)
        await self._revoke([row["prefix"] for row in rows])
        if self._last_id is not None:
            # Those that came while nobody listened; the others are read again, and have been told.
            self._note_effect(row["id"] for row in rows if row["id"] > self._last_id)
        self._last_id = latest

    async def _take(self, notification: Notification, nursery: trio.Nursery) -> None:
        if notification.channel == "key_revoked":
            revocation = parse_revocation(notification.payload)
            if revocation is not None:
                if len(nursery.child_tasks) < AT_ONCE:
                    nursery.start_soon(self._revoke_one, *revocation)
                else:
                    await self._revoke_one(*revocation)
                return
        else:
            change = parse_change(notification.payload)
            if change is not None:
                self._on_changed(*change)
                self._changes.add(change)
                self._changed.set()
                return
        log.warning("notification.malformed", channel=notification.channel)

    async def _revoke_one(self, number: int, prefix: str) -> None:
        await self._revoke([prefix])
        self._note_effect([number])
        self._last_id = max(self._last_id or 0, number)
        log.info("key.revoked", prefix=prefix)

    async def _revoke(self, prefixes: Sequence[str]) -> None:
        if not prefixes:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_late, prefixes)
            try:
                await self._directory.revoke(*prefixes)
            finally:
                # Also when Redis is away: what runs is cut in any case.
                self._tell(prefixes)
                nursery.cancel_scope.cancel()

    async def _tell_late(self, prefixes: Sequence[str]) -> None:
        """What runs is cut though Redis takes its time over the tombstones; and again once they are there."""
        await trio.sleep(TOMBSTONE_PATIENCE_S)
        self._tell(prefixes)

    def _tell(self, prefixes: Sequence[str]) -> None:
        for prefix in prefixes:
            self._on_revoked(prefix)

    def _note_effect(self, ids: Iterable[int]) -> None:
        now = trio.current_time()
        for number in ids:
            if len(self._effective) < OVERLAP:
                self._effective[number] = now
        self._took_effect.set()

    async def _tell_lags(self) -> None:
        while True:
            await self._took_effect.wait()
            self._took_effect = trio.Event()
            effective, self._effective = self._effective, {}
            asked = trio.current_time()
            # It is only measured: where PostgreSQL is away, the connection that listens says so.
            with suppress(StoreUnavailable):
                for row in await self._postgres.fetch(_AGES, list(effective)):
                    self._on_lag(max(0.0, row["age_s"] - (asked - effective[row["id"]])))

    async def _evict_changed(self) -> None:
        if self._sweep:
            await self._directory.evict_all()
            self._sweep = False
        self.listening.set()
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            changes, self._changes = self._changes, set()
            tenants = [name for scope, name in changes if scope == "tenant"]
            keys = [name for scope, name in changes if scope == "key"]
            rows = await self._postgres.fetch(_AFFECTED, tenants, keys)
            await self._directory.evict([row["prefix"] for row in rows])
