"""The bytes between here and the upstream: TCP, or TLS on it. Closing never waits, for anybody."""

import select
import socket
import ssl
from dataclasses import dataclass, field

import trio

# A large read makes one piece for the client of what lies ready. It holds memory only while it is made.
READ_BYTES = 64 * 1024


@dataclass(frozen=True)
class Origin:
    """Where the upstream listens. ``trust`` is there for https alone."""

    host: str
    port: int
    trust: ssl.SSLContext | None = field(default=None, repr=False)


class TcpWire:
    """A connected socket. One task sends, then receives; ``OSError`` says that the connection broke."""

    __slots__ = ("_socket",)

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    async def send(self, data: bytes) -> None:
        """Send all of it: at once and without a checkpoint, if the socket takes it.

        When cancelled, nobody knows how much was sent: the wire must be closed.
        """
        sent = self._send(data)
        if sent < len(data):
            view = memoryview(data)
            while sent < len(data):
                await trio.lowlevel.wait_writable(self._socket)
                sent += self._send(view[sent:])

    async def receive(self) -> bytes:
        """What one read of the network gives; empty when the other side has closed. Always a checkpoint.

        Nothing is lost when it is cancelled.
        """
        while True:
            # Waiting first: to look first costs more, since there is seldom anything yet.
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(READ_BYTES)
            except BlockingIOError:
                continue

    def silent(self) -> bool:
        """Nothing has come that nobody asked for, its closing included."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """At once. What the socket did not send yet is sent by the kernel, or lost."""
        self._socket.close()

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0


class TlsWire:
    """TLS over a wire. One read gives all that came, to the last whole record. Trio's stream gives a record, and
    does not tell whether another lies in it: a connection with bytes after its reply must not be used again.
    """

    __slots__ = ("_incoming", "_outgoing", "_tls", "_wire")

    def __init__(self, wire: TcpWire, trust: ssl.SSLContext, host: str) -> None:
        self._wire = wire
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = trust.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    async def handshake(self) -> None:
        """Agree on keys and check the certificate and its host; ``ssl.SSLError`` (an ``OSError``) if in vain."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            else:
                await self._flush()
                return

    async def send(self, data: bytes) -> None:
        """See ``TcpWire.send``."""
        view = memoryview(data)
        sent = 0
        while sent < len(data):
            # In parts, so that a large body does not lie here encrypted as a whole.
            sent += self._tls.write(view[sent : sent + READ_BYTES])
            await self._flush()

    async def receive(self) -> bytes:
        """See ``TcpWire.receive``. A connection that ends without a farewell ends all the same, as in browsers:
        a reply of a known length is not shortened by it unseen."""
        while True:
            pieces = []
            try:
                while piece := self._tls.read(READ_BYTES):
                    pieces.append(piece)
                if not pieces:
                    return b""
            except ssl.SSLWantReadError:
                if not pieces:
                    await self._flush()
                    await self._fill()
                    continue
            except ssl.SSLError as error:
                # What came before it is given out first; it is met again by the next read.
                if not pieces:
                    if isinstance(error, ssl.SSLEOFError):
                        return b""
                    raise
            return b"".join(pieces)

    def silent(self) -> bool:
        """See ``TcpWire.silent``. No whole record lies here unread: ``receive`` reads until there is none."""
        return self._wire.silent()

    def close(self) -> None:
        """See ``TcpWire.close``. No farewell is said: it would have to wait."""
        self._wire.close()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._wire.send(self._outgoing.read())

    async def _fill(self) -> None:
        if data := await self._wire.receive():
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


Wire = TcpWire | TlsWire


async def connect(origin: Origin, timeout_s: float) -> Wire:
    """A new connection within ``timeout_s`` seconds, TLS included.

    Raises ``OSError`` when there is none, ``TimeoutError`` among them. When cancelled, nothing is left open.
    """
    try:
        with trio.fail_after(timeout_s):
            stream = await trio.open_tcp_stream(origin.host, origin.port)
            # Trio's socket makes a checkpoint of each call; the stream has set TCP_NODELAY.
            wire = TcpWire(_taken(stream))
            if origin.trust is None:
                return wire
            try:
                secure = TlsWire(wire, origin.trust, origin.host)
                await secure.handshake()
            except BaseException:
                wire.close()
                raise
            return secure
    except trio.TooSlowError:
        raise TimeoutError("no connection in time") from None
    except UnicodeError as error:
        raise OSError("no name of a host") from error


def _taken(stream: trio.SocketStream) -> socket.socket:
    taken = socket.socket(fileno=stream.socket.detach())
    taken.setblocking(False)
    return taken
