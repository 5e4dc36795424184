"""The audit row: what happened to one authenticated request."""

from datetime import date, datetime

import msgspec


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One row of ``gateway.audit_log``; idempotent by ``(started_at, request_id)``.

    ``started_at`` is fixed when the request begins and travels with the lease's stub in Redis, so that
    whoever writes the row writes the same one. ``budget_day`` is the UTC day that the tokens count
    for. ``tokens_exact`` is False where the tokens were counted here and not reported by the upstream.
    Durations are in milliseconds. It never holds a prompt, a completion or a secret.
    """

    request_id: str
    started_at: datetime
    tenant_id: str
    key_id: str
    endpoint: str
    dialect: str
    model: str | None
    stream: bool
    status: int
    outcome: str
    prompt_tokens: int
    completion_tokens: int
    tokens_exact: bool
    budget_day: date
    duration_ms: int
    first_byte_ms: int | None
    client_ip: str | None
    instance: str


def encode(record: AuditRecord) -> bytes:
    """The row as JSON, the form in which it waits in Redis."""
    return msgspec.json.encode(record)


def decode(data: bytes) -> AuditRecord:
    """The inverse of ``encode``. Raises ``msgspec.DecodeError`` or ``ValidationError`` on anything else."""
    return msgspec.json.decode(data, type=AuditRecord)
