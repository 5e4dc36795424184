"""Replies of every framing, whole and torn, as the upstream's connection reads them over real sockets."""

import os
import time
from collections.abc import Callable

import pytest
import trio
import trio.lowlevel

from neuronetz.errors import ReplyTooLarge, UpstreamFailed, UpstreamRejected, UpstreamTimeout
from neuronetz.upstream.ollama import Upstream, open_upstream
from tests.upstream.scripted import CHUNKED, END, OK, Handler, Peer, chunk, chunks, opened, serving, sized, sockets

LINES = [b'{"n":%d}\n' % number for number in range(32)]
WHOLE = b"".join(LINES)

FRAMINGS: dict[str, Callable[[bytes], bytes]] = {
    "length": sized,
    "chunks": lambda body: CHUNKED + b"".join(map(chunk, body.splitlines(keepends=True))) + END,
    "extensions": lambda body: CHUNKED + b'1;a;b="c;d"\r\n{\r\n' + chunk(body[1:]) + b"0;last\r\n\r\n",
    "trailers": lambda body: CHUNKED + chunk(body) + b"0\r\nX: y\r\nContent-Encoding: gzip\r\n\r\n",
    "interim": lambda body: (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + sized(body)
    ),
    "until close": lambda body: OK + b"\r\n" + body,
    "HTTP/1.0": lambda body: b"HTTP/1.0 200 OK\r\n\r\n" + body,
    "identity": lambda body: sized(body, b"Content-Encoding: identity\r\nX-Empty:\r\n"),
}


def saying(*parts: bytes) -> Handler:
    async def handler(peer: Peer) -> None:
        if await peer.request():
            await peer.say(*parts)

    return handler


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_reply_of_each_framing_is_read_whole_in_one_piece(framing: str) -> None:
    async with serving(saying(FRAMINGS[framing](WHOLE))) as served, opened(served) as upstream:
        read = await chunks(upstream)
    assert read == [WHOLE]


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_reply_may_be_split_at_every_byte(framing: str) -> None:
    body = LINES[1] + LINES[2]
    reply = FRAMINGS[framing](body)
    at = 0

    async def handler(peer: Peer) -> None:
        while await peer.request():
            await peer.say(reply[:at], reply[at:])
            if framing in ("until close", "HTTP/1.0"):
                return

    async with serving(handler) as served, opened(served) as upstream:
        for at in range(1, len(reply)):  # noqa: B007 - the handler reads it
            assert b"".join(await chunks(upstream)) == body


async def test_chunks_that_arrive_apart_are_read_apart() -> None:
    go = [trio.Event() for _ in LINES[:5]]

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED)
        for line, event in zip(LINES, go, strict=False):
            await event.wait()
            await peer.say(chunk(line))
        await peer.say(END)

    async with (
        serving(handler) as served,
        opened(served) as upstream,
        upstream.stream("/api/chat", b"{}") as stream,
    ):
        for line, event in zip(LINES, go, strict=False):
            event.set()
            assert await stream.read() == line
        assert await stream.read() == b""
        assert await stream.read() == b""


BROKEN = {
    "nothing": b"",
    "half a head": OK,
    "a short body": sized(WHOLE)[:-1],
    "no last chunk": CHUNKED + chunk(WHOLE),
    "half a last chunk": CHUNKED + chunk(WHOLE) + b"0\r\n",
    "half a chunk": CHUNKED + b"ff\r\nabc",
    "no number": CHUNKED + b"zz\r\nabc\r\n" + END,
    "a chunk that is longer": CHUNKED + b"2\r\nabc\r\n" + END,
    "a huge number": CHUNKED + b"f" * 40 + b"\r\nabc\r\n" + END,
    "garbage": b"\x00\xff\x17 nothing of HTTP\r\n\r\n",
    "another protocol": b"RTSP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "another version": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "an upgrade": b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nok",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
    "a length beside chunks": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n" + END,
    "a negative length": OK + b"Content-Length: -2\r\n\r\nok",
    "a coding": sized(b"ok", b"Content-Encoding: gzip\r\n"),
    "a coding, said last": OK + b"Content-Length: 2\r\nContent-Encoding: br\r\n\r\nok",
    "a transfer coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + chunk(b"ok") + END,
    "an interim reply with a body": b"HTTP/1.1 100 Continue\r\nContent-Length: 2\r\n\r\nok" + sized(b"ok"),
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "an endless head": OK + b"X: " + b"x" * 300_000,
    "many headers": OK + b"".join(b"X-%d: y\r\n" % number for number in range(30_000)),
    "endless interim replies": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
    "endless trailers": CHUNKED + chunk(b"ok") + b"0\r\n" + b"X: y\r\n" * 60_000,
    "an endless trailer": CHUNKED + chunk(b"ok") + b"0\r\nX: " + b"y" * 300_000,
    "an endless extension": CHUNKED + b"2;" + b"y" * 300_000,
}


