"""Clients run in threads of their own, as the gateway has the test's Trio run; asyncio's get a loop there."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import trio

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """What a blocking ``call`` returns or raises. It must end by itself: a thread cannot be cancelled."""
    return await trio.to_thread.run_sync(call)


async def in_asyncio(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What a coroutine returns or raises that runs in an asyncio loop of its own."""

    def run() -> T:
        # Not the policy's loop: trio-asyncio sets the policy.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            return runner.run(make())

    return await in_thread(run)
