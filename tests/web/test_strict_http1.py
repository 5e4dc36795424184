"""Requests are read in one way only, however they are cut; guards what is used of h11's internals."""

from itertools import pairwise
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.web.strict_http1 import StrictConnection

HEAD = b"POST /a?b HTTP/1.1\r\nHost: g\r\nX: y\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
GOOD = [
    HEAD + b"Content-Length: 5\r\n\r\nhello",
    HEAD + b"\r\n",
    CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",
    CHUNKED + b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
]
BAD = [
    HEAD.replace(b"\r\n", b"\n") + b"\n",
    HEAD + b" folded\r\n\r\n",
    HEAD + b"X: a\rb\r\n\r\n",
    HEAD + b"X: a\nb: c\r\n\r\n",
    HEAD + b"X: a\x00\r\n\r\n",
    HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
    HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD.replace(b"1.1", b"2.0") + b"\r\n",
    HEAD.replace(b"POST", b"post") + b"\r\n",
    CHUNKED + b"5;\n\r\nhello\r\n0\r\n\r\n",
    CHUNKED + b"5;\rx\r\nhello\r\n0\r\n\r\n",
    CHUNKED + b"5\r\nhello\r\n0\r\nX: y\n\r\n",
]


def read(connection: h11.Connection, parts: list[bytes]) -> list[tuple[str, Any]]:
    """The events of one request; data in one piece, and a refusal as the last."""
    events: list[tuple[str, Any]] = []
    body = b""
    try:
        for part in parts:
            connection.receive_data(part)
            while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.Request):
                    events.append(("request", (event.method, event.target, list(event.headers))))
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    events.append(("body", (body, list(event.headers))))
    except h11.RemoteProtocolError:
        events.append(("refused", None))
    return events


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % len(data) for place in places), len(data)]
    return [part for start, end in pairwise(edges) if (part := data[start:end])]


places = st.lists(st.integers(0, 10_000), max_size=12)


@given(st.sampled_from(GOOD), places)
def test_a_plain_request_is_read_as_h11_reads_it_however_it_is_cut(data: bytes, where: list[int]) -> None:
    plain = read(h11.Connection(h11.SERVER), [data])
    assert plain[-1][0] == "body"
    assert read(StrictConnection(65536), cut(data, where)) == plain


@given(st.sampled_from(BAD), places)
def test_an_ambiguous_request_is_refused_however_it_is_cut(data: bytes, where: list[int]) -> None:
    assert read(StrictConnection(65536), cut(data, where))[-1] == ("refused", None)


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\n", HEAD + b"X: a\rb", HEAD + b" ", HEAD + b"X: \x00", CHUNKED + b"5\n"]
)
def test_what_is_wrong_is_not_waited_on(data: bytes) -> None:
    assert read(StrictConnection(65536), [data])[-1] == ("refused", None)


@given(st.sampled_from(GOOD + BAD), st.integers(0, 300), st.binary(max_size=3), st.integers(0, 3), places)
def test_what_is_taken_is_what_h11_takes(data: bytes, at: int, new: bytes, gone: int, where: list[int]) -> None:
    """Strictness only ever refuses: whatever passes means what it meant without it."""
    at %= len(data)
    changed = data[:at] + new + data[at + gone :]
    strict = read(StrictConnection(65536), cut(changed, where) if changed else [])
    if strict and strict[-1] == ("refused", None):
        strict.pop()
    assert strict == read(h11.Connection(h11.SERVER), [changed])[: len(strict)]


def test_what_follows_the_last_request_of_a_connection_is_dropped() -> None:
    connection = StrictConnection(65536)
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
    assert isinstance(connection.next_event(), h11.Request)
    assert isinstance(connection.next_event(), h11.EndOfMessage)
    for _ in range(3):
        connection.receive_data(b"x" * 100_000)
        assert connection.next_event() is h11.NEED_DATA
    connection.receive_data(b"")
    assert isinstance(connection.next_event(), h11.ConnectionClosed)
