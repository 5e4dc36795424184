"""Who is asking, and what the policy says of them: a key with its tenant's values inherited."""

from datetime import datetime
from typing import Literal

import msgspec

Period = Literal["day", "week", "month"]


class Limits(msgspec.Struct, frozen=True):
    """Limits of one scope (a key or a tenant). ``None`` means: no limit at this scope.

    ``rpm``: requests in any 60 seconds; ``concurrency``: requests at once; ``budget_tokens``: tokens
    in a ``budget_period`` (UTC; a week starts on Monday).
    """

    rpm: int | None = None
    concurrency: int | None = None
    budget_tokens: int | None = None
    budget_period: Period = "month"


class Principal(msgspec.Struct, frozen=True):
    """An authenticated key with its policy resolved.

    ``key`` holds the limits of the key's own scope: a value that the key merely inherits is None there,
    since the tenant's scope checks it already. ``max_predict`` and ``max_body_bytes`` are resolved.
    ``models``: normalised names; it does not matter where ``allow_all_models`` is True.
    """

    tenant_id: str
    tenant: str
    key_id: str
    key_name: str
    prefix: str
    tenant_limits: Limits
    key_limits: Limits
    allow_all_models: bool
    models: frozenset[str]
    max_predict: int | None = None
    max_body_bytes: int | None = None
    expires_at: datetime | None = None
