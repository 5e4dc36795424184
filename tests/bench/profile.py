"""``python -m tests.bench.profile``: a flame graph of neuronetz under one load."""

import argparse
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import trio

from neuronetz.telemetry.logs import configure_logs
from tests.bench.bench import opened
from tests.bench.peers import Neuronetz
from tests.bench.processes import many_descriptors
from tests.bench.results import Report, Sample
from tests.bench.shapes import SHAPES, Shape

_RATE = 250
# py-spy draws once its time is up.
_DRAWN_WITHIN_S = 60.0
_FORBIDDEN = ("Permission Denied", "Operation not permitted", "EPERM")
_ALLOW = (
    "the kernel forbids py-spy to look into a process. Allow it with: sudo sysctl kernel.yama.ptrace_scope=0 "
    "(in a container: --cap-add SYS_PTRACE), or run this as root"
)


class CannotProfile(Exception):
    """Why, and what to do."""


@dataclass(frozen=True)
class Options:
    shape: Shape = SHAPES[0]
    clients: int = 16
    seconds: float = 10.0
    to: Path | None = None


async def profile(options: Options) -> tuple[Path, Sample]:
    """The file with the graph, and what was measured meanwhile. Raises ``CannotProfile``."""
    program = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        raise CannotProfile("py-spy is not installed: uv sync")
    async with opened(Report(), (Neuronetz,)) as bench:
        _, serving = bench.peers[Neuronetz.name]
        await bench.warm(serving, options.shape, options.clients)
        to = options.to or _new_file(options.shape)
        command = [program, "record", "--format", "flamegraph", "--output", str(to), "--rate", str(_RATE)]
        command += ["--duration", str(max(1, round(options.seconds))), "--pid", str(serving.processes[0])]
        samples: list[Sample] = []
        async with trio.open_nursery() as nursery:

            async def under_load() -> None:
                samples.append(await bench.sample(serving, options.shape, options.clients, options.seconds + 1))

            nursery.start_soon(under_load)
            with trio.move_on_after(options.seconds + _DRAWN_WITHIN_S):
                done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        if not samples or done.returncode != 0 or not to.stat().st_size:
            raise CannotProfile(explained((done.stdout + done.stderr).decode(errors="replace")))
        return to, samples[0]


def explained(said: str) -> str:
    """What to do about what py-spy said."""
    return _ALLOW if any(word in said for word in _FORBIDDEN) else f"py-spy failed: {said[-500:]}"


def _new_file(shape: Shape) -> Path:
    number, name = tempfile.mkstemp(prefix=f"neuronetz-{shape.name.replace(' ', '-')}-", suffix=".svg")
    os.close(number)
    return Path(name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="just profile", description=__doc__)
    names = {shape.name: shape for shape in SHAPES}
    parser.add_argument("--shape", choices=names, default=Options.shape.name)
    parser.add_argument("--clients", type=int, default=Options.clients, help=f"default {Options.clients}")
    parser.add_argument("--seconds", type=float, default=Options.seconds, help=f"default {Options.seconds:g}")
    parser.add_argument("--to", type=Path, help="the file (default: a new one, which is named)")
    arguments = parser.parse_args()
    if arguments.clients <= 0 or arguments.seconds <= 0:
        parser.error("--clients and --seconds must be more than 0")
    configure_logs("warning")
    many_descriptors()
    options = Options(names[arguments.shape], arguments.clients, arguments.seconds, arguments.to)
    done, code = None, 0
    try:
        done = trio.run(profile, options)
    except* CannotProfile as group:
        sys.stderr.write(f"{_first(group)}\n")
        code = 1
    except* KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = 130
    if done is None:
        return code
    to, sample = done
    cost = 1e6 * sample.peer_s / max(1, sample.replies)
    sys.stdout.write(f"{sample.replies} replies, {cost:.0f} us of CPU each while it was looked at\n{to}\n")
    return 0


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main())
