"""Resolved keys held in memory: served without Redis's being asked, and never against what Redis has told."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis as redis_py
import trio

from neuronetz.access.cache import VERSION, KeyCache
from neuronetz.access.directory import Directory
from neuronetz.access.held import Entry, HeldEntries
from neuronetz.access.keys import NewKey
from neuronetz.errors import StoreUnavailable, Unauthenticated, Unavailable
from neuronetz.stores.redis import Redis, open_redis

Until = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.fixture
def redis_url(own_valkey: Any) -> str:
    return str(own_valkey.url())


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with open_redis(redis_url, size=1, timeout_s=1.0) as store:
        yield store


@pytest.fixture
async def other(redis_url: str) -> AsyncIterator[Redis]:
    """Another process's client."""
    async with open_redis(f"{redis_url}&client_name=other", size=1, timeout_s=1.0) as store:
        yield store


@pytest.fixture
async def key(issuer: Any) -> NewKey:
    new: NewKey = await issuer.key(await issuer.tenant(allow_all_models=True))
    return new


@pytest.fixture
async def served(directory: Directory, key: NewKey) -> Directory:
    """A directory that holds the key in memory."""
    for _ in range(2):
        await directory.authenticate(bearer(key))
    assert directory._cache.held(key.prefix) is not None
    return directory


def bearer(key: NewKey) -> str:
    return f"Bearer {key.text}"


def name(key: NewKey) -> str:
    return f"gateway:key:{key.prefix}"


async def asked(redis: Redis) -> int:
    """How often any client has read a key's entry."""
    stats = await redis.command("INFO", "commandstats")
    return int(stats["cmdstat_mget"]["calls"])


async def test_a_held_key_is_served_without_a_round_trip_or_a_checkpoint(
    served: Directory, key: NewKey, other: Redis, hasher: Any
) -> None:
    before, principal = await asked(other), await served.authenticate(bearer(key))
    with trio.CancelScope() as scope:
        scope.cancel()
        for _ in range(100):
            assert await served.authenticate(bearer(key)) == principal
    assert await asked(other) == before
    assert hasher.verifications == 1


async def test_a_held_key_still_wants_its_secret_and_its_expiry(
    directory: Directory, issuer: Any, clock: Any
) -> None:
    key = await issuer.key(await issuer.tenant(), expires_at=clock.now.replace(year=clock.now.year + 1))
    for _ in range(3):
        await directory.authenticate(bearer(key))
    entry = directory._cache.held(key.prefix)
    assert entry is not None
    directory._cache._held._entries[key.prefix] = (Entry(VERSION, b"of another secret", entry.principal), 1e18)
    with pytest.raises(Unauthenticated):
        await directory.authenticate(bearer(key))
    directory._cache._held._entries[key.prefix] = (entry, 1e18)
    clock.advance(days=367)
    with pytest.raises(Unauthenticated):
        await directory.authenticate(bearer(key))


@pytest.mark.parametrize(
    "change",
    [
        ("DEL", "{name}"),
        ("SET", "{name}", "revoked"),
        ("PEXPIRE", "{name}", 1),
        ("SET", "{{{name}}}:generation", "new"),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),
    ],
)
async def test_what_another_client_changes_is_held_no_longer(
    served: Directory, key: NewKey, other: Redis, until: Until, change: tuple[Any, ...]
) -> None:
    await other.command(*(str(part).format(name=name(key)) for part in change))
    await until(lambda: served._cache.held(key.prefix) is None)


@pytest.mark.parametrize("how", ["revoke", "evict", "evict_all"])
async def test_another_process_s_directory_reaches_what_is_held_here(
    served: Directory, key: NewKey, other: Redis, postgres: Any, hasher: Any, until: Until, how: str
) -> None:
    there = Directory(postgres, other, hasher, cache_ttl_s=60)
    await getattr(there, how)(*{"revoke": [key.prefix], "evict": [[key.prefix]], "evict_all": []}[how])
    await until(lambda: served._cache.held(key.prefix) is None)
    if how == "revoke":
        with pytest.raises(Unauthenticated):
            await served.authenticate(bearer(key))
    else:
        await served.authenticate(bearer(key))
        assert hasher.verifications == 2


