"""Framing of reply streams, without I/O: bytes cut anywhere in, whole lines out."""


class LineSplitter:
    """Splits a stream of bytes into lines, each with its newline, of at most ``limit`` bytes.

    The same bytes give the same lines however they are cut. ``overflow`` is set by a line that is longer;
    what came before it was still given out, nothing is after it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tail = bytearray()
        self.overflow = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; return the lines that they complete."""
        if self.overflow:
            return []
        if not self._tail and data.find(b"\n") == len(data) - 1 and 0 < len(data) <= self._limit:
            # One whole line, as a model that is slower than the network sends them.
            return [data]
        end = data.rfind(b"\n") + 1
        lines = self._complete(data[:end]) if end else []
        self._tail += data[end:]
        # A tail of the limit's length has no room for its newline.
        if len(self._tail) >= self._limit:
            self.overflow = True
        if self.overflow:
            self._tail.clear()
        return lines

    def _complete(self, block: bytes) -> list[bytes]:
        if self._tail:
            block = bytes(self._tail) + block
            self._tail.clear()
        parts = block.split(b"\n")
        del parts[-1]
        for number, part in enumerate(parts):
            if len(part) >= self._limit:
                self.overflow = True
                del parts[number:]
                break
        return [part + b"\n" for part in parts]

    def tail(self) -> bytes:
        """What came behind the last newline; it is taken out."""
        tail = bytes(self._tail)
        self._tail.clear()
        return tail
