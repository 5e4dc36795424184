"""The audit log in PostgreSQL, as the command reads it: the latest rows, and those that came since."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from neuronetz.cli.database import selected

if TYPE_CHECKING:
    from neuronetz.stores.postgres import Postgres

# A row appears when its request has ended, but bears the time of its beginning: what is new lies up to this
# far back (seconds), which is twice EXCHANGE_TIMEOUT_S where that is not set.
LONGEST_S = 3600

_COLUMNS = """
       a.request_id, a.started_at, a.tenant_id, t.name AS tenant, a.key_id, k.prefix AS key, a.endpoint, a.dialect,
       a.model, a.stream, a.status, a.outcome, a.prompt_tokens, a.completion_tokens, a.tokens_exact, a.budget_day,
       a.duration_ms, a.first_byte_ms, a.client_ip, a.instance
"""
_FROM = """
FROM gateway.audit_log a
LEFT JOIN gateway.tenants t ON t.id = a.tenant_id
LEFT JOIN gateway.api_keys k ON k.id = a.key_id
WHERE ($1::uuid IS NULL OR a.tenant_id = $1) AND ($2::uuid IS NULL OR a.key_id = $2)
  AND ($3::text IS NULL OR a.outcome = $3) AND ($4::text IS NULL OR a.model = $4)
"""
_LATEST = f"""
SELECT {_COLUMNS} {_FROM} AND ($5::timestamptz IS NULL OR a.started_at >= $5)
ORDER BY a.started_at DESC, a.request_id DESC
LIMIT $6
"""
# A statement has one snapshot: what the next one has to show is what this one did not see.
_MARK = f"""
SELECT pg_current_snapshot()::text AS snapshot, now() - interval '{LONGEST_S} seconds' AS since
"""
_LATEST_MARKED = f"SELECT * FROM ({_MARK}) AS mark LEFT JOIN ({_LATEST}) AS a ON true"  # noqa: S608
# xmin is the lower half of the transaction that wrote a row; the upper half is that of the newest one that has it.
_NEW_MARKED = f"""
SELECT * FROM ({_MARK}) AS mark LEFT JOIN (
    SELECT {_COLUMNS} {_FROM} AND a.started_at >= $6
      AND NOT pg_visible_in_snapshot(
          (newest - ((newest - a.xmin::text::bigint) & 4294967295))::text::xid8, $5::text::pg_snapshot)
) AS a ON true
ORDER BY a.started_at, a.request_id
""".replace(  # noqa: S608
    "LEFT JOIN gateway.tenants t",
    "CROSS JOIN (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS newest) AS snapshot\n"
    "LEFT JOIN gateway.tenants t",
)


@dataclass(frozen=True)
class Selection:
    """Whose rows: the values of the options, None for all."""

    tenant: str | None = None
    key: str | None = None
    outcome: str | None = None
    model: str | None = None

    async def arguments(self, postgres: "Postgres") -> list[Any]:
        """The first arguments of every query here. Raises ``Failure`` for a tenant or key that is not there."""
        from neuronetz.models.effective import normalise

        model = normalise(self.model) if self.model is not None else None
        return [*await selected(postgres, self.tenant, self.key), self.outcome, model]


@dataclass(frozen=True)
class Mark:
    """Where a reader stands: what its last statement saw, and how far back what it has not seen can lie."""

    snapshot: str
    since: datetime


async def latest(
    postgres: "Postgres", selection: Selection, since: datetime | None, limit: int
) -> list[dict[str, Any]]:
    """The latest rows, newest first."""
    arguments = await selection.arguments(postgres)
    return [dict(row) for row in await postgres.fetch(_LATEST, *arguments, since, limit)]


async def latest_marked(
    postgres: "Postgres", arguments: Sequence[Any], since: datetime | None, limit: int
) -> tuple[list[dict[str, Any]], Mark]:
    """The latest rows, oldest first, and the mark from which ``new`` goes on. ``arguments`` are a selection's."""
    rows, mark = _split(await postgres.fetch(_LATEST_MARKED, *arguments, since, limit))
    return sorted(rows, key=lambda row: (row["started_at"], row["request_id"])), mark


async def new(postgres: "Postgres", arguments: Sequence[Any], mark: Mark) -> tuple[list[dict[str, Any]], Mark]:
    """The rows that were committed since ``mark``, oldest first, each once, and the next mark.

    Rows of requests that had begun more than ``LONGEST_S`` before the mark are left out. A call that fails
    leaves ``mark`` valid for another.
    """
    return _split(await postgres.fetch(_NEW_MARKED, *arguments, mark.snapshot, mark.since))


def _split(found: Sequence[Any]) -> tuple[list[dict[str, Any]], Mark]:
    rows = [dict(row) for row in found]
    marks = [Mark(row.pop("snapshot"), row.pop("since")) for row in rows]
    return [row for row in rows if row["request_id"] is not None], marks[0]