@pytest.mark.parametrize("how", ["revoke", "evict", "evict_all"])
async def test_what_this_process_drops_is_held_no_longer_from_that_moment_though_redis_is_away(
    served: Directory, key: NewKey, own_valkey: Any, how: str
) -> None:
    own_valkey.pause()
    try:
        async with trio.open_nursery() as nursery:

            async def drop() -> None:
                with pytest.raises(StoreUnavailable):
                    await getattr(served, how)(
                        *{"revoke": [key.prefix], "evict": [[key.prefix]], "evict_all": []}[how]
                    )

            assert await served.authenticate(bearer(key))
            nursery.start_soon(drop)
            await trio.testing.wait_all_tasks_blocked()
            assert served._cache.held(key.prefix) is None
            with pytest.raises(Unavailable):
                await served.authenticate(bearer(key))
    finally:
        own_valkey.resume()


async def test_nothing_is_held_once_the_connection_that_followed_it_is_gone(
    served: Directory, key: NewKey, redis: Redis, own_valkey: Any, until: Until
) -> None:
    own_valkey.pause()
    try:
        # A connection that hangs is not known to be dead: whoever is let in by it is denied by what comes next.
        await served.authenticate(bearer(key))
        with pytest.raises(StoreUnavailable):
            await redis.command("PING")
        assert served._cache.held(key.prefix) is None
        with pytest.raises(Unavailable):
            await served.authenticate(bearer(key))
    finally:
        own_valkey.resume()
    await served.authenticate(bearer(key))
    await own_valkey.stop(immediate=True)
    await until(lambda: served._cache.held(key.prefix) is None)
    with pytest.raises(Unavailable):
        await served.authenticate(bearer(key))


@asynccontextmanager
async def between_reply_and_holding(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Awaitable[object]]
) -> AsyncIterator[None]:
    """Have ``act`` done after an entry was read, before the reader goes on."""
    read = redis.read_followed

    async def delayed(*commands: Any) -> Any:
        found = await read(*commands)
        await act()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(redis, "read_followed", delayed)
        yield


@pytest.mark.parametrize("race", ["set", "flush", "kill", "bury", "evict", "evict_all"])
async def test_an_entry_is_not_held_when_anything_was_heard_after_it_was_read(
    served: Directory, key: NewKey, redis: Redis, other: Redis, monkeypatch: pytest.MonkeyPatch, race: str
) -> None:
    cache = served._cache
    cache._held.clear()

    async def act() -> None:
        match race:
            case "set":
                await other.command("SET", name(key), "revoked")
            case "flush":
                await other.command("FLUSHALL")
            case "kill":
                await other.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await trio.sleep(0.05)
                # On the connection that came after, nobody follows what was read before.
                await redis.command("PING")
                assert redis.follows
            case "bury":
                await cache.bury([key.prefix])
            case "evict":
                await cache.evict([key.prefix])
            case "evict_all":
                await cache.evict_all()
        # The same connection brings this reply after any push of before.
        await redis.command("PING")

    async with between_reply_and_holding(redis, monkeypatch, act):
        assert isinstance(await cache.get(key.prefix), Entry)
    assert cache.held(key.prefix) is None


