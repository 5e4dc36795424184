"""neuronetz audit --follow, as somebody watches it."""

import json
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import trio

from neuronetz.stores.bridge import in_asyncio
from neuronetz.stores.postgres import Postgres, open_postgres

INSERT_ROW = """
INSERT INTO gateway.audit_log VALUES (
    $1, $2, $3, $4, '/api/chat', 'ollama', $5, true, 200, $6, 1, 2, true, $7, 1234, 56, '192.0.2.1', 'one')
"""
ACME, ZETA = UUID(int=1), UUID(int=2)


async def add(
    postgres: Postgres,
    number: int,
    *,
    tenant: UUID = ACME,
    model: str = "tiny:latest",
    outcome: str = "completed",
    ago: timedelta = timedelta(0),
) -> None:
    at = datetime.now(UTC) - ago
    await postgres.execute(INSERT_ROW, UUID(int=number), at, tenant, tenant, model, outcome, at.date())


class Lines:
    """The lines of a stream as they come, each waited for under a deadline."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._rest = b""

    async def next(self) -> str:
        with trio.fail_after(30):
            while b"\n" not in self._rest:
                chunk = await self._stream.receive_some(65536)
                assert chunk, "it ended"
                self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    async def number(self) -> int:
        """The number of the row that the next line is."""
        return UUID(json.loads(await self.next())["request_id"]).int


@pytest.fixture
async def tenants(postgres: Postgres) -> Postgres:
    for tenant, name in ((ACME, "acme"), (ZETA, "zeta")):
        await postgres.execute("INSERT INTO gateway.tenants (id, name) VALUES ($1, $2)", tenant, name)
    return postgres


async def end(process: trio.Process, signum: int = signal.SIGINT) -> int:
    process.send_signal(signum)
    with trio.fail_after(30):
        return await process.wait()


async def test_rows_follow_each_once_however_long_ago_they_began(
    tenants: Postgres, launch: Callable[..., Any], database_url: str
) -> None:
    for number in (1, 2, 3):
        await add(tenants, number)
    async with launch("audit", "--follow", "--limit", "2", "--json", DATABASE_URL=database_url) as (
        process,
        errors,
    ):
        lines = Lines(process.stdout)
        assert [await lines.number() for _ in range(2)] == [2, 3]
        # A long stream began before all of them; its row comes now.
        await add(tenants, 4, ago=timedelta(minutes=29))
        assert await lines.number() == 4
        await add(tenants, 5)
        assert await lines.number() == 5
        assert await end(process) == 0
        assert bytes(errors) == b""


async def test_a_row_that_was_being_committed_while_others_were_shown_is_not_lost(
    tenants: Postgres, launch: Callable[..., Any], database_url: str
) -> None:
    """Its transaction is older than those of rows that were shown before it."""
    connection: Any = await in_asyncio(asyncpg.connect, database_url)
    try:
        transaction = connection.transaction()
        await in_asyncio(transaction.start)
        at = datetime.now(UTC)
        await in_asyncio(connection.execute, INSERT_ROW, UUID(int=1), at, ACME, ACME, "m", "completed", at.date())
        async with launch("audit", "--follow", "--limit", "0", "--json", DATABASE_URL=database_url) as (
            process,
            _,
        ):
            lines = Lines(process.stdout)
            # Not at once: what is there when it starts is not shown.
            with trio.fail_after(30):
                number = 2
                while True:
                    await add(tenants, number)
                    with trio.move_on_after(1.5) as waited:
                        await lines.number()
                    if not waited.cancelled_caught:
                        break
                    number += 1
            await in_asyncio(transaction.commit)
            while (shown := await lines.number()) != 1:
                assert shown <= number
            assert await end(process, signal.SIGTERM) == 0
    finally:
        await in_asyncio(connection.close)


@pytest.mark.parametrize(
    "options",
    [("--tenant", "zeta"), ("--outcome", "revoked"), ("--model", "OTHER"), ("--limit", "1", "--tenant", "zeta")],
)
async def test_only_what_was_asked_for_follows(
    tenants: Postgres, launch: Callable[..., Any], database_url: str, options: tuple[str, ...]
) -> None:
    theirs: dict[str, Any] = {"tenant": ZETA, "outcome": "revoked", "model": "other:latest"}
    await add(tenants, 1, **theirs)
    await add(tenants, 2)
    async with launch("audit", "-f", "--json", *options, DATABASE_URL=database_url) as (process, _):
        lines = Lines(process.stdout)
        assert await lines.number() == 1
        await add(tenants, 3)
        await add(tenants, 4, **theirs)
        assert await lines.number() == 4
        assert await end(process) == 0


async def test_for_people_there_are_columns_that_cannot_steer_the_terminal(
    tenants: Postgres, launch: Callable[..., Any], database_url: str
) -> None:
    await add(tenants, 1, model="evil\x1b[31m")
    async with launch("audit", "--follow", DATABASE_URL=database_url) as (process, _):
        lines = Lines(process.stdout)
        heading, row = await lines.next(), await lines.next()
        assert heading.split()[:3] == ["STARTED", "(UTC)", "TENANT"]
        assert row.index("acme") == heading.index("TENANT")
        assert "evil\ufffd[31m" in row
        assert row.endswith(str(UUID(int=1)))
        assert "1+2" in row
        assert await end(process) == 0


async def test_an_outage_is_told_and_what_came_after_it_follows(
    own_postgres: Any, launch: Callable[..., Any]
) -> None:
    url = own_postgres.dsn()
    async with launch("audit", "--follow", "--limit", "0", DATABASE_URL=url) as (process, errors):
        lines = Lines(process.stdout)
        assert (await lines.next()).startswith("STARTED")
        await own_postgres.stop()
        with trio.fail_after(30):
            while b"\n" not in errors:
                await trio.sleep(0.05)
        assert errors.startswith(b"neuronetz: PostgreSQL is not reachable (")
        await own_postgres.start()
        async with open_postgres(url, size=1, timeout_s=10) as postgres:
            await add(postgres, 7)
        assert (await lines.next()).endswith(str(UUID(int=7)))
        with trio.fail_after(10):  # it has been said, but by another pipe
            while errors.count(b"\n") < 2:
                await trio.sleep(0.01)
        assert errors.decode().splitlines()[1:] == ["neuronetz: PostgreSQL is back"]
        assert process.returncode is None
        assert await end(process) == 0


async def test_what_is_wrong_from_the_start_is_one_line(
    tenants: Postgres, run: Callable[..., Any], database_url: str
) -> None:
    for options, url, code, says in (
        ((), "postgresql://user@127.0.0.1:1/x", 1, "is not reachable"),
        ((), "", 2, "DATABASE_URL"),
        (("--tenant", "nobody"), database_url, 1, 'no tenant "nobody"'),
        (("--since", "?"), database_url, 1, "is no time"),
    ):
        ended = await run("audit", "--follow", *options, DATABASE_URL=url)
        assert ended[:2] == (code, "")
        assert says in ended[2]
        assert ended[2].count("\n") == 1
        assert "Traceback" not in ended[2]


async def test_a_reader_that_has_had_enough_ends_it(
    tenants: Postgres, launch: Callable[..., Any], database_url: str
) -> None:
    await add(tenants, 1)
    async with launch("audit", "--follow", "--json", DATABASE_URL=database_url) as (process, errors):
        assert await Lines(process.stdout).number() == 1
        await process.stdout.aclose()
        await add(tenants, 2)
        with trio.fail_after(30):
            assert await process.wait() == 1
        assert bytes(errors) == b""
