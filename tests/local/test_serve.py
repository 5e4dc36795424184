"""``neuronetz serve`` and ``migrate``: production's commands, everything from the environment."""

import json
import re
import signal
from typing import Any

import httpx
import pytest
import trio

from neuronetz.access.keys import Hasher, generate
from neuronetz.stores.migrations import known_migrations
from neuronetz.stores.postgres import Postgres

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def env(database_url: str, redis_url: str, mock_ollama: Any) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "OLLAMA_URL": mock_ollama.url,
        "LISTEN_PORT": "0",
        "METRICS_PORT": "0",
        "DRAIN_TIMEOUT_S": "2",
        "LOG_FORMAT": "json",
    }


async def make_key(postgres: Postgres, **limits: int) -> str:
    key = generate()
    tenant = await postgres.fetchval("INSERT INTO gateway.tenants (name) VALUES ('acme') RETURNING id")
    names = ["tenant_id", "allow_all_models", *limits]
    places = ", ".join(f"${n + 1}" for n in range(len(names)))
    await postgres.execute(
        f"INSERT INTO gateway.tenant_limits ({', '.join(names)}) VALUES ({places})", tenant, True, *limits.values()
    )
    await postgres.execute(
        "INSERT INTO gateway.api_keys (tenant_id, name, prefix, secret_hash) VALUES ($1, 'k', $2, $3)",
        tenant,
        key.prefix,
        await Hasher(1, 8, 1, 1, 1).hash(key.secret),
    )
    return key.text


async def base_url(errors: bytearray) -> str:
    with trio.fail_after(30):
        while not (found := re.search(rb'"base_url":"([^"]+)"', errors)):
            assert b"neuronetz: " not in errors, errors.decode()
            await trio.sleep(0.02)
    return found[1].decode()


@pytest.mark.parametrize("workers", [1, 2])
async def test_serve_tells_programs_once_when_it_is_ready(
    start: Any, env: dict[str, str], postgres: Postgres, workers: int
) -> None:
    async with start("serve", "--workers", str(workers), "--json", **env) as running:
        ready = running.ready
        assert (ready["event"], ready["workers"], ready["pid"]) == ("ready", workers, running.process.pid)
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{ready['base_url']}/healthz")).status_code == 200
            assert (await client.get(ready["metrics_url"])).status_code == 200
        assert await running.end() == 0


async def test_serve_answers_drains_on_sigterm_and_exits_0(
    launch: Any, env: dict[str, str], postgres: Postgres, mock_ollama: Any
) -> None:
    key = await make_key(postgres)
    async with launch("serve", **env) as (process, errors):
        url = await base_url(errors)
        async with httpx.AsyncClient(trust_env=False, headers={"authorization": f"Bearer {key}"}) as client:
            assert (await client.post(url + "/api/chat", json=BODY)).status_code == 200
            slow = BODY | {"messages": [{"role": "user", "content": "[[tokens:20]] [[tps:40]]"}]}
            async with client.stream("POST", url + "/api/chat", json=slow) as reply:
                lines = reply.aiter_lines()
                await anext(lines)
                process.send_signal(signal.SIGTERM)
                last = [line async for line in lines][-1]
            assert json.loads(last)["done"]
        with trio.fail_after(10):
            assert await process.wait() == 0
    rows = await postgres.fetch("SELECT outcome FROM gateway.audit_log")
    assert [row["outcome"] for row in rows] == ["completed", "completed"]
    assert "Traceback" not in errors.decode()
    assert key not in errors.decode()


