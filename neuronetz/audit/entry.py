"""A request's entry in the audit ring: a place that is sure to be there when the row comes."""

from collections.abc import Callable

import trio

from neuronetz.audit.record import AuditRecord


class Entry:
    """A place for one request's row; ``Recorder.open`` gives it for the length of a block.

    ``known``: set once the outcome is known (or the block ended without one). ``committed``: set once
    PostgreSQL has the row; never set for an entry without a row, nor for a row that PostgreSQL refuses.
    """

    __slots__ = ("_append", "_release", "committed", "finished", "known")

    def __init__(self, append: "Callable[[AuditRecord, Entry], None]", release: Callable[[], None]) -> None:
        self._append = append
        self._release: Callable[[], None] | None = release
        self.finished = False
        self.known = trio.Event()
        self.committed = trio.Event()

    def finish(self, record: AuditRecord) -> None:
        """Hand the row over. Synchronous; the first call wins, further calls change nothing.

        The row is taken even from an entry whose block has ended: a row is never lost for being late.
        """
        if self.finished:
            return
        self._append(record, self)
        self.finished = True
        self._leave()

    def close(self) -> None:
        """Give the place back; a finished entry has done so already."""
        self._leave()

    def _leave(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()
        self.known.set()
