"""``python -m tests.bench``: neuronetz beside other ways to reach the same upstream, in one table from one run."""

import argparse
import dataclasses
import sys

import trio

from neuronetz.telemetry.logs import configure_logs
from tests.bench.peers import Neuronetz
from tests.bench.run import QUICK, Options, run
from tests.bench.table import table

INTERRUPTED = 130


def main() -> int:
    parser = argparse.ArgumentParser(prog="just bench", description=sys.modules["tests.bench.run"].__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, help=f"of each measurement (default {Options.seconds:g})")
    parser.add_argument("--rounds", type=int, help=f"in which the peers take turns (default {Options.rounds})")
    parser.add_argument("--quick", action="store_true", help="only whether it works: one short round")
    arguments = parser.parse_args()
    given = {"seconds": arguments.seconds, "rounds": arguments.rounds}
    given = {name: value for name, value in given.items() if value is not None}
    if any(value <= 0 for value in given.values()):
        parser.error("--seconds and --rounds must be more than 0")
    options = dataclasses.replace(QUICK if arguments.quick else Options(), **given)

    def show(step: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"{step}\n")

    configure_logs("warning")
    report = None
    try:
        report = trio.run(run, options, show)
    except* KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
    if report is None:
        return INTERRUPTED
    for line in report.skipped:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"{table(report)}\n")
    ours = next(left for left in report.left if left.peer == Neuronetz.name)
    return 1 if any(ours.counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
