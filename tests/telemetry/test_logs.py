"""The logs hold what the code names, and no variable's value besides."""

import io
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from neuronetz.telemetry.logs import configure_logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize(
    "logger", [structlog.get_logger("test"), logging.getLogger("test")], ids=["own", "others"]
)
def test_a_traceback_shows_no_local_variables(logger: object, style: Literal["json", "console"]) -> None:
    written = io.StringIO()
    configure_logs("debug", style, written)

    def fail(prompt: str) -> None:
        raise ZeroDivisionError(len(prompt))

    try:
        fail("what nobody " + "may read")
    except ZeroDivisionError:
        logger.exception("exchange.failed")  # type: ignore[attr-defined]
    assert "exchange.failed" in written.getvalue()
    assert "ZeroDivisionError" in written.getvalue()
    assert "what nobody may read" not in written.getvalue()
