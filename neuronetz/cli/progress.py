"""What is going on, for whoever waits at a terminal; on stderr, and nothing of it where stderr is no terminal."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import trio
import typer

if TYPE_CHECKING:
    from rich.status import Status

# What is done sooner needs no word, and would only flicker.
PATIENCE_S = 0.5


@asynccontextmanager
async def shown(text: str) -> AsyncIterator[None]:
    """A spinner with ``text`` while the block runs, once it has run for ``PATIENCE_S`` seconds.

    It is gone when the block ends. Errors of the block's come out in an ``ExceptionGroup``, or as they are.
    """
    if not sys.stderr.isatty():
        yield
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_spin, text)
        yield
        nursery.cancel_scope.cancel()


async def _spin(text: str) -> None:
    await trio.sleep(PATIENCE_S)
    with _status(text):
        await trio.sleep_forever()


def _status(text: str) -> "Status":
    from rich.console import Console

    return Console(stderr=True).status(text)


class Steps:
    """Steps of a start: a spinner that names the step at a terminal, a line for each step elsewhere.

    ``quiet``: neither. It ends with ``end()``, and with its block at the latest.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._status: Status | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def step(self, text: str) -> None:
        """The step that begins now."""
        if self._quiet:
            return
        if not sys.stderr.isatty():
            typer.echo(text, err=True)
        elif self._status is None:
            self._status = _status(_escaped(text))
            self._status.start()
        else:
            self._status.update(_escaped(text))

    def end(self) -> None:
        """No step is going on any more; what is printed from now on has the terminal for itself."""
        if self._status is not None:
            self._status.stop()
            self._status = None


def _escaped(text: str) -> Any:
    from rich.text import Text

    return Text(text)
