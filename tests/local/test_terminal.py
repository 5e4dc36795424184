"""The command line at a terminal: what it asks there, and what it shows while one waits."""

import os
import pty
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
import trio

from neuronetz.cli import progress
from neuronetz.stores import migrations
from neuronetz.stores.bridge import in_asyncio
from neuronetz.stores.postgres import Postgres
from tests.local.conftest import environment


class Terminal:
    """A command whose terminal we are: what it wrote, and what is typed."""

    def __init__(self, process: trio.Process, end: int) -> None:
        self.process = process
        self.written = ""
        self._end = trio.lowlevel.FdStream(end)

    async def shows(self, text: str) -> None:
        """Wait until ``text`` was written."""
        with trio.fail_after(30):
            while text not in self.written:
                self.written += (await self._end.receive_some(65536)).decode()

    async def types(self, text: str) -> None:
        await self._end.send_all(text.encode())

    async def ends(self) -> int:
        """The exit code; what was written until then is there too."""
        with trio.fail_after(30):
            try:
                while chunk := await self._end.receive_some(65536):
                    self.written += chunk.decode()
            except trio.BrokenResourceError:
                pass  # how Linux says that nobody has the terminal open any more
            return await self.process.wait()


@pytest.fixture
def at_terminal(database_url: str) -> Callable[..., Any]:
    """Runs a command at a terminal of its own."""

    @asynccontextmanager
    async def at_terminal(*args: str) -> AsyncIterator[Terminal]:
        ours, theirs = pty.openpty()
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "neuronetz", *args],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(DATABASE_URL=database_url, TERM="xterm", COLUMNS="120"),
            start_new_session=True,
        )
        os.close(theirs)
        terminal = Terminal(process, ours)
        try:
            yield terminal
        finally:
            with trio.CancelScope(shield=True):
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                await terminal._end.aclose()

    return at_terminal


@pytest.mark.parametrize(("answer", "code", "suspended"), [("y\n", 0, 1), ("n\n", 1, 0), ("\x04", 1, 0)])
async def test_a_destructive_command_asks_and_heeds_the_answer(
    postgres: Postgres, at_terminal: Callable[..., Any], answer: str, code: int, suspended: int
) -> None:
    await postgres.execute("INSERT INTO gateway.tenants (name) VALUES ('acme')")
    async with at_terminal("tenant", "suspend", "acme") as terminal:
        await terminal.shows("Refuse all 0 keys of tenant acme until it is resumed? [y/N]: ")
        await terminal.types(answer)
        assert await terminal.ends() == code
    assert "Traceback" not in terminal.written
    rows = await postgres.fetch("SELECT FROM gateway.tenants WHERE suspended_at IS NOT NULL")
    assert len(rows) == suspended


async def test_with_yes_nothing_is_asked(postgres: Postgres, at_terminal: Callable[..., Any]) -> None:
    await postgres.execute("INSERT INTO gateway.tenants (name) VALUES ('acme')")
    async with at_terminal("tenant", "suspend", "acme", "--yes") as terminal:
        assert await terminal.ends() == 0
    assert terminal.written == "tenant acme is suspended\r\n"


async def test_whoever_waits_is_told_what_for(
    asyncio_loop: object, database_url: str, at_terminal: Callable[..., Any]
) -> None:
    other: Any = await in_asyncio(asyncpg.connect, database_url)
    try:
        # Somebody else is migrating.
        await in_asyncio(other.execute, f"SELECT pg_advisory_lock({migrations._LOCK})")
        async with at_terminal("migrate") as terminal:
            await terminal.shows("applying the schema …")
            await in_asyncio(other.execute, "SELECT pg_advisory_unlock_all()")
            assert await terminal.ends() == 0
    finally:
        await in_asyncio(other.close)
    assert terminal.written.endswith("nothing to apply: the schema is up to date\r\n")


async def test_elsewhere_nothing_is_shown(
    autojump_clock: trio.abc.Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with progress.shown("working …"):
        await trio.sleep(60)
    assert capsys.readouterr() == ("", "")


async def test_what_is_done_soon_shows_nothing_at_a_terminal_either(
    autojump_clock: trio.abc.Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    async with progress.shown("working …"):
        await trio.sleep(progress.PATIENCE_S * 0.9)
    assert capsys.readouterr() == ("", "")
    async with progress.shown("working …"):
        await trio.sleep(progress.PATIENCE_S * 1.1)
    assert "working …" in capsys.readouterr().err


def test_steps_are_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet, told in ((False, "one\ntwo\n"), (True, "")):
        with progress.Steps(quiet=quiet) as steps:
            steps.step("one")
            steps.step("two")
        assert capsys.readouterr() == ("", told)


def test_steps_are_one_spinner_at_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress.Steps(quiet=False) as steps:
        steps.step("one [x]")
        steps.step("two [y]")
        steps.end()
        steps.end()
    out, err = capsys.readouterr()
    assert out == ""
    assert "two [y]" in err
