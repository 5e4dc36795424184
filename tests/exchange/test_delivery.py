"""Comments on an idle connection: one starts the reply at most once, and none comes between a reply's parts."""

import pytest
import trio
import trio.testing

from neuronetz.errors import GatewayError, UpstreamFailed
from neuronetz.exchange.delivery import Delivery, Message, Rendered

HEADERS = [(b"content-type", b"text/event-stream")]
COMMENT = b": x\n\n"


class Server:
    """The server's side: what it was handed, each message whole, as slowly as ``hold`` makes it."""

    def __init__(self) -> None:
        self.taken: list[Message] = []
        self.hold_s = 0.0
        self.busy = False

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        assert not self.busy, "two messages at once"
        self.busy = True
        with trio.CancelScope(shield=True):
            await trio.sleep(self.hold_s)
        self.busy = False
        self.taken.append(message)

    @property
    def starts(self) -> list[int]:
        return [message["status"] for message in self.taken if message["type"] == "http.response.start"]

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.taken if message["type"] == "http.response.body"]


class Line:
    """A connection on which nothing happens."""

    stalled = False
    read_from = True

    def left(self) -> bool:
        return False

    def abort_send(self) -> None: ...

    def hurry(self, deadline: float) -> None: ...


def rendered(error: GatewayError) -> Rendered:
    return Rendered(error.status, [], error.message.encode())


async def body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def delivery(server: Server) -> Delivery:
    made = Delivery(body, server.send, Line(), rendered, [])
    await made.body(0, 10, 1.0)
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


async def test_no_comment_comes_while_the_start_is_being_taken(
    server: Server, delivery: Delivery, autojump_clock: trio.testing.MockClock
) -> None:
    server.hold_s = 3.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(delivery.keep_alive, HEADERS, COMMENT, 1.0)
        await trio.sleep(0.5)
        await delivery.start(200, HEADERS)
        assert delivery.started
        nursery.cancel_scope.cancel()
    assert server.starts == [200]
    assert server.bodies == []


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
    assert server.taken[-1]["more_body"] is False
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
        await delivery.quiet()
        if delivery.started:
            await delivery.finish(b"error event")
        else:
            await delivery.refuse(UpstreamFailed())
    assert server.starts in ([200], [502])
    if server.starts == [200]:
        # Cancelled between the head and itself, the comment is not sent any more.
        assert server.bodies in ([b"error event"], [COMMENT, b"error event"])
    else:
        assert server.bodies == [b"upstream failed"]


async def test_a_comment_under_way_is_sent_to_its_end_and_waited_for(
    server: Server, delivery: Delivery, autojump_clock: trio.testing.MockClock
) -> None:
    server.hold_s = 5.0
    beats = trio.CancelScope()

    async def beat() -> None:
        with beats:
            await delivery.keep_alive(HEADERS, COMMENT, 1.0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat)
        await trio.sleep(7.0)  # the start was taken, the comment is not yet
        assert delivery.started
        beats.cancel()
        began = trio.current_time()
        await delivery.quiet()
        assert trio.current_time() - began == pytest.approx(4.0)
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
    await delivery.quiet()
    with trio.fail_after(5):
        await delivery.finish()
    assert server.taken[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_client_that_still_sends_reads_the_refusal_within_a_short_clean_up(
    server: Server, autojump_clock: trio.testing.MockClock
) -> None:
    sending = Delivery(trio.sleep_forever, server.send, Line(), rendered, [])  # type: ignore[arg-type]
    with trio.move_on_after(0.5) as clean_up:
        await sending.refuse(GatewayError())
    assert not clean_up.cancelled_caught
    assert server.starts == [500]
    assert trio.current_time() == pytest.approx(0.25)
