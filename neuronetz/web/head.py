"""A reply's head as bytes. No value gets into it that could be read as anything but a value."""

import re
import time
from collections.abc import Sequence
from email.utils import formatdate

# Lines of a name and a value (RFC 9110, 5.5 and 5.6.2), none of which says how the reply is framed: that is the
# server's to say.
_LINES = re.compile(
    rb"(?:(?!(?i:content-length|transfer-encoding|connection):)"
    rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t\x20-\x7e\x80-\xff]*\r\n)*"
)

_date = (0, b"")


def header_lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The headers as lines.

    Raises ``ValueError`` for what is no header, or would change where the reply ends.
    """
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    # Counted too: a value with a line end and a good line behind it would match.
    if lines.count(b"\n") != len(headers) or _LINES.fullmatch(lines) is None:
        raise ValueError("not a header")
    return lines


def date_line() -> bytes:
    """The line that tells the time, which goes on every reply (RFC 9110, 6.6.1)."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, b"date: %b\r\n" % formatdate(now, usegmt=True).encode())
    return _date[1]
