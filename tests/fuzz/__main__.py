"""``just fuzz``: every property of this folder over and over, with other examples each time, until time is up."""

import argparse
import os
import secrets
import sys
import time
from pathlib import Path

import pytest


def main() -> int:
    """Run rounds until one fails or the time is up; the exit code is that of the last round."""
    parser = argparse.ArgumentParser(prog="just fuzz", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="begin no further round after so long (default: 5)"
    )
    parser.add_argument("--seed", type=int, help="of the first round; each one counts on (default: a random one)")
    parser.add_argument("--examples", type=int, default=2000, help="for each property and round (default: 2000)")
    parser.add_argument("-k", dest="select", default="", help="run what pytest's -k selects")
    given = parser.parse_args()
    first = secrets.randbelow(2**31) if given.seed is None else given.seed
    began = time.monotonic()
    rounds = 0
    code = 0
    while code == 0 and (rounds == 0 or time.monotonic() - began < given.minutes * 60):
        code = _round(first + rounds, given.examples, given.select)
        rounds += 1
    _report(rounds, time.monotonic() - began)
    if code:
        again = f" -k '{given.select}'" if given.select else ""
        print(f"again: just fuzz --minutes 0 --seed {first + rounds - 1} --examples {given.examples}{again}")  # noqa: T201
    return code


def _round(seed: int, examples: int, select: str) -> int:
    os.environ["FUZZ_EXAMPLES"], os.environ["FUZZ_SEED"] = str(examples), str(seed)
    options = ["-q", "-p", "no:cacheprovider", "--timeout", "0", f"--hypothesis-seed={seed}", "-k", select]
    return int(pytest.main([str(Path(__file__).parent), *options]))


def _report(rounds: int, took_s: float) -> None:
    from tests.fuzz.examples import seen

    for name, count in sorted(seen.items()):
        print(f"{count:>10,}  {name}")  # noqa: T201
    print(f"{sum(seen.values()):>10,}  examples in {rounds} rounds and {took_s:.0f} s")  # noqa: T201


sys.exit(main())
