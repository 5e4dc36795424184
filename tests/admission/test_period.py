from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.admission.period import bounds
from neuronetz.policy import Period

PERIODS: tuple[Period, ...] = ("day", "week", "month")
times = st.floats(min_value=0, max_value=4_000_000_000, allow_nan=False)


def epoch(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("period", "now", "start", "end"),
    [
        ("day", "2026-09-23T12:34:56", "2026-09-23", "2026-09-24"),
        ("day", "2026-09-23T00:00:00", "2026-09-23", "2026-09-24"),
        ("day", "2026-09-23T23:59:59.999999", "2026-09-23", "2026-09-24"),
        ("week", "2026-09-21T00:00:00", "2026-09-21", "2026-09-28"),
        ("week", "2026-09-27T23:59:59", "2026-09-21", "2026-09-28"),
        ("week", "2027-01-01T08:00:00", "2026-12-28", "2027-01-04"),
        ("month", "2026-09-30T23:59:59", "2026-09-01", "2026-10-01"),
        ("month", "2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
        ("month", "2028-02-29T12:00:00", "2028-02-01", "2028-03-01"),
    ],
)
def test_the_bounds_of_a_period_are_its_first_midnight_and_that_of_the_next(
    period: Period, now: str, start: str, end: str
) -> None:
    assert bounds(period, epoch(now)) == (epoch(start), epoch(end))


@given(times, st.sampled_from(PERIODS))
def test_a_time_lies_in_its_period(now: float, period: Period) -> None:
    start, end = bounds(period, now)
    assert start <= now < end


@given(times, st.sampled_from(PERIODS))
def test_periods_follow_each_other_without_gap_or_overlap(now: float, period: Period) -> None:
    start, end = bounds(period, now)
    assert bounds(period, start) == (start, end)
    assert bounds(period, end - 1) == (start, end)
    assert bounds(period, end)[0] == end


@given(times)
def test_weeks_start_on_monday_and_last_seven_days(now: float) -> None:
    start, end = bounds("week", now)
    assert datetime.fromtimestamp(start, UTC).weekday() == 0
    assert timedelta(seconds=end - start) == timedelta(days=7)
