"""The directory: who is let in, what is asked for it, and the races that must not be won (G8)."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import trio

from neuronetz.access.cache import GENERATION_TTL_S, TOMBSTONE_TTL_S, VERSION, Entry
from neuronetz.access.directory import LOOKUP_TIMEOUT_S, Directory, presented_key
from neuronetz.access.keys import NewKey, generate
from neuronetz.embedded.valkey import EmbeddedValkey
from neuronetz.errors import StoreUnavailable, Unauthenticated, Unavailable
from neuronetz.policy import Limits, Principal
from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis, open_redis

Until = Callable[[Callable[[], object]], Awaitable[None]]


def bearer(key: NewKey) -> str:
    return f"Bearer {key.text}"


def with_other_secret(key: NewKey) -> str:
    """A well-formed key with the prefix of ``key``."""

    class Chosen:
        characters = iter(key.prefix.removeprefix("nnz_") + "0" * 33)

        def choice(self, seq: Any, /) -> str:
            return next(self.characters)

    other = generate(Chosen())
    assert other.prefix == key.prefix
    assert other.secret != key.secret
    return bearer(other)


async def refused(directory: Directory, authorization: str | None) -> Unauthenticated:
    with pytest.raises(Unauthenticated) as refusal:
        await directory.authenticate(authorization)
    return refusal.value


@pytest.mark.parametrize(
    "form", ["Bearer {}", "bearer {}", "BEARER {}", "  Bearer {} ", "Bearer    {}", "\tBearer {}\t"]
)
def test_a_bearer_key_is_read_whatever_the_case_and_the_spaces(form: str) -> None:
    key = generate()
    presented = presented_key(form.format(key.text))
    assert presented is not None
    assert presented.prefix == key.prefix


@pytest.mark.parametrize(
    "form",
    [
        "",
        "Bearer",
        "Bearer ",
        "{}",
        "Basic {}",
        "Bearer{}",
        "Bearer {0} {0}",
        "Bearer {0}, Bearer {0}",
        "Bearer {}x",
        "Bearer " + " " * 300 + "{}",
        "Bearer\t{}",
        "Bearer \u00e9{}",
    ],
)
def test_anything_else_in_the_header_is_no_key(form: str) -> None:
    assert presented_key(form.format(generate().text)) is None


async def test_a_key_is_resolved_with_its_tenant(directory: Directory, issuer: Any, clock: Any) -> None:
    tenant_id = await issuer.tenant(
        "acme", rpm=60, budget_tokens=1000, budget_period="week", max_predict=100, models=["llama3:latest"]
    )
    expires_at = clock.now + timedelta(days=1)
    key = await issuer.key(tenant_id, expires_at=expires_at, concurrency=2, budget_tokens=10, max_predict=500)
    first = await directory.authenticate(bearer(key))
    cached = await directory.authenticate(bearer(key))
    assert first == cached
    assert (first.tenant_id, first.tenant, first.key_name, first.prefix) == (
        tenant_id,
        "acme",
        "laptop",
        key.prefix,
    )
    assert first.tenant_limits == Limits(rpm=60, budget_tokens=1000, budget_period="week")
    assert first.key_limits == Limits(concurrency=2, budget_tokens=10, budget_period="week")
    assert (first.max_predict, first.models, first.expires_at) == (100, frozenset({"llama3:latest"}), expires_at)


async def test_a_tenant_and_a_key_without_rows_of_limits_get_no_models(directory: Directory, issuer: Any) -> None:
    principal = await directory.authenticate(bearer(await issuer.key(await issuer.tenant())))
    assert principal.tenant_limits == principal.key_limits == Limits()
    assert not principal.allow_all_models
    assert not principal.models


async def test_argon2_runs_on_a_miss_only(directory: Directory, issuer: Any, hasher: Any, redis: Redis) -> None:
    key = await issuer.key(await issuer.tenant())
    for _ in range(3):
        await directory.authenticate(bearer(key))
    assert hasher.verifications == 1
    await redis.command("FLUSHDB")
    await directory.authenticate(bearer(key))
    assert hasher.verifications == 2


async def test_a_hit_with_a_wrong_secret_is_refused_without_argon2(
    directory: Directory, issuer: Any, hasher: Any
) -> None:
    key = await issuer.key(await issuer.tenant())
    await directory.authenticate(bearer(key))
    await refused(directory, with_other_secret(key))
    assert hasher.verifications == 1
    await directory.authenticate(bearer(key))


async def test_a_miss_with_a_wrong_secret_is_refused_and_not_cached(
    directory: Directory, issuer: Any, hasher: Any, redis: Redis
) -> None:
    key = await issuer.key(await issuer.tenant())
    await refused(directory, with_other_secret(key))
    assert hasher.verifications == 1
    assert await redis.command("DBSIZE") == 0
    await directory.authenticate(bearer(key))


async def test_every_cause_gives_the_same_refusal_and_none_but_a_wrong_secret_costs_argon2(
    directory: Directory, issuer: Any, hasher: Any, postgres: Postgres, clock: Any
) -> None:
    tenant_id = await issuer.tenant("acme")
    suspended_id = await issuer.tenant("late-payer")
    await postgres.execute("UPDATE gateway.tenants SET suspended_at = now() WHERE name = 'late-payer'")
    revoked = await issuer.key(tenant_id)
    await issuer.revoke(revoked)
    cheap = [
        None,
        "Bearer nonsense",
        bearer(generate()),
        bearer(revoked),
        bearer(await issuer.key(tenant_id, expires_at=clock.now)),
        bearer(await issuer.key(suspended_id)),
    ]
    refusals = [await refused(directory, authorization) for authorization in cheap]
    assert hasher.verifications == 0
    refusals.append(await refused(directory, with_other_secret(await issuer.key(tenant_id))))
    seen = {
        (type(error), error.status, error.message, error.retry_after, str(error.headers)) for error in refusals
    }
    assert len(seen) == 1


async def test_a_key_that_expires_while_cached_is_refused(
    directory: Directory, issuer: Any, clock: Any, hasher: Any
) -> None:
    key = await issuer.key(await issuer.tenant(), expires_at=clock.now + timedelta(seconds=10))
    await directory.authenticate(bearer(key))
    clock.advance(seconds=9.9)
    await directory.authenticate(bearer(key))
    clock.advance(seconds=0.1)
    await refused(directory, bearer(key))
    assert hasher.verifications == 1


async def test_a_wrong_checksum_is_refused_without_any_look_up(
    dead_postgres: Postgres, dead_redis: Redis, hasher: Any
) -> None:
    directory = Directory(dead_postgres, dead_redis, hasher, cache_ttl_s=60)
    text = generate().text
    typo = text[:-1] + ("1" if text[-1] == "0" else "0")
    await refused(directory, f"Bearer {typo}")
    with pytest.raises(Unavailable):
        await directory.authenticate(f"Bearer {text}")


async def test_a_cached_key_lives_no_longer_than_its_ttl_and_markers_outlive_any_look_up(
    directory: Directory, issuer: Any, redis: Redis
) -> None:
    key = await issuer.key(await issuer.tenant())
    await directory.authenticate(bearer(key))
    assert 0 < await redis.command("TTL", f"gateway:key:{key.prefix}") <= 60
    await directory.evict([key.prefix])
    await directory.revoke(key.prefix)
    for name in (f"gateway:key:{key.prefix}", f"{{gateway:key:{key.prefix}}}:generation"):
        assert await redis.command("TTL", name) > 5 * LOOKUP_TIMEOUT_S
    assert min(TOMBSTONE_TTL_S, GENERATION_TTL_S) > 5 * LOOKUP_TIMEOUT_S


async def test_the_cache_holds_neither_the_secret_nor_its_argon2_hash(
    directory: Directory, issuer: Any, redis: Redis
) -> None:
    key = await issuer.key(await issuer.tenant())
    await directory.authenticate(bearer(key))
    value = await redis.command("GET", f"gateway:key:{key.prefix}")
    assert key.secret.encode() not in value
    assert b"argon2" not in value


def test_a_change_of_what_an_entry_holds_comes_with_a_new_version() -> None:
    held = (VERSION, Entry.__struct_fields__, Principal.__struct_fields__, Limits.__struct_fields__)
    assert held == (
        2,
        ("version", "digest", "principal"),
        (
            *("tenant_id", "tenant", "key_id", "key_name", "prefix", "tenant_limits", "key_limits"),
            *("allow_all_models", "models", "max_predict", "max_body_bytes", "expires_at", "log_prompts"),
        ),
        ("rpm", "concurrency", "budget_tokens", "budget_period"),
    )


@pytest.mark.parametrize("spoil", ["version", "garbage"])
async def test_an_entry_of_another_version_or_a_broken_one_is_ignored_and_replaced(
    directory: Directory, issuer: Any, hasher: Any, redis: Redis, spoil: str
) -> None:
    key = await issuer.key(await issuer.tenant())
    await directory.authenticate(bearer(key))
    name = f"gateway:key:{key.prefix}"
    entry = msgspec.json.decode(await redis.command("GET", name))
    entry["version"] += 1
    await redis.command("SET", name, msgspec.json.encode(entry) if spoil == "version" else b"\xff{", "EX", 60)
    for _ in range(2):
        await directory.authenticate(bearer(key))
    assert hasher.verifications == 2


async def test_a_tombstone_refuses_a_cached_key_and_an_eviction_does_not_lift_it(
    directory: Directory, issuer: Any, hasher: Any
) -> None:
    key = await issuer.key(await issuer.tenant())
    await directory.authenticate(bearer(key))
    await directory.revoke(key.prefix)
    await refused(directory, bearer(key))
    await directory.evict([key.prefix])
    await directory.evict_all()
    await refused(directory, bearer(key))
    assert hasher.verifications == 1


async def test_a_look_up_racing_a_revocation_is_refused_and_cannot_put_the_key_back(
    directory: Directory, issuer: Any, hasher: Any, redis: Redis
) -> None:
    key = await issuer.key(await issuer.tenant())
    hasher.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, directory, bearer(key))
        await hasher.at_gate.wait()  # PostgreSQL has said that the key is good
        await issuer.revoke(key)
        await directory.revoke(key.prefix)
        hasher.gate.set()
    await refused(directory, bearer(key))
    assert await redis.command("GET", f"gateway:key:{key.prefix}") == b"revoked"


@pytest.mark.parametrize("sweep", [False, True], ids=["evict", "evict_all"])
async def test_a_look_up_racing_an_eviction_cannot_put_the_old_policy_back(
    directory: Directory, issuer: Any, hasher: Any, postgres: Postgres, sweep: bool
) -> None:
    key = await issuer.key(await issuer.tenant(rpm=60))
    hasher.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(directory.authenticate, bearer(key))
        await hasher.at_gate.wait()  # the old policy has been read
        await postgres.execute("UPDATE gateway.tenant_limits SET rpm = 1")
        await (directory.evict_all() if sweep else directory.evict([key.prefix]))
        hasher.gate.set()
    assert (await directory.authenticate(bearer(key))).tenant_limits.rpm == 1
    assert hasher.verifications == 2


async def test_a_look_up_begun_under_one_eviction_cannot_slip_in_after_the_next(
    directory: Directory, issuer: Any, hasher: Any, postgres: Postgres
) -> None:
    key = await issuer.key(await issuer.tenant(rpm=60))
    await directory.evict([key.prefix])
    hasher.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(directory.authenticate, bearer(key))
        await hasher.at_gate.wait()
        await postgres.execute("UPDATE gateway.tenant_limits SET rpm = 1")
        await directory.evict([key.prefix])
        hasher.gate.set()
    assert (await directory.authenticate(bearer(key))).tenant_limits.rpm == 1


async def test_evict_all_drops_every_key_and_nothing_else(
    directory: Directory, issuer: Any, hasher: Any, redis: Redis
) -> None:
    tenant_id = await issuer.tenant()
    made = [await issuer.key(tenant_id) for _ in range(3)]
    for key in made:
        await directory.authenticate(bearer(key))
    await redis.command("SET", "gateway:models:discovered", "x")
    await directory.evict_all()
    for key in made:
        await directory.authenticate(bearer(key))
    assert hasher.verifications == 6
    assert await redis.command("GET", "gateway:models:discovered") == b"x"


async def test_requests_with_one_key_share_one_look_up(
    directory: Directory, issuer: Any, hasher: Any, until: Until
) -> None:
    key = await issuer.key(await issuer.tenant())
    hasher.gate = trio.Event()
    principals: list[Principal] = []

    async def request() -> None:
        principals.append(await directory.authenticate(bearer(key)))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(request)
        await until(lambda: sum(flight.travellers for flight in directory._flights.values()) == 10)
        hasher.gate.set()
    assert len(principals) == 10
    assert len(set(principals)) == 1
    assert hasher.verifications == 1
    assert not directory._flights


async def test_a_refusal_is_shared_too(directory: Directory, issuer: Any, hasher: Any, until: Until) -> None:
    wrong = with_other_secret(await issuer.key(await issuer.tenant()))
    hasher.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(refused, directory, wrong)
        await until(lambda: sum(flight.travellers for flight in directory._flights.values()) == 5)
        hasher.gate.set()
    assert hasher.verifications == 1
    assert not directory._flights


async def test_one_request_s_cancellation_does_not_fail_those_that_share_its_look_up(
    directory: Directory, issuer: Any, hasher: Any, until: Until
) -> None:
    key = await issuer.key(await issuer.tenant())
    hasher.gate = trio.Event()
    principals: list[Principal] = []
    first = trio.CancelScope()

    async def cancelled() -> None:
        with first:
            await directory.authenticate(bearer(key))

    async def request() -> None:
        principals.append(await directory.authenticate(bearer(key)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancelled)
        await hasher.at_gate.wait()
        for _ in range(3):
            nursery.start_soon(request)
        await until(lambda: sum(flight.travellers for flight in directory._flights.values()) == 4)
        first.cancel()
        hasher.gate.set()
    assert first.cancelled_caught
    assert len(principals) == 3
    assert hasher.verifications == 2
    assert not directory._flights


async def test_a_wrong_secret_does_not_hold_up_the_right_one(
    directory: Directory, issuer: Any, hasher: Any
) -> None:
    key = await issuer.key(await issuer.tenant())
    gate = hasher.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, directory, with_other_secret(key))
        await hasher.at_gate.wait()
        hasher.gate = None
        with trio.fail_after(10):
            await directory.authenticate(bearer(key))
        gate.set()


async def test_a_hash_of_old_parameters_is_made_anew(
    postgres: Postgres, redis: Redis, issuer: Any, make_hasher: Callable[..., Any]
) -> None:
    key = await issuer.key(await issuer.tenant())
    hasher = make_hasher(time_cost=2)
    directory = Directory(postgres, redis, hasher, cache_ttl_s=60)
    principal = await directory.authenticate(bearer(key))
    stored = await postgres.fetchval("SELECT secret_hash FROM gateway.api_keys")
    assert "t=2" in stored
    assert not hasher.needs_rehash(stored)
    await redis.command("FLUSHDB")
    assert await directory.authenticate(bearer(key)) == principal
    assert await postgres.fetchval("SELECT secret_hash FROM gateway.api_keys") == stored


async def test_a_rehash_does_not_overwrite_a_hash_that_changed_meanwhile(
    postgres: Postgres, redis: Redis, issuer: Any, make_hasher: Callable[..., Any]
) -> None:
    key = await issuer.key(await issuer.tenant())
    hasher = make_hasher(time_cost=2)
    hasher.before_hash = lambda: postgres.execute("UPDATE gateway.api_keys SET secret_hash = '$argon2id$other'")
    await Directory(postgres, redis, hasher, cache_ttl_s=60).authenticate(bearer(key))
    assert await postgres.fetchval("SELECT secret_hash FROM gateway.api_keys") == "$argon2id$other"


async def test_a_rehash_that_fails_does_not_fail_the_request(
    postgres: Postgres, redis: Redis, issuer: Any, make_hasher: Callable[..., Any]
) -> None:
    key = await issuer.key(await issuer.tenant())
    before = await postgres.fetchval("SELECT secret_hash FROM gateway.api_keys")
    await postgres.execute("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON gateway.api_keys EXECUTE FUNCTION refuse();
    """)
    directory = Directory(postgres, redis, make_hasher(time_cost=2), cache_ttl_s=60)
    assert (await directory.authenticate(bearer(key))).prefix == key.prefix
    assert await postgres.fetchval("SELECT secret_hash FROM gateway.api_keys") == before


