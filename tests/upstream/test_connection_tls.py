"""The upstream behind TLS: whom it trusts, and that framing, reuse and closing are as without it."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trustme

from neuronetz.errors import UpstreamFailed
from neuronetz.upstream import wire
from neuronetz.upstream.ollama import open_upstream
from neuronetz.upstream.pool import Pool
from neuronetz.upstream.reply import BrokenReply
from neuronetz.upstream.wire import Origin
from tests.upstream.scripted import CHUNKED, END, Peer, chunk, chunks, serving, sized, sockets

HEAD = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n"
LARGE = bytes(range(256)) * 4000


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def serving_as(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@asynccontextmanager
async def pool_of(port: int, trust: ssl.SSLContext, host: str = "localhost") -> AsyncIterator[Pool]:
    with Pool(Origin(host, port, trust), connect_timeout_s=2) as pool:
        yield pool


async def whole(pool: Pool, body: bytes = b"{}") -> bytes:
    connection = await pool.ask(HEAD[:-5] + b"%d\r\n\r\n" % len(body), body)
    try:
        read = b""
        while piece := await connection.read():
            read += piece
        return read
    finally:
        pool.release(connection)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_replies_come_whole_and_connections_serve_again(
    authority: trustme.CA, version: ssl.TLSVersion
) -> None:
    before = sockets()

    async def handler(peer: Peer) -> None:
        while request := await peer.request():
            await peer.say(sized(request.partition(b"\r\n\r\n")[2]))
            if await peer.request():
                await peer.say(CHUNKED, chunk(b"one\n") + chunk(b"two\n"), END)

    tls = serving_as(authority, "localhost")
    tls.minimum_version = tls.maximum_version = version
    async with serving(handler, tls=tls) as served:
        async with pool_of(served.port, trusting(authority)) as pool:
            for _ in range(3):
                assert await whole(pool, LARGE) == LARGE
                assert await whole(pool) == b"one\ntwo\n"
        await trio.sleep(0.01)
    assert len(served.peers) == 1
    assert sockets() == before


@pytest.mark.parametrize("more", ["nothing", "a record"])
async def test_bytes_after_a_reply_are_seen_inside_tls(authority: trustme.CA, more: str) -> None:
    tls = serving_as(authority, "localhost")

    async def handler(peer: Peer) -> None:
        # By hand, so that several records leave in one segment: the second is received and not read.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secure = tls.wrap_bio(incoming, outgoing, server_side=True)
        step: Callable[[], object] = secure.do_handshake
        while True:
            try:
                step()
            except ssl.SSLWantReadError:
                if said := outgoing.read():
                    await peer.stream.send_all(said)
                if not (data := await peer.stream.receive_some()):
                    return
                incoming.write(data)
            else:
                if step != secure.do_handshake:
                    for reply in [sized(b"%d" % peer.number), sized(b"of nobody")][: 1 + (more != "nothing")]:
                        secure.write(reply)
                    asked.append(peer.number)
                step = partial(secure.read, 65536)

    asked: list[int] = []
    async with serving(handler) as served, pool_of(served.port, trusting(authority)) as pool:
        read = [await whole(pool) for _ in range(3)]
    connections = [1, 1, 1] if more == "nothing" else [1, 2, 3]
    assert read == [b"%d" % number for number in connections]
    assert asked == connections


@pytest.mark.parametrize(("name", "trusted"), [("elsewhere.invalid", True), ("localhost", False)])
async def test_a_wrong_host_or_an_unknown_authority_is_refused(
    authority: trustme.CA, name: str, trusted: bool
) -> None:
    before = sockets()
    asked = []

    async def handler(peer: Peer) -> None:
        try:
            asked.append(await peer.request())
        except (trio.BrokenResourceError, ssl.SSLError):
            return

    async with serving(handler, tls=serving_as(authority, name)) as served:
        async with pool_of(served.port, trusting(authority) if trusted else ssl.create_default_context()) as pool:
            with pytest.raises(ssl.SSLCertVerificationError):
                await pool.ask(HEAD, b"{}")
        url = f"https://localhost:{served.port}"
        async with open_upstream(url, connect_timeout_s=2, first_byte_timeout_s=5, chunk_timeout_s=5) as upstream:
            with pytest.raises(UpstreamFailed):
                await chunks(upstream)
            with pytest.raises(UpstreamFailed):
                await upstream.fetch("GET", "/api/tags", timeout_s=5, limit=100)
        await trio.sleep(0.01)
    assert not any(asked)
    assert sockets() == before


async def test_the_time_to_connect_bounds_the_handshake(authority: trustme.CA) -> None:
    before = sockets()

    async def never_greets(peer: Peer) -> None:
        await trio.sleep_forever()

    async with serving(never_greets) as served:
        began = trio.current_time()
        with pytest.raises(TimeoutError):
            await wire.connect(Origin("localhost", served.port, trusting(authority)), 0.1)
        assert trio.current_time() - began < 1
    await trio.sleep(0.01)
    assert sockets() == before


async def test_closing_waits_for_nobody_and_a_plain_end_ends_the_reply(authority: trustme.CA) -> None:
    stop = trio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            await peer.say(CHUNKED + chunk(b"one\n"))
            await stop.wait()  # reads nothing, says no farewell
        else:
            await peer.say(
                b"HTTP/1.1 200 OK\r\n%b\r\nsome" % (b"Content-Length: 9\r\n" if peer.number == 3 else b"")
            )

    async with (
        serving(handler, tls=serving_as(authority, "localhost")) as served,
        pool_of(served.port, trusting(authority)) as pool,
    ):
        connection = await pool.ask(HEAD, b"{}")
        assert await connection.read() == b"one\n"
        began = trio.current_time()
        pool.release(connection)
        assert trio.current_time() - began < 0.05
        assert pool.idle == 0
        assert await whole(pool) == b"some"
        with pytest.raises(BrokenReply):
            await whole(pool)
        stop.set()