@pytest.mark.parametrize("fault", BROKEN)
async def test_a_broken_reply_is_a_failure_of_the_upstream(fault: str) -> None:
    before = sockets()
    async with serving(saying(BROKEN[fault])) as served, opened(served) as upstream:
        with pytest.raises(UpstreamFailed):
            await chunks(upstream)
        with pytest.raises(UpstreamFailed):
            await upstream.fetch("GET", "/api/tags", timeout_s=5, limit=1_000_000)
    assert sockets() == before


@pytest.mark.parametrize("fault", ["endless head", "trailers"])
async def test_what_has_no_end_is_given_up_while_it_still_comes(fault: str) -> None:
    began = OK + b"X: " if fault == "endless head" else CHUNKED + chunk(b"ok") + b"0\r\nX: "
    sent = 0

    async def handler(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.say(began)
        while sent < 50_000_000:
            await peer.say(b"y" * 10_000)
            sent += 10_000

    async with serving(handler) as served, opened(served) as upstream:
        with pytest.raises(UpstreamFailed):
            await chunks(upstream)
    # What the kernel's buffers take comes on top of what was read.
    assert sent < 20_000_000


async def test_what_came_before_the_fault_is_read_before_the_fault() -> None:
    async with (
        serving(saying(CHUNKED + chunk(LINES[0]) + chunk(LINES[1]) + b"garbage")) as served,
        opened(served) as upstream,
        upstream.stream("/api/chat", b"{}") as stream,
    ):
        assert await stream.read() == LINES[0] + LINES[1]
        with pytest.raises(UpstreamFailed):
            await stream.read()
        with pytest.raises(UpstreamFailed):
            await stream.read()


async def test_a_reset_is_a_failure_of_the_upstream() -> None:
    heard = trio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED + chunk(LINES[0]))
        await heard.wait()
        peer.reset()

    async with (
        serving(handler) as served,
        opened(served) as upstream,
        upstream.stream("/api/chat", b"{}") as stream,
    ):
        assert await stream.read() == LINES[0]
        heard.set()
        with pytest.raises(UpstreamFailed):
            await stream.read()


async def test_a_large_body_goes_up_and_a_large_reply_comes_down_whole() -> None:
    large = bytes(range(256)) * 40_000
    asked = []

    async def handler(peer: Peer) -> None:
        while request := await peer.request():
            asked.append(request.partition(b"\r\n\r\n")[2])
            await peer.say(sized(large))

    async with serving(handler) as served, opened(served) as upstream:
        for body in (b"", b"{}", large):
            assert b"".join(await chunks(upstream, body)) == large
        assert await upstream.fetch("POST", "/api/show", large, timeout_s=5, limit=len(large)) == large
        with pytest.raises(ReplyTooLarge):
            await upstream.fetch("POST", "/api/show", timeout_s=5, limit=len(large) - 1)
    assert asked == [b"", b"{}", large, large, b""]
    assert len(served.peers) == 1


