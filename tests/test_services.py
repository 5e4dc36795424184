"""Supervision: a crashed service comes back, waits longer each time, and says how it is."""

import logging
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from neuronetz.services import Service, ServiceBoard, supervise

Run = Callable[[], Awaitable[None]]


class Faulty:
    """A service that fails after ``lasts[n]`` seconds in its n-th run, and then runs for good."""

    def __init__(self, lasts: list[float], error: Exception | None = None) -> None:
        self.lasts = lasts
        self.error = error
        self.started: list[float] = []
        self.ended: list[float] = []

    async def run(self) -> None:
        self.started.append(trio.current_time())
        if len(self.started) > len(self.lasts):
            await trio.sleep_forever()
        await trio.sleep(self.lasts[len(self.started) - 1])
        self.ended.append(trio.current_time())
        if self.error is not None:
            raise self.error

    @property
    def pauses(self) -> list[float]:
        return [round(start - end, 6) for start, end in zip(self.started[1:], self.ended, strict=False)]


async def supervised(run: Run, for_s: float, board: ServiceBoard, jitter: float = 1.0) -> Service:
    """The service's health after so many seconds of supervision."""
    with trio.move_on_after(for_s):
        await supervise("it", run, board, base_s=0.2, cap_s=10.0, healthy_after_s=10.0, jitter=lambda: jitter)
    return board.services["it"]


async def test_the_pause_doubles_up_to_its_cap(autojump_clock: trio.testing.MockClock) -> None:
    service = Faulty([0.0] * 9, ValueError())
    await supervised(service.run, 100.0, ServiceBoard())
    assert service.pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]


@pytest.mark.parametrize(("jitter", "pause"), [(0.0, 0.1), (0.5, 0.15), (1.0, 0.2)])
async def test_the_pause_is_spread_over_half_of_itself(
    autojump_clock: trio.testing.MockClock, jitter: float, pause: float
) -> None:
    service = Faulty([0.0], ValueError())
    await supervised(service.run, 5.0, ServiceBoard(), jitter)
    assert service.pauses == [pause]


async def test_a_service_that_failed_once_is_recovering_and_then_running_without_a_reason(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service, board = Faulty([1.0], ValueError()), ServiceBoard()
    seen: list[tuple[float, str]] = []

    async def look(at: float) -> None:
        await trio.sleep(at)
        seen.append((at, board.services["it"].shown))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervised, service.run, 30.0, board)
        for at in (0.5, 1.1, 1.5, 11.1, 11.3):
            nursery.start_soon(look, at)
    assert sorted(seen) == [
        (0.5, "running"),
        (1.1, "restarting: ValueError"),
        (1.5, "recovering: ValueError"),
        (11.1, "recovering: ValueError"),
        (11.3, "running"),
    ]
    assert board.services["it"].restarts == 1


async def test_a_service_that_keeps_failing_never_shows_as_running(
    autojump_clock: trio.testing.MockClock,
) -> None:
    board = ServiceBoard()
    shown: set[str] = set()

    async def watch() -> None:
        await trio.sleep(9.5)
        while True:
            shown.add(board.services["it"].shown)
            await trio.sleep(0.5)

    # Each run lasts for a while, but not for long enough to be believed.
    service = Faulty([9.0] * 100, OSError())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await supervised(service.run, 200.0, board)
        nursery.cancel_scope.cancel()
    assert shown == {"restarting: OSError", "recovering: OSError"}


async def test_a_long_good_run_starts_the_pauses_again(autojump_clock: trio.testing.MockClock) -> None:
    service = Faulty([0.0, 0.0, 10.5, 0.0], ValueError())
    await supervised(service.run, 100.0, ServiceBoard())
    assert service.pauses == [0.2, 0.4, 0.2, 0.4]


async def test_a_service_that_returns_is_started_again_and_says_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = Faulty([0.0] * 3)
    health = await supervised(service.run, 3.0, ServiceBoard())
    assert (health.restarts, health.shown) == (3, "recovering: returned")


async def test_the_reason_is_the_class_of_the_innermost_error_and_nothing_of_its_text(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Faulty([0.0], KeyError("hunter2")).run)

    with caplog.at_level(logging.DEBUG):
        health = await supervised(run, 3.0, ServiceBoard())
    assert health.reason == "KeyError"
    assert "hunter2" not in caplog.text + "".join(capsys.readouterr())


async def test_cancellation_ends_it_within_a_run_and_within_a_pause(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for lasts in ([100.0], [0.0]):
        with trio.move_on_after(0.1) as scope:
            await supervise("it", Faulty(lasts, ValueError()).run, ServiceBoard(), jitter=lambda: 1.0)
        assert scope.cancelled_caught


async def test_a_failure_in_the_moment_of_a_cancellation_is_logged_and_does_not_come_out_with_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with trio.CancelScope() as scope:

        async def run() -> None:
            scope.cancel()
            raise ValueError

        await supervise("it", run, ServiceBoard())
    assert scope.cancelled_caught
    logged = capsys.readouterr().out
    assert "service.failed_in_ending" in logged
    assert "ValueError" in logged


async def test_a_service_that_fails_at_its_cancellation_does_not_fail_its_supervisor() -> None:
    async def run() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError

    with trio.move_on_after(0.01) as scope:
        await supervise("it", run, ServiceBoard())
    assert scope.cancelled_caught


async def test_what_is_no_exception_passes_through() -> None:
    async def run() -> None:
        raise KeyboardInterrupt

    with pytest.RaisesGroup(KeyboardInterrupt):
        await supervise("it", run, ServiceBoard())
