"""The mock's side of an HTTP/1.1 connection: h11 reads, while replies are written by hand.

By hand, since a mock must also be able to break the protocol, and because it is several times cheaper.
"""

import ipaddress
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import cache
from http.client import responses
from typing import TypeVar

import h11
import msgspec
import trio

T = TypeVar("T")

MAX_BODY_BYTES = 64 * 1024 * 1024

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
TEXT = "text/plain; charset=utf-8"


class ClientGone(Exception):
    """The client closed or reset the connection."""


class HttpRequest(msgspec.Struct):
    """A request, read whole. Names of headers are in lower case, the path is without its query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


class HttpConnection:
    """One connection, one request at a time. All that sends raises ``ClientGone``."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._ahead = b""

    async def next_request(self) -> HttpRequest | None:
        """The next request; None at the end of the connection, or after what is no HTTP was answered."""
        parser = h11.Connection(h11.SERVER)
        if self._ahead:
            parser.receive_data(self._ahead)
        head: h11.Request | None = None
        body: list[bytes] = []
        size = 0
        try:
            while True:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    await self._more(parser)
                elif isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    body.append(bytes(event.data))
                    size += len(event.data)
                    if size > MAX_BODY_BYTES:
                        return None
                elif isinstance(event, h11.EndOfMessage) and head is not None:
                    self._ahead = bytes(parser.trailing_data[0])
                    return _request(head, b"".join(body))
                else:
                    return None
        except h11.RemoteProtocolError:
            await self.reply(400, b"400 Bad Request", TEXT, close=True)
            return None

    async def reply(
        self,
        status: int,
        body: bytes,
        content_type: str = JSON,
        *,
        bodiless: bool = False,
        close: bool = False,
    ) -> None:
        """A whole reply with its length; ``bodiless`` for the answer to a HEAD."""
        head = reply_head(status, content_type, length=len(body), close=close)
        await self.send(head if bodiless else head + body)

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ClientGone from None

    async def client_gone(self) -> None:
        """Wait until the client closes. What it sends meanwhile is kept for the next request."""
        try:
            while data := await self._stream.receive_some(4096):
                self._ahead += data
        except trio.BrokenResourceError:
            return
        except trio.ClosedResourceError:
            await trio.sleep_forever()  # closed by us, not by the client

    async def reset(self) -> None:
        """Close with an RST, as a crashed process or a broken network would."""
        self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self._stream.aclose()

    async def _more(self, parser: h11.Connection) -> None:
        if parser.they_are_waiting_for_100_continue:
            await self.send(parser.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        try:
            parser.receive_data(await self._stream.receive_some(65536))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ClientGone from None


def reply_head(status: int, content_type: str, *, length: int | None, close: bool = False) -> bytes:
    """A reply's head; without a length, the body is chunked."""
    body = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    # The empty line that ends a head comes with this one, or is this one.
    tail = "Connection: close\r\n" if close else ""
    phrase = responses.get(status, "Unknown")
    date = formatdate(int(time.time()), usegmt=True)
    lines = (f"HTTP/1.1 {status} {phrase}", f"Content-Type: {content_type}", f"Date: {date}", body, tail)
    return "\r\n".join(lines).encode() + b"\r\n"


def chunk(data: bytes) -> bytes:
    """Data in the framing of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def _request(head: h11.Request, body: bytes) -> HttpRequest:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    old = head.http_version != b"1.1"
    return HttpRequest(
        method=head.method.decode("latin-1"),
        path=head.target.split(b"?", 1)[0].decode("latin-1"),
        headers=headers,
        body=body,
        keep_alive=not old and headers.get("connection", "").lower() != "close",
    )


async def while_connected(http: HttpConnection, work: Callable[[], Awaitable[T]]) -> T:
    """Run ``work``, which is cancelled, and ``ClientGone`` raised, as soon as the client closes."""
    result: T | ClientGone = ClientGone()
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await http.client_gone()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            result = await work()
        except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery's group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if isinstance(result, ClientGone):
        raise result
    return result


@cache
def known_host(host: str) -> bool:
    """Ollama's guard against DNS rebinding: an address of this machine or its network, or a local name."""
    name = host.strip("[]") if host.endswith("]") else host.rsplit(":", 1)[0].strip("[]")
    if name == "localhost" or name.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_private