async def test_an_early_refusal_is_heard_though_the_request_cannot_be_sent() -> None:
    async def handler(peer: Peer) -> None:
        await peer.stream.receive_some(10)
        await peer.say(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        assert isinstance(peer.stream, trio.SocketStream)
        # It stays open for reading, or the reset would overtake the reply.
        await peer.stream.send_eof()
        await peer.closed()

    async with serving(handler) as served, opened(served) as upstream:
        with pytest.raises(UpstreamRejected):
            await chunks(upstream, b"x" * 10_000_000)


async def test_the_request_is_httpxs() -> None:
    asked = []

    async def handler(peer: Peer) -> None:
        asked.append(await peer.request())
        await peer.say(sized(b"ok", b"Connection: close\r\n"))

    async with serving(handler) as served:
        url = f"http://us%40er:pass@127.0.0.1:{served.port}/a/prefix"
        async with open_upstream(url, connect_timeout_s=2, first_byte_timeout_s=5, chunk_timeout_s=5) as upstream:
            assert await chunks(upstream, b'{"a":1}') == [b"ok"]
            assert await upstream.fetch("POST", "/api/chat", b'{"a":1}', timeout_s=5, limit=100) == b"ok"
            assert await upstream.fetch("GET", "/api/tags", timeout_s=5, limit=100) == b"ok"
    lines = [sorted(_lower_names(request)) for request in asked]
    assert lines[0] == lines[1]
    assert lines[0] == sorted(
        (
            b"POST /a/prefix/api/chat HTTP/1.1",
            b"host: 127.0.0.1:%d" % served.port,
            b"user-agent: neuronetz",
            b"accept: */*",
            b"accept-encoding: identity",
            b"connection: keep-alive",
            b"content-type: application/json",
            b"content-length: 7",
            b"authorization: Basic dXNAZXI6cGFzcw==",
            b"",
            b'{"a":1}',
        )
    )
    assert asked[2].startswith(b"GET /a/prefix/api/tags HTTP/1.1\r\n")
    assert b"content-length" not in asked[2].lower()


async def test_an_ipv6_address_is_reached() -> None:
    async with serving(saying(sized(b"ok")), host="::1") as served:
        url = f"http://[::1]:{served.port}"
        async with open_upstream(url, connect_timeout_s=2, first_byte_timeout_s=5, chunk_timeout_s=5) as upstream:
            assert await chunks(upstream) == [b"ok"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://no-such-host.invalid", "http://" + "a" * 70])
async def test_an_upstream_that_cannot_be_reached_is_a_failure(url: str) -> None:
    before = sockets()
    async with open_upstream(url, connect_timeout_s=2, first_byte_timeout_s=5, chunk_timeout_s=5) as upstream:
        with pytest.raises(UpstreamFailed):
            await chunks(upstream)
        with pytest.raises(UpstreamFailed):
            await upstream.fetch("GET", "/api/tags", timeout_s=5, limit=100)
    assert sockets() == before


@pytest.mark.parametrize(
    ("said", "first", "between"), [(b"", 0.1, 5), (CHUNKED, 0.1, 5), (CHUNKED + chunk(b"ok"), 5, 0.1)]
)
async def test_silence_has_a_deadline(said: bytes, first: float, between: float) -> None:
    gone = trio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(said)
        await peer.closed()
        gone.set()

    async with (
        serving(handler) as served,
        opened(served, first_byte_timeout_s=first, chunk_timeout_s=between) as upstream,
    ):
        began = trio.current_time()
        with pytest.raises(UpstreamTimeout):
            await chunks(upstream)
        assert 0.09 < trio.current_time() - began < 1
        with trio.fail_after(1):
            await gone.wait()
        # The block's scope is over: nothing of it cancels what comes after.
        await trio.sleep(0.01)


async def test_a_deadline_between_chunks_does_not_run_during_a_pause() -> None:
    async with (
        serving(saying(CHUNKED + chunk(b"one"), chunk(b"two") + END)) as served,
        opened(served, first_byte_timeout_s=0.1, chunk_timeout_s=0.1) as upstream,
        upstream.stream("/api/chat", b"{}") as stream,
    ):
        assert await stream.read() == b"one"
        stream.pause()
        await trio.sleep(0.3)
        assert await stream.read() == b"two"
        stream.pause()
        await trio.sleep(0.3)
        assert await stream.read() == b""


async def test_each_read_has_its_whole_time_and_hardly_more() -> None:
    pieces = 12

    async def slow(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED)
        for _ in range(pieces):
            await peer.say(chunk(b"x"))
            await trio.sleep(0.1)
        await peer.closed()

    async with (
        serving(slow) as served,
        opened(served, chunk_timeout_s=0.4) as upstream,
        upstream.stream("/api/chat", b"{}") as stream,
    ):
        for _ in range(pieces):
            assert await stream.read()
        silent_since = trio.current_time()
        with pytest.raises(UpstreamTimeout):
            await stream.read()
        assert 0.39 < trio.current_time() - silent_since < 0.7


async def test_a_block_that_waits_on_after_the_deadline_ends_with_it() -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED + chunk(b"ok"))
        await peer.closed()

    async def waits_on(upstream: Upstream) -> None:
        async with upstream.stream("/api/chat", b"{}") as stream:
            assert await stream.read() == b"ok"
            with pytest.raises(UpstreamTimeout):
                await stream.read()
            await trio.sleep_forever()

    async with serving(silent) as served, opened(served, chunk_timeout_s=0.05) as upstream:
        with trio.fail_after(2), pytest.raises(UpstreamTimeout):
            await waits_on(upstream)


async def test_a_cancellation_from_outside_is_no_timeout() -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED + chunk(b"ok"))
        await peer.closed()

    async with (
        serving(silent) as served,
        opened(served) as upstream,
        upstream.stream("/api/chat", b"{}") as stream,
    ):
        assert await stream.read() == b"ok"
        with trio.move_on_after(0.05) as scope:
            await stream.read()
        assert scope.cancelled_caught
        # No deadline is left behind.
        await trio.sleep(0.01)


