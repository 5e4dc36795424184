"""A client's reading of what a gateway sends: replies, one behind the other, each whole or torn."""

import time
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Answer:
    """A reply whose head was read. ``at``: when, in seconds of the epoch."""

    status: int
    request_id: str | None
    at: float
    whole: bool = False


@dataclass
class Replies:
    """Takes bytes as they come; ``answers`` grows with each head."""

    answers: list[Answer] = field(default_factory=list)
    _data: bytearray = field(default_factory=bytearray)
    _part: Literal["head", "body", "size", "piece", "trailer", "rest"] = "head"
    _left: int = 0

    @property
    def whole(self) -> int:
        """How many replies came to their end."""
        return sum(answer.whole for answer in self.answers)

    def feed(self, data: bytes) -> None:
        self._data += data
        while self._step():
            pass

    def _step(self) -> bool:
        match self._part:
            case "head":
                return self._head()
            case "rest":
                self._data.clear()
                return False
            case "body" | "piece":
                taken = min(self._left, len(self._data))
                del self._data[:taken]
                self._left -= taken
                if self._left:
                    return False
                if self._part == "body":
                    self._end()
                else:
                    self._part = "size"
                return True
            case "size" | "trailer":
                line, end, _ = self._data.partition(b"\r\n")
                if not end:
                    return False
                del self._data[: len(line) + 2]
                if self._part == "trailer":
                    self._end()
                elif size := int(line, 16):
                    self._part, self._left = "piece", size + 2
                else:
                    self._part = "trailer"
                return True

    def _head(self) -> bool:
        head, end, _ = self._data.partition(b"\r\n\r\n")
        if not end:
            return False
        del self._data[: len(head) + 4]
        first, *lines = bytes(head).split(b"\r\n")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)
        }
        request_id = headers.get(b"x-request-id")
        self.answers.append(
            Answer(int(first.split(b" ", 2)[1]), request_id.decode() if request_id else None, time.time())
        )
        if b"content-length" in headers:
            self._part, self._left = "body", int(headers[b"content-length"])
        else:
            self._part = "size" if headers.get(b"transfer-encoding") == b"chunked" else "rest"
        return True

    def _end(self) -> None:
        self.answers[-1].whole = True
        self._part = "head"
