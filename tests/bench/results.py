"""What a run found."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from tests.bench.shapes import Shape


@dataclass(frozen=True)
class Sample:
    """One measurement: CPU seconds of the peer, of its stores, and of the client and the upstream together.

    ``failures`` by kind: a status, or what became of the connection.
    """

    replies: int
    failures: dict[str, int]
    seconds: float
    peer_s: float
    stores_s: float
    rest_s: float
    p50_s: float
    p99_s: float
    memory_bytes: int

    @property
    def rate(self) -> float:
        """Replies a second."""
        return self.replies / self.seconds


@dataclass(frozen=True)
class Row:
    """A peer under a load: its samples, and those of ``direct`` in the same rounds."""

    shape: Shape
    clients: int
    peer: str
    samples: list[Sample]
    direct: list[Sample]

    def median(self, value: Callable[[Sample], float]) -> float:
        return median(value(sample) for sample in self.samples)

    def added(self, value: Callable[[Sample], float]) -> float:
        """The median of what this peer has more than ``direct``."""
        pairs = zip(self.samples, self.direct, strict=True)
        return median(value(sample) - value(direct) for sample, direct in pairs)

    def cpu_us(self, part: str = "peer") -> float:
        """CPU microseconds for each reply, of the ``peer``, its ``stores``, or the ``rest``."""
        return self.median(lambda sample: 1e6 * float(getattr(sample, f"{part}_s")) / max(1, sample.replies))


@dataclass(frozen=True)
class Left:
    """What there still was, a second after so many clients had left in mid-stream."""

    peer: str
    clients: int
    counts: dict[str, int]


@dataclass(frozen=True)
class Held:
    """So many streams under way together, and how late their tokens were.

    ``seconds`` of CPU are the peer's, its stores', and of client and upstream. ``behind_s``: how late the upstream was
    itself, which is not in the lateness.
    """

    asked: int
    open: int
    seconds: float
    tokens: int
    late: int
    silent: int
    ended: int
    p50_s: float
    p99_s: float
    max_s: float
    behind_s: float
    peer_s: float
    stores_s: float
    rest_s: float

    @property
    def held(self) -> bool:
        """Whether every token of every stream was there before the next one was due."""
        return self.open == self.asked and self.tokens > 0 and not (self.late or self.silent or self.ended)

    @property
    def token_us(self) -> float:
        """CPU microseconds of the peer for each token."""
        return 1e6 * self.peer_s / max(1, self.tokens)


@dataclass(frozen=True)
class Finding:
    """What a load of its own kind found: in words, and in figures that a target may be set for."""

    load: str
    clients: int
    peer: str
    text: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class Report:
    rows: list[Row] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
