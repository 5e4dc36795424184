"""Requests that two HTTP parsers may read differently, and requests that are none.

Whatever is ambiguous is refused before anybody is asked who sent it, and its connection is closed: no byte
behind it is ever taken for a request.
"""

import json
import logging
from typing import Any, NamedTuple

import pytest
import structlog

from neuronetz.access.keys import generate
from tests.hostile.wire import asked_upstream, converse

BODY = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "rivers"}], "stream": False}).encode()
LENGTH = f"Content-Length: {len(BODY)}".encode()
CHUNKED = b"Transfer-Encoding: chunked"
# It stands for the test's own key, and is as long.
KEY = generate().text.encode()
AUTH = b"Authorization: Bearer " + KEY
TAGS = b"GET /api/tags HTTP/1.1\r\nHost: g\r\n" + AUTH + b"\r\n\r\n"
NOBODYS = b"GET /api/tags HTTP/1.1\r\nHost: g\r\n\r\n"


def post(
    *headers: bytes, body: bytes = BODY, line: bytes = b"POST /api/chat HTTP/1.1", auth: bytes = AUTH
) -> bytes:
    return b"\r\n".join([line, b"Host: g", auth, *headers, b"", body])


def get(target: bytes, *headers: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([b" ".join([method, target, version]), b"Host: g", AUTH, *headers, b"", b""])


def chunked(body: bytes, *headers: bytes) -> bytes:
    return post(CHUNKED, *headers, body=body)


def chunk(data: bytes, head: bytes | None = None) -> bytes:
    return (b"%x" % len(data) if head is None else head) + b"\r\n" + data + b"\r\n"


class Case(NamedTuple):
    """``asked``: requests that run a model. ``closed``: the server closes; else the connection goes on."""

    name: str
    data: bytes
    statuses: tuple[int, ...]
    rows: int = 0
    asked: int = 0
    closed: bool = True


def refused(name: str, data: bytes, status: int = 400) -> Case:
    """Not even authenticated; what follows it is not read."""
    return Case(name, data + TAGS, (status,))


def served(name: str, data: bytes) -> Case:
    """The model ran once, and the connection goes on."""
    return Case(name, data, (200,), rows=1, asked=1, closed=False)


N = len(BODY)
HEX = b"%x" % N

LENGTHS = [
    refused("a length twice", post(LENGTH, LENGTH)),
    refused("two lengths", post(LENGTH, b"Content-Length: 5")),
    refused("two lengths, the other first", post(b"Content-Length: 0", LENGTH)),
    refused("a list of equal lengths", post(b"Content-Length: %d, %d" % (N, N))),
    refused("a list of lengths", post(b"Content-Length: 0, %d" % N)),
    refused("a list with an empty item", post(LENGTH + b",")),
    refused("a length with a plus", post(b"Content-Length: +%d" % N)),
    refused("a negative length", post(b"Content-Length: -1")),
    refused("a length in hex", post(b"Content-Length: 0x" + HEX)),
    refused("a length with an underscore", post(b"Content-Length: 1_0")),
    refused("a length with a space in it", post(b"Content-Length: 1 0")),
    refused("a length with a fraction", post(b"Content-Length: %d.0" % N)),
    refused("an empty length", post(b"Content-Length:")),
    refused("a length in other digits", post("Content-Length: \u0665".encode())),
    refused("a length of five thousand digits", post(b"Content-Length: " + b"9" * 5000)),
    refused("a length and chunks", chunked(chunk(BODY) + b"0\r\n\r\n", LENGTH)),
    refused("chunks and a length", post(LENGTH, CHUNKED, body=b"0\r\n\r\n")),
    refused(
        "a length of nothing and chunks", post(b"content-length: 0", CHUNKED, body=chunk(BODY) + b"0\r\n\r\n")
    ),
    refused("chunks twice", chunked(b"0\r\n\r\n", CHUNKED)),
    refused("chunks and identity", post(CHUNKED + b", identity", body=b"0\r\n\r\n")),
    refused("identity and chunks", post(b"Transfer-Encoding: identity", CHUNKED, body=b"0\r\n\r\n")),
    refused("chunks, chunked", post(CHUNKED + b", chunked", body=b"0\r\n\r\n")),
    refused("chunks with a parameter", post(CHUNKED + b";q=1", body=b"0\r\n\r\n"), 501),
    refused("another coding", post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 501),
    refused("identity", post(b"Transfer-Encoding: identity"), 501),
    refused("no coding", post(b"Transfer-Encoding:"), 501),
    refused("a quoted coding", post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"), 501),
    refused("a coding behind a vertical tab", post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n")),
    refused("chunks in HTTP/1.0", post(CHUNKED, body=b"0\r\n\r\n", line=b"POST /api/chat HTTP/1.0")),
    served("a length behind spaces", post(b"Content-Length:  %d " % N)),
    served("a length with leading zeros", post(b"Content-Length: 00%d" % N)),
    served("chunks in other case", post(b"transfer-ENCODING: Chunked", body=chunk(BODY) + b"0\r\n\r\n")),
    served("an underscore for the hyphen", post(b"Transfer_Encoding: chunked", LENGTH)),
    Case("a length beyond the bound", post(b"Content-Length: " + b"9" * 18) + TAGS, (413,), rows=1),
    Case("the longest length", post(b"Content-Length: " + b"9" * 20) + TAGS, (413,), rows=1),
]

LINES = [
    refused("a fold", post(b"X: a\r\n b", LENGTH)),
    refused("a fold that hides a coding", post(b"X: a\r\n Transfer-Encoding: chunked", LENGTH)),
    refused("a folded coding", post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n")),
    refused("a fold with a tab", post(b"Transfer-Encoding:\r\n\tchunked", LENGTH)),
    refused("a fold at the start", b"GET /api/tags HTTP/1.1\r\n Host: g\r\n\r\n"),
    refused("bare line feeds", post(LENGTH).replace(b"\r\n", b"\n")),
    refused("a bare line feed", post(b"X: a\nTransfer-Encoding: chunked", LENGTH)),
    refused("a bare line feed in the request line", b"GET /api/tags HTTP/1.1\nHost: g\r\n\r\n"),
    refused("a head that ends in bare line feeds", b"GET /api/tags HTTP/1.1\r\nHost: g\n\n"),
    refused("a bare carriage return", post(b"X: a\rTransfer-Encoding: chunked", LENGTH)),
    refused("two carriage returns", post(b"X: a\r", LENGTH)),
    refused("a space before the colon", post(b"Content-Length : %d" % N)),
    refused("a tab before the colon", post(b"Transfer-Encoding\t: chunked", body=b"0\r\n\r\n")),
    refused("a space in a name", post(b"Content Length: 3", LENGTH)),
    refused("no name", post(b": 3", LENGTH)),
    refused("no colon", post(b"Content-Length", LENGTH)),
    refused("NUL in a name", post(b"X\x00: a", LENGTH)),
    refused("NUL in a value", post(b"X: a\x00b", LENGTH)),
    refused("a control character in a value", post(b"X: a\x01b", LENGTH)),
    refused("an escape in a value", post(b"X: \x1b[2J", LENGTH)),
    refused("a delete in a value", post(b"X: a\x7f", LENGTH)),
    refused("a vertical tab in a value", post(b"X: a\x0bb", LENGTH)),
    refused("a form feed as a line's end", post(b"X: a\x0cb", LENGTH)),
    refused("a name beyond ASCII", post("\u212aey: a".encode(), LENGTH)),
    served("a value beyond ASCII", post("X: \u00e4".encode(), LENGTH)),
    refused("no host", b"GET /api/tags HTTP/1.1\r\n" + AUTH + b"\r\n\r\n"),
    refused("two hosts", get(b"/api/tags", b"Host: h")),
    refused("an empty line first", b"\r\n" + get(b"/api/tags")),
    refused("more than the head may be", get(b"/api/tags", b"X: " + b"a" * 200_000), 431),
    refused("more headers than the head may hold", get(b"/api/tags", *[b"a: b"] * 40_000), 431),
    Case("as many headers as it may hold", get(b"/api/tags", *[b"a:"] * 10_000), (200,), rows=1, closed=False),
    Case("a key of sixty thousand letters", get(b"/api/tags").replace(KEY, b"k" * 60_000), (401,), closed=False),
]

REQUEST_LINES = [
    refused("HTTP/0.9", b"GET /api/tags\r\n\r\n"),
    refused("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    refused("a later version", get(b"/api/tags", version=b"HTTP/1.2"), 505),
    refused("no such version", get(b"/api/tags", version=b"HTTP/0.0"), 505),
    refused("a version in small letters", get(b"/api/tags", version=b"http/1.1")),
    refused("a version with more digits", get(b"/api/tags", version=b"HTTP/1.10")),
    refused("a hello of TLS", bytes.fromhex("1603010200010001fc0303") + b"\x00" * 300),
    refused("a hello of SSH", b"SSH-2.0-OpenSSH_9.9\r\n\r\n"),
    refused("two spaces", get(b" /api/tags")),
    refused("a tab for a space", b"GET\t/api/tags HTTP/1.1\r\nHost: g\r\n\r\n"),
    refused("something behind the version", get(b"/api/tags", version=b"HTTP/1.1 x")),
    refused("a method in small letters", get(b"/api/tags", method=b"get"), 501),
    refused("a space in the path", get(b"/api/ tags")),
    refused("NUL in the path", get(b"/api/tags\x00")),
    refused("a path beyond ASCII", get("/api/t\u00e4gs".encode())),
    refused("a path that is too long", get(b"/" + b"a" * 200_000), 431),
    Case("HTTP/1.0", get(b"/api/tags", version=b"HTTP/1.0") + TAGS, (200,), rows=1),
    Case("HTTP/1.0 without a host", b"GET /api/tags HTTP/1.0\r\n" + AUTH + b"\r\n\r\n", (200,), rows=1),
    Case("an absolute form", get(b"http://other/api/tags"), (200,), rows=1, closed=False),
    Case("an absolute form of a page", get(b"http://other/healthz"), (200,), closed=False),
    Case("an absolute form of what is blocked", get(b"http://g/api/pull"), (403,), rows=1, closed=False),
    Case("an absolute form with a user", get(b"http://api/pull@g/api/tags"), (404,), rows=1, closed=False),
    Case("an encoded scheme", get(b"http%3a//g/api/tags"), (404,), rows=1, closed=False),
    Case(
        "an encoded end of the host", get(b"http://g%2fapi%2ftags", method=b"POST"), (405,), rows=1, closed=False
    ),
    Case("an authority form", get(b"g:80", method=b"CONNECT"), (404,), rows=1, closed=False),
    Case("an asterisk", get(b"*", method=b"OPTIONS"), (404,), rows=1, closed=False),
    Case("no slash", get(b"api/tags"), (404,), rows=1, closed=False),
    Case("an unknown method", get(b"/api/tags", method=b"BREW"), (405,), rows=1, closed=False),
    Case("TRACE", get(b"/api/tags", method=b"TRACE"), (405,), rows=1, closed=False),
    Case(
        "a websocket",
        get(b"/api/tags", b"Upgrade: websocket", b"Connection: upgrade"),
        (200,),
        rows=1,
        closed=False,
    ),
]

CHUNKS = [
    served("an extension", chunked(chunk(BODY, HEX + b';a=b;c="d"') + b"0;e\r\n\r\n")),
    served("leading zeros", chunked(chunk(BODY, b"000" + HEX) + b"000\r\n\r\n")),
    served("chunks of one byte", chunked(b"".join(chunk(BODY[n : n + 1]) for n in range(N)) + b"0\r\n\r\n")),
    served("a trailer", chunked(chunk(BODY) + b"0\r\nX: y\r\nAuthorization: Bearer x\r\n\r\n")),
    *(
        Case(name, chunked(body) + TAGS, (400,), rows=1)
        for name, body in [
            ("a size with 0x", chunk(BODY, b"0x" + HEX)),
            ("a negative size", chunk(BODY, b"-1")),
            ("a size with a plus", chunk(BODY, b"+" + HEX)),
            ("no size", chunk(BODY, b"")),
            ("a size of thirty digits", chunk(BODY, b"f" * 30)),
            ("a size behind a space", chunk(BODY, b" " + HEX)),
            ("a space before an extension", chunk(BODY, HEX + b" ;a")),
            ("a chunk that is longer than its size", chunk(BODY + b"xx", HEX)),
            ("no line's end behind a chunk", HEX + b"\r\n" + BODY + b"0\r\n\r\n"),
            ("line feeds alone", chunk(BODY).replace(b"\r\n", b"\n") + b"0\n\n"),
            ("a line feed behind a size", HEX + b"\n" + BODY + b"\r\n0\r\n\r\n"),
            ("a line feed behind a chunk", HEX + b"\r\n" + BODY + b"\n0\r\n\r\n"),
            ("a line feed in an extension", chunk(BODY, HEX + b";\n0")),
            ("a carriage return in an extension", chunk(BODY, HEX + b";\r0")),
            ("NUL in an extension", chunk(BODY, HEX + b";\x00")),
            ("a line feed in the trailer", chunk(BODY) + b"0\r\nX: y\n\r\n"),
            ("a line feed for the trailer's end", chunk(BODY) + b"0\r\n\nX"),
            ("a folded trailer", chunk(BODY) + b"0\r\nX: y\r\n z\r\n\r\n"),
            ("lengths in the trailer", chunk(BODY) + b"0\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n"),
            ("a request for a trailer", chunk(BODY) + b"0\r\n" + TAGS),
        ]
    ),
    Case("a size beyond the bound", chunked(chunk(b"x" * 17_000_000, b"ffffffffffff")), (413,), rows=1),
]

EXPECT = b"Expect: 100-continue"
WRONG = b"Authorization: Bearer wrong"
PIPELINES = [
    Case("two", post(LENGTH) + TAGS, (200, 200), rows=2, asked=1, closed=False),
    Case(
        "chunks, then another",
        chunked(chunk(BODY) + b"0\r\n\r\n") + TAGS,
        (200, 200),
        rows=2,
        asked=1,
        closed=False,
    ),
    Case("a stranger, then a key", post(LENGTH, auth=WRONG) + TAGS, (401, 200), rows=1, closed=False),
    Case("a key, then a stranger", post(LENGTH) + NOBODYS, (200, 401), rows=1, asked=1, closed=False),
    Case("a blocked one, then a stranger", get(b"/api/pull") + NOBODYS, (403, 401), rows=1, closed=False),
    Case(
        "a request in the body of a read",
        post(b"Content-Length: %d" % len(TAGS), line=b"GET /api/tags HTTP/1.1", body=TAGS),
        (200,),
        rows=1,
        closed=False,
    ),
    Case(
        "a request in the body of a page",
        post(b"Content-Length: %d" % len(TAGS), line=b"GET / HTTP/1.1", body=TAGS),
        (200,),
        closed=False,
    ),
    Case(
        "a request in a refused body",
        post(b"Content-Length: %d" % len(TAGS), auth=WRONG, body=TAGS),
        (401,),
        closed=False,
    ),
    Case(
        "a request in a body of another coding",
        post(b"Content-Length: %d" % len(TAGS), b"Content-Encoding: gzip", body=TAGS),
        (415,),
        rows=1,
        closed=False,
    ),
    Case("what is too large, then another", post(b"Content-Length: 99999999") + TAGS, (413,), rows=1),
    Case("one that closes, then another", post(LENGTH, b"Connection: close") + TAGS, (200,), rows=1, asked=1),
    Case("one, then nonsense", TAGS + b"\x00" + TAGS, (200, 400), rows=1),
    Case("one, then an ambiguous one", TAGS + post(LENGTH, CHUNKED), (200, 400), rows=1),
    Case("an expectation", post(LENGTH, EXPECT), (100, 200), rows=1, asked=1, closed=False),
    Case(
        "a stranger's expectation", post(LENGTH, EXPECT, auth=WRONG) + TAGS, (100, 401, 200), rows=1, closed=False
    ),
    Case(
        "an expectation of what is too large",
        post(b"Content-Length: 99999999", EXPECT, body=b""),
        (100, 413),
        rows=1,
    ),
    Case("two keys", post(LENGTH, AUTH), (401,), closed=False),
    Case("two kinds of keys", post(LENGTH, b"x-api-key: wrong"), (200,), rows=1, asked=1, closed=False),
    Case(
        "two keys of the other kind",
        get(b"/api/tags", b"x-api-key: " + KEY, b"x-api-key: " + KEY).replace(AUTH + b"\r\n", b""),
        (401,),
        closed=False,
    ),
]

PATHS = [
    Case(f"{method} {path}", get(path.encode(), method=method.encode()), (status,), rows=rows, closed=False)
    for method, path, status, rows in [
        ("POST", "/api/pull", 403, 1),
        ("POST", "/api%2fpull", 403, 1),
        ("POST", "/api/p%75ll", 403, 1),
        ("POST", "/api/pull?x=/api/chat", 403, 1),
        ("POST", "/api/%2e%2e/pull", 404, 1),
        ("POST", "/api/../api/pull", 404, 1),
        ("POST", "/api/chat/../pull", 404, 1),
        ("POST", "/api/./pull", 404, 1),
        ("POST", "//api/pull", 404, 1),
        ("POST", "/api//pull", 404, 1),
        ("POST", "/api/pull/", 404, 1),
        ("POST", "/api/pull%00", 404, 1),
        ("POST", "/api/pull%0d%0aX:%20y", 404, 1),
        ("POST", "/api/pull%20", 404, 1),
        ("POST", "/api/pull;x", 404, 1),
        ("POST", "/api/pull#x", 404, 1),
        ("POST", "/api%252fpull", 404, 1),
        ("POST", "/api\\pull", 404, 1),
        ("POST", "/api/%c0%ae%c0%ae/pull", 404, 1),
        ("POST", "/api/chat/", 404, 1),
        ("POST", "/API/CHAT", 404, 1),
        ("POST", "/api/chat%ff", 404, 1),
        ("DELETE", "/api/blobs/..%2f..%2fapi%2fdelete", 403, 1),
        ("GET", "/v1/models/..%2f..%2fapi%2fpull", 403, 1),
        ("GET", "/v1/models/../../api/pull", 403, 1),
        ("GET", "/v1/models/%00", 403, 1),
        ("GET", "/v1/models/" + "a" * 50_000, 403, 1),
        ("GET", "/v1/models/", 404, 1),
        ("GET", "/healthz/", 404, 1),
        ("GET", "/%", 404, 1),
        ("GET", "/api/tags?" + "a=b&" * 10_000, 200, 1),
        ("GET", "/healthz?x=%00", 200, 0),
    ]
]

CASES = [*LENGTHS, *LINES, *REQUEST_LINES, *CHUNKS, *PIPELINES, *PATHS]


@pytest.mark.parametrize("case", CASES, ids=[case.name[:60] for case in CASES])
async def test_a_hostile_request_is_read_in_one_way_or_not_at_all(
    gateway: Any, mock_ollama: Any, key: str, books: Any, caplog: pytest.LogCaptureFixture, case: Case
) -> None:
    with structlog.testing.capture_logs() as logs:
        data = case.data.replace(KEY, key.encode())
        heard = await converse(gateway, data, closed=case.closed, replies=len(case.statuses))
    assert (heard.statuses, heard.closed) == (case.statuses, case.closed)
    await books.rows(case.rows)
    await books.settled()
    assert asked_upstream(mock_ollama) == case.asked
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert key.encode() not in heard.text
