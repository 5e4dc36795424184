"""Rows and recorders for the audit room's tests."""

import itertools
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio

from neuronetz.audit.record import AuditRecord
from neuronetz.audit.recorder import Recorder

TENANT = "00000000-0000-4000-8000-00000000000a"
KEYS = ("00000000-0000-4000-8000-0000000000b1", "00000000-0000-4000-8000-0000000000b2")
START = datetime(2026, 3, 5, 12, 0, tzinfo=UTC)


@pytest.fixture
def make_row() -> Callable[..., AuditRecord]:
    """Makes rows, each of a request of its own unless told otherwise."""
    numbers = itertools.count()

    def make(**values: Any) -> AuditRecord:
        number = next(numbers)
        row = {
            "request_id": str(uuid.UUID(int=number + 1)),
            "started_at": START + timedelta(milliseconds=number),
            "tenant_id": TENANT,
            "key_id": KEYS[number % 2],
            "endpoint": "/api/chat",
            "dialect": "ollama",
            "model": "llama3.2:latest",
            "stream": True,
            "status": 200,
            "outcome": "completed",
            "prompt_tokens": 3,
            "completion_tokens": 5,
            "tokens_exact": True,
            "budget_day": START.date(),
            "duration_ms": 120,
            "first_byte_ms": None,
            "client_ip": "192.0.2.7",
            "instance": "one",
        }
        return AuditRecord(**(row | values))

    return make


@pytest.fixture
def running() -> Callable[[Recorder], AbstractAsyncContextManager[None]]:
    """A block in which a recorder's service runs."""

    @asynccontextmanager
    async def run(recorder: Recorder) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.run)
            yield
            nursery.cancel_scope.cancel()

    return run
