"""The exchanges in flight, so that a revocation or a shutdown can end them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from neuronetz.errors import DeadlineExceeded, GatewayError, KeyRevoked, ShuttingDown

_REMEMBERED = 10_000


class Running:
    """One exchange in flight: its cancel scope, and why it was stopped if it was.

    ``over``: its outcome is fixed and it holds nothing any more. What is left is to tell the client, which
    neither a revocation nor a shutdown tears any more.
    """

    def __init__(self, deadline: float) -> None:
        self.scope = trio.CancelScope(deadline=deadline)
        self.over = False
        self._stopped: GatewayError | None = None
        self._stopped_at = math.inf

    def stop(self, error: GatewayError) -> None:
        """Cancel the exchange; the first reason is the one that counts."""
        if self._stopped is None:
            self._stopped = error
            self._stopped_at = trio.current_time()
        self.scope.cancel()

    def reason(self) -> GatewayError:
        """Why the exchange was cancelled: stopped, out of time, or cut down from outside with the server."""
        if self._stopped is not None:
            return self._stopped
        if trio.current_time() >= self.scope.deadline:
            return DeadlineExceeded()
        return ShuttingDown()

    def reason_for(self, error: BaseException) -> GatewayError:
        """What an exception says of the exchange that it ended: itself, why it was cancelled, or a bug of ours."""
        if isinstance(error, GatewayError):
            return error
        return self.reason() if _is_cancellation(error) else GatewayError()

    def since(self, error: BaseException) -> float:
        """When what ``reason_for`` says of an exception happened (Trio's clock); now, where that is not known."""
        now = trio.current_time()
        if isinstance(error, GatewayError) or not _is_cancellation(error):
            return now
        return min(now, self._stopped_at, self.scope.deadline)


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)


class Registry:
    """All exchanges in flight in this process, by the prefix of their key."""

    def __init__(self) -> None:
        self._running: dict[str, set[Running]] = {}
        self._count = 0
        self._idle = trio.Event()
        self._idle.set()
        # A request may have been authenticated just before its key was revoked and come here just
        # after. A revoked key never comes back, so remembering it is always right; old ones are long
        # refused by the directory.
        self._revoked: dict[str, None] = {}

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def track(self, prefix: str, deadline: float) -> Iterator[Running]:
        """Have the exchange of the block known; ``deadline`` is in Trio's clock."""
        running = Running(deadline)
        self._running.setdefault(prefix, set()).add(running)
        self._count += 1
        if self._count == 1:
            self._idle = trio.Event()
        if prefix in self._revoked:
            running.stop(KeyRevoked())
        try:
            yield running
        finally:
            peers = self._running[prefix]
            peers.discard(running)
            if not peers:
                del self._running[prefix]
            self._count -= 1
            if self._count == 0:
                self._idle.set()

    def revoke(self, prefix: str) -> None:
        """End all exchanges of a key, now and to come."""
        self._revoked[prefix] = None
        if len(self._revoked) > _REMEMBERED:
            del self._revoked[next(iter(self._revoked))]
        for running in self._running.get(prefix, ()):
            if not running.over:
                running.stop(KeyRevoked())

    def stop_all(self) -> None:
        """End all exchanges: the gateway shuts down."""
        for peers in self._running.values():
            for running in peers:
                if not running.over:
                    running.stop(ShuttingDown())

    async def wait_idle(self) -> None:
        """Wait until no exchange is in flight."""
        while self._count:
            await self._idle.wait()
