"""PostgreSQL's notifications behind Trio: a connection of its own, watched so that its death is noticed.

A ``trio_asyncio.open_loop()`` must be running.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import trio

from neuronetz.errors import StoreUnavailable
from neuronetz.stores.bridge import in_asyncio

# Notifications that may wait to be read. More than that, and the listener is too far behind: it ends, and
# whoever starts it again reads the tables instead.
BACKLOG = 10_000


@dataclass(frozen=True)
class Notification:
    channel: str
    payload: str


@dataclass
class _Session:
    """A connection that listens, from its making to its end; all of it asyncio's."""

    url: str
    channels: Sequence[str]
    timeout_s: float
    keepalive_s: float
    send: trio.MemorySendChannel[Notification]
    reason: str | None = None
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, listening: Callable[[], None]) -> None:
        """Listen until the connection ends, with ``reason`` set. ``listening`` is called once it listens."""
        connection = await asyncpg.connect(
            self.url,
            timeout=self.timeout_s,
            command_timeout=self.timeout_s,
            server_settings={"application_name": "neuronetz listener"},
        )
        try:
            connection.add_termination_listener(lambda _: self._end("connection lost"))
            for channel in self.channels:
                await connection.add_listener(channel, self._notified)
            listening()
            while not await self._ended_within(self.keepalive_s):
                # A peer that vanished without a word is noticed only by asking it something.
                await connection.execute("SELECT 1")
        finally:
            # Without a farewell, which could wait for a server that does not answer.
            connection.terminate()

    def _notified(self, _connection: object, _pid: int, channel: str, payload: object) -> None:
        try:
            self.send.send_nowait(Notification(channel, str(payload)))
        except trio.WouldBlock:
            self._end("backlog full")

    def _end(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._ended.set()

    async def _ended_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._ended.wait(), seconds)
        except TimeoutError:
            return False
        return True


@asynccontextmanager
async def listen(
    url: str, channels: Sequence[str], *, timeout_s: float, keepalive_s: float = 5.0
) -> AsyncIterator[trio.MemoryReceiveChannel[Notification]]:
    """What is notified on ``channels``, from the moment the block is entered.

    Raises ``StoreUnavailable`` where the server cannot be reached. When the connection is lost later (it is
    asked every ``keepalive_s`` seconds, and has ``timeout_s`` seconds to answer) the receive channel ends,
    and the block then raises ``StoreUnavailable``. Nothing replays what was notified between two blocks.
    Errors of the block's own come out in an ``ExceptionGroup``. On leaving, the connection is cut at once.
    """
    send, receive = trio.open_memory_channel[Notification](BACKLOG)
    session = _Session(url, channels, timeout_s, keepalive_s, send)
    settled = trio.Event()

    async def hold() -> None:
        try:
            await in_asyncio(session.run, settled.set)
        except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError) as error:
            session.reason = session.reason or type(error).__name__
        finally:
            send.close()
            settled.set()

    async with receive, trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        await settled.wait()
        if session.reason is None:
            yield receive
        # Taken before the end: cutting the connection ourselves is no loss of it.
        reason = session.reason
        nursery.cancel_scope.cancel()
    if reason is not None:
        raise StoreUnavailable("postgres", reason)
