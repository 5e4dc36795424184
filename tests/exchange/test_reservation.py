"""What a request reserves, and what is written into its num_predict."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.exchange.reservation import Reservation, reserve
from neuronetz.policy import Limits, Principal


def principal(
    budget: int | None = None, key_budget: int | None = None, max_predict: int | None = None
) -> Principal:
    return Principal(
        tenant_id="t",
        tenant="t",
        key_id="k",
        key_name="k",
        prefix="nnz_00000000",
        tenant_limits=Limits(budget_tokens=budget),
        key_limits=Limits(budget_tokens=key_budget),
        allow_all_models=True,
        models=frozenset(),
        max_predict=max_predict,
    )


@pytest.mark.parametrize(
    ("budget", "cap", "asked", "expected"),
    [
        # Neither a budget nor a cap: the client's own bound is left alone.
        (None, None, None, Reservation(0, 0, False)),
        (None, None, 7, Reservation(7, 0, False)),
        # A cap alone.
        (None, 100, None, Reservation(100, 1, True)),
        (None, 100, 7, Reservation(7, 7, True)),
        (None, 100, 700, Reservation(100, 100, True)),
        # A budget alone: the default cap applies, and ours may shrink where the client set none.
        (1000, None, None, Reservation(4096, 1, True)),
        (1000, None, 7, Reservation(7, 7, True)),
        (1000, None, 9000, Reservation(4096, 4096, True)),
        # Both.
        (1000, 50, None, Reservation(50, 1, True)),
    ],
)
def test_reservation(budget: int | None, cap: int | None, asked: int | None, expected: Reservation) -> None:
    assert reserve(principal(budget, None, cap), generates=True, asked=asked, default_cap=4096) == expected


def test_a_keys_own_budget_counts_like_the_tenants() -> None:
    assert reserve(principal(None, 10), generates=True, asked=None, default_cap=4096).written


def test_embeddings_reserve_no_completion() -> None:
    assert reserve(principal(10, 10, 10), generates=False, asked=None, default_cap=4096) == Reservation(
        0, 0, False
    )


@given(
    st.none() | st.integers(0, 10**9),
    st.none() | st.integers(1, 10**6),
    st.none() | st.integers(1, 10**9),
    st.integers(1, 10**5),
)
def test_what_is_written_is_never_more_than_the_cap(
    budget: int | None, cap: int | None, asked: int | None, default: int
) -> None:
    result = reserve(principal(budget, None, cap), generates=True, asked=asked, default_cap=default)
    assert result.least <= result.wanted
    assert result.written == (budget is not None or cap is not None)
    if result.written:
        assert 1 <= result.wanted <= (cap if cap is not None else default)
        assert asked is None or result.wanted <= asked
