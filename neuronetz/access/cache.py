"""Resolved keys in Redis: entries, tombstones of revoked keys, and the generations that end races.

``gateway:key:<prefix>`` holds an entry or a tombstone. ``{gateway:key:<prefix>}:generation`` changes with
every eviction; its hash tag puts it into the same slot of a cluster. Redis must not evict keys of its own
accord (``maxmemory-policy noeviction``), or a tombstone could go before its time.

A single server tells of changes (``CLIENT TRACKING``), so an entry read there is served from memory until
Redis says that it changed.
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import trio

from neuronetz.access.held import Entry, HeldEntries
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

    ``nonce`` makes generations, which must never come twice. ``most``: entries kept in this process's memory.
    When a call is cancelled, what it asks for may or may not have happened.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        ttl_s: int,
        nonce: Callable[[], str] = lambda: secrets.token_hex(8),
        most: int = 10_000,
    ) -> None:
        self._redis = redis
        self._ttl_s = ttl_s
        self._nonce = nonce
        self._sweeps = 0
        self._held = HeldEntries(most)
        redis.on_change(self._changed)

    def held(self, prefix: str) -> Entry | None:
        """The entry of a prefix, where this process holds one that Redis still stands by as far as it has told.

        Without a checkpoint.
        """
        return self._held.get(prefix)

    async def get(self, prefix: str) -> Entry | Missing | Revoked:
        """What is known of a prefix. Without a checkpoint where this process holds its entry."""
        held = self._held.get(prefix)
        if held is not None:
            return held
        sweep = self._sweeps
        value, generation = await self._redis.command("MGET", *_names(prefix))
        known = _known(value)
        # Only what is there is followed: Redis would remember every name that somebody ever made up.
        if isinstance(known, Entry) and self._redis.follows:
            return await self._follow(prefix)
        return known or Missing(generation or b"", sweep)

    async def _follow(self, prefix: str) -> Entry | Missing | Revoked:
        """Read an entry so that it may be held. It is read anew: of what changed before, nobody tells."""
        sweep = self._sweeps
        with self._held.reading(prefix) as reading:
            # Its life is counted from before it is asked for, and so ends here no later than in Redis.
            asked = trio.current_time()
            read, life = ("MGET", *_names(prefix)), ("PTTL", _names(prefix)[0])
            [(value, generation), life_ms], followed = await self._redis.read_followed(read, life)
            known = _known(value)
            # Without a life (-1) or gone meanwhile (-2), it is not one of ours, or not one any more.
            if followed and isinstance(known, Entry) and life_ms > 0:
                reading.hold(known, until=asked + min(life_ms / 1000, self._ttl_s))
        return known or Missing(generation or b"", sweep)

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
        """Have these keys looked up anew. Not atomic over several; safe to repeat.

        What this process holds of them is dropped at once, whatever becomes of the call.
        """
        prefixes = list(prefixes)
        self._held.drop(prefixes)
        # The script's text each time: a pipeline cannot fall back where the server does not know it.
        commands = [
            ("EVAL", _EVICT.text, 2, *_names(prefix), _TOMBSTONE, self._nonce(), GENERATION_TTL_S)
            for prefix in prefixes
        ]
        await self._all(commands)

    async def evict_all(self) -> None:
        """Have every key looked up anew; look-ups of this process that are under way will not be kept, and what
        it holds is dropped at once.
        """
        self._sweeps += 1
        self._held.clear()

        async def evict(names: list[bytes]) -> None:
            prefixes = (bytes(name).decode("latin-1").removeprefix(_KEY) for name in names)
            await self.evict(prefix for prefix in prefixes if is_prefix(prefix))

        await self._redis.scan(f"{_KEY}*", evict)

    async def bury(self, prefixes: Iterable[str]) -> None:
        """Put tombstones: these keys are refused, and look-ups under way cannot bring them back.

        What this process holds of them is dropped at once, whatever becomes of the call.
        """
        prefixes = list(prefixes)
        self._held.drop(prefixes)
        life = max(TOMBSTONE_TTL_S, self._ttl_s)
        commands = [("SET", _names(prefix)[0], _TOMBSTONE, "EX", life) for prefix in prefixes]
        await self._all(commands)

    def _changed(self, names: Iterable[bytes] | None) -> None:
        """Redis tells that these names have changed, or that any may have."""
        if names is None:
            self._held.clear()
        else:
            self._held.drop(map(_prefix, names))

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


def _prefix(name: bytes) -> str:
    """The prefix whose entry or generation this is."""
    return name.decode("latin-1").lstrip("{").removeprefix(_KEY).partition("}")[0]


def _known(value: bytes | None) -> Entry | Revoked | None:
    if value is None:
        return None
    if value == _TOMBSTONE:
        return Revoked()
    try:
        entry = msgspec.json.decode(value, type=Entry)
    except msgspec.DecodeError:
        return None
    return entry if entry.version == VERSION else None
