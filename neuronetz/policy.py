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
    ``models``: normalised names; it does not matter where ``allow_all_models`` is True. ``log_prompts`` is the
    key's own opt-in, which nothing else can give it.
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
    log_prompts: bool = False


class TenantPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's row of limits. ``None`` means: no limit."""

    rpm: int | None = None
    concurrency: int | None = None
    budget_tokens: int | None = None
    budget_period: Period = "month"
    max_predict: int | None = None
    max_body_bytes: int | None = None
    allow_all_models: bool = False
    models: frozenset[str] = frozenset()


class KeyPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A key's row of limits. ``None`` inherits the tenant's value."""

    rpm: int | None = None
    concurrency: int | None = None
    budget_tokens: int | None = None
    budget_period: Period | None = None
    max_predict: int | None = None
    max_body_bytes: int | None = None
    allow_all_models: bool | None = None
    models: frozenset[str] | None = None


def resolve(
    *,
    tenant_id: str,
    tenant: str,
    key_id: str,
    key_name: str,
    prefix: str,
    tenant_policy: TenantPolicy,
    key_policy: KeyPolicy,
    expires_at: datetime | None = None,
    log_prompts: bool = False,
) -> Principal:
    """The key with its tenant's values inherited.

    A key's caps (``max_predict``, ``max_body_bytes``) can only narrow the tenant's; its models and
    ``allow_all_models`` replace the tenant's, each for itself.
    """
    own, inherited = key_policy, tenant_policy
    return Principal(
        tenant_id=tenant_id,
        tenant=tenant,
        key_id=key_id,
        key_name=key_name,
        prefix=prefix,
        tenant_limits=Limits(
            inherited.rpm, inherited.concurrency, inherited.budget_tokens, inherited.budget_period
        ),
        key_limits=Limits(
            own.rpm, own.concurrency, own.budget_tokens, own.budget_period or inherited.budget_period
        ),
        allow_all_models=(inherited.allow_all_models if own.allow_all_models is None else own.allow_all_models),
        models=inherited.models if own.models is None else own.models,
        max_predict=_narrower(own.max_predict, inherited.max_predict),
        max_body_bytes=_narrower(own.max_body_bytes, inherited.max_body_bytes),
        expires_at=expires_at,
        log_prompts=log_prompts,
    )


def _narrower(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
