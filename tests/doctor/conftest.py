"""A patient: the stores of this test, with a way to have it examined."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from neuronetz.doctor import examination
from neuronetz.doctor.examination import STEPS, examine
from neuronetz.doctor.finding import Finding
from neuronetz.settings import Settings

Examine = Callable[..., Awaitable[dict[str, list[Finding]]]]


def _needed(check: str) -> set[str]:
    [step] = [step for step in STEPS if step.name == check]
    return {check}.union(*(_needed(name) for name in step.needs))


@pytest.fixture
def findings(asyncio_loop: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Examine; what was found by the name of the check. ``only``: that check, and what it needs.

    Other keyword arguments are settings.
    """

    async def look(only: str | None = None, timeout_s: float = 10.0, **changed: Any) -> dict[str, list[Finding]]:
        found: dict[str, list[Finding]] = {}
        wanted = [step for step in STEPS if only is None or step.name in _needed(only)]
        monkeypatch.setattr(examination, "STEPS", wanted)
        patient = settings.model_copy(update=changed)
        await examine(
            patient, lambda each: found.setdefault(each.check, []).append(each), days=2, timeout_s=timeout_s
        )
        return found

    return look


@pytest.fixture
def bad(findings: Examine) -> Callable[..., Awaitable[Finding]]:
    """Examine; the one finding of a check that is not ok, which says what to do."""

    async def look(check: str, **changed: Any) -> Finding:
        [found] = (await findings(check, **changed))[check]
        assert found.state != "ok", found
        assert found.hint
        return found

    return look
