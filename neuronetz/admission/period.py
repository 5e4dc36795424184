"""Budget periods: days, weeks (from Monday) and months, all in UTC."""

from datetime import UTC, date, datetime, timedelta

from neuronetz.policy import Period


def bounds(period: Period, now_s: float) -> tuple[int, int]:
    """The period that holds ``now_s``, as ``[start, end)``; all three are seconds of the Unix epoch."""
    day = datetime.fromtimestamp(now_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case "day":
            start, end = day, day + timedelta(days=1)
        case "week":
            start = day - timedelta(days=day.weekday())
            end = start + timedelta(days=7)
        case "month":
            start = day.replace(day=1)
            # The 1st plus 31 days is always in the next month, whichever month it is.
            end = (start + timedelta(days=31)).replace(day=1)
    return int(start.timestamp()), int(end.timestamp())


def seconds(day: date) -> int:
    """The midnight in UTC with which ``day`` begins, in seconds of the Unix epoch."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
