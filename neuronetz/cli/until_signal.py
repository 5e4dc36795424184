"""Commands that run until they are told to stop."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import trio
import trio_asyncio

# A supervisor that signals the whole process group, and a runner in between that passes the signal on, deliver it
# twice. That is no second signal.
_SAME_SIGNAL_S = 1.0


def run_until_signal(main: Callable[[trio.Event], Awaitable[None]]) -> None:
    """Run ``main`` with an event that SIGINT or SIGTERM sets; a second signal cancels what is left."""

    async def root() -> None:
        stop = trio.Event()
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio_asyncio.open_loop(), trio.open_nursery() as nursery:
                nursery.start_soon(_heed, signals, stop, nursery.cancel_scope)
                await main(stop)
                nursery.cancel_scope.cancel()

    try:
        trio.run(root)
    except BaseExceptionGroup as group:
        raise only(group) from None


async def _heed(signals: AsyncIterator[int], stop: trio.Event, scope: trio.CancelScope) -> None:
    first = 0.0
    async for _ in signals:
        if not stop.is_set():
            first = trio.current_time()
            stop.set()
        elif trio.current_time() - first > _SAME_SIGNAL_S:
            scope.cancel()
            return


def only(error: BaseException) -> BaseException:
    """What groups of one hold, however deep."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
