"""The command line, run in this process, and the database beside it."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio_asyncio

from neuronetz.cli import main
from neuronetz.settings import Settings
from neuronetz.stores.postgres import open_postgres


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def documents(self) -> list[Any]:
        """The JSON documents on stdout, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No setting but cheap hashing."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in (("TIME_COST", "1"), ("MEMORY_KIB", "8"), ("PARALLELISM", "1")):
        monkeypatch.setenv(f"ARGON2_{name}", value)
    return monkeypatch


@pytest.fixture
def bare(environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs the command line without any store in the environment."""

    def run(*args: str) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main(args)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert isinstance(exited.value.code, int)
        return Result(exited.value.code, out, err)

    return run


@pytest.fixture
def cli(bare: Callable[..., Result], environment: pytest.MonkeyPatch, database_url: str) -> Callable[..., Result]:
    """Runs the command line with ``DATABASE_URL`` set."""
    environment.setenv("DATABASE_URL", database_url)
    return bare


@pytest.fixture
def sql(database_url: str) -> Callable[..., list[dict[str, Any]]]:
    """Runs a statement in the test's database."""

    def run(query: str, *args: Any) -> list[dict[str, Any]]:
        async def session() -> list[dict[str, Any]]:
            async with trio_asyncio.open_loop(), open_postgres(database_url, size=1, timeout_s=5.0) as postgres:
                return [dict(row) for row in await postgres.fetch(query, *args)]

        return trio.run(session)

    return run


@pytest.fixture
def in_trio() -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    """Runs a coroutine function beside the command line's own runs."""

    def run(work: Callable[[], Awaitable[Any]]) -> Any:
        async def session() -> Any:
            async with trio_asyncio.open_loop():
                return await work()

        return trio.run(session)

    return run
