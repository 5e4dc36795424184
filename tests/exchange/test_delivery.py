"""Comments on an idle connection: one starts the reply at most once, and none comes between a reply's parts."""

from collections.abc import Callable

import pytest
import trio
import trio.testing

from neuronetz.errors import ClientDisconnected, ClientStalled, GatewayError, UpstreamFailed
from neuronetz.exchange.delivery import Delivery, Head, Rendered
from neuronetz.web.body import Body

HEADERS = [(b"content-type", b"text/event-stream")]
COMMENT = b": x\n\n"


class Server:
    """The server's side: what was written, each piece whole, as slowly as ``hold_s`` makes it; what was offered
    and has not got through when that is cancelled comes first in the next piece.
    """

    stalled = False

    def __init__(self) -> None:
        self.body = Body()
        self.taken: list[tuple[Head | None, bytes, bool]] = []
        self.hold_s = 0.0
        self.leaving: Callable[[], None] | None = None
        self._turn = trio.Lock()
        self._offered: list[tuple[Head | None, bytes, bool]] = []

    def watch(self, gone: Callable[[], None] | None) -> None:
        self.leaving = gone

    async def write(self, head: Head | None, data: bytes, *, more: bool) -> bool:
        await trio.lowlevel.checkpoint_if_cancelled()
        async with self._turn:
            await trio.sleep(self.hold_s)
            self.taken += [*self._offered, (head, data, more)]
            self._offered.clear()
        return True

    async def offer(self, head: Head | None, data: bytes) -> None:
        self._offered.append((head, data, True))
        async with self._turn:
            await trio.sleep(self.hold_s)
            self.taken += self._offered
            self._offered.clear()

    @property
    def starts(self) -> list[int]:
        return [head[0] for head, _, _ in self.taken if head is not None]

    @property
    def bodies(self) -> list[bytes]:
        return [data for _, data, _ in self.taken]


def rendered(error: GatewayError) -> Rendered:
    return Rendered(error.status, [], error.message.encode())


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def delivery(server: Server) -> Delivery:
    server.body.end()
    made = Delivery(server, rendered, [])
    assert await made.body(0, 10, 1.0) == b""
    return made


