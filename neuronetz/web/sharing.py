"""How many connections each of several workers has, so that the one with the fewest takes the next.

Each worker waits on the one socket, and a connection wakes them all. Left to themselves, an idle machine's
connections pile up on whoever wakes first: of 50 kept open, 46 on one of two workers were measured, and
25 on each with what ``listening.py`` makes of this. A socket for each worker (``SO_REUSEPORT``) would spread
them by their hash, but a dead worker's share of new connections would then wait in its backlog until it is
replaced; here the others just take them.
"""

import mmap
from pathlib import Path

_NOBODY = -1
_FILE = "connections"


class Load:
    """How many connections each worker has open, in memory that all of them map. Never blocks."""

    def __init__(self, folder: Path, number: int) -> None:
        with (folder / _FILE).open("r+b") as file:
            self._counts = memoryview(mmap.mmap(file.fileno(), 0)).cast("i")
        self._number = number

    @staticmethod
    def prepare(folder: Path, workers: int) -> None:
        """Make the memory for so many workers, none of which runs yet."""
        (folder / _FILE).write_bytes(memoryview(b"\xff" * 4 * workers))

    def tell(self, connections: int | None) -> None:
        """Say how many connections this worker has; None takes it out of the comparison."""
        self._counts[self._number] = _NOBODY if connections is None else connections

    def tell_of_another(self) -> None:
        """Say that this worker has one connection more."""
        if self._counts[self._number] != _NOBODY:
            self._counts[self._number] += 1

    def others_have_less(self) -> bool:
        """Whether another running worker has fewer connections than this one."""
        return any(_NOBODY < count < self._counts[self._number] for count in self._counts)
