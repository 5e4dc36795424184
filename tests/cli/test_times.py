from datetime import UTC, datetime

import pytest

from neuronetz.cli.failure import Failure
from neuronetz.cli.times import expiry, since

NOW = datetime(2026, 3, 5, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T12:30", datetime(2027, 1, 31, 12, 30, tzinfo=UTC)),
        ("2027-01-31T12:30:00+02:00", datetime(2027, 1, 31, 10, 30, tzinfo=UTC)),
        ("2027-01-31T12:30Z", datetime(2027, 1, 31, 12, 30, tzinfo=UTC)),
        ("90m", datetime(2026, 3, 5, 13, 30, tzinfo=UTC)),
        ("12h", datetime(2026, 3, 6, tzinfo=UTC)),
        ("30d", datetime(2026, 4, 4, 12, tzinfo=UTC)),
        ("2w", datetime(2026, 3, 19, 12, tzinfo=UTC)),
    ],
)
def test_an_expiry_is_a_moment_or_so_much_from_now(text: str, moment: datetime) -> None:
    assert expiry(text, NOW) == moment


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-12-31", datetime(2025, 12, 31, tzinfo=UTC)),
        ("12h", datetime(2026, 3, 5, tzinfo=UTC)),
        ("30d", datetime(2026, 2, 3, 12, tzinfo=UTC)),
    ],
)
def test_since_is_a_moment_or_so_much_before_now(text: str, moment: datetime) -> None:
    assert since(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "soon", "30", "d", "-1d", "1.5h", "30 d", "999999w", "2026-13-01", "9" * 99])
def test_what_is_no_time_is_said_so_on_one_line(text: str) -> None:
    for read in (expiry, since):
        with pytest.raises(Failure, match="is no time") as failure:
            read(text, NOW)
        assert "\n" not in failure.value.message


@pytest.mark.parametrize("text", ["2026-03-05", "2026-03-05T12:00", "0h"])
def test_an_expiry_lies_ahead(text: str) -> None:
    with pytest.raises(Failure, match="in the past"):
        expiry(text, NOW)
