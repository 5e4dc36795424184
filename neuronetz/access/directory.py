"""The directory of keys: from an Authorization header to a principal, or one identical refusal.

A hit in Redis proves the whole key; only a miss asks PostgreSQL and argon2 (G8).
"""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog
import trio

from neuronetz.access.cache import KeyCache, Missing, Revoked
from neuronetz.access.held import Entry
from neuronetz.access.keys import Hasher, PresentedKey, parse, same_digest, secret_digest
from neuronetz.errors import StoreUnavailable, Unauthenticated, Unavailable
from neuronetz.policy import KeyPolicy, Principal, TenantPolicy, resolve
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis

log = structlog.get_logger("neuronetz.access")

# No look-up takes longer, the line for argon2 included: tombstones and generations must outlive it.
LOOKUP_TIMEOUT_S = 10.0

# A header longer than this (characters) is not looked at.
_LONGEST = 256

_LOOKUP = """
SELECT k.id::text AS key_id, k.name AS key_name, k.secret_hash, k.expires_at, k.revoked_at, k.log_prompts,
       t.id::text AS tenant_id, t.name AS tenant, t.suspended_at,
       tl.rpm AS tenant_rpm, tl.concurrency AS tenant_concurrency, tl.budget_tokens AS tenant_budget_tokens,
       coalesce(tl.budget_period, 'month') AS tenant_budget_period, tl.max_predict AS tenant_max_predict,
       tl.max_body_bytes AS tenant_max_body_bytes,
       coalesce(tl.allow_all_models, false) AS tenant_allow_all_models,
       coalesce(tl.models, '{}') AS tenant_models,
       kl.rpm AS key_rpm, kl.concurrency AS key_concurrency, kl.budget_tokens AS key_budget_tokens,
       kl.budget_period AS key_budget_period, kl.max_predict AS key_max_predict,
       kl.max_body_bytes AS key_max_body_bytes, kl.allow_all_models AS key_allow_all_models,
       kl.models AS key_models
FROM gateway.api_keys k
JOIN gateway.tenants t ON t.id = k.tenant_id
LEFT JOIN gateway.tenant_limits tl ON tl.tenant_id = t.id
LEFT JOIN gateway.key_limits kl ON kl.key_id = k.id
WHERE k.prefix = $1
"""

_REHASH = "UPDATE gateway.api_keys SET secret_hash = $3 WHERE prefix = $1 AND secret_hash = $2"


def presented_key(authorization: str | None) -> PresentedKey | None:
    """The well-formed key in an Authorization header's value (``Bearer KEY``), or None."""
    if authorization is None or len(authorization) > _LONGEST:
        return None
    scheme, _, key = authorization.strip(" \t").partition(" ")
    return parse(key.strip(" \t")) if scheme.lower() == "bearer" else None


