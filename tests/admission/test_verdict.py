from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.admission.verdict import (
    Aborted,
    Admitted,
    Left,
    OutsidePeriod,
    Quota,
    Refused,
    SeedNeeded,
    Verdict,
    headers,
    limit_headers,
    parse,
)
from neuronetz.policy import Limits


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (
            [b"admitted", 1500, 90, b"", 0, 4, 61000, -1, -1, 900, -1],
            Admitted(1.5, 90, Left((4, None), (61.0, 0.0), (900, None))),
        ),
        (
            [b"rate", 1500, 0, b"key", 2500, 4, 61000, 0, 30000, -1, -1],
            Refused(1.5, "rate", "key", 2.5, Left((4, 0), (61.0, 30.0), (None, None))),
        ),
        ([b"seed", 1500, 1, 0], SeedNeeded(1.5, True, False)),
        ([b"period", 1500], OutsidePeriod(1.5)),
        ([b"aborted", 1500], Aborted(1.5)),
    ],
)
def test_each_form_of_reply_has_its_type(reply: list[Any], verdict: Verdict) -> None:
    assert parse(reply) == verdict


@pytest.mark.parametrize(
    "reply",
    [
        [],
        [b"admitted"],
        [b"admitted", 1500, 90, b"", 0],
        [b"admitted", b"1500", 90, b"", 0, 4, 61000, -1, -1, 900, -1],
        [b"generous", 1500, 0, b"key", 0, 4, 61000, 0, 30000, -1, -1],
        [b"rate", 1500, 0, b"planet", 0, 4, 61000, 0, 30000, -1, -1],
        [b"seed", 1500],
    ],
)
def test_what_is_no_reply_is_refused(reply: list[Any]) -> None:
    with pytest.raises(ValueError, match="not a reply"):
        parse(reply)


quota_lists = st.lists(
    st.builds(
        Quota,
        limit=st.integers(0, 10**9),
        remaining=st.integers(0, 10**9),
        reset_s=st.floats(0, 10**7, allow_nan=False),
    ),
    max_size=4,
)


@given(quota_lists, quota_lists)
def test_headers_exist_for_the_limits_that_exist_and_show_the_least_left(
    requests: list[Quota], tokens: list[Quota]
) -> None:
    found = limit_headers(requests, tokens)
    for kind, quotas in (("requests", requests), ("tokens", tokens)):
        names = {f"x-ratelimit-{part}-{kind}" for part in ("limit", "remaining", "reset")}
        assert names & found.keys() == (names if quotas else set())
        if quotas:
            assert int(found[f"x-ratelimit-remaining-{kind}"]) == min(quota.remaining for quota in quotas)


def test_a_reset_is_in_whole_seconds_rounded_up() -> None:
    assert limit_headers([Quota(5, 2, 11.2)], []) == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "12s",
    }


def test_tokens_reset_when_the_period_of_the_tightest_scope_ends() -> None:
    outcome = Admitted(1000.0, 90, Left(tokens=(500, 20)))
    limits = (Limits(budget_tokens=1000), Limits(budget_tokens=100))
    assert headers(outcome, limits, (5000, 2000)) == {
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "20",
        "x-ratelimit-reset-tokens": "1000s",
    }
