"""The logs are JSON or for people, and never hold a secret, even with a traceback."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

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


def crash(secret: str) -> None:
    raise RuntimeError("it broke")


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_traceback_holds_no_local_variables(style: Any) -> None:
    stream = io.StringIO()
    configure_logs("debug", style, stream)
    try:
        crash("tpmorp terces"[::-1])
    except RuntimeError:
        structlog.get_logger("test").exception("failed")
        logging.getLogger("stdlib").exception("failed there")
    text = stream.getvalue()
    assert text.count("RuntimeError: it broke") == 2
    assert "secret prompt" not in text


def test_json_lines_have_the_event_the_level_and_the_time() -> None:
    stream = io.StringIO()
    configure_logs("info", "json", stream)
    structlog.get_logger("test").info("request.ended", request_id="r", status=200)
    structlog.get_logger("test").debug("not this")
    logging.getLogger("library").warning("careful %s", "there")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["level"], first["request_id"], first["status"]) == (
        "request.ended",
        "info",
        "r",
        200,
    )
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["level"], second["logger"]) == ("careful there", "warning", "library")


def test_auto_is_json_where_nobody_watches() -> None:
    stream = io.StringIO()
    configure_logs("info", "auto", stream)
    structlog.get_logger("test").info("hello")
    assert json.loads(stream.getvalue())["event"] == "hello"