@dataclass
class _Flight:
    """One look-up that several requests with the same key wait for; the answer is a principal or a refusal."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    answer: Principal | Unauthenticated | Unavailable | None = None
    travellers: int = 0


class Directory:
    """Who may come in. ``cache_ttl_s``: seconds for which a resolved key is served without a look-up.

    ``clock`` gives the wall clock's time, for expiry.
    """

    def __init__(
        self,
        postgres: Postgres,
        redis: Redis,
        hasher: Hasher,
        *,
        cache_ttl_s: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._postgres = postgres
        self._hasher = hasher
        self._cache = KeyCache(redis, ttl_s=cache_ttl_s)
        self._clock = clock
        self._flights: dict[tuple[str, bytes], _Flight] = {}

    async def authenticate(self, authorization: str | None) -> Principal:
        """The principal behind the value of the only Authorization header (None: there is not exactly one).

        Raises ``Unauthenticated``, the same for every cause, and ``Unavailable`` when a store or argon2
        cannot be asked. When cancelled nothing is left behind; others that wait for the same look-up go on.
        Without a checkpoint where this process holds the key: it asks nobody then, and what comes next must
        ask Redis, which admission does.
        """
        key = presented_key(authorization)
        if key is None:
            raise Unauthenticated
        digest = secret_digest(key.secret)
        try:
            cached = self._cache.held(key.prefix) or await self._cache.get(key.prefix)
            if isinstance(cached, Missing):
                return await self._look_up_once(key, digest)
            return self._proven(cached, digest)
        except StoreUnavailable as error:
            raise Unavailable(error.store) from error

    async def evict(self, prefixes: Iterable[str]) -> None:
        """Have these keys' policies read anew. Raises ``StoreUnavailable``; safe to repeat."""
        await self._cache.evict(prefixes)

    async def evict_all(self) -> None:
        """Have all keys' policies read anew. Raises ``StoreUnavailable``; safe to repeat."""
        await self._cache.evict_all()

    async def revoke(self, *prefixes: str) -> None:
        """Refuse these keys from now on. Raises ``StoreUnavailable``; safe to repeat.

        The tombstone bridges only look-ups under way: the key must be revoked in PostgreSQL already.
        """
        await self._cache.bury(prefixes)

    def _proven(self, cached: Entry | Revoked, digest: bytes) -> Principal:
        if isinstance(cached, Revoked) or not same_digest(cached.digest, digest):
            raise Unauthenticated
        self._refuse_expired(cached.principal.expires_at)
        return cached.principal

    def _refuse_expired(self, expires_at: datetime | None) -> None:
        if expires_at is not None and expires_at <= self._clock():
            raise Unauthenticated

    async def _look_up_once(self, key: PresentedKey, digest: bytes) -> Principal:
        """One look-up for all who ask with this very key meanwhile.

        A wrong secret is a flight of its own: it must not hold up the right one. Whoever is cancelled while
        looking up hands over to the next in line, who looks up again.
        """
        old_hash: str | None = None
        async with self._travel((key.prefix, digest)) as flight:
            if flight.answer is None:
                try:
                    flight.answer, old_hash = await self._look_up(key, digest)
                except StoreUnavailable as error:
                    flight.answer = Unavailable(error.store)
                except (Unauthenticated, Unavailable) as error:
                    flight.answer = error
            answer = flight.answer
        if isinstance(answer, Unavailable):
            raise Unavailable(answer.dependency, retry_after=answer.retry_after)
        if isinstance(answer, Unauthenticated):
            raise Unauthenticated
        if old_hash is not None:
            await self._rehash(key, old_hash)
        return answer

    @asynccontextmanager
    async def _travel(self, name: tuple[str, bytes]) -> AsyncIterator[_Flight]:
        flight = self._flights.setdefault(name, _Flight())
        flight.travellers += 1
        try:
            async with flight.lock:
                yield flight
        finally:
            flight.travellers -= 1
            # One that has its answer takes nobody on any more: the answer is of the past.
            ended = flight.answer is not None or flight.travellers == 0
            if ended and self._flights.get(name) is flight:
                del self._flights[name]

    async def _look_up(self, key: PresentedKey, digest: bytes) -> tuple[Principal, str | None]:
        """The principal, and its hash where that should be made anew."""
        try:
            with trio.fail_after(LOOKUP_TIMEOUT_S):
                # Before PostgreSQL is asked: the generation must be older than what is read there.
                seen = await self._cache.get(key.prefix)
                if not isinstance(seen, Missing):
                    return self._proven(seen, digest), None
                row = await self._postgres.fetchrow(_LOOKUP, key.prefix)
                if row is None or row["revoked_at"] is not None or row["suspended_at"] is not None:
                    raise Unauthenticated
                self._refuse_expired(row["expires_at"])
                if not await self._hasher.verify(row["secret_hash"], key.secret):
                    raise Unauthenticated
                principal = _principal(key.prefix, row)
                if await self._cache.put(key.prefix, digest, principal, seen) is not None:
                    raise Unauthenticated
        except trio.TooSlowError as error:
            raise Unavailable("directory") from error
        old_hash: str = row["secret_hash"]
        return principal, old_hash if self._hasher.needs_rehash(old_hash) else None

    async def _rehash(self, key: PresentedKey, old_hash: str) -> None:
        """Bring a hash to today's parameters. A failure costs nothing: the next miss tries again."""
        try:
            new_hash = await self._hasher.hash(key.secret)
            await self._postgres.execute(_REHASH, key.prefix, old_hash, new_hash)
        except Exception as error:  # noqa: BLE001 - whatever it was, the key has been proven; a Cancelled passes
            log.warning("key.rehash_failed", prefix=key.prefix, reason=type(error).__name__)


def _principal(prefix: str, row: Any) -> Principal:
    models = row["key_models"]
    return resolve(
        tenant_id=row["tenant_id"],
        tenant=row["tenant"],
        key_id=row["key_id"],
        key_name=row["key_name"],
        prefix=prefix,
        expires_at=row["expires_at"],
        log_prompts=row["log_prompts"],
        tenant_policy=TenantPolicy(
            rpm=row["tenant_rpm"],
            concurrency=row["tenant_concurrency"],
            budget_tokens=row["tenant_budget_tokens"],
            budget_period=row["tenant_budget_period"],
            max_predict=row["tenant_max_predict"],
            max_body_bytes=row["tenant_max_body_bytes"],
            allow_all_models=row["tenant_allow_all_models"],
            models=frozenset(row["tenant_models"]),
        ),
        key_policy=KeyPolicy(
            rpm=row["key_rpm"],
            concurrency=row["key_concurrency"],
            budget_tokens=row["key_budget_tokens"],
            budget_period=row["key_budget_period"],
            max_predict=row["key_max_predict"],
            max_body_bytes=row["key_max_body_bytes"],
            allow_all_models=row["key_allow_all_models"],
            models=None if models is None else frozenset(models),
        ),
    )
