"""The migrations: once, in order, and by one at a time."""

import asyncio
from pathlib import Path

import asyncpg
import pytest
import trio

from neuronetz.embedded.postgres import EmbeddedPostgres
from neuronetz.errors import StoreUnavailable
from neuronetz.stores import migrations
from neuronetz.stores.bridge import in_asyncio
from neuronetz.stores.migrations import MigrationError, migrate, pending, schema_folder
from neuronetz.stores.postgres import Postgres, open_postgres

IDS = sorted(path.stem for path in (Path(__file__).parents[2] / "schema").glob("*.sql"))
BROKEN = """\
-- creates a half and breaks
-- depends:

-- migrate: apply
CREATE TABLE half (a int);
SELECT nonsense;
-- migrate: rollback
"""


@pytest.fixture
async def empty_database_url(database_url: str, asyncio_loop: asyncio.AbstractEventLoop) -> str:
    async def clear() -> None:
        connection = await asyncpg.connect(database_url)
        await connection.execute("DROP SCHEMA gateway CASCADE; DROP TABLE _pogo_migration, _pogo_version")
        await connection.close()

    await in_asyncio(clear)
    return database_url


async def test_the_folder_of_the_source_checkout_is_found() -> None:
    assert schema_folder() == Path(__file__).parents[2] / "schema"


async def test_the_folder_of_an_installed_package_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "schema").mkdir()
    monkeypatch.setattr(migrations.neuronetz, "__file__", str(tmp_path / "__init__.py"))
    assert schema_folder() == tmp_path / "schema"


async def test_all_is_applied_once_and_then_nothing(empty_database_url: str) -> None:
    assert await migrate(empty_database_url) == IDS
    assert await migrate(empty_database_url) == []


async def test_of_two_that_start_at_once_one_applies_and_the_other_waits(empty_database_url: str) -> None:
    applied: list[list[str]] = []

    async def run() -> None:
        applied.append(await migrate(empty_database_url))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(run)
    assert sorted(applied) == [[], [], [], IDS]


async def test_what_is_pending_is_told_before_and_after(empty_database_url: str) -> None:
    async with open_postgres(empty_database_url, size=1, timeout_s=5) as postgres:
        assert await pending(postgres) == IDS
        await migrate(empty_database_url)
        assert await pending(postgres) == []


async def test_a_migrated_database_has_nothing_pending(postgres: Postgres) -> None:
    assert await pending(postgres) == []


async def test_a_server_that_is_away_is_a_store_unavailable(own_postgres: EmbeddedPostgres) -> None:
    await own_postgres.stop(immediate=True)
    with pytest.raises(StoreUnavailable):
        await migrate(own_postgres.dsn())


async def test_a_migration_that_fails_is_named_and_leaves_nothing(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0001_broken.sql").write_text(BROKEN)
    monkeypatch.setattr(migrations, "schema_folder", lambda: tmp_path)
    with pytest.raises(MigrationError, match=r"0001_broken.*nonsense"):
        await migrate(empty_database_url)
    async with open_postgres(empty_database_url, size=1, timeout_s=5) as postgres:
        assert await postgres.fetchval("SELECT to_regclass('half') IS NULL")
        assert await pending(postgres) == ["0001_broken"]


async def test_a_cancelled_migration_lets_go_of_the_lock(empty_database_url: str) -> None:
    with trio.move_on_after(0.02):
        await migrate(empty_database_url)
    with trio.fail_after(10):
        await migrate(empty_database_url)
    assert await migrate(empty_database_url) == []
