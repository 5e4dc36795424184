"""Inheritance: what a key takes from its tenant and what is its own."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.policy import KeyPolicy, Limits, Principal, TenantPolicy, resolve
from neuronetz.settings import Settings


def resolved(tenant: TenantPolicy, key: KeyPolicy) -> Principal:
    return resolve(
        tenant_id="t",
        tenant="acme",
        key_id="k",
        key_name="laptop",
        prefix="nnz_abcdefgh",
        tenant_policy=tenant,
        key_policy=key,
    )


TENANT = TenantPolicy(
    rpm=60,
    concurrency=4,
    budget_tokens=1000,
    budget_period="week",
    max_predict=100,
    max_body_bytes=1000,
    allow_all_models=False,
    models=frozenset({"llama3:latest"}),
)


def test_a_key_without_values_inherits_them_all_and_has_no_limits_of_its_own() -> None:
    principal = resolved(TENANT, KeyPolicy())
    assert principal.tenant_limits == Limits(60, 4, 1000, "week")
    assert principal.key_limits == Limits(None, None, None, "week")
    assert (principal.max_predict, principal.max_body_bytes) == (100, 1000)
    assert principal.models == {"llama3:latest"}
    assert not principal.allow_all_models


def test_a_tenant_without_limits_leaves_the_key_s_alone() -> None:
    principal = resolved(TenantPolicy(), KeyPolicy(rpm=5, max_predict=7, max_body_bytes=9))
    assert principal.tenant_limits == Limits()
    assert principal.key_limits == Limits(rpm=5)
    assert (principal.max_predict, principal.max_body_bytes) == (7, 9)


def test_nothing_but_the_key_itself_opts_in_to_the_prompt_log() -> None:
    assert not resolved(TENANT, KeyPolicy()).log_prompts
    for inherited in (TenantPolicy, KeyPolicy, Limits):
        assert not [name for name in inherited.__struct_fields__ if "prompt" in name]
    assert not [
        name for name, field in Settings.model_fields.items() if "prompt" in name and field.annotation is bool
    ]


@pytest.mark.parametrize(
    ("tenants", "keys", "result"),
    [
        ("month", None, "month"),
        ("week", None, "week"),
        ("month", "day", "day"),
        ("day", "month", "month"),
    ],
)
def test_a_key_s_budget_runs_in_its_own_period_or_else_in_the_tenant_s(
    tenants: Any, keys: Any, result: str
) -> None:
    principal = resolved(TenantPolicy(budget_period=tenants), KeyPolicy(budget_tokens=10, budget_period=keys))
    assert principal.key_limits == Limits(budget_tokens=10, budget_period=result)
    assert principal.tenant_limits.budget_period == tenants


@pytest.mark.parametrize(
    ("tenants", "keys", "result"),
    [
        (None, None, None),
        (100, None, 100),
        (None, 50, 50),
        (100, 50, 50),
        (100, 200, 100),
    ],
)
def test_a_key_can_narrow_its_tenant_s_caps_and_never_widen_them(
    tenants: int | None, keys: int | None, result: int | None
) -> None:
    principal = resolved(
        TenantPolicy(max_predict=tenants, max_body_bytes=tenants),
        KeyPolicy(max_predict=keys, max_body_bytes=keys),
    )
    assert principal.max_predict == result
    assert principal.max_body_bytes == result


@pytest.mark.parametrize(
    ("tenants", "keys", "result"),
    [
        (False, None, False),
        (True, None, True),
        (False, True, True),
        (True, False, False),
    ],
)
def test_allow_all_models_of_a_key_overrides_where_it_is_set(
    tenants: bool, keys: bool | None, result: bool
) -> None:
    principal = resolved(TenantPolicy(allow_all_models=tenants), KeyPolicy(allow_all_models=keys))
    assert principal.allow_all_models is result


@pytest.mark.parametrize(
    ("keys", "result"),
    [
        (None, {"a", "b"}),
        (frozenset(), set()),
        (frozenset({"c"}), {"c"}),
    ],
)
def test_models_of_a_key_replace_the_tenant_s_even_by_none_at_all(
    keys: frozenset[str] | None, result: set[str]
) -> None:
    principal = resolved(TenantPolicy(models=frozenset({"a", "b"})), KeyPolicy(models=keys))
    assert principal.models == result


counts = st.none() | st.integers(1, 10**9)
periods = st.sampled_from(["day", "week", "month"])
names = st.frozensets(st.sampled_from(["a", "b", "c"]))
tenant_policies = st.builds(
    TenantPolicy,
    rpm=counts,
    concurrency=counts,
    budget_tokens=counts,
    budget_period=periods,
    max_predict=counts,
    max_body_bytes=counts,
    allow_all_models=st.booleans(),
    models=names,
)
key_policies = st.builds(
    KeyPolicy,
    rpm=counts,
    concurrency=counts,
    budget_tokens=counts,
    budget_period=st.none() | periods,
    max_predict=counts,
    max_body_bytes=counts,
    allow_all_models=st.none() | st.booleans(),
    models=st.none() | names,
)


@given(tenant_policies, key_policies)
def test_no_key_escapes_its_tenant_s_limits(tenant: TenantPolicy, key: KeyPolicy) -> None:
    principal = resolved(tenant, key)
    assert principal.tenant_limits == Limits(
        tenant.rpm, tenant.concurrency, tenant.budget_tokens, tenant.budget_period
    )
    for cap, of_tenant, of_key in (
        (principal.max_predict, tenant.max_predict, key.max_predict),
        (principal.max_body_bytes, tenant.max_body_bytes, key.max_body_bytes),
    ):
        for bound in (of_tenant, of_key):
            assert bound is None or (cap is not None and cap <= bound)
        assert cap in (of_tenant, of_key)


@given(tenant_policies, key_policies)
def test_a_key_s_scope_holds_its_own_values_and_nothing_inherited(tenant: TenantPolicy, key: KeyPolicy) -> None:
    limits = resolved(tenant, key).key_limits
    assert (limits.rpm, limits.concurrency, limits.budget_tokens) == (key.rpm, key.concurrency, key.budget_tokens)
