"""Bodies that two JSON readers may read differently, or that cost more to read than to send, in every dialect."""

import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import structlog
import trio

from tests.hostile.wire import asked_upstream
from tests.patience import until
from tests.shapes import SHAPES, STREAMING, Shape

SHOW = "/api/show"
ENDPOINTS = [*sorted({shape.path for shape in SHAPES}), SHOW]

Make = Callable[[dict[str, Any]], bytes]


def written(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def with_first(member: bytes) -> Make:
    """The body with a member of the test's own before all others."""
    return lambda body: b"{" + member + b"," + written(body)[1:]


def behind(data: bytes) -> Make:
    return lambda body: written(body) + data


def model(name: str) -> Make:
    return lambda body: written({**body, "model": name})


def instead(data: bytes) -> Make:
    return lambda _: data


BODIES: list[tuple[str, int, Make]] = [
    ("as it should be", 200, written),
    ("white space around", 200, lambda body: b" \r\n\t" + written(body) + b"\n "),
    ("nothing", 400, instead(b"")),
    ("white space alone", 400, instead(b" \n ")),
    ("null", 400, instead(b"null")),
    ("a list", 400, lambda body: b"[" + written(body) + b"]"),
    ("a string", 400, lambda body: json.dumps(json.dumps(body)).encode()),
    ("NUL first", 400, lambda body: b"\x00" + written(body)),
    ("NUL behind", 400, behind(b"\x00")),
    ("NUL in a string", 400, with_first(b'"x":"\x00"')),
    ("a newline in a string", 400, with_first(b'"x":"\n"')),
    ("an escaped NUL in what is unknown", 200, with_first(b'"x\\u0000":"\\u0000"')),
    ("another object behind", 400, behind(b'{"model":"other"}')),
    ("another line behind", 400, behind(b'\n{"model":"other"}\n')),
    ("a bracket behind", 400, behind(b"]")),
    ("a comma behind", 400, behind(b",")),
    ("a comma at the end", 400, lambda body: written(body)[:-1] + b",}"),
    ("a comment", 400, with_first(b"/* x */")),
    ("single quotes", 400, lambda body: written(body).replace(b'"', b"'")),
    ("a mark of UTF-8", 400, lambda body: b"\xef\xbb\xbf" + written(body)),
    ("UTF-16", 400, lambda body: json.dumps(body).encode("utf-16")),
    ("UTF-16 without a mark", 400, lambda body: json.dumps(body).encode("utf-16-le")),
    ("UTF-32", 400, lambda body: json.dumps(body).encode("utf-32")),
    ("no UTF-8", 400, with_first(b'"x":"\xff"')),
    ("an overlong slash", 400, with_first(b'"x":"\xc0\xaf"')),
    ("half a pair in UTF-8", 400, with_first(b'"x":"\xed\xa0\x80"')),
    ("half a pair", 400, with_first(b'"x":"\\ud800"')),
    ("the other half", 400, with_first(b'"x":"\\uDC00y"')),
    ("half a pair in a key", 400, with_first(b'"\\ud800":1')),
    ("a pair", 200, with_first(b'"x":"\\ud83d\\ude00"')),
    ("1e400", 400, with_first(b'"x":1e400')),
    ("-1e400", 400, with_first(b'"x":-1e400')),
    ("1e-400", 200, with_first(b'"x":1e-400')),
    ("NaN", 400, with_first(b'"x":NaN')),
    ("Infinity", 400, with_first(b'"x":-Infinity')),
    ("2**63", 400, with_first(b'"x":9223372036854775808')),
    ("a million digits", 400, with_first(b'"x":' + b"9" * 1_000_000)),
    ("a million digits of a fraction", 200, with_first(b'"x":0.' + b"9" * 1_000_000)),
    ("a million zeros and a point", 400, with_first(b'"x":1' + b"0" * 1_000_000 + b".5")),
    ("an exponent of a million digits", 400, with_first(b'"x":1e' + b"9" * 1_000_000)),
    ("a leading zero", 400, with_first(b'"x":01')),
    ("a plus", 400, with_first(b'"x":+1')),
    ("hex", 400, with_first(b'"x":0x1')),
    ("deep lists", 400, with_first(b'"x":' + b"[" * 100_000 + b"]" * 100_000)),
    ("deep objects", 400, with_first(b'"x":' + b'{"x":' * 100_000 + b"1" + b"}" * 100_000)),
    ("deep and open", 400, lambda body: written(body)[:-1] + b',"x":' + b"[" * 1_000_000),
    ("a model twice", 400, with_first(b'"model":"tiny"')),
    ("another model first", 400, with_first(b'"model":"other"')),
    ("a model twice, once escaped", 400, with_first(b'"m\\u006fdel":"other"')),
    ("a model twice, once null", 400, with_first(b'"model":null')),
    ("a key twice, deep", 400, with_first(b'"x":[{"a":1,"a":1}]')),
    ("a million keys", 400, with_first(b",".join(b'"%d":0' % n for n in range(1_000_000)))),
    ("a million times one key", 400, with_first(b",".join([b'"x":0'] * 1_000_000))),
    ("a million empty lists", 400, with_first(b'"x":[' + b",".join([b"[]"] * 1_000_000) + b"]")),
    ("a hundred thousand keys", 200, with_first(b",".join(b'"%d":0' % n for n in range(100_000)))),
    ("a million commas in a string", 200, with_first(b'"x":"' + b"," * 1_000_000 + b'"')),
    ("a million quotes in a string", 200, with_first(b'"x":"' + b'\\"' * 1_000_000 + b'"')),
    ("a string that does not end", 400, lambda body: written(body)[:-1] + b',"x":"' + b'\\"' * 1_000_000),
    ("a Model too", 400, with_first(b'"Model":"other"')),
    ("a MODEL too", 400, with_first(b'"MODEL":null')),
    ("a model in wide letters too", 200, with_first('"\uff4dodel":"other"'.encode())),
    ("a model in Cyrillic too", 200, with_first('"m\u043edel":"other"'.encode())),
    ("a Cyrillic model", 403, model("t\u0456ny")),
    ("a model in wide letters", 403, model("\uff54\uff49\uff4e\uff59")),
    ("a model with an accent", 403, model("tin\u0301y")),
    ("a model with a dotless i", 403, model("t\u0131ny")),
    ("a model and a mark of direction", 400, model("tiny\u200f")),
    ("a model that is overridden", 400, model("\u202eynit")),
    ("a model and a space without width", 400, model("ti\u200bny")),
    ("a model and NUL", 400, model("tiny\x00")),
    ("a model on two lines", 400, model("tiny\nother")),
    ("a model and half a pair", 400, model("tiny\ud800")),
    ("a model of a million letters", 400, model("t" * 1_000_000)),
    ("a model with a path", 403, model("../../tiny")),
    ("a model elsewhere", 403, model("http://127.0.0.1/tiny")),
    ("a model by digest", 403, model("tiny@sha256:" + "0" * 64)),
    ("no model", 400, model("")),
    ("a model of spaces", 400, model("\u00a0\u2003")),
    ("a model that is a list", 400, lambda body: written({**body, "model": ["tiny"]})),
    ("a model that is an object", 400, lambda body: written({**body, "model": {"model": "tiny"}})),
]


def folded_fields(path: str) -> list[tuple[str, int, Make]]:
    """A field of the endpoint's own, spelled as Go's decoder takes it, with the long s and the Kelvin sign."""
    other = {SHOW: "verbose", "/v1/embeddings": "dimensions"}.get(path, "options")
    fields = ["stream"] if path in STREAMING else [other]
    fields += ["keep_alive"] if path.startswith("/api/") and path != SHOW else []
    return [
        (f"{field} as {odd!r}", 400, with_first(f'"{odd}":null'.encode()))
        for field in fields
        for odd in (field.replace("s", "\u017f", 1).replace("k", "\u212a"), field.upper())
    ]


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_a_hostile_body_is_read_as_ollama_would_or_refused(
    gateway: Any,
    client: httpx.AsyncClient,
    mock_ollama: Any,
    books: Any,
    caplog: pytest.LogCaptureFixture,
    path: str,
) -> None:
    good = {"model": "tiny"} if path == SHOW else Shape(path, False).body("rivers")
    bodies = [*BODIES, *folded_fields(path)]
    wrong = []
    with structlog.testing.capture_logs() as logs:
        for name, status, make in bodies:
            began = trio.current_time()
            reply = await client.post(path, content=make(good))
            took = trio.current_time() - began
            if reply.status_code != status or "\n" in reply.text.strip() or took > 5:
                wrong.append((name, reply.status_code, reply.text[:100], took))
    assert wrong == []
    await client.aclose()
    await until(lambda: gateway.connections == 0, 3)
    await books.rows(len(bodies))
    await books.settled()
    runs = 0 if path == SHOW else sum(status == 200 for _, status, _ in bodies)
    assert asked_upstream(mock_ollama) == runs
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
