"""Points in time as operators write them: a date, a date with time, or a duration. Pure."""

import re
from datetime import UTC, datetime, timedelta

from neuronetz.cli.failure import Failure
from neuronetz.cli.output import quoted

_DURATION = re.compile(r"(\d{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def expiry(text: str, now: datetime) -> datetime:
    """When a key expires: a duration from ``now`` on, or a moment yet to come (UTC unless it says otherwise)."""
    moment = _moment(text, now, 1)
    if moment <= now:
        raise Failure(f"--expires {quoted(text)} lies in the past")
    return moment


def since(text: str, now: datetime) -> datetime:
    """From when on: a duration before ``now``, or a moment (UTC unless it says otherwise)."""
    return _moment(text, now, -1)


def duration_s(text: str) -> int:
    """A duration such as 12h or 7d, in seconds."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise Failure(f"{quoted(text)} is no duration: write 90m, 12h, 7d or 2w")
    return int(found[1]) * round(timedelta(**{_UNITS[found[2]]: 1}).total_seconds())


def _moment(text: str, now: datetime, direction: int) -> datetime:
    text = text.strip()
    try:
        if duration := _DURATION.fullmatch(text):
            return now + direction * timedelta(**{_UNITS[duration[2]]: int(duration[1])})
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Failure(
            f"{quoted(text)} is no time: write 2027-01-31, 2027-01-31T12:00, or a duration such as 12h or 30d"
        ) from None