async def test_two_processes_together_keep_a_keys_limits(
    launch: Any, env: dict[str, str], postgres: Postgres, mock_ollama: Any
) -> None:
    key = await make_key(postgres, rpm=10, concurrency=2)
    statuses: list[int] = []
    async with launch("serve", **env) as (_, one), launch("serve", **env) as (_, two):
        urls = [await base_url(one), await base_url(two)]
        async with httpx.AsyncClient(
            trust_env=False, headers={"authorization": f"Bearer {key}"}, timeout=30
        ) as client:

            async def ask(url: str) -> None:
                body = BODY | {"messages": [{"role": "user", "content": "[[ttft:0.1]]"}]}
                statuses.append((await client.post(url + "/api/chat", json=body)).status_code)

            for _ in range(10):
                async with trio.open_nursery() as nursery:
                    for n in range(4):
                        nursery.start_soon(ask, urls[n % 2])
    assert statuses.count(200) == 10
    assert set(statuses) == {200, 429}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"DATABASE_URL": None}, "DATABASE_URL: is not set"),
        ({"REDIS_URL": "localhost"}, "REDIS_URL: must start with redis://"),
        ({"OLLAMA_URL": "ftp://x"}, "OLLAMA_URL: must start with http://"),
        ({"LISTEN_PORT": "99999"}, "LISTEN_PORT: "),
        ({"WRITE_TIMEOUT_S": "soon"}, "WRITE_TIMEOUT_S: "),
        ({"WRITE_TIMEOUT_S": "-1"}, "WRITE_TIMEOUT_S: "),
    ],
)
async def test_a_wrong_setting_is_one_line_that_names_it_and_exit_code_2(
    run: Any, env: dict[str, str], change: dict[str, str | None], says: str
) -> None:
    changed = {name: value for name, value in (env | change).items() if value is not None}
    code, out, err = await run("serve", **changed)
    assert (code, out) == (2, "")
    assert err.startswith(f"neuronetz: {says}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"REDIS_URL": "redis://localhost/0?socket_timeout=abc"}, "REDIS_URL: is not a URL"),
        ({"REDIS_URL": "redis://localhost/0?bogus=1"}, "REDIS_URL: is not a URL"),
        ({"REDIS_URL": "redis+cluster://localhost:1/0?bogus=1"}, "REDIS_URL: is not a URL"),
        ({"OLLAMA_URL": "http://"}, "OLLAMA_URL: must be a URL with a host"),
        ({"OLLAMA_URL": "http://h:99999999"}, "OLLAMA_URL: must be a URL with a host"),
        ({"LISTEN_HOST": "no.such.host.invalid"}, "cannot listen on no.such.host.invalid"),
    ],
)
async def test_what_cannot_be_used_ends_the_start_in_one_line(
    run: Any, env: dict[str, str], change: dict[str, str], says: str
) -> None:
    code, out, err = await run("serve", **(env | change))
    assert code in (1, 2)
    assert out == ""
    assert err.splitlines()[-1].startswith(f"neuronetz: {says}")
    assert "Traceback" not in err


async def test_a_database_that_does_not_exist_ends_the_start_in_one_line(run: Any, env: dict[str, str]) -> None:
    url = env["DATABASE_URL"].replace("/test_", "/absent_")
    code, _, err = await run("serve", **(env | {"DATABASE_URL": url}))
    assert code == 1
    assert "does not exist" in err.splitlines()[-1]
    assert "Traceback" not in err


async def test_a_password_in_a_wrong_setting_is_not_repeated(run: Any, env: dict[str, str]) -> None:
    code, _, err = await run("serve", **(env | {"DATABASE_URL": "mysql://user:hunter2@db/x"}))
    assert code == 2
    assert "hunter2" not in err


async def test_a_database_without_the_schema_is_refused_with_what_to_do(
    run: Any, env: dict[str, str], postgres: Postgres
) -> None:
    await postgres.execute("DROP SCHEMA gateway CASCADE")
    await postgres.execute("DROP TABLE public._pogo_migration, public._pogo_version")
    code, _, err = await run("serve", **env)
    assert code == 1
    assert "neuronetz migrate" in err.splitlines()[-1]


async def test_migrate_is_idempotent_and_safe_when_two_start_at_once(
    run: Any, env: dict[str, str], postgres: Postgres
) -> None:
    await postgres.execute("DROP SCHEMA gateway CASCADE")
    await postgres.execute("DROP TABLE public._pogo_migration, public._pogo_version")
    results: list[tuple[int, str, str]] = []

    async def migrate() -> None:
        results.append(await run("migrate", DATABASE_URL=env["DATABASE_URL"]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(migrate)
        nursery.start_soon(migrate)
    assert [code for code, _, _ in results] == [0, 0]
    assert sorted(out for _, out, _ in results) == [
        "".join(f"applied {name}\n" for name in known_migrations()),
        "nothing to apply: the schema is up to date\n",
    ]
    await migrate()
    assert results[-1][:2] == (0, "nothing to apply: the schema is up to date\n")


async def test_migrate_without_a_database_says_so(run: Any) -> None:
    code, _, err = await run("migrate")
    assert code == 2
    assert err.startswith("neuronetz: DATABASE_URL: is not set")
    code, _, err = await run("migrate", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert code == 1
    assert err.count("\n") == 1
