"""The circuit breaker before the upstream: a state table, pure but for the clock that is given to it.

Only what the upstream did counts. An attempt that ends without a verdict (the client left, its body was at
fault) changes nothing, so that no tenant can open the circuit for all.
"""

from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Literal, Self

import trio

from neuronetz.errors import BreakerOpen

Shown = Literal["closed", "open", "half_open"]


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"  # the probe's place is free
    PROBING = "probing"  # it is taken


class Event(Enum):
    ADMITTED = "admitted"  # an attempt begins
    COOLED = "cooled"  # the open time is over
    SUCCESS = "success"
    FAILURE = "failure"  # one more, below the threshold
    TRIPPED = "tripped"  # the failure that reaches the threshold
    NEUTRAL = "neutral"  # an attempt ends without a verdict
    ANSWERING = "answering"  # an attempt's reply has begun


# (state, event) -> state. What is not here cannot happen: an attempt is not admitted while the circuit is
# open or the probe's place is taken, and the verdict of an attempt from before a change of state is void.
TABLE: dict[tuple[State, Event], State] = {
    (State.CLOSED, Event.ADMITTED): State.CLOSED,
    (State.CLOSED, Event.SUCCESS): State.CLOSED,
    (State.CLOSED, Event.FAILURE): State.CLOSED,
    (State.CLOSED, Event.TRIPPED): State.OPEN,
    (State.CLOSED, Event.NEUTRAL): State.CLOSED,
    (State.CLOSED, Event.ANSWERING): State.CLOSED,
    (State.OPEN, Event.COOLED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.ADMITTED): State.PROBING,
    (State.PROBING, Event.SUCCESS): State.CLOSED,
    (State.PROBING, Event.FAILURE): State.OPEN,
    (State.PROBING, Event.TRIPPED): State.OPEN,
    # The probe's place is free again; the next attempt is the probe.
    (State.PROBING, Event.NEUTRAL): State.HALF_OPEN,
    # A long reply must not keep everybody out until its end: the circuit closes on probation.
    (State.PROBING, Event.ANSWERING): State.CLOSED,
}

# How long (seconds) to stay away while another request's probe runs: nobody knows how long it takes.
_PROBE_RETRY_S = 1.0


class Breaker:
    """Opens after ``failures`` failures in a row; after ``open_s`` seconds it lets one attempt probe.

    It never waits, and belongs to one thread.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        open_s: float = 30.0,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._threshold = failures
        self._open_s = open_s
        self._clock = clock
        self._state = State.CLOSED
        self._failures = 0
        self._open_until = 0.0
        self._era = 0

    @property
    def state(self) -> Shown:
        """The state as operators know it; a circuit that has been open long enough is half open."""
        if self._state is State.CLOSED:
            return "closed"
        if self._state is State.OPEN and self._clock() < self._open_until:
            return "open"
        return "half_open"

    def attempt(self) -> "Attempt":
        """One try at the upstream, as a context manager; entering it raises ``BreakerOpen`` if it may not be."""
        return Attempt(self)

    def _admit(self) -> int:
        if self._state is State.OPEN:
            remaining = self._open_until - self._clock()
            if remaining > 0:
                raise BreakerOpen(retry_after=remaining)
            self._apply(Event.COOLED)
        if self._state is State.PROBING:
            raise BreakerOpen(retry_after=_PROBE_RETRY_S)
        self._apply(Event.ADMITTED)
        return self._era

    def _judge(self, event: Event, era: int) -> int:
        """Take an attempt's verdict; the era that the attempt belongs to from now on."""
        if era != self._era:
            return era
        probing = self._state is State.PROBING
        if event is Event.SUCCESS:
            self._failures = 0
        elif event is Event.FAILURE:
            self._failures += 1
            if self._failures >= self._threshold:
                event = Event.TRIPPED
        elif event is Event.ANSWERING and probing:
            self._failures = self._threshold - 1
        self._apply(event)
        return self._era

    def _apply(self, event: Event) -> None:
        state = TABLE[self._state, event]
        if state is self._state:
            return
        self._state = state
        self._era += 1
        if state is State.OPEN:
            self._open_until = self._clock() + self._open_s
            self._failures = 0


class Attempt:
    """One try. The first verdict counts, at once; leaving the block without one is neutral."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._era = 0
        self._judged = False

    def __enter__(self) -> Self:
        self._era = self._breaker._admit()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._judge(Event.NEUTRAL)

    def answering(self) -> None:
        """The upstream's reply has begun: a probe closes the circuit, until the next failure. No verdict yet."""
        if not self._judged:
            self._era = self._breaker._judge(Event.ANSWERING, self._era)

    def success(self) -> None:
        """The upstream did what it should."""
        self._judge(Event.SUCCESS)

    def failure(self) -> None:
        """The upstream failed."""
        self._judge(Event.FAILURE)

    def _judge(self, event: Event) -> None:
        if not self._judged:
            self._judged = True
            self._breaker._judge(event, self._era)
