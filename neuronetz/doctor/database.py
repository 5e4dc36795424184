"""Checks of PostgreSQL: version, schema, partitions, the role's rights."""

from datetime import UTC, datetime

from neuronetz.audit.partitions import MONTHS_AHEAD
from neuronetz.doctor.finding import Finding, Patient, failed, ok, warning
from neuronetz.stores.migrations import known_migrations, pending

OLDEST, NEWEST = 14, 18

_SERVER = """
SELECT current_setting('server_version_num')::int / 10000 AS version, pg_is_in_recovery() AS standby,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser
"""

_PARTITIONS = """
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'gateway.audit_log'::regclass
"""

# Counted up to a bound, which is enough to know.
_IN_DEFAULT = "SELECT count(*) FROM (SELECT FROM gateway.audit_log_default LIMIT 10000) AS counted"

# What a gateway does to each table. FOR KEY SHARE, by which the prompt log locks its key, needs UPDATE.
_NEEDED = {
    "tenants": "SELECT",
    "tenant_limits": "SELECT",
    "api_keys": "SELECT, UPDATE",
    "key_limits": "SELECT",
    "budget_usage": "SELECT, INSERT, UPDATE",
    "budget_adjustments": "SELECT",
    "audit_log": "SELECT, INSERT",
    "prompt_log": "SELECT, INSERT, DELETE",
    "revocations": "SELECT",
}
_RIGHTS = """
SELECT n.name || ': ' || p.name AS lacking
FROM unnest($1::text[], $2::text[]) AS n (name, privileges),
     unnest(string_to_array(n.privileges, ', ')) AS p (name)
WHERE NOT has_table_privilege('gateway.' || n.name, p.name)
"""
_MAY_MAKE_PARTITIONS = """
SELECT has_schema_privilege('gateway', 'CREATE') AND pg_has_role(relowner, 'USAGE')
FROM pg_class WHERE oid = 'gateway.audit_log'::regclass
"""


async def server(patient: Patient) -> list[Finding]:
    """Whether PostgreSQL answers, which version it is, and whether it can be written to."""
    [row] = await patient.postgres.fetch(_SERVER)
    found = []
    version = row["version"]
    if version < OLDEST:
        hint = f"upgrade it to {OLDEST} at least"
        found.append(failed(f"PostgreSQL {version} is too old", hint))
    elif version > NEWEST:
        found.append(
            warning(f"PostgreSQL {version} is newer than what this version was tried with", "see CHANGELOG.md")
        )
    if row["standby"]:
        found.append(failed("this PostgreSQL is a read-only standby", "DATABASE_URL must name the primary"))
    if row["superuser"]:
        hint = "give the gateway a role of its own that owns the schema gateway, and nothing else"
        found.append(warning("the role in DATABASE_URL is a superuser", hint))
    return found or [ok(f"PostgreSQL {version} answers")]


async def schema(patient: Patient) -> list[Finding]:
    """Whether every migration of this version was applied."""
    missing = await pending(patient.postgres)
    if missing:
        return [failed(f"the database lacks {', '.join(missing)}", "run 'neuronetz migrate'")]
    return [ok(f"the schema is at {known_migrations()[-1]}")]


async def rights(patient: Patient) -> list[Finding]:
    """Whether the role may do what a gateway does."""
    rows = await patient.postgres.fetch(_RIGHTS, list(_NEEDED), list(_NEEDED.values()))
    found = [
        failed(f"the role lacks a right on gateway.{row['lacking']}", "GRANT it to the role in DATABASE_URL")
        for row in rows
    ]
    if not await patient.postgres.fetchval(_MAY_MAKE_PARTITIONS):
        hint = (
            "make the role the owner of gateway.audit_log with CREATE on the schema, or make partitions yourself"
        )
        found.append(warning("the role may not make partitions of the audit log", hint))
    return found or [ok("the role may do all that it needs")]


async def partitions(patient: Patient) -> list[Finding]:
    """Whether the months to come have their partitions, and nothing fell into the default one."""
    there = {row["relname"] for row in await patient.postgres.fetch(_PARTITIONS)}
    today = datetime.now(UTC)
    months = [today.year * 12 + today.month - 1 + ahead for ahead in range(MONTHS_AHEAD + 1)]
    wanted = [f"audit_log_{month // 12}{month % 12 + 1:02}" for month in months]
    missing = [name for name in wanted if name not in there]
    hint = "a running gateway makes them, if its role may; by hand: SELECT gateway.make_audit_partitions(2)"
    found = [warning(f"the audit log lacks the partitions {', '.join(missing)}", hint)] if missing else []
    strays = await patient.postgres.fetchval(_IN_DEFAULT)
    if strays:
        hint = "retention, which drops partitions, does not reach them; move them to a partition of their month"
        found.append(warning(f"the audit log's default partition holds rows: {strays}", hint))
    return found or [ok(f"the audit log has its partitions up to {wanted[-1]}")]
