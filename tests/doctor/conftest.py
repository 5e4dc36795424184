"""A patient: the stores of this test, with a way to have it examined."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from neuronetz.doctor.examination import examine
from neuronetz.doctor.finding import Finding
from neuronetz.settings import Settings

Examine = Callable[..., Awaitable[dict[str, list[Finding]]]]


@pytest.fixture
def findings(asyncio_loop: Any, settings: Settings) -> Examine:
    """Examine; what was found by the name of the check. Keyword arguments are settings."""

    async def look(timeout_s: float = 10.0, **changed: Any) -> dict[str, list[Finding]]:
        found: dict[str, list[Finding]] = {}
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
        [found] = (await findings(**changed))[check]
        assert found.state != "ok", found
        assert found.hint
        return found

    return look
