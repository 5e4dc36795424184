"""The role ``console`` may read everything and revoke keys, and nothing else."""

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from neuronetz.access.directory import Directory
from neuronetz.access.revocation import PolicyListener
from neuronetz.errors import StoreUnavailable, Unauthenticated
from neuronetz.stores.postgres import Postgres

TABLES = (
    *("tenants", "tenant_limits", "api_keys", "key_limits"),
    *("budget_usage", "budget_adjustments", "audit_log", "prompt_log", "revocations"),
)


async def as_console(postgres: Postgres, statement: str, *args: Any) -> None:
    """Run a statement as ``console``, in a transaction of its own."""
    await postgres.transaction([("SET LOCAL ROLE console", ()), (statement, args)])


@pytest.mark.parametrize("table", TABLES)
async def test_the_console_reads_every_table(postgres: Postgres, table: str) -> None:
    await as_console(postgres, f"SELECT * FROM gateway.{table}")


async def test_the_console_reads_tables_of_the_future(postgres: Postgres) -> None:
    await postgres.execute("CREATE TABLE gateway.later (id int)")
    await as_console(postgres, "SELECT * FROM gateway.later")


async def test_the_console_s_privileges_are_exactly_these(postgres: Postgres) -> None:
    rows = await postgres.fetch("""
        SELECT c.relname, p.name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        CROSS JOIN unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p(name)
        WHERE n.nspname = 'gateway' AND c.relkind IN ('r', 'p') AND has_table_privilege('console', c.oid, p.name)
    """)
    assert [tuple(row) for row in rows] == [("revocations", "INSERT")]
    unreadable = await postgres.fetchval("""
        SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'gateway' AND c.relkind IN ('r', 'p')
          AND NOT has_table_privilege('console', c.oid, 'SELECT')
    """)
    assert unreadable == 0


REFUSED = {
    **{f"update {table}": f"UPDATE gateway.{table} SET {column} = {column}" for table, column in (
        ("tenants", "name"), ("tenant_limits", "rpm"), ("api_keys", "revoked_at"), ("key_limits", "rpm"),
        ("budget_usage", "requests"), ("budget_adjustments", "reason"), ("audit_log", "model"),
        ("prompt_log", "prompt"), ("revocations", "reason"),
    )},
    **{f"delete {table}": f"DELETE FROM gateway.{table}" for table in TABLES},
    **{f"insert {table}": f"INSERT INTO gateway.{table} OVERRIDING SYSTEM VALUE SELECT * FROM gateway.{table}"
       for table in TABLES[:-1]},
    **{f"truncate {table}": f"TRUNCATE gateway.{table} CASCADE" for table in TABLES},
    "create table": "CREATE TABLE gateway.mine (id int)",
    "create function": "CREATE FUNCTION gateway.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "drop table": "DROP TABLE gateway.audit_log",
    "alter table": "ALTER TABLE gateway.revocations DISABLE TRIGGER ALL",
    "replace the trigger's function": (
        "CREATE OR REPLACE FUNCTION gateway.revoke_key() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RETURN NEW; END'"
    ),
    "lock in share mode": "LOCK gateway.api_keys IN EXCLUSIVE MODE",
    "make partitions": "SELECT gateway.make_audit_partitions(100)",
}  # fmt: skip


@pytest.mark.parametrize("statement", REFUSED.values(), ids=REFUSED.keys())
async def test_the_console_may_do_nothing_else(postgres: Postgres, statement: str) -> None:
    with pytest.raises(StoreUnavailable) as refused:
        await as_console(postgres, statement)
    assert isinstance(refused.value.__cause__, asyncpg.InsufficientPrivilegeError)


async def test_a_revocation_inserted_by_the_console_revokes_the_key(
    postgres: Postgres,
    database_url: str,
    directory: Directory,
    issuer: Any,
    nursery: Any,
    until: Callable[..., Any],
) -> None:
    tenant_id = await issuer.tenant()
    key, other = await issuer.key(tenant_id), await issuer.key(tenant_id)
    await directory.authenticate(f"Bearer {key.text}")
    revoked: list[str] = []
    listener = PolicyListener(database_url, postgres, directory, revoked.append)
    nursery.start_soon(listener.run)
    await listener.listening.wait()
    await as_console(
        postgres, "INSERT INTO gateway.revocations (prefix, reason) VALUES ($1, 'leaked')", key.prefix
    )
    await until(lambda: revoked)
    assert revoked == [key.prefix]
    with pytest.raises(Unauthenticated):
        await directory.authenticate(f"Bearer {key.text}")
    await directory.authenticate(f"Bearer {other.text}")
    assert await postgres.fetchval("SELECT count(*) FROM gateway.api_keys WHERE revoked_at IS NOT NULL") == 1
    nursery.cancel_scope.cancel()


async def test_the_console_cannot_revoke_a_key_that_is_not_there(postgres: Postgres) -> None:
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await as_console(postgres, "INSERT INTO gateway.revocations (prefix) VALUES ('nnz_nosuchke')")
