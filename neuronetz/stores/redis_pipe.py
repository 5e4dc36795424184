"""One connection to Redis that all calls share: the first after a silence is written at once, those that come
while it is under way in one write each turn, and all are answered in order.

The server answers a connection's commands in the order of their arrival, so a reply belongs to the oldest call
without one. Whatever could break that order ends the connection.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

import hiredis
import structlog
import trio
from redis.exceptions import ConnectionError, InvalidResponse, RedisError, TimeoutError

from neuronetz.errors import StoreUnavailable
from neuronetz.stores.redis_replies import error_reply
from neuronetz.stores.redis_transport import Transport

log = structlog.get_logger("neuronetz.stores")

# Calls without a reply, and bytes not yet written; a call that finds more waits.
MOST_CALLS = 4096
MOST_BYTES = 16 * 2**20

_NOT_YET = object()
_CLOSE_TIMEOUT_S = 1.0

Push = Callable[[list[Any]], None]


class _Call:
    """A call under way. ``task`` is None once nobody waits for it; ``start``: bytes that were to go before it."""

    __slots__ = ("deadline", "failure", "missing", "replies", "start", "task")

    def __init__(self, task: trio.lowlevel.Task, commands: int, start: int, deadline: float) -> None:
        self.task: trio.lowlevel.Task | None = task
        self.missing = commands
        self.replies: list[Any] = []
        self.start = start
        self.deadline = deadline
        self.failure: StoreUnavailable | None = None

    def abandon(self, _: object) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


class Pipe:
    """A connection, usable while ``run`` runs. ``failure``: why it ended, if it did.

    ``timeout_s`` bounds the wait for a call's reply: a reply that is later than that ends the connection, and
    all calls with it. ``on_push`` is called with what the server says unasked, in its place between the
    replies; ``on_end`` once, at the end, before any call is told. Neither may block or raise.
    """

    def __init__(
        self, transport: Transport, *, timeout_s: float, on_push: Push, on_end: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._on_push = on_push
        self._on_end = on_end
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=error_reply, notEnoughData=_NOT_YET
        )
        self._pending: deque[_Call] = deque()
        self._outgoing: list[bytes] = []
        self._appended = 0
        self._room = trio.lowlevel.ParkingLot()
        self._writer: trio.lowlevel.Task | None = None
        self._begun: trio.Event | None = None
        self._scope = trio.CancelScope()
        self.failure: RedisError | None = None

    async def call(self, packed: bytes, commands: int = 1) -> list[Any]:
        """Send packed commands, next to each other, and wait for their replies; errors are among these.

        Raises ``StoreUnavailable`` when the connection ends before the last reply. When cancelled, the
        commands may or may not be carried out, even later; their replies are dropped when they come.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if len(self._pending) >= MOST_CALLS or self._appended - self._transport.taken >= MOST_BYTES:
            await self._wait_for_room()
        if self.failure is not None:
            raise _unavailable(self.failure, sent=False)
        call = _Call(trio.lowlevel.current_task(), commands, self._appended, trio.current_time() + self._timeout_s)
        if self._writer is not None and not self._pending:
            # The first after a silence goes at once, without waiting for the writer's turn; others of this turn
            # still go together.
            sent = self._transport.send_now(packed)
            self._appended += sent
            packed = packed[sent:]
        self._pending.append(call)
        if packed:
            self._outgoing.append(packed)
            self._appended += len(packed)
            if self._writer is not None:
                trio.lowlevel.reschedule(self._writer)
                self._writer = None
        if self._begun is not None:
            self._begun.set()
            self._begun = None
        await trio.lowlevel.wait_task_rescheduled(call.abandon)
        if call.failure is not None:
            raise call.failure
        return call.replies

    async def run(self) -> None:
        """Serve calls until the connection ends, or until cancelled, which ends it."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for loop in (self._write, self._read, self._watch):
                        nursery.start_soon(self._until_it_breaks, loop)
        finally:
            self.end(ConnectionError("closed"))
            with trio.move_on_after(_CLOSE_TIMEOUT_S, shield=True):
                await self._transport.aclose()

    def end(self, failure: RedisError) -> None:
        """End the connection now: all calls without their replies raise."""
        if self.failure is not None:
            return
        self.failure = failure
        self._on_end()
        # In place: the reader may be about to go on with the same calls.
        pending = list(self._pending)
        self._pending.clear()
        for call in pending:
            if call.task is not None:
                call.failure = _unavailable(failure, sent=call.start < self._transport.taken)
                trio.lowlevel.reschedule(call.task)
        self._room.unpark_all()
        self._scope.cancel()

    async def _until_it_breaks(self, loop: Any) -> None:
        try:
            await loop()
        except RedisError as error:
            self.end(error)
        except (OSError, trio.BrokenResourceError) as error:
            failure = ConnectionError(str(error))
            failure.__cause__ = error
            self.end(failure)
        except Exception as error:
            # What no Redis says, or a bug of ours: it costs the connection, and must not cost the process.
            log.exception("redis.connection_failed")
            nonsense = InvalidResponse(type(error).__name__)
            nonsense.__cause__ = error
            self.end(nonsense)

    async def _write(self) -> NoReturn:
        def leave(_: object) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            if not self._outgoing:
                self._writer = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(leave)
            # Woken, then ended before its turn: those calls have been told that nothing of them was sent.
            await trio.lowlevel.checkpoint_if_cancelled()
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            await self._transport.send(data)
            if self._room:
                self._make_room()

    async def _read(self) -> NoReturn:
        gets, pending = self._reader.gets, self._pending
        while True:
            data = await self._transport.receive()
            if not data:
                raise ConnectionError("closed by the server")
            self._reader.feed(data)
            while (reply := gets()) is not _NOT_YET:
                if isinstance(reply, hiredis.PushNotification):
                    self._on_push(reply)
                    continue
                if not pending:
                    raise InvalidResponse("a reply to no call")
                call = pending[0]
                call.replies.append(reply)
                call.missing -= 1
                if not call.missing:
                    pending.popleft()
                    if call.task is not None:
                        trio.lowlevel.reschedule(call.task)
            if self._room:
                self._make_room()

    async def _watch(self) -> NoReturn:
        """One look at the oldest call's deadline for all of them, since they are answered in order."""
        while True:
            if not self._pending:
                self._begun = trio.Event()
                await self._begun.wait()
                continue
            oldest = self._pending[0]
            await trio.sleep_until(oldest.deadline)
            # Where it was this process that stood still, the reply is there and wants only to be read.
            await trio.lowlevel.checkpoint()
            if self._pending and self._pending[0].deadline <= trio.current_time():
                if self._pending[0] is not oldest:
                    continue
                raise TimeoutError("no reply in time")

    async def _wait_for_room(self) -> None:
        full = TimeoutError("too many calls at once")
        with trio.move_on_after(self._timeout_s):
            while self.failure is None:
                await self._room.park()
                if len(self._pending) < MOST_CALLS and self._appended - self._transport.taken < MOST_BYTES:
                    return
        if self.failure is None:
            raise _unavailable(full, sent=False)

    def _make_room(self) -> None:
        if self._appended - self._transport.taken < MOST_BYTES:
            self._room.unpark(count=max(0, MOST_CALLS - len(self._pending)))


def _unavailable(failure: RedisError, *, sent: bool) -> StoreUnavailable:
    error = StoreUnavailable("redis", type(failure).__name__, sent=sent)
    error.__cause__ = failure
    return error
