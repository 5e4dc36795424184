"""The circuit breaker: its table, its promises, and a simple model that it must agree with."""

from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from neuronetz.errors import BreakerOpen
from neuronetz.upstream.breaker import TABLE, Attempt, Breaker, Event, State


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(failures=5, open_s=30.0, clock=clock)


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        with breaker.attempt() as attempt:
            attempt.failure()


def succeed(breaker: Breaker) -> None:
    with breaker.attempt() as attempt:
        attempt.success()


def leave(breaker: Breaker) -> None:
    with breaker.attempt():
        pass


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_left_and_reached(state: State) -> None:
    assert any(source is state and target is not state for (source, _), target in TABLE.items())
    assert any(source is not state and target is state for (source, _), target in TABLE.items())


def test_no_attempt_is_admitted_while_open_or_probing() -> None:
    assert (State.OPEN, Event.ADMITTED) not in TABLE
    assert (State.PROBING, Event.ADMITTED) not in TABLE


def test_five_failures_in_a_row_open_it(breaker: Breaker) -> None:
    fail(breaker, 4)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"
    with pytest.raises(BreakerOpen) as refused, breaker.attempt():
        pass
    assert refused.value.retry_after == 30.0


def test_a_success_in_between_starts_the_count_again(breaker: Breaker) -> None:
    fail(breaker, 4)
    succeed(breaker)
    fail(breaker, 4)
    assert breaker.state == "closed"


def test_attempts_without_a_verdict_neither_open_nor_reset(breaker: Breaker) -> None:
    for _ in range(50):
        leave(breaker)
    assert breaker.state == "closed"
    fail(breaker, 4)
    leave(breaker)
    fail(breaker)
    assert breaker.state == "open"


def test_an_exception_alone_is_no_verdict(breaker: Breaker) -> None:
    for _ in range(10):
        with pytest.raises(RuntimeError), breaker.attempt():
            raise RuntimeError
    assert breaker.state == "closed"


def test_after_the_open_time_one_probe_is_let_through_and_others_wait(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 5)
    clock.now += 29.9
    with pytest.raises(BreakerOpen), breaker.attempt():
        pass
    clock.now += 0.1
    assert breaker.state == "half_open"
    with breaker.attempt():
        with pytest.raises(BreakerOpen) as refused, breaker.attempt():
            pass
        assert refused.value.retry_after is not None
        assert refused.value.retry_after > 0


def test_the_probes_success_closes_it(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 5)
    clock.now += 30
    succeed(breaker)
    assert breaker.state == "closed"
    fail(breaker, 4)
    assert breaker.state == "closed"


def test_the_probes_failure_opens_it_for_the_whole_time_again(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 5)
    clock.now += 30
    fail(breaker)
    clock.now += 29.9
    assert breaker.state == "open"
    clock.now += 0.1
    assert breaker.state == "half_open"


def test_a_probe_without_a_verdict_frees_its_place(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 5)
    clock.now += 30
    leave(breaker)
    assert breaker.state == "half_open"
    succeed(breaker)
    assert breaker.state == "closed"


def test_a_probe_whose_reply_begins_lets_others_in_until_the_next_failure(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 5)
    clock.now += 30
    with breaker.attempt() as probe:
        probe.answering()
        assert breaker.state == "closed"
        leave(breaker)
        probe.failure()
    assert breaker.state == "open"


def test_an_answering_probe_that_succeeds_ends_the_probation(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 5)
    clock.now += 30
    with breaker.attempt() as probe:
        probe.answering()
        probe.success()
    fail(breaker, 4)
    assert breaker.state == "closed"


def test_replies_that_begin_do_not_hide_failures_in_a_row(breaker: Breaker) -> None:
    for _ in range(5):
        with breaker.attempt() as attempt:
            attempt.answering()
            attempt.failure()
    assert breaker.state == "open"


def test_only_the_first_verdict_of_an_attempt_counts(breaker: Breaker) -> None:
    for _ in range(10):
        with breaker.attempt() as attempt:
            attempt.success()
            attempt.failure()
    assert breaker.state == "closed"


def test_verdicts_from_before_it_opened_are_void(breaker: Breaker, clock: Clock) -> None:
    with ExitStack() as stack:
        late = [stack.enter_context(breaker.attempt()) for _ in range(3)]
        fail(breaker, 5)
        late[0].success()
        assert breaker.state == "open"
        clock.now += 30
        with breaker.attempt() as probe:
            late[1].failure()
            late[2].success()
            assert breaker.state == "half_open"
            probe.success()
    assert breaker.state == "closed"


class AgainstModel(RuleBasedStateMachine):
    """The model: a count, a time, a set of attempts that still matter."""

    @initialize(threshold=st.integers(1, 4))
    def make(self, threshold: int) -> None:
        self.threshold = threshold
        self.clock = Clock()
        self.breaker = Breaker(failures=threshold, open_s=10.0, clock=self.clock)
        self.count = 0
        self.opened_at: float | None = None
        self.probe: Attempt | None = None
        self.attempts: list[Attempt] = []
        self.current: set[int] = set()

    @rule(seconds=st.sampled_from([1.0, 5.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def begin(self) -> None:
        opened, cooled = self.opened_at is not None, False
        if self.opened_at is not None:
            cooled = self.clock.now - self.opened_at >= 10.0
        expected = not opened or (cooled and self.probe is None)
        attempt = self.breaker.attempt()
        try:
            attempt.__enter__()
        except BreakerOpen:
            assert not expected
            return
        assert expected
        self.attempts.append(attempt)
        if opened:
            self.probe = attempt
        else:
            self.current.add(id(attempt))

    def open(self) -> None:
        self.opened_at, self.probe, self.count = self.clock.now, None, 0
        self.current.clear()

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), verdict=st.sampled_from(["success", "failure", "neutral"]))
    def end(self, data: st.DataObject, verdict: str) -> None:
        attempt = self.attempts.pop(data.draw(st.integers(0, len(self.attempts) - 1)))
        if verdict != "neutral":
            getattr(attempt, verdict)()
        attempt.__exit__(None, None, None)
        if attempt is self.probe:
            self.probe = None
            if verdict == "success":
                self.opened_at = None
            elif verdict == "failure":
                self.open()
        elif id(attempt) in self.current:
            self.current.discard(id(attempt))
            if verdict == "success":
                self.count = 0
            elif verdict == "failure":
                self.count += 1
                if self.count == self.threshold:
                    self.open()

    @invariant()
    def states_agree(self) -> None:
        if self.opened_at is None:
            assert self.breaker.state == "closed"
        elif self.clock.now - self.opened_at < 10.0:
            assert self.breaker.state == "open"
        else:
            assert self.breaker.state == "half_open"


AgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAgainstModel = AgainstModel.TestCase