async def test_comments_start_the_reply_once_and_come_after_silence_alone(
    server: Server, delivery: Delivery, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(delivery.keep_alive, HEADERS, COMMENT, 1.0)
        await trio.sleep(2.5)
        assert server.bodies == [COMMENT, COMMENT]
        await delivery.start(200, HEADERS)
        for _ in range(5):
            await delivery.send(b"a")
            await trio.sleep(0.9)
        assert server.bodies == [COMMENT, COMMENT, *[b"a"] * 5]
        await trio.sleep(0.2)
        assert server.bodies[-1] == COMMENT
        nursery.cancel_scope.cancel()
    assert server.starts == [200]


@pytest.mark.parametrize("offset", [-0.001, 0.0, 0.001])
@pytest.mark.parametrize("hold_s", [0.0, 0.5])
async def test_a_reply_that_begins_with_a_comment_starts_once(
    server: Server,
    delivery: Delivery,
    autojump_clock: trio.testing.MockClock,
    offset: float,
    hold_s: float,
) -> None:
    server.hold_s = hold_s
    async with trio.open_nursery() as nursery:
        nursery.start_soon(delivery.keep_alive, HEADERS, COMMENT, 1.0)
        await trio.sleep(1.0 + offset)
        await delivery.start(200, HEADERS)
        await delivery.send(b"a")
        nursery.cancel_scope.cancel()
    assert server.starts == [200]
    assert [part for part in server.bodies if part != COMMENT] == [b"a"]


async def test_no_comment_comes_while_a_piece_is_being_taken(
    server: Server, delivery: Delivery, autojump_clock: trio.testing.MockClock
) -> None:
    server.hold_s = 3.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(delivery.keep_alive, HEADERS, COMMENT, 1.0)
        await trio.sleep(0.5)
        await delivery.start(200, HEADERS)
        await delivery.send(b"a")
        assert delivery.started
        nursery.cancel_scope.cancel()
    assert server.starts == [200]
    assert server.bodies == [b"a"]


@pytest.mark.parametrize("offset", [-0.001, 0.0, 0.001])
async def test_no_comment_comes_after_the_end(
    server: Server, delivery: Delivery, autojump_clock: trio.testing.MockClock, offset: float
) -> None:
    server.hold_s = 2.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(delivery.keep_alive, HEADERS, COMMENT, 3.0)
        await delivery.start(200, HEADERS)
        await trio.sleep(3.0 + offset)
        await delivery.finish(b"end")
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert server.bodies[-1] == b"end"
    assert server.taken[-1][2] is False
    assert server.bodies[:-1] in ([], [COMMENT])


@pytest.mark.parametrize("hold_s", [0.0, 0.5])
async def test_a_comment_and_an_error_at_the_same_moment_make_one_reply(
    server: Server, delivery: Delivery, autojump_clock: trio.testing.MockClock, hold_s: float
) -> None:
    server.hold_s = hold_s
    beats = trio.CancelScope()

    async def beat() -> None:
        with beats:
            await delivery.keep_alive(HEADERS, COMMENT, 1.0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat)
        await trio.sleep(1.0)
        # The comment's task may have woken in this very moment, before this one or after it.
        beats.cancel()
        if delivery.started:
            await delivery.finish(b"error event")
        else:
            await delivery.refuse(UpstreamFailed())
    assert server.starts in ([200], [502])
    if server.starts == [200]:
        assert server.bodies == [COMMENT, b"error event"]
    else:
        assert server.bodies == [b"upstream failed"]


async def test_a_comment_under_way_is_sent_ahead_of_what_comes_next(
    server: Server, delivery: Delivery, autojump_clock: trio.testing.MockClock
) -> None:
    server.hold_s = 5.0
    beats = trio.CancelScope()

    async def beat() -> None:
        with beats:
            await delivery.keep_alive(HEADERS, COMMENT, 1.0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat)
        await trio.sleep(3.0)  # the comment has begun, and was not taken yet
        assert delivery.started
        assert server.bodies == []
        beats.cancel()
        await delivery.finish(b"error event")
    assert server.starts == [200]
    assert server.bodies == [COMMENT, b"error event"]


async def test_comments_end_with_their_task_however_often_they_are_waited_for(
    server: Server, delivery: Delivery, autojump_clock: trio.testing.MockClock
) -> None:
    server.hold_s = 1.0
    with trio.move_on_after(10):
        await delivery.keep_alive(HEADERS, COMMENT, 0.5)
    assert server.starts == [200]
    with trio.fail_after(5):
        await delivery.finish()
    assert server.taken[-1] == (None, b"", False)


async def test_a_client_that_still_sends_reads_the_refusal_within_a_short_clean_up(
    server: Server, autojump_clock: trio.testing.MockClock
) -> None:
    sending = Delivery(server, rendered, [])
    with trio.move_on_after(0.5) as clean_up:
        await sending.refuse(GatewayError())
    assert not clean_up.cancelled_caught
    assert server.starts == [500]
    assert trio.current_time() == pytest.approx(0.25)


async def test_a_whole_reply_is_one_piece_and_a_stream_one_for_each_chunk(
    server: Server, delivery: Delivery, autojump_clock: trio.testing.MockClock
) -> None:
    await delivery.start(200, HEADERS)
    assert not delivery.started
    await delivery.send(b"a")
    await delivery.send(b"b")
    await delivery.finish(b"c")
    assert server.taken == [((200, HEADERS, None), b"a", True), (None, b"b", True), (None, b"c", False)]
    whole = Delivery(server, rendered, [(b"x-request-id", b"1")])
    await whole.whole(200, HEADERS, b"body")
    assert server.taken[3:] == [((200, [*HEADERS, (b"x-request-id", b"1")], 4), b"body", False)]


async def test_what_was_begun_and_not_sent_can_still_be_refused(
    server: Server, delivery: Delivery, autojump_clock: trio.testing.MockClock
) -> None:
    await delivery.start(200, HEADERS)
    with trio.CancelScope() as scope:
        scope.cancel()
        await delivery.send(b"a")
    await delivery.refuse(UpstreamFailed())
    assert server.starts == [502]


async def test_it_is_told_why_a_client_is_gone_and_not_behind_the_end(
    server: Server, delivery: Delivery, autojump_clock: trio.testing.MockClock
) -> None:
    heard: list[GatewayError] = []
    delivery.watch(heard.append)
    assert server.leaving is not None
    server.leaving()
    server.stalled = True
    server.leaving()
    assert [type(error) for error in heard] == [ClientDisconnected, ClientStalled]
    await delivery.whole(200, HEADERS, b"")
    server.leaving()
    assert len(heard) == 2
    delivery.unwatch()
    assert server.leaving is None


async def test_taken_is_told_of_what_was_taken_alone(
    server: Server, delivery: Delivery, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    await delivery.start(200, HEADERS)
    await delivery.finish(b"a", lambda: told.append("taken"))
    assert told == ["taken"]

    async def lost(*args: object, **more: object) -> bool:
        return False

    monkeypatch.setattr(server, "write", lost)
    late = Delivery(server, rendered, [])
    await late.whole(200, HEADERS, b"a", lambda: told.append("not taken"))
    assert told == ["taken"]
