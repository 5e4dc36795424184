"""What neuronetz is to reach, and whether it did in this run."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.peers import Neuronetz
from tests.bench.results import Finding, Report, Row

CPU_US = {"whole": 1500.0, "burst": 2000.0}
FIRST_MS = 2.0
# Where several clients ask bursts in a closed loop, a wait is the queue that they are; paced ones leave room.
FIRST_CLIENTS = {"whole": (), "burst": (1,), "paced": (1, 16)}
TOKEN_US, TOKEN_AT = 60.0, (64, 512)
IDLE_KIB = 100.0
START_UP_S = 1.0
WORKERS_RATE = 1.7


@dataclass(frozen=True)
class Verdict:
    """``met`` is None where this machine cannot tell, which ``measured`` explains."""

    what: str
    measured: str
    target: str
    met: bool | None


def verdicts(report: Report) -> list[Verdict]:
    """Of every target that was measured in this run."""
    rows = [row for row in report.rows if row.peer == Neuronetz.name]
    found = [verdict for row in rows for verdict in _of_row(row)]
    return [*found, *(verdict for finding in report.findings for verdict in _of_finding(finding))]


def _of_row(row: Row) -> Iterator[Verdict]:
    load = f"{row.shape.name}, {row.clients}"
    if bound := CPU_US.get(row.shape.kind):
        yield _at_most(f"{load}: CPU us/req", row.cpu_us(), bound)
    if row.clients in FIRST_CLIENTS[row.shape.kind]:
        yield _at_most(f"{load}: added first p50 ms", 1e3 * row.added(lambda sample: sample.p50_s), FIRST_MS)
    if failed := sum(sum(sample.failures.values()) for sample in row.samples):
        yield Verdict(f"{load}: failed", str(failed), "0", met=False)


def _of_finding(finding: Finding) -> Iterator[Verdict]:
    if not finding.peer.startswith(Neuronetz.name):
        return
    figures = finding.figures
    for number in TOKEN_AT:
        if finding.load == "streams held" and (cost := figures.get(f"token_us at {number}")) is not None:
            yield _at_most(f"{number} streams held: CPU us/token", cost, TOKEN_US)
    if finding.load == "many streams":
        what = f"{finding.clients} streams, {finding.peer}: tokens late or missing"
        yield _at_most(what, figures["missed"], 0)
    if finding.load == "idle streams":
        yield _at_most(f"{finding.clients} idle streams: KiB each", figures["kib"], IDLE_KIB)
    if finding.load == "start-up":
        yield _at_most("start-up: seconds", figures["seconds"], START_UP_S)
    if finding.load == "workers":
        yield _of_workers(finding)


def _of_workers(finding: Finding) -> Verdict:
    rate, free, workers = (finding.figures[name] for name in ("rate", "free", "workers"))
    share = finding.figures.get("share", 1.0)
    what, target = f"{finding.clients} workers: times the rate of one", f">= {WORKERS_RATE}"
    measured = f"{rate:.2f}" if share == 1.0 else f"{rate:.2f}, each held to {share:.0%} of a processor"
    if free < workers * share:
        return Verdict(what, f"{measured}, with {free:.1f} processors free for {workers:.0f}", target, None)
    return Verdict(what, measured, target, rate >= WORKERS_RATE)


def _at_most(what: str, measured: float, bound: float) -> Verdict:
    return Verdict(what, f"{measured:.5g}", f"<= {bound:g}", measured <= bound)
