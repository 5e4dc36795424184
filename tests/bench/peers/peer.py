"""What a peer is: how it is found, started, and asked."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import trio

from tests.bench.processes import READY_WITHIN_S, Lines
from tests.bench.shapes import Shape
from tests.gateway_fixtures import Books


@dataclass(frozen=True)
class Serving:
    """A peer that serves. ``processes`` and ``stores`` are roots of families; ``books`` where it keeps any.

    ``headers`` are lines that it needs with each request. ``ready_s``: from its start until it said that it serves.
    ``another`` starts one more of it, with so many workers, beside the same stores.
    """

    port: int
    processes: tuple[int, ...]
    key: str | None = None
    headers: tuple[str, ...] = ()
    stores: tuple[int, ...] = ()
    books: Books | None = None
    ready_s: float = 0.0
    another: "Callable[[int], AbstractAsyncContextManager[Serving]] | None" = None


class Peer(ABC):
    """Something between a client and the upstream."""

    name: ClassVar[str]

    def absent(self) -> str | None:
        """Why it cannot be measured here, and how it is installed; or None."""
        return None

    def answers(self, shape: Shape) -> bool:
        """Whether it has an endpoint of this shape."""
        return True

    @abstractmethod
    def opened(self, upstream_port: int, folder: Path) -> AbstractAsyncContextManager[Serving]:
        """Serve within the block, with all files in ``folder``."""


class Direct(Peer):
    """Nothing in between: what the others add is over this."""

    name = "direct"

    @asynccontextmanager
    async def opened(self, upstream_port: int, folder: Path) -> AsyncIterator[Serving]:
        yield Serving(upstream_port, ())


async def listening(port: int, process: Lines, log: Path) -> None:
    """Until something listens at ``port``. Raises ``RuntimeError`` with the end of the log where it ends before."""
    with trio.fail_after(READY_WITHIN_S):
        while not await _listens(port):
            if process.ended:
                raise RuntimeError(f"{log.stem} ended: {(await trio.Path(log).read_text())[-2000:]}")
            await trio.sleep(0.02)


async def _listens(port: int) -> bool:
    try:
        async with await trio.open_tcp_stream("127.0.0.1", port):
            return True
    except OSError:
        return False
