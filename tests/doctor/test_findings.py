"""Each thing that the doctor looks for, provoked in real stores."""

import json
import resource
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest
import trio

from neuronetz.admission import keyspace
from neuronetz.audit.record import AuditRecord, encode
from neuronetz.doctor import database, host, ollama
from neuronetz.doctor.examination import STEPS
from neuronetz.stores.postgres import open_postgres
from tests.shapes import Shape

REDIS_SECRET = "a-password-that-nobody-may-print"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}


async def now_ms(redis: Any) -> int:
    seconds, micros = await redis.command("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


async def put_lease(redis: Any, instance: str, *, age_s: float = 0, slot: bool = True) -> tuple[str, str]:
    """A lease as an admission writes it; its tenant and its request."""
    tenant, key, request = (str(uuid4()) for _ in range(3))
    admitted = await now_ms(redis) - int(age_s * 1000)
    await redis.command("HSET", keyspace.leases(tenant, instance), request, f"{key}|1|0|0|{admitted}||||")
    await redis.command("SADD", keyspace.hashes(tenant), keyspace.leases(tenant, instance))
    if slot:
        await redis.command("SADD", keyspace.slots(tenant), request)
    return tenant, request


async def beat(redis: Any, instance: str, *, age_s: float = 0) -> None:
    await redis.command("ZADD", keyspace.INSTANCES, await now_ms(redis) - int(age_s * 1000), instance)


def row(*, age_s: float) -> AuditRecord:
    started = datetime.now(UTC) - timedelta(seconds=age_s)
    return AuditRecord(
        request_id=str(uuid4()), started_at=started, tenant_id=str(uuid4()), key_id=str(uuid4()),
        endpoint="/api/chat", dialect="ollama", model="tiny", stream=True, status=200, outcome="completed",
        prompt_tokens=1, completion_tokens=2, tokens_exact=True, budget_day=started.date(), duration_ms=0,
        first_byte_ms=1, client_ip=None, instance="gone",
    )  # fmt: skip


async def test_a_sound_deployment_has_nothing_wrong(
    findings: Any, gateway: Any, client: Any, books: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama, "outside_addresses", nobody)
    assert (await client.post("/api/chat", json=CHAT)).status_code == 200
    await books.rows(1)
    port = int(gateway.base_url.rsplit(":", 1)[1])
    found = await findings(listen_port=port, max_connections=8)
    assert list(found) == [step.name for step in STEPS]
    wrong = [each for some in found.values() for each in some if each.state != "ok"]
    # The session's servers keep nothing, and their role may do everything.
    assert {each.check for each in wrong} == {"postgres", "redis persistence"}
    assert "is ready" in found["gateway"][0].what
    assert "models: " in found["ollama"][0].what


async def test_it_changes_nothing_in_redis(findings: Any, make_key: Any, postgres: Any, redis: Any) -> None:
    await make_key("thrifty", budget_tokens=10**6)
    tenant = str(await postgres.fetchval("SELECT id FROM gateway.tenants"))
    # The ledger check, which looks at the same, would strike this out.
    await redis.command("SADD", keyspace.hashes(tenant), keyspace.leases(tenant, "nobody"))
    await beat(redis, "gone", age_s=60)
    await put_lease(redis, "gone")
    await redis.command("SET", "gateway:key:nnz_abcdefgh", "revoked")

    async def contents() -> dict[bytes, bytes]:
        return {name: await redis.command("DUMP", name) for name in await redis.command("KEYS", "*")}

    before = await contents()
    assert len(before) == 6
    found = await findings()
    assert found["leases"][0].state == "failed"
    assert await contents() == before


async def test_postgres_refuses_it_any_change(asyncio_loop: Any, database_url: str) -> None:
    async with open_postgres(database_url, size=1, timeout_s=5, read_only=True) as postgres:
        assert await postgres.fetchval("SELECT count(*) FROM gateway.tenants") == 0
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await postgres.execute("INSERT INTO gateway.tenants (name) VALUES ('mine')")


async def nobody() -> list[str]:
    return []


# PostgreSQL


async def test_postgres_away(findings: Any) -> None:
    found = await findings(database_url="postgresql://gateway:secret-word@127.0.0.1:1/gateway")
    assert found["postgres"][0].state == "failed"
    assert "DATABASE_URL" in (found["postgres"][0].hint or "")
    assert found["ledger"][0].what.startswith("not checked")
    assert found["redis"][0].state == "ok"
    assert "secret-word" not in repr(found)


@pytest.mark.parametrize(("bounds", "state"), [((99, 99), "failed"), ((1, 2), "warning")])
async def test_a_version_that_is_not_supported(
    findings: Any, monkeypatch: pytest.MonkeyPatch, bounds: tuple[int, int], state: str
) -> None:
    monkeypatch.setattr(database, "OLDEST", bounds[0])
    monkeypatch.setattr(database, "NEWEST", bounds[1])
    found = (await findings("postgres"))["postgres"]
    assert found[0].state == state


async def test_a_superuser(bad: Any) -> None:
    assert "superuser" in (await bad("postgres")).what


async def test_a_schema_that_lacks_a_migration(bad: Any, postgres: Any) -> None:
    await postgres.execute("DELETE FROM public._pogo_migration WHERE migration_id LIKE '0003%'")
    found = await bad("schema")
    assert (found.state, found.hint) == ("failed", "run 'neuronetz migrate'")


async def test_a_role_that_lacks_rights(bad: Any, postgres: Any, database_url: str, findings: Any) -> None:
    await postgres.execute("DO $$ BEGIN CREATE ROLE weak LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    await postgres.execute("GRANT console TO weak; GRANT SELECT ON public._pogo_migration TO weak")
    found = await findings(database_url=database_url.replace("//postgres@", "//weak@"))
    texts = [each.what for each in found["rights"]]
    assert "the role lacks a right on gateway.audit_log: INSERT" in texts
    assert any("partitions" in text for text in texts)
    assert not any("SELECT" in text for text in texts)
    assert found["postgres"][0].state == "ok"


async def test_partitions_that_are_missing(bad: Any, postgres: Any) -> None:
    name = await postgres.fetchval(
        "SELECT 'audit_log_' || to_char(now() AT TIME ZONE 'UTC' + '2 months', 'YYYYMM')"
    )
    await postgres.execute(f"DROP TABLE gateway.{name}")
    assert name in (await bad("partitions")).what


async def test_rows_in_the_default_partition(bad: Any, postgres: Any) -> None:
    await insert(postgres, msgspec.structs.replace(row(age_s=0), started_at=datetime(2001, 1, 1, tzinfo=UTC)))
    assert (await bad("partitions")).what == "the audit log's default partition holds rows: 1"


async def insert(postgres: Any, record: AuditRecord) -> None:
    await postgres.execute(
        "INSERT INTO gateway.audit_log SELECT * FROM jsonb_populate_record(NULL::gateway.audit_log, $1::jsonb)",
        encode(record).decode(),
    )


# Redis


async def test_redis_away(findings: Any) -> None:
    found = await findings(redis_url=f"redis://:{REDIS_SECRET}@127.0.0.1:1/0")
    assert found["redis"][0].state == "failed"
    assert found["leases"][0].what == "not checked, for redis failed"
    assert REDIS_SECRET not in repr(found)


async def test_a_redis_that_hangs_ends_the_check_in_time(own_valkey: Any, findings: Any) -> None:
    own_valkey.pause()
    with trio.fail_after(8):
        found = await findings(timeout_s=0.3, redis_url=own_valkey.url())
    assert found["redis"][0].state == "failed"
    assert found["postgres"][0].state == "warning"


async def test_a_redis_that_evicts_is_nearly_full_and_keeps_nothing(own_valkey: Any, findings: Any) -> None:
    from neuronetz.stores.redis import open_redis

    async with open_redis(own_valkey.url(), size=1, timeout_s=5) as redis:
        used = (await redis.command("INFO", "memory"))["used_memory"]
        await redis.command("CONFIG", "SET", "maxmemory", int(used * 1.02))
        await redis.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        await redis.command("CONFIG", "SET", "appendonly", "no")
    found = await findings(redis_url=own_valkey.url())
    assert [each.state for each in found["redis memory"]] == ["failed", "warning"]
    assert "allkeys-lru" in found["redis memory"][0].what
    assert found["redis persistence"][0].state == "warning"


async def test_a_redis_that_is_too_old(bad: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuronetz.doctor import redis

    monkeypatch.setattr(redis, "OLDEST", (99, 0))
    assert (await bad("redis")).what.endswith("is too old")


async def test_a_cluster_is_examined_whole(findings: Any, cluster_url: str, valkey_cluster: Any) -> None:
    found = await findings(redis_url=cluster_url)
    assert found["redis"][0].what.endswith("a cluster of 3 nodes")
    for check in ("redis memory", "leases", "slots", "audit rows", "budgets", "clocks"):
        assert found[check][0].state == "ok", found[check]


# What requests hold


async def test_leases_of_an_instance_that_is_dead(bad: Any, redis: Any) -> None:
    await beat(redis, "gone", age_s=60)
    await put_lease(redis, "gone")
    found = await bad("leases")
    assert found.state == "failed"
    assert found.what.startswith("1 leases of gone, dead for 6")


async def test_leases_that_nobody_will_ever_reap_and_how_to_have_them_reaped(
    bad: Any, redis: Any, settings: Any, run_gateway: Any, books: Any
) -> None:
    await put_lease(redis, "unknown")
    found = await bad("leases")
    assert found.what == "1 leases of unknown, which no gateway knows of"
    # The hint is carried out to the letter.
    first, _, second = found.hint.partition("redis-cli ")[2].partition("; then ")
    for command in (first, second):
        await redis.command(*(word.strip("'") for word in command.split()))
    async with run_gateway(settings.model_copy(update={"heartbeat_s": 0.1})):
        await books.settled(within_s=5)


async def test_a_lease_that_is_older_than_an_exchange_may_be(bad: Any, redis: Any, settings: Any) -> None:
    await beat(redis, "alive")
    await put_lease(redis, "alive", age_s=settings.exchange_timeout_s + settings.body_timeout_s + 120)
    assert (await bad("leases")).what == "leases of alive are older than an exchange may be: 1"


async def test_a_slot_without_its_lease(bad: Any, redis: Any, findings: Any) -> None:
    await beat(redis, "alive")
    tenant, _ = await put_lease(redis, "alive")
    assert (await findings("slots"))["slots"][0].state == "ok"
    await redis.command("SADD", keyspace.slots(tenant, "some-key"), "stray")
    found = await bad("slots")
    assert found.what == f"slots without a lease in {keyspace.slots(tenant, 'some-key')}: 1"


async def test_audit_rows_that_wait_for_long(bad: Any, redis: Any) -> None:
    await beat(redis, "alive")
    record = row(age_s=90)
    await redis.command("HSET", keyspace.rows(record.tenant_id, "alive"), record.request_id, encode(record))
    found = await bad("audit rows")
    assert found.state == "warning"
    assert found.what.startswith("audit rows wait: 1, the oldest for 9")


async def test_audit_rows_of_nobody(findings: Any, redis: Any) -> None:
    record = row(age_s=1)
    await redis.command("HSET", keyspace.rows(record.tenant_id, "unknown"), record.request_id, encode(record))
    [found] = (await findings("audit rows"))["audit rows"]
    assert (found.state, found.what) == ("failed", "1 audit rows of unknown, which no gateway knows of")


async def test_what_a_running_request_holds_is_no_finding(findings: Any, gateway: Any, key: str) -> None:
    port = int(gateway.base_url.rsplit(":", 1)[1])
    async with await trio.open_tcp_stream("127.0.0.1", port) as client:
        await client.send_all(Shape("/api/chat", True).request(key, "[[tokens:500]] [[tps:50]] x"))
        await client.receive_some()
        found = await findings()
    assert found["leases"][0].what == "leases held: 1, instances alive: 1"
    assert found["slots"][0].what.endswith(": 1")
    assert found["audit rows"][0].what == "audit rows on their way: 0"


# The books


async def test_a_ledger_that_differs_from_its_rows(
    bad: Any, gateway: Any, client: Any, books: Any, postgres: Any
) -> None:
    await client.post("/api/chat", json=CHAT)
    await books.rows(1)
    await postgres.execute("UPDATE gateway.budget_usage SET completion_tokens = completion_tokens + 7")
    found = await bad("ledger")
    assert found.state == "failed"
    assert "+7 tokens, +0 requests" in found.what


async def test_a_row_that_the_ledger_never_heard_of(bad: Any, postgres: Any) -> None:
    await insert(postgres, row(age_s=0))
    assert "-3 tokens, -1 requests" in (await bad("ledger")).what


async def test_a_counter_that_has_drifted(
    findings: Any, gateway: Any, make_key: Any, books: Any, redis: Any
) -> None:
    import httpx

    key = await make_key("thrifty", budget_tokens=10**6)
    async with httpx.AsyncClient(trust_env=False, headers={"authorization": f"Bearer {key}"}) as client:
        await client.post(gateway.base_url + "/api/chat", json=CHAT)
    await books.rows(1)
    assert (await findings("budgets"))["budgets"][0].state == "ok"
    [name] = await redis.command("KEYS", "gateway:{*}:budget:t:*")
    found = None
    with trio.fail_after(10):
        # The gateway looks at a counter just made, too, and may have repaired it first.
        while found is None or found.state == "ok":
            await redis.command("HINCRBY", name, "used", 1000)
            [found] = (await findings("budgets"))["budgets"]
    assert (found.state, found.what) == ("failed", f"the counter {name.decode()} lacks -1000 tokens")


async def test_a_revoked_key_that_is_cached(
    findings: Any, bad: Any, gateway: Any, client: Any, key: str, postgres: Any, redis: Any
) -> None:
    prefix = key[:12]
    entry = None
    while entry is None:  # news of the key's making may still evict it
        assert (await client.get("/api/tags")).status_code == 200
        entry = await redis.command("GET", f"gateway:key:{prefix}")
    await postgres.execute("INSERT INTO gateway.revocations (prefix) VALUES ($1)", prefix)
    with trio.fail_after(5):
        while await redis.command("GET", f"gateway:key:{prefix}") != b"revoked":
            await trio.sleep(0.005)
    assert (await findings("revocations"))["revocations"][0].state == "ok"
    await redis.command("SET", f"gateway:key:{prefix}", entry)
    found = await bad("revocations")
    assert (found.state, found.what) == ("failed", f"key {prefix} is revoked, and cached as valid")


async def test_a_revocation_of_which_nobody_took_notice(bad: Any, key: str, postgres: Any) -> None:
    await postgres.execute("INSERT INTO gateway.revocations (prefix) VALUES ($1)", key[:12])
    await postgres.execute("UPDATE gateway.api_keys SET revoked_at = now() - interval '20 seconds'")
    assert "took notice" in (await bad("revocations")).what


async def test_a_revocation_that_was_never_told(bad: Any, key: str, postgres: Any) -> None:
    await postgres.execute("UPDATE gateway.api_keys SET revoked_at = now() - interval '1 day'")
    assert "without a row" in (await bad("revocations")).what


# Ollama and this host


async def test_ollama_away(bad: Any) -> None:
    found = await bad("ollama", ollama_url="http://user:hidden-word@127.0.0.1:1")
    assert found.state == "failed"
    assert "127.0.0.1:1" in found.what
    assert "hidden-word" not in repr(found)


async def test_an_ollama_without_models(bad: Any) -> None:
    from neuronetz.embedded.ollama import MockOptions, run_mock_ollama

    async with run_mock_ollama(MockOptions(models=())) as mock:
        assert "has no model" in (await bad("ollama", ollama_url=mock.url)).what


async def test_what_is_no_ollama(bad: Any, gateway: Any) -> None:
    found = await bad("ollama", ollama_url=gateway.metrics_url.removesuffix("/metrics"))
    assert found.state == "failed"


async def test_an_ollama_that_answers_at_other_addresses_too(
    bad: Any, findings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuronetz.embedded.ollama import MockOptions, run_mock_ollama

    async def another() -> list[str]:
        return ["127.0.0.2"]

    monkeypatch.setattr(ollama, "outside_addresses", another)
    assert (await findings("ollama exposure"))["ollama exposure"][
        0
    ].what == "no other address of this host leads to Ollama"
    async with run_mock_ollama(MockOptions(), host="0.0.0.0") as mock:
        port = mock.url.rsplit(":", 1)[1]
        found = await bad("ollama exposure", ollama_url=f"http://127.0.0.1:{port}")
    assert found.what == f"Ollama answers at 127.0.0.2 too, port {port}"


async def test_the_addresses_of_this_host_are_no_loopback() -> None:
    assert not [each for each in await ollama.outside_addresses() if each.startswith("127.") or each == "::1"]


async def test_an_ollama_on_a_public_address(bad: Any) -> None:
    # The check is of the address alone: nothing is sent there.
    assert "public address: 8.8.8.8" in (await bad("ollama exposure", ollama_url="http://8.8.8.8:1")).what


@pytest.mark.parametrize("address", ["0.0.0.0", "8.8.8.8"])
async def test_metrics_on_the_network(bad: Any, address: str) -> None:
    assert "public" in (await bad("metrics", metrics_host=address)).what


async def test_clocks_that_differ(findings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    for ahead, state in ((5, "warning"), (500, "failed")):
        monkeypatch.setattr(host.time, "time", lambda ahead=ahead: time.time_ns() / 1e9 + ahead)
        found = (await findings("clocks"))["clocks"]
        assert [each.state for each in found] == [state, state]
        assert f"-{ahead}.0 s" in found[0].what


@pytest.fixture
def few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_too_few_open_files(few_files: None, bad: Any) -> None:
    assert "MAX_CONNECTIONS needs" in (await bad("open files")).what


async def test_no_gateway(bad: Any) -> None:
    found = await bad("gateway", listen_port=1)
    assert (found.state, found.what) == ("warning", "no gateway answers at http://127.0.0.1:1")


async def test_something_else_where_the_gateway_should_be(bad: Any, mock_ollama: Any) -> None:
    assert (await bad("gateway", listen_port=int(mock_ollama.url.rsplit(":", 1)[1]))).state == "failed"


async def test_a_gateway_that_is_not_well(bad: Any, gateway: Any) -> None:
    gateway.recorder.failing = True
    found = await bad("gateway", listen_port=int(gateway.base_url.rsplit(":", 1)[1]))
    assert (found.state, "audit failing" in found.what) == ("warning", True)


def test_every_finding_is_one_json_object() -> None:
    from neuronetz.doctor.finding import failed

    assert json.loads(msgspec.json.encode(failed("a", "b"))) == {
        "check": "", "state": "failed", "what": "a", "hint": "b",
    }  # fmt: skip
