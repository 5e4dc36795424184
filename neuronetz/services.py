"""Supervision: a service that crashes is started again, with backoff, and says so."""

import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

import structlog
import trio

log = structlog.get_logger("neuronetz.services")

LONGEST_PAUSE_S = 10.0

State = Literal["starting", "running", "restarting", "recovering"]


@dataclass
class Service:
    """A supervised service's health, as ``/readyz`` and the metrics show it.

    ``recovering``: it runs again, but has not yet run for long enough to be believed; so one that keeps
    failing never shows as ``running``. ``reason``: the class of its last failure, until it has recovered;
    ``reasons``: those of all its failures.
    """

    name: str
    state: State = "starting"
    restarts: int = 0
    reason: str | None = None
    reasons: set[str] = field(default_factory=set)

    @property
    def shown(self) -> str:
        """The state, with the reason where there is one."""
        return self.state if self.reason is None else f"{self.state}: {self.reason}"


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
    cap_s: float = LONGEST_PAUSE_S,
    healthy_after_s: float = 10.0,
    jitter: Callable[[], float] = random.random,
) -> None:
    """Run ``run`` until cancelled; when it raises or returns, start it again.

    The pause doubles from ``base_s`` to ``cap_s`` seconds and is spread by ``jitter`` (0 to 1). A run of
    ``healthy_after_s`` seconds clears the reason of the last failure and resets the pause. Cancellation
    passes through unchanged, and alone: a failure in its very moment is logged.
    """
    service = board.entry(name)
    failures = 0

    async def recover() -> None:
        nonlocal failures
        await trio.sleep(healthy_after_s)
        failures = 0
        if service.reason is not None:
            service.state, service.reason = "running", None
            log.info("service.recovered", service=name)

    while True:
        service.state = "running" if service.reason is None else "recovering"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(recover)
                await run()
                nursery.cancel_scope.cancel()
            reason = "returned"
        except* Exception as failed:  # noqa: BLE001 - a supervisor's very task
            # Not ``except``: a cancellation in the moment of a failure stands beside it in one group, and would
            # take it out with it. So it goes on alone.
            reason = _class_of(failed)
            if trio.current_effective_deadline() == -math.inf:
                log.warning("service.failed_in_ending", service=name, reason=reason)
        pause = min(cap_s, base_s * 2**failures) * (0.5 + jitter() / 2)
        failures = min(failures + 1, 16)
        service.state, service.reason = "restarting", reason
        service.reasons.add(reason)
        service.restarts += 1
        log.warning("service.restarting", service=name, reason=reason, pause_s=round(pause, 3))
        await trio.sleep(pause)


def _class_of(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(error).__name__
