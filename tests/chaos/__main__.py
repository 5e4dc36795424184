"""``python -m tests.chaos --seconds 60 --seed 7``: chaos for so long; one line of figures, and what did not hold."""

import argparse
import random
import sys
import time
from pathlib import Path

import trio

from neuronetz.telemetry.logs import configure_logs
from tests.chaos.run import Progress, run

SHOWN_PROBLEMS = 20
EVERY_S = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="just chaos", description=sys.modules["tests.chaos.run"].__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=60.0, help="how long things go wrong (default 60)")
    parser.add_argument("--seed", type=int, help="repeat a run; else one is drawn")
    parser.add_argument("--keep", type=Path, help="a folder for the logs of gateways and stores")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    began = time.monotonic()
    shown = -EVERY_S

    def show(progress: Progress) -> None:
        nonlocal shown
        at = time.monotonic() - began
        if sys.stderr.isatty() and at - shown >= EVERY_S:
            shown = at
            figures = f"{progress.requests} clients, {progress.open} of them now"
            sys.stderr.write(f"{at:4.0f} s  {progress.phase}: {figures}; last: {progress.last}\n")

    configure_logs("warning")
    report = trio.run(run, seed, arguments.seconds, show, arguments.keep)
    sys.stdout.write(f"{report.line()}\n")
    for problem in report.problems[:SHOWN_PROBLEMS]:
        sys.stderr.write(f"  {problem}\n")
    if report.problems:
        again = f"just chaos --seconds {arguments.seconds:g} --seed {seed}"
        sys.stdout.write(f"{len(report.problems)} problems; to repeat: {again}\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
