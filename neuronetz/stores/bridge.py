"""The one door from Trio to asyncio's libraries, with types."""

from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar, cast

import trio_asyncio

P = ParamSpec("P")
T = TypeVar("T")


async def in_asyncio(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await an asyncio coroutine function from Trio; a ``trio_asyncio.open_loop()`` must be running.

    A cancellation is passed on as asyncio's and waits until the coroutine has ended.
    """
    return cast("T", await trio_asyncio.aio_as_trio(function)(*args, **kwargs))
