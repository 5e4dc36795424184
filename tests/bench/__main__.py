"""``python -m tests.bench``: neuronetz beside other ways to reach the same upstream, in one table from one run."""

import argparse
import dataclasses
import sys

import trio

from neuronetz.telemetry.logs import configure_logs
from tests.bench.peers import Neuronetz
from tests.bench.processes import many_descriptors
from tests.bench.results import Report
from tests.bench.run import LOADS, MANY, QUICK, Options, run
from tests.bench.table import table, targets
from tests.bench.targets import verdicts

INTERRUPTED = 130


def main() -> int:
    arguments, options = _options()

    def show(step: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"{step}\n")

    configure_logs("warning")
    many_descriptors()
    report = None
    try:
        report = trio.run(run, options, show)
    except* KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
    if report is None:
        return INTERRUPTED
    for line in report.skipped:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"{table(report)}\n\n{targets(report)}\n")
    return 1 if _left(report) or (arguments.targets and _missed(report)) else 0


def _options() -> tuple[argparse.Namespace, Options]:
    parser = argparse.ArgumentParser(prog="just bench", description=sys.modules["tests.bench.run"].__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, help=f"of each measurement (default {Options.seconds:g})")
    parser.add_argument("--rounds", type=int, help=f"in which the peers take turns (default {Options.rounds})")
    parser.add_argument("--quick", action="store_true", help="only whether it works: one short round")
    parser.add_argument("--only", action="append", choices=LOADS, help="one load, instead of all; may be repeated")
    parser.add_argument(
        "--streams", type=int, help=f"only whether so many streams are held (of all: {Options.many})"
    )
    parser.add_argument("--workers", type=int, help=f"processes that hold them (default {Options.workers})")
    parser.add_argument("--targets", action="store_true", help="exit with 1 where a target is missed")
    arguments = parser.parse_args()
    given = {
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "many": arguments.streams,
        "workers": arguments.workers,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if any(value <= 0 for value in given.values()):
        parser.error("--seconds, --rounds, --streams and --workers must be more than 0")
    loads = arguments.only or ([MANY] if arguments.streams else LOADS)
    options = dataclasses.replace(QUICK if arguments.quick else Options(), loads=tuple(loads), **given)
    return arguments, options


def _left(report: Report) -> bool:
    return any(any(left.counts.values()) for left in report.left if left.peer == Neuronetz.name)


def _missed(report: Report) -> bool:
    return any(verdict.met is False for verdict in verdicts(report))


if __name__ == "__main__":
    sys.exit(main())
