"""PostgreSQL's pool: what a caller is told is what became of its statements."""

import os
import signal
from typing import Any

import pytest

from neuronetz.stores.postgres import Postgres


class Hung:
    """Work whose server process stops answering once it is done, as one does on a machine that is out of breath."""

    def __init__(self, error: Exception | None = None) -> None:
        self.pid = 0
        self.error = error

    async def __call__(self, connection: Any) -> str:
        self.pid = await connection.fetchval("SELECT pg_backend_pid()")
        await connection.execute("CREATE TABLE done ()")
        os.kill(self.pid, signal.SIGSTOP)
        if self.error is not None:
            raise self.error
        return "done"


async def test_what_was_carried_out_is_told_though_the_connection_cannot_be_used_again(postgres: Postgres) -> None:
    work = Hung()
    try:
        assert await postgres.run(work) == "done"
    finally:
        os.kill(work.pid, signal.SIGCONT)
    assert await postgres.fetchval("SELECT to_regclass('done') IS NOT NULL")
    assert await postgres.fetchval("SELECT pg_backend_pid()") != work.pid


async def test_works_own_error_is_told_though_the_connection_cannot_be_used_again(postgres: Postgres) -> None:
    work = Hung(LookupError("its own"))
    try:
        with pytest.raises(LookupError, match="its own"):
            await postgres.run(work)
    finally:
        os.kill(work.pid, signal.SIGCONT)
