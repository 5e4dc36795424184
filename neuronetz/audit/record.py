"""The audit row: what happened to one authenticated request."""

from datetime import UTC, date, datetime

import msgspec

# Longer text is cut: a row must never be refused, nor be large, for what a client sent.
TEXT_LENGTH = 255
MAX_COUNT = 2**31 - 1


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
    """The row as JSON, the form in which it waits in Redis and goes to PostgreSQL; always ``cleaned``."""
    return msgspec.json.encode(cleaned(record))


def decode(data: bytes) -> AuditRecord:
    """The inverse of ``encode``. Raises ``msgspec.DecodeError`` or ``ValidationError`` on anything else."""
    return msgspec.json.decode(data, type=AuditRecord)


def cleaned(record: AuditRecord) -> AuditRecord:
    """The row with every value that a client or an upstream controls made storable.

    NUL and lone surrogates, which PostgreSQL's text cannot hold, are replaced; long text is cut; counts
    are kept within 0 and 2^31 - 1, so that the ledger's sums stay far from overflow.
    """
    started_at = record.started_at
    return msgspec.structs.replace(
        record,
        # PostgreSQL would read a time without a zone in the session's zone: another row's key.
        started_at=started_at if started_at.tzinfo else started_at.replace(tzinfo=UTC),
        endpoint=_text(record.endpoint),
        model=_text(record.model) if record.model is not None else None,
        client_ip=_text(record.client_ip) if record.client_ip is not None else None,
        prompt_tokens=_count(record.prompt_tokens),
        completion_tokens=_count(record.completion_tokens),
        duration_ms=_count(record.duration_ms),
        first_byte_ms=_count(record.first_byte_ms) if record.first_byte_ms is not None else None,
    )


def _text(value: str) -> str:
    if len(value) <= TEXT_LENGTH and value.isascii() and "\x00" not in value:
        return value
    return value[:TEXT_LENGTH].replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _count(value: int) -> int:
    return min(max(value, 0), MAX_COUNT)