async def test_an_entry_that_nothing_was_heard_of_meanwhile_is_held(
    served: Directory, key: NewKey, redis: Redis, other: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    served._cache._held.clear()

    async def act() -> None:
        await other.command("SET", f"{name(key)}x", "of another key")
        await redis.command("PING")

    async with between_reply_and_holding(redis, monkeypatch, act):
        await served.authenticate(bearer(key))
    assert served._cache.held(key.prefix) is not None


async def test_a_key_is_held_no_longer_than_redis_lets_it_live(
    served: Directory, key: NewKey, redis: Redis, other: Redis, until: Until
) -> None:
    cache = served._cache
    await other.command("PEXPIRE", name(key), 30_000)
    await until(lambda: cache.held(key.prefix) is None)
    before = trio.current_time()
    await served.authenticate(bearer(key))
    assert cache._held._entries[key.prefix][1] <= before + 30.1
    for life in (("PERSIST", name(key)), ("PEXPIRE", name(key), 86_400_000)):
        await other.command(*life)
        await until(lambda: cache.held(key.prefix) is None)
        await served.authenticate(bearer(key))
    assert cache._held._entries[key.prefix][1] <= trio.current_time() + 60, "and never longer than KEY_CACHE_TTL_S"


async def test_an_entry_without_an_end_is_not_held(
    served: Directory, key: NewKey, other: Redis, until: Until
) -> None:
    await other.command("PERSIST", name(key))
    await until(lambda: served._cache.held(key.prefix) is None)
    await served.authenticate(bearer(key))
    assert served._cache.held(key.prefix) is None


async def test_neither_misses_nor_tombstones_are_held(directory: Directory, key: NewKey, redis: Redis) -> None:
    await redis.command("PING")
    await directory._cache.get(key.prefix)
    await directory.revoke(key.prefix)
    await directory._cache.get(key.prefix)
    assert directory._cache._held._entries == {}
    assert directory._cache._held._readings == {}


async def test_redis_remembers_nothing_of_keys_that_are_not_there(
    served: Directory, key: NewKey, redis: Redis
) -> None:
    async def followed() -> int:
        return int((await redis.command("INFO", "stats"))["tracking_total_keys"])

    assert await followed() == 2, "the entry and its generation"
    for number in range(50):
        await served._cache.get(f"nnz_{number:08}")
    await served.revoke(key.prefix)
    await served._cache.get(key.prefix)
    assert await followed() < 2


async def test_a_server_that_refuses_to_follow_is_asked_for_each_request(
    redis_url: str, redis: Redis, own_valkey: Any, postgres: Any, hasher: Any, key: NewKey
) -> None:
    await redis.command("ACL", "SETUSER", "plain", "on", ">pw", "~*", "&*", "+@all", "-client|tracking")
    url = redis_url.replace("unix://", "unix://plain:pw@")
    async with open_redis(url, size=1, timeout_s=1.0) as plain:
        directory = Directory(postgres, plain, hasher, cache_ttl_s=60)
        await directory.authenticate(bearer(key))
        before = await asked(redis)
        for _ in range(5):
            await directory.authenticate(bearer(key))
        assert not plain.follows
        assert await asked(redis) == before + 5
    assert hasher.verifications == 1


async def test_a_server_that_stops_following_is_asked_for_each_request(
    redis_url: str, redis: Redis, postgres: Any, hasher: Any, key: NewKey
) -> None:
    await redis.command("ACL", "SETUSER", "plain", "on", ">pw", "~*", "&*", "+@all", "-client|caching")
    async with open_redis(redis_url.replace("unix://", "unix://plain:pw@"), size=1, timeout_s=1.0) as plain:
        directory = Directory(postgres, plain, hasher, cache_ttl_s=60)
        for _ in range(5):
            await directory.authenticate(bearer(key))
            assert directory._cache.held(key.prefix) is None
        assert not plain.follows
    assert hasher.verifications == 1


async def test_a_storm_of_changes_never_leaves_a_stale_entry(
    directory: Directory, key: NewKey, redis_url: str, redis: Redis, until: Until
) -> None:
    """Readers without a pause, while another process moves the entry on: what is held at rest is the last one."""
    principal = await directory.authenticate(bearer(key))
    cache = KeyCache(redis, ttl_s=60)
    value = await redis.command("GET", name(key))

    def version(number: int) -> bytes:
        return bytes(value).replace(b'"key_name":"laptop"', b'"key_name":"%d"' % number)

    async def read(stop: trio.Event) -> None:
        while not stop.is_set():
            await cache.get(key.prefix)
            await trio.lowlevel.checkpoint()

    def write(first: int) -> None:
        with redis_py.Redis.from_url(redis_url) as peer:
            for number in range(first, first + 50):
                peer.set(name(key), version(number), ex=60)

    for round_ in range(20):
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(read, stop)
            await trio.to_thread.run_sync(write, round_ * 50)
            stop.set()
        await redis.command("PING")
        held = cache.held(key.prefix)
        assert held is None or held.principal.key_name == str(round_ * 50 + 49)
    assert principal.key_name == "laptop"


async def test_at_most_so_many_are_held_and_the_oldest_makes_room(autojump_clock: Any) -> None:
    held = HeldEntries(3)
    entry: Any = object()
    for number in range(5):
        with held.reading(f"k{number}") as reading:
            reading.hold(entry, until=trio.current_time() + 10)
    assert [held.get(f"k{number}") is entry for number in range(5)] == [False, False, True, True, True]
    with held.reading("k2") as reading:
        reading.hold(entry, until=trio.current_time() + 20)
    await trio.sleep(10)
    assert [held.get(f"k{number}") is entry for number in range(2, 5)] == [True, False, False]
    await trio.sleep(10)
    assert held.get("k2") is None
    assert held._entries == {}


async def test_a_hit_costs_microseconds(served: Directory, key: NewKey) -> None:
    header = bearer(key)
    best = 1.0
    for _ in range(5):
        began = time.process_time()
        for _ in range(1000):
            await served.authenticate(header)
        best = min(best, (time.process_time() - began) / 1000)
    assert best < 50e-6, best
