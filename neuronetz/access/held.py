"""Resolved keys in this process's memory, as long as nothing has been heard against them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec
import trio

from neuronetz.policy import Principal


class Entry(msgspec.Struct, frozen=True):
    """A key that was proven once. ``digest``: SHA-256 of its secret."""

    version: int
    digest: bytes
    principal: Principal


class Reading:
    """An entry being read from Redis. What is heard of its prefix meanwhile may be newer than what is read."""

    __slots__ = ("_entries", "prefix")

    def __init__(self, entries: "HeldEntries", prefix: str) -> None:
        self._entries = entries
        self.prefix = prefix

    def hold(self, entry: Entry, *, until: float) -> None:
        """Keep what was read until then (Trio's clock), unless something was heard since it was asked for."""
        self._entries.take(self, entry, until)


class HeldEntries:
    """At most ``most`` entries, by prefix; the oldest makes room. Nothing in here awaits."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: dict[str, tuple[Entry, float]] = {}
        # Of those who read the same prefix at once, the last to ask may keep what it reads.
        self._readings: dict[str, Reading] = {}

    def get(self, prefix: str) -> Entry | None:
        found = self._entries.get(prefix)
        if found is None:
            return None
        entry, until = found
        if trio.current_time() < until:
            return entry
        del self._entries[prefix]
        return None

    @contextmanager
    def reading(self, prefix: str) -> Iterator[Reading]:
        """Around reading an entry from Redis: begun before it is asked for, ended with the reply at hand."""
        reading = self._readings[prefix] = Reading(self, prefix)
        try:
            yield reading
        finally:
            if self._readings.get(prefix) is reading:
                del self._readings[prefix]

    def take(self, reading: Reading, entry: Entry, until: float) -> None:
        """See ``Reading.hold``."""
        if self._readings.get(reading.prefix) is not reading:
            return
        self._entries.pop(reading.prefix, None)
        if len(self._entries) >= self._most:
            del self._entries[next(iter(self._entries))]
        self._entries[reading.prefix] = entry, until

    def drop(self, prefixes: Iterable[str]) -> None:
        """Forget these, and what is being read of them."""
        for prefix in prefixes:
            self._entries.pop(prefix, None)
            self._readings.pop(prefix, None)

    def clear(self) -> None:
        """Forget all, and what is being read."""
        self._entries.clear()
        self._readings.clear()