async def test_without_redis_nobody_is_let_in(
    dead_redis: Redis, postgres: Postgres, issuer: Any, hasher: Any
) -> None:
    key = await issuer.key(await issuer.tenant())
    with pytest.raises(Unavailable) as refusal:
        await Directory(postgres, dead_redis, hasher, cache_ttl_s=60).authenticate(bearer(key))
    assert refusal.value.dependency == "redis"
    assert refusal.value.retry_after is not None
    assert hasher.verifications == 0


async def test_redis_lost_in_a_look_up_lets_nobody_in(
    asyncio_loop: asyncio.AbstractEventLoop,
    own_valkey: EmbeddedValkey,
    postgres: Postgres,
    issuer: Any,
    hasher: Any,
) -> None:
    key = await issuer.key(await issuer.tenant())
    hasher.gate = trio.Event()
    refusals: list[Unavailable] = []
    async with open_redis(own_valkey.url(), size=4, timeout_s=2.0) as redis:
        directory = Directory(postgres, redis, hasher, cache_ttl_s=60)

        async def request() -> None:
            with pytest.raises(Unavailable) as refusal:
                await directory.authenticate(bearer(key))
            refusals.append(refusal.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(request)
            await hasher.at_gate.wait()
            await own_valkey.stop(immediate=True)
            hasher.gate.set()
        with pytest.raises(StoreUnavailable):
            await directory.revoke(key.prefix)
    assert [refusal.dependency for refusal in refusals] == ["redis"]


async def test_without_postgres_cached_keys_are_served_and_others_are_not(
    directory: Directory, dead_postgres: Postgres, redis: Redis, issuer: Any, hasher: Any
) -> None:
    tenant_id = await issuer.tenant()
    cached, other = await issuer.key(tenant_id), await issuer.key(tenant_id)
    principal = await directory.authenticate(bearer(cached))
    cut_off = Directory(dead_postgres, redis, hasher, cache_ttl_s=60)
    assert await cut_off.authenticate(bearer(cached)) == principal
    await refused(cut_off, with_other_secret(cached))
    with pytest.raises(Unavailable) as refusal:
        await cut_off.authenticate(bearer(other))
    assert refusal.value.dependency == "postgres"
    assert refusal.value.retry_after is not None


async def test_a_look_up_that_takes_too_long_is_given_up(
    directory: Directory, issuer: Any, hasher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuronetz.access.directory.LOOKUP_TIMEOUT_S", 0.1)
    key = await issuer.key(await issuer.tenant())
    hasher.gate = trio.Event()
    with pytest.raises(Unavailable):
        await directory.authenticate(bearer(key))
    assert not directory._flights
