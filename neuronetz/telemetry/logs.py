"""structlog, set up once: JSON lines on stderr, or colours where a person is watching.

Only events named here and there in the code are written, with fields of known types: never a request's
body, headers, key or model output.
"""

import logging
import sys
from typing import Literal, TextIO

import structlog


def configure_logs(
    level: Literal["debug", "info", "warning", "error"] = "info",
    style: Literal["auto", "json", "console"] = "auto",
    stream: TextIO | None = None,
) -> None:
    """Send structlog's events, and warnings of the standard library's loggers, to ``stream`` (stderr)."""
    target = stream or sys.stderr
    console = style == "console" or (style == "auto" and target.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        # Plain tracebacks: structlog's own choice would print local variables, with keys and prompts in them.
        structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer(separators=(",", ":"))
    )
    tail: list[structlog.typing.Processor] = (
        [renderer] if console else [structlog.processors.format_exc_info, renderer]
    )
    structlog.configure(
        processors=[*shared, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        # A line is one write: workers share a stream, and two of them must not end up in one line.
        logger_factory=structlog.WriteLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail],
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
