"""Resolved keys in Redis: entries, tombstones of revoked keys, and the generations that end races.

``gateway:key:<prefix>`` holds an entry or a tombstone. ``{gateway:key:<prefix>}:generation`` changes with
every eviction; its hash tag puts it into the same slot of a cluster. Redis must not evict keys of its own
accord (``maxmemory-policy noeviction``), or a tombstone could go before its time.
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from neuronetz.access.keys import is_prefix
from neuronetz.errors import StoreUnavailable
from neuronetz.policy import Principal
from neuronetz.stores.redis import Argument, Redis, Script

# Entries of another version are ignored: raise it with every change of what an entry holds.
VERSION = 2

# Both outlive any look-up that began before them, by far (``directory.LOOKUP_TIMEOUT_S``).
TOMBSTONE_TTL_S = 120
GENERATION_TTL_S = 120

_TOMBSTONE = b"revoked"
_KEY = "gateway:key:"
_REMEMBER = Script.load("neuronetz.access", "scripts/remember.lua")
_EVICT = Script.load("neuronetz.access", "scripts/evict.lua")
_BATCH = 200


class Entry(msgspec.Struct, frozen=True):
    """A key that was proven once. ``digest``: SHA-256 of its secret."""

    version: int
    digest: bytes
    principal: Principal


@dataclass(frozen=True)
class Missing:
    """No entry. ``generation`` must still stand when what is looked up now is put in."""

    generation: bytes
    sweep: int


@dataclass(frozen=True)
class Revoked:
    """A tombstone, whether there already or found when an entry was to be put in."""


class KeyCache:
    """The cache of resolved keys. Every call raises ``StoreUnavailable`` where Redis cannot be asked.

    ``nonce`` makes generations, which must never come twice. When a call is cancelled, what it asks for may
    or may not have happened.
    """

    def __init__(
        self, redis: Redis, *, ttl_s: int, nonce: Callable[[], str] = lambda: secrets.token_hex(8)
    ) -> None:
        self._redis = redis
        self._ttl_s = ttl_s
        self._nonce = nonce
        self._sweeps = 0

    async def get(self, prefix: str) -> Entry | Missing | Revoked:
        """What is known of a prefix."""
        sweep = self._sweeps
        value, generation = await self._redis.command("MGET", *_names(prefix))
        if value == _TOMBSTONE:
            return Revoked()
        entry = _decode(value) if value is not None else None
        return entry or Missing(generation or b"", sweep)

    async def put(self, prefix: str, digest: bytes, principal: Principal, seen: Missing) -> Revoked | None:
        """Keep a key that was looked up after ``seen``, unless it was evicted since, or revoked."""
        value = msgspec.json.encode(Entry(VERSION, digest, principal))
        verdict = await self._redis.script(
            _REMEMBER, _names(prefix), [_TOMBSTONE, seen.generation, value, self._ttl_s]
        )
        if verdict == b"revoked":
            return Revoked()
        if seen.sweep != self._sweeps:
            # A sweep that began since may have passed this key by, and left its generation alone.
            await self.evict([prefix])
        return None

    async def evict(self, prefixes: Iterable[str]) -> None:
        """Have these keys looked up anew. Not atomic over several; safe to repeat."""
        # The script's text each time: a pipeline cannot fall back where the server does not know it.
        commands = [
            ("EVAL", _EVICT.text, 2, *_names(prefix), _TOMBSTONE, self._nonce(), GENERATION_TTL_S)
            for prefix in prefixes
        ]
        await self._all(commands)

    async def evict_all(self) -> None:
        """Have every key looked up anew; look-ups of this process that are under way will not be kept."""
        self._sweeps += 1

        async def evict(names: list[bytes]) -> None:
            prefixes = (bytes(name).decode("latin-1").removeprefix(_KEY) for name in names)
            await self.evict(prefix for prefix in prefixes if is_prefix(prefix))

        await self._redis.scan(f"{_KEY}*", evict)

    async def bury(self, prefixes: Iterable[str]) -> None:
        """Put tombstones: these keys are refused, and look-ups under way cannot bring them back."""
        life = max(TOMBSTONE_TTL_S, self._ttl_s)
        commands = [("SET", _names(prefix)[0], _TOMBSTONE, "EX", life) for prefix in prefixes]
        await self._all(commands)

    async def _all(self, commands: Sequence[Sequence[Argument]]) -> None:
        """Run them in batches. One that fails, as a node of a cluster may, does not stop the others."""
        failure: StoreUnavailable | None = None
        for start in range(0, len(commands), _BATCH):
            try:
                await self._redis.pipeline(commands[start : start + _BATCH])
            except StoreUnavailable as error:
                failure = failure or error
        if failure is not None:
            raise failure


def _names(prefix: str) -> tuple[str, str]:
    return f"{_KEY}{prefix}", f"{{{_KEY}{prefix}}}:generation"


def _decode(value: bytes) -> Entry | None:
    try:
        entry = msgspec.json.decode(value, type=Entry)
    except msgspec.DecodeError:
        return None
    return entry if entry.version == VERSION else None
