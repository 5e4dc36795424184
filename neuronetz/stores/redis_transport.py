"""Bytes to and from one Redis server: a plain socket or TLS, from the options of a URL.

redis-py reads the URL and makes the TLS context; the connection is Trio's own.
"""

import socket
import ssl
from typing import Any, Protocol

import trio

_CHUNK = 65536


class Transport(Protocol):
    """A connected pair of byte streams. ``taken``: bytes that may have reached the server.

    ``send`` and ``receive`` raise ``OSError`` or ``trio.BrokenResourceError``. One task may send while another
    receives.
    """

    taken: int

    async def send(self, data: bytes) -> None: ...

    def send_now(self, data: bytes) -> int:
        """Send what goes out at once, while nobody sends; how many bytes that was. Never raises: what is wrong is
        met by the next ``send``.
        """
        ...

    async def receive(self) -> bytes: ...

    async def aclose(self) -> None: ...


class PlainTransport:
    """A stream socket, read and written without the checkpoints of Trio's streams: each wait is one."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self.taken = 0

    async def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while True:
            try:
                sent = self._socket.send(rest)
            except BlockingIOError:
                sent = 0
            self.taken += sent
            rest = rest[sent:]
            if not rest:
                return
            await trio.lowlevel.wait_writable(self._socket)
            # Of what was cancelled meanwhile nothing more may go: its callers are told how far it came.
            await trio.lowlevel.checkpoint_if_cancelled()

    def send_now(self, data: bytes) -> int:
        try:
            sent = self._socket.send(data)
        except OSError:
            return 0
        self.taken += sent
        return sent

    async def receive(self) -> bytes:
        """What has arrived, at least a byte; nothing at the stream's end."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(_CHUNK)
            except BlockingIOError:
                continue

    async def aclose(self) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        await trio.lowlevel.checkpoint()


class TlsTransport:
    """TLS over a socket. What was given to TLS counts as taken."""

    def __init__(self, stream: "trio.SSLStream[trio.SocketStream]") -> None:
        self._stream = stream
        self.taken = 0

    async def send(self, data: bytes) -> None:
        self.taken += len(data)
        await self._stream.send_all(data)

    def send_now(self, data: bytes) -> int:
        """Nothing: what TLS makes of it might have to wait."""
        return 0

    async def receive(self) -> bytes:
        return bytes(await self._stream.receive_some(_CHUNK))

    async def aclose(self) -> None:
        await self._stream.aclose()


async def connect(options: Any) -> Transport:
    """Connect as ``options``, a connection of redis-py that is never used as one, say.

    Raises ``OSError`` or ``trio.BrokenResourceError``. When cancelled, nothing stays open.
    """
    path = getattr(options, "path", None)
    if path is not None:
        return PlainTransport(_detached(await trio.open_unix_socket(path)))
    stream = await trio.open_tcp_stream(options.host, options.port)
    try:
        if options.socket_keepalive:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in options.socket_keepalive_options.items():
                stream.setsockopt(socket.IPPROTO_TCP, name, value)
        context: ssl.SSLContext | None = options.ssl_context.get() if hasattr(options, "ssl_context") else None
        if context is None:
            return PlainTransport(_detached(stream))
        secured = trio.SSLStream(stream, context, server_hostname=options.host, https_compatible=True)
        await secured.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return TlsTransport(secured)


def _detached(stream: trio.SocketStream) -> socket.socket:
    return socket.socket(fileno=stream.socket.detach())
