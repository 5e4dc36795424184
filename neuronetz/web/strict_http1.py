"""h11 without its leniency: what another HTTP parser could read differently is refused, not interpreted.

RFC 9112 allows a server much (bare line feeds, folded lines, lists of equal lengths). Whatever stands in front
may use that freedom otherwise, and then the two disagree about where a request ends (section 11.2). So only
one reading is taken, and every other ends the connection.

``ReceiveBuffer``, the table of readers and what is used of ``Connection`` are h11's internals: its version is
bounded, and ``tests/web/test_strict_http1.py`` guards what is used.
"""

import re
from typing import Any, NamedTuple

import h11
from h11._readers import READERS
from h11._receivebuffer import ReceiveBuffer

# Lines end in CRLF and go on with a name; control characters stand nowhere in them (RFC 9112, 2.2 and 5.2).
_AMBIGUOUS = re.compile(rb"(?<!\r)\n|\r[^\n]|\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LINE_END = b"\r\n"
_BLANK_LINE = b"\r\n\r\n"
_FRAMING = (b"content-length:", b"transfer-encoding:")

_UNSUPPORTED_VERSION = 505
_UNKNOWN_METHOD = 501


class _Lines(ReceiveBuffer):
    """What was received. Raises ``h11.LocalProtocolError``, which h11 turns into the remote one, for lines that
    are ambiguous, as soon as that can be seen.
    """

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines up to the first blank one, which is taken too: a request's head, or what trails chunks."""
        if self._data.startswith(_LINE_END):
            self._extract(len(_LINE_END))
            return []
        found = self._find(_BLANK_LINE, self._multiple_lines_search)
        if found < 0:
            self._multiple_lines_search = len(self._data)
            return None
        lines = self._extract(found + len(_BLANK_LINE))[: -len(_BLANK_LINE)].split(_LINE_END)
        _check_framing(lines)
        return lines

    def maybe_extract_next_line(self) -> bytearray | None:
        """The line before a chunk, with its end."""
        found = self._find(_LINE_END, self._next_line_search)
        if found < 0:
            self._next_line_search = len(self._data)
            return None
        return self._extract(found + len(_LINE_END))

    def _find(self, end: bytes, searched: int) -> int:
        """Where ``end`` begins, or -1, with nothing ambiguous before; ``searched`` bytes were looked at before."""
        start = max(0, searched - len(end) + 1)
        found = self._data.find(end, start)
        upto = len(self._data) if found < 0 else found + len(_LINE_END)
        if _AMBIGUOUS.search(self._data, start, upto):
            raise h11.LocalProtocolError("a line that can be read in two ways")
        return found


def _check_framing(lines: list[bytearray]) -> None:
    """At most one field says how long the body is, and says it once (RFC 9112, 6.1 and 6.3)."""
    framing = [line for line in lines if line.lower().startswith(_FRAMING)]
    if len(framing) > 1 or any(b"," in line for line in framing):
        raise h11.LocalProtocolError("more than one length of the body")


class Framing(NamedTuple):
    """How a reply's end is told: the head's lines for that; whether its body comes in chunks, or not at all."""

    lines: bytes
    chunked: bool
    bodyless: bool


class StrictConnection(h11.Connection):
    """The server's side of a connection, as h11 has it, that takes a request in one reading only.

    A reply is either given to ``send``, event by event, or begun and ended here, and written by the caller.
    """

    def __init__(self, max_incomplete_event_size: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=max_incomplete_event_size)
        self._receive_buffer = _Lines()

    def next_event(self) -> Any:
        """See ``h11.Connection.next_event``. Raises ``h11.RemoteProtocolError``."""
        if self.their_state is h11.MUST_CLOSE:
            # What follows a request that ends its connection is no request, and no fault of this one either.
            self._receive_buffer = _Lines()
        event = super().next_event()
        if isinstance(event, h11.Request):
            try:
                _check(event)
            except h11.RemoteProtocolError:
                self.abandon()
                raise
        return event

    def begin_reply(self, status: int, length: int | None, *, last: bool) -> Framing:
        """Note that a final reply begins, and how ``send`` would frame it; ``length`` is its body's, if known.

        ``last``: the connection is to be closed behind it. Raises ``h11.LocalProtocolError`` where none is due.
        """
        method, modern = self._request_method, (self.their_http_version or b"") >= b"1.1"
        before = self.their_state
        self._cstate.process_event(h11.SERVER, h11.Response)
        self.client_is_waiting_for_100_continue = False
        bodyless = method == b"HEAD" or status in (204, 304)
        delimited = length is not None or modern or bodyless
        if last or not delimited:
            self._cstate.process_keep_alive_disabled()
        if self.their_state is not before:
            # An Upgrade that is not followed held the request back from being over.
            self._reader = self._get_io_object(self.their_role, None, READERS)
        chunked = length is None and modern and status not in (204, 304)
        lines = b"content-length: %d\r\n" % length if length is not None else b""
        if chunked:
            lines += b"transfer-encoding: chunked\r\n"
        if not self._cstate.keep_alive:
            lines += b"connection: close\r\n"
        return Framing(lines, chunked and not bodyless, bodyless)

    def end_reply(self) -> None:
        """Note that the reply's last byte was written."""
        self._cstate.process_event(h11.SERVER, h11.EndOfMessage)

    def abandon(self) -> None:
        """Read nothing more: whatever was received and not read raises ``h11.RemoteProtocolError``."""
        self._process_error(self.their_role)


def _check(request: h11.Request) -> None:
    if request.http_version not in (b"1.1", b"1.0"):
        raise h11.RemoteProtocolError("not HTTP/1", error_status_hint=_UNSUPPORTED_VERSION)
    # The server would make capitals of it, while whoever stands in front compares exactly (RFC 9110, 9.1).
    if request.method != request.method.upper():
        raise h11.RemoteProtocolError("unknown method", error_status_hint=_UNKNOWN_METHOD)
    if request.http_version == b"1.0" and any(name == b"transfer-encoding" for name, _ in request.headers):
        raise h11.RemoteProtocolError("chunks in HTTP/1.0")
