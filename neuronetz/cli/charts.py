"""Numbers as characters: bars and sparklines for tables. Pure."""

from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HEIGHTS = "▁▂▃▄▅▆▇█"
_NOTHING = "·"


def bar(value: int, largest: int, width: int) -> str:
    """A bar of at most ``width`` characters, as long as ``value`` is beside ``largest``.

    What is more than nothing is seen, if only as an eighth of a character.
    """
    if value <= 0 or largest <= 0:
        return ""
    eighths = max(1, min(value, largest) * width * 8 // largest)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_EIGHTHS[rest] if rest else "")


def sparkline(values: Sequence[int]) -> str:
    """One character for each value, its height by the largest of them; a dot is nothing."""
    largest = max(values, default=0)
    return "".join(_NOTHING if value <= 0 else _HEIGHTS[(value * 8 - 1) // largest] for value in values)


def in_steps(values: Sequence[int], step: int) -> list[int]:
    """The sums of each ``step`` values, counted from the end: the first step may be short."""
    first = len(values) % step
    head = [sum(values[:first])] if first else []
    return head + [sum(values[at : at + step]) for at in range(first, len(values), step)]
