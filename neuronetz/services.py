"""Supervision: a service that crashes is started again, with backoff, and says so."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

import structlog
import trio

log = structlog.get_logger("neuronetz.services")

State = Literal["starting", "running", "restarting", "stopped"]


@dataclass
class Service:
    """A supervised service's health, as ``/readyz`` and the metrics show it."""

    name: str
    state: State = "starting"
    restarts: int = 0
    reason: str | None = None


@dataclass
class ServiceBoard:
    """The health of all services of this process."""

    services: dict[str, Service] = field(default_factory=dict)

    def entry(self, name: str) -> Service:
        return self.services.setdefault(name, Service(name))


async def supervise(
    name: str,
    run: Callable[[], Awaitable[None]],
    board: ServiceBoard,
    *,
    base_s: float = 0.2,
    cap_s: float = 10.0,
    healthy_after_s: float = 30.0,
    jitter: Callable[[], float] = random.random,
) -> None:
    """Run ``run`` until cancelled; when it raises or returns, start it again.

    The pause doubles from ``base_s`` to ``cap_s`` seconds and is spread by ``jitter`` (0 to 1); a run
    of at least ``healthy_after_s`` seconds resets it. Cancellation passes through unchanged.
    """
    service = board.entry(name)
    failures = 0
    while True:
        started = trio.current_time()
        service.state = "running"
        try:
            await run()
            reason = "returned"
        except Exception as error:  # noqa: BLE001 - a supervisor's very task; a trio.Cancelled passes
            reason = _class_of(error)
        if trio.current_time() - started >= healthy_after_s:
            failures = 0
        pause = min(cap_s, base_s * 2**failures) * (0.5 + jitter() / 2)
        failures = min(failures + 1, 16)
        service.state, service.reason = "restarting", reason
        service.restarts += 1
        log.warning("service.restarting", service=name, reason=reason, pause_s=round(pause, 3))
        await trio.sleep(pause)


def _class_of(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(error).__name__
