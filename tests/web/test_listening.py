"""How connections are taken: several in a turn of the loop, but never so many that others are held up."""

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace

import pytest
import trio

from neuronetz.web.listening import Listener

# More than are taken in one turn.
_MANY = 40


@asynccontextmanager
async def waiting(clients: int) -> AsyncIterator[Listener]:
    """A listener before which so many connections wait."""
    async with AsyncExitStack() as stack:
        bound = socket.create_server(("127.0.0.1", 0), backlog=clients)
        listener = await stack.enter_async_context(Listener(bound))
        for _ in range(clients):
            await stack.enter_async_context(await trio.open_tcp_stream(*bound.getsockname()))
        yield listener


async def test_what_has_come_together_is_taken_in_a_few_turns() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with waiting(_MANY) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await trio.lowlevel.checkpoint()
        began = turns
        streams = [await listener.accept() for _ in range(_MANY)]
        took = turns - began
        for stream in streams:
            await stream.aclose()
        nursery.cancel_scope.cancel()
    # One in a turn would be forty; all in one would leave nobody else a turn.
    assert 2 <= took <= 8


async def test_whoever_is_cancelled_between_two_of_them_takes_no_more() -> None:
    async with waiting(2) as listener:
        await (await listener.accept()).aclose()
        with trio.CancelScope() as scope:
            scope.cancel()
            await listener.accept()
            raise AssertionError("cancelled, and taken all the same")
        with trio.fail_after(5):
            await (await listener.accept()).aclose()


async def test_one_that_has_gone_again_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async with waiting(1) as listener:
        gone = [OSError(errno.ECONNABORTED, "gone"), BlockingIOError(errno.EAGAIN, "somebody else was quicker")]
        accept = listener._sock.accept
        monkeypatch.setattr(listener, "_sock", SimpleNamespace(accept=lambda: _raised(gone) or accept()))
        with trio.fail_after(5):
            await (await listener.accept()).aclose()
        assert not gone


async def test_that_there_is_no_room_for_another_is_told_to_who_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """``trio.serve_listeners`` waits a moment then, instead of asking again and again."""
    async with waiting(1) as listener:
        full = [OSError(errno.EMFILE, "too many open files")]
        monkeypatch.setattr(listener, "_sock", SimpleNamespace(accept=lambda: _raised(full)))
        with trio.fail_after(5), pytest.raises(OSError, match="too many"):
            await listener.accept()


def _raised(errors: list[OSError]) -> None:
    if errors:
        raise errors.pop()
