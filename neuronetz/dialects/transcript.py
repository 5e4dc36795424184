"""What was asked and answered, as text for the prompt log: gathered without I/O, and bounded."""

from collections.abc import Iterable

import msgspec

_NUL, _REPLACEMENT = b"\x00", "\ufffd".encode()


class Excerpt(msgspec.Struct, frozen=True):
    """A text's beginning; ``truncated``: there was more of it."""

    text: str
    truncated: bool


class CappedText:
    """Text gathered up to ``limit_bytes`` of UTF-8, cut at a character's boundary.

    It can be stored: NUL, which PostgreSQL's text cannot hold, becomes U+FFFD.
    """

    __slots__ = ("_data", "_limit", "truncated")

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._data = bytearray()
        self.truncated = False

    def __len__(self) -> int:
        return len(self._data)

    def add(self, text: str) -> None:
        """Append a text, or what there is room for. Nothing is appended behind a cut."""
        if self.truncated:
            return
        room = self._limit - len(self._data)
        # A character takes a byte at least, so of a huge text no more is encoded than could fit.
        data = text[: room + 1].encode("utf-8", "replace").replace(_NUL, _REPLACEMENT)
        if len(data) > room:
            self.truncated = True
            while room and data[room] & 0xC0 == 0x80:
                room -= 1
            data = data[:room]
        self._data += data

    def first(self, size: int) -> str:
        """The first ``size`` bytes, which must be a length that ``len`` once was."""
        return self._data[:size].decode()


class Transcript:
    """A completion, as the reply's reader lets it pass; what counts is what was ``delivered``.

    An answer stands as it is. A line ``[thinking]``, ``[answer]`` or ``[tool_calls]`` stands wherever
    something else begins.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._text = CappedText(limit_bytes)
        self._kind = "answer"
        self._delivered = 0
        self._truncated = False

    def answer(self, text: str | None) -> None:
        """Add a piece of the answer."""
        if text:
            self._turn("answer")
            self._text.add(text)

    def thinking(self, text: str | None) -> None:
        """Add a piece of what the model thought before it answered."""
        if text:
            self._turn("thinking")
            self._text.add(text)

    def tool_calls(self, data: bytes) -> None:
        """Add calls of tools, as JSON."""
        self._turn("tool_calls")
        self._text.add(data.decode("utf-8", "replace"))

    def delivered(self) -> None:
        """Note that everything added so far was handed to the client's connection."""
        self._delivered = len(self._text)
        self._truncated = self._text.truncated

    def excerpt(self) -> Excerpt:
        """What was delivered."""
        return Excerpt(self._text.first(self._delivered), self._truncated)

    def _turn(self, kind: str) -> None:
        if kind != self._kind:
            self._kind = kind
            start = "\n" if len(self._text) else ""
            self._text.add(f"{start}[{kind}]\n")


def labelled(entries: Iterable[tuple[str, str]], limit_bytes: int) -> Excerpt:
    """Texts with their labels, a line each: ``label: text``.

    Further lines of a text are indented: what stands at a line's beginning is a label, and no text can
    pass for one.
    """
    whole = CappedText(limit_bytes)
    for label, text in entries:
        if whole.truncated:
            break
        start = "\n" if len(whole) else ""
        # Cut before the lines are looked for: the text may be far longer than what is kept.
        shown = text[: limit_bytes + 1].replace("\n", "\n  ")
        whole.add(f"{start}{label}: {shown}")
    return Excerpt(whole.first(len(whole)), whole.truncated)
