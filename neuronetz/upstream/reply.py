"""An HTTP/1.1 reply being read: bytes in, body out, no I/O.

One bound holds for the head, for chunk extensions and for trailers alike: what brings no body is thrown away
and counted, and too much of it in a row is a broken reply.
"""

from collections.abc import Callable

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

# In a row and without a byte of body. The read that ends such a row may bring as much again.
_OVERHEAD_BYTES = 64 * 1024

_VERSIONS = frozenset(("1.0", "1.1"))
_BODILESS = frozenset((204, 304))


class BrokenReply(Exception):
    """What was received is no HTTP/1 reply that we can read, or ended too early."""


class _Unreadable(Exception):
    """Stops the parser from within."""


class ReplyReader:
    """Reads the replies of one connection, one after the other: ``begin`` stands before each.

    ``status`` is 0 until the head is read; replies of 1xx are passed over. What was received before the
    bytes broke off or made no sense is given out before ``broken`` is to be looked at.
    """

    __slots__ = (
        "_framed",
        "_keep_alive",
        "_overhead",
        "_parser",
        "_pieces",
        "broken",
        "complete",
        "on_body",
        "status",
    )

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        # The parser calls it for each piece of a body: without a frame of ours between them.
        self.on_body: Callable[[bytes], None] = self._pieces.append
        self.begin()
        self._parser = HttpResponseParser(self)

    def begin(self) -> None:
        """Expect the reply to a new request. Only for a connection that is ``reusable``, or new."""
        # What nobody read of the last reply is none of the next one's.
        self._pieces.clear()
        self.status = 0
        self.complete = False
        self.broken = False
        self._framed = False
        self._keep_alive = False
        self._overhead = 0

    @property
    def reusable(self) -> bool:
        """The reply was read to its end, nothing came after it, and the connection may carry another."""
        return self.complete and self._keep_alive and not self.broken

    @property
    def has_body(self) -> bool:
        return bool(self._pieces)

    def feed(self, data: bytes) -> None:
        """Take what one read gave; nothing at all says that the upstream has closed."""
        if not data:
            self._closed()
            return
        # The parser would take RTSP's replies too.
        if not self.status and not self._overhead and data[0] != 0x48:
            self.broken = True
            return
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            if not self.complete:
                self.broken = True
            self._keep_alive = False
        if self._pieces:
            self._overhead = 0
        else:
            self._overhead += len(data)
            if self._overhead > _OVERHEAD_BYTES:
                self.broken = True

    def take(self) -> bytes:
        """All of the body that has come and was not taken yet."""
        body = b"".join(self._pieces)
        self._pieces.clear()
        return body

    def close(self) -> None:
        """Nothing is read any more. Parser and reader hold each other; this frees them at once."""
        del self._parser

    def _closed(self) -> None:
        self._keep_alive = False
        if self.status and not self._framed:
            self.complete = True
        elif not self.complete:
            self.broken = True

    # What the parser calls. What these raise makes it stop, and ``feed_data`` raise.

    def on_message_begin(self) -> None:
        if self.complete:
            raise _Unreadable("bytes after the reply")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:
            return  # a trailer
        name = name.lower()
        if name == b"content-length":
            self._framed = True
        elif name == b"transfer-encoding":
            self._framed = True
            if value.lower() != b"chunked":
                raise _Unreadable("a transfer coding that was not asked for")
        elif name == b"content-encoding" and value.lower() not in (b"", b"identity"):
            raise _Unreadable("a content coding that was not asked for")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            # An upgrade was not asked for, and a body of these would be nobody's.
            if status < 100 or status == 101 or self._framed:
                raise _Unreadable("an interim reply that was not asked for")
            return
        if self._parser.get_http_version() not in _VERSIONS:
            raise _Unreadable("not HTTP/1")
        if status in _BODILESS:
            self._framed = True
        self._keep_alive = self._parser.should_keep_alive()
        self.status = status

    def on_message_complete(self) -> None:
        if self.status:
            self.complete = True
