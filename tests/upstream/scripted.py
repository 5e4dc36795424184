"""An upstream that says what a test has written down, over real sockets."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from neuronetz.upstream.ollama import Upstream, open_upstream

Handler = Callable[["Peer"], Awaitable[None]]


@dataclass
class Peer:
    """A connection as the upstream sees it. ``number`` counts connections from 1."""

    stream: trio.abc.Stream
    number: int
    _read: bytes = b""

    async def request(self) -> bytes:
        """The next request, head and body; empty when the connection was closed instead."""
        while True:
            head, found, rest = self._read.partition(b"\r\n\r\n")
            if found:
                length = next(
                    (
                        int(line.split(b":")[1])
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length:")
                    ),
                    0,
                )
                if len(rest) >= length:
                    self._read = rest[length:]
                    return head + found + rest[:length]
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                data = b""
            if not data:
                return b""
            self._read += data

    async def say(self, *parts: bytes) -> None:
        """Send each part by itself, so that it is likely to be a read of its own."""
        for part in parts:
            if part:
                await self.stream.send_all(part)
                await trio.sleep(0.001 if len(parts) > 1 else 0)

    async def closed(self) -> None:
        """Wait until the other side is gone."""
        try:
            while await self.stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass

    def reset(self) -> None:
        """Close so that the other side hears of a reset."""
        assert isinstance(self.stream, trio.SocketStream)
        self.stream.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER of 0 seconds
        self.stream.socket.close()


@dataclass
class Served:
    port: int
    peers: list[Peer] = field(default_factory=list)


@asynccontextmanager
async def serving(
    handler: Handler, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Served]:
    """Serve each connection with ``handler``, then close it."""
    async with trio.open_nursery() as nursery:

        async def serve(raw: trio.SocketStream) -> None:
            stream: trio.abc.Stream = (
                raw if tls is None else trio.SSLStream(raw, tls, server_side=True, https_compatible=True)
            )
            peer = Peer(stream, len(served.peers) + 1)
            served.peers.append(peer)
            try:
                await handler(peer)
            except trio.BrokenResourceError:
                pass
            finally:
                raw.socket.close()

        served = Served(0)
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host=host))
        served.port = listeners[0].socket.getsockname()[1]
        yield served
        nursery.cancel_scope.cancel()


def opened(
    served: Served, *, first_byte_timeout_s: float = 5, chunk_timeout_s: float = 5
) -> AbstractAsyncContextManager[Upstream]:
    """The code under test, towards the scripted upstream."""
    url = f"http://127.0.0.1:{served.port}"
    return open_upstream(
        url, connect_timeout_s=2, first_byte_timeout_s=first_byte_timeout_s, chunk_timeout_s=chunk_timeout_s
    )


async def chunks(upstream: Upstream, body: bytes = b"{}") -> list[bytes]:
    """What each read of a reply gives."""
    async with upstream.stream("/api/chat", body) as stream:
        read = []
        while chunk := await stream.read():
            read.append(chunk)
        return read


def sockets() -> int:
    """How many sockets this process has open."""
    return sum(_is_socket(file) for file in Path("/proc/self/fd").iterdir())


def _is_socket(file: Path) -> bool:
    try:
        return str(file.readlink()).startswith("socket:")
    except OSError:
        return False


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def sized(body: bytes, more: bytes = b"") -> bytes:
    return OK + b"%bContent-Length: %d\r\n\r\n%b" % (more, len(body), body)
