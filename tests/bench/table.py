"""The one table of a run, as text."""

from collections import Counter

from tests.bench.results import Finding, Left, Report, Row
from tests.bench.targets import Verdict, verdicts

_NAMES = (
    "load",
    "clients",
    "peer",
    "req/s",
    "CPU us/req",
    "stores us/req",
    "rest us/req",
    "first p50 ms",
    "first p99 ms",
    "CPU us/token",
    "RSS MiB",
    "failed",
    "left behind, or found",
)
_NONE = "-"
# Names stand at the left of their column, figures at the right.
_TEXTS = {0, 2, len(_NAMES) - 1}


def table(report: Report) -> str:
    """Figures are medians of the rounds; failures are the sum. The first byte of ``direct`` is from asking,
    that of the others what they add to it.
    """
    return _aligned(
        [_NAMES, *map(_measured, report.rows), *map(_left, report.left), *map(_found, report.findings)], _TEXTS
    )


def targets(report: Report) -> str:
    """Which targets our own rows are under, and which of them were met."""
    lines = [_judged(verdict) for verdict in verdicts(report)]
    return _aligned([("target of neuronetz", "measured", "target", ""), *lines], {0, 1, 2, 3})


def _aligned(lines: list[tuple[str, ...]], texts: set[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in texts else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _judged(verdict: Verdict) -> tuple[str, ...]:
    words = {True: "met", False: "MISSED", None: "not judged"}
    return (verdict.what, verdict.measured, verdict.target, words[verdict.met])


def _measured(row: Row) -> tuple[str, ...]:
    direct = row.peer == "direct"
    waits = [
        f"{1e3 * row.median(value):.2f}" if direct else f"{1e3 * row.added(value):+.2f}"
        for value in (lambda sample: sample.p50_s, lambda sample: sample.p99_s)
    ]
    own = row.cpu_us()
    stores = row.cpu_us("stores")
    return (
        row.shape.name,
        str(row.clients),
        row.peer,
        f"{row.median(lambda sample: sample.rate):.0f}",
        _NONE if direct else f"{own:.0f}",
        f"{stores:.0f}" if stores else _NONE,
        f"{row.cpu_us('rest'):.0f}",
        *waits,
        f"{own / row.shape.tokens:.1f}" if row.shape.paced and not direct else _NONE,
        _NONE if direct else f"{row.median(lambda sample: sample.memory_bytes) / 2**20:.0f}",
        _failures(row),
        "",
    )


def _failures(row: Row) -> str:
    kinds: Counter[str] = Counter()
    for sample in row.samples:
        kinds.update(sample.failures)
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())) or "0"


def _left(left: Left) -> tuple[str, ...]:
    counts = ", ".join(f"{count} {name}" for name, count in left.counts.items())
    return ("leaving", str(left.clients), left.peer, *[_NONE] * (len(_NAMES) - 4), counts)


def _found(finding: Finding) -> tuple[str, ...]:
    return (finding.load, str(finding.clients), finding.peer, *[_NONE] * (len(_NAMES) - 4), finding.text)