@pytest.mark.parametrize("late", ["the head", "a chunk"])
async def test_what_came_while_this_process_stood_still_came_in_time(late: str) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        assert isinstance(peer.stream, trio.SocketStream)
        if late == "a chunk":
            await peer.say(CHUNKED + chunk(b"one"))
            await trio.sleep(0.05)
            os.write(peer.stream.socket.fileno(), chunk(b"two"))
        else:
            os.write(peer.stream.socket.fileno(), CHUNKED + chunk(b"one") + chunk(b"two"))
        time.sleep(0.8)  # noqa: ASYNC251 - the whole process, its clock excepted
        await peer.say(END)
        await peer.closed()

    async with (
        serving(handler) as served,
        opened(served, first_byte_timeout_s=0.5, chunk_timeout_s=0.5) as upstream,
        upstream.stream("/api/chat", b"{}") as stream,
    ):
        body = b""
        while piece := await stream.read():
            body += piece
            # The relay passes it on, which nothing may cancel.
            await trio.lowlevel.checkpoint()
        assert body == b"onetwo"


async def test_a_cancellation_in_the_moment_of_the_deadline_is_no_timeout() -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED + chunk(b"ok"))
        await peer.closed()

    async with serving(silent) as served, opened(served, chunk_timeout_s=0.5) as upstream:
        with trio.CancelScope() as outer:
            async with trio.open_nursery() as nursery, upstream.stream("/api/chat", b"{}") as stream:
                assert await stream.read() == b"ok"

                async def stop() -> None:
                    await trio.sleep(0.02)
                    outer.cancel()
                    time.sleep(0.6)  # noqa: ASYNC251 - the deadline passes before the reader has its turn

                nursery.start_soon(stop)
                with pytest.raises(trio.Cancelled):
                    await stream.read()
                await trio.lowlevel.checkpoint()
        assert outer.cancelled_caught
        await trio.sleep(0.01)


def _lower_names(request: bytes) -> list[bytes]:
    lines = []
    for line in request.split(b"\r\n"):
        name, colon, value = line.partition(b": ")
        lines.append(name.lower() + colon + value if colon else line)
    return lines
