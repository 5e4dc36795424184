"""The mock Ollama as a process of its own, which writes down when it is asked what, and until when it is at it.

A line for each inference request that begins (``TIME + ID TAG MODEL``) and for each that ends (``TIME - ID``),
in seconds of the epoch. The tag is the request's number, which its prompt carries.
"""

import argparse
import itertools
import re
import time
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import msgspec
import trio

from neuronetz.embedded.mock_http import HttpConnection, HttpRequest
from neuronetz.embedded.ollama import MockOllama, MockOptions

TAG = re.compile(rb"#(\d+\.\d+)#")


class Work(NamedTuple):
    """One request that the mock was at."""

    tag: str
    model: str
    begun: float
    ended: float


class Witness(MockOllama):
    """A mock that writes its lines to ``notes``."""

    def __init__(self, notes: TextIO, options: MockOptions, port: int) -> None:
        super().__init__(options, port=port)
        self._notes = notes
        self._ids = itertools.count()

    async def _respond(self, http: HttpConnection, request: HttpRequest) -> None:
        found = TAG.search(request.body)
        if found is None:
            await super()._respond(http, request)
            return
        number, model = next(self._ids), msgspec.json.decode(request.body)["model"]
        print(f"{time.time():.4f} + {number} {found[1].decode()} {model}", file=self._notes, flush=True)
        try:
            await super()._respond(http, request)
        finally:
            print(f"{time.time():.4f} - {number}", file=self._notes, flush=True)


def read_notes(path: Path, ended: float) -> list[Work]:
    """What a witness wrote whose process ended then: what it was still at ended with it."""
    begun: dict[str, list[Any]] = {}
    works = []
    for line in path.read_text().splitlines():
        at, sign, number, *rest = line.split(" ")
        if sign == "+":
            begun[number] = [*rest, float(at)]
        else:
            works.append(Work(*begun.pop(number), float(at)))
    return works + [Work(*work, ended) for work in begun.values()]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("models", nargs="+")
    arguments = parser.parse_args()
    with arguments.notes.open("a") as notes:
        witness = Witness(notes, MockOptions(models=tuple(arguments.models)), arguments.port)
        trio.run(witness.serve)


if __name__ == "__main__":
    main()
