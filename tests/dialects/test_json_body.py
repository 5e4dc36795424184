"""A body is read strictly, and hostile ones quickly."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.dialects.json_body import read, values_in
from neuronetz.errors import InvalidRequest

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), values, max_size=5), st.booleans())
def test_what_json_can_say_is_read_as_it_is(value: dict[str, Any], ascii_only: bool) -> None:
    assert read(json.dumps(value, ensure_ascii=ascii_only).encode(), max_depth=64) == value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "missing request body"),
        (b" ", "body is not valid JSON"),
        (b"{", "body is not valid JSON"),
        (b"{'a': 1}", "body is not valid JSON"),
        (b'{"a": 1,}', "body is not valid JSON"),
        (b'{"a": "\x00"}', "body is not valid JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "body is not valid JSON"),
        (b'{"a": "\xff"}', "body is not valid UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "body is not valid UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "body is not valid UTF-8"),
        ('{"a": 1}'.encode("utf-16-be"), "body is not valid JSON"),
        (b"[]", "body must be a JSON object"),
        (b'"text"', "body must be a JSON object"),
        (b"null", "body must be a JSON object"),
        (b"{} {}", "body holds more than one JSON value"),
        (b'{"a": 1} x', "body holds more than one JSON value"),
        (b'{"a": 1, "a": 2}', "body holds a duplicate key: a"),
        (b'{"a": 1, "\\u0061": 2}', "body holds a duplicate key: a"),
        (b'{"x": [{"b": {"a": 1, "a": 1}}]}', "body holds a duplicate key: a"),
        (b'{"\\n": 1, "\\n": 1}', "body holds a duplicate key"),
        (b'{"a": NaN}', "body is not valid JSON: NaN and Infinity are no numbers"),
        (b'{"a": -Infinity}', "body is not valid JSON: NaN and Infinity are no numbers"),
        (b'{"a": 9223372036854775808}', "body holds an integer beyond 64 bits"),
        (b'{"a": -9223372036854775809}', "body holds an integer beyond 64 bits"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "body holds an integer beyond 64 bits"),
        (b'{"a": 1e400}', "body holds a number out of range"),
        (b'{"a": "\\ud800"}', "body holds half of a surrogate pair"),
        (b'{"a": ["\\uDE00 \\uD83D"]}', "body holds half of a surrogate pair"),
        (b'{"\\uD800": 1}', "body holds half of a surrogate pair"),
    ],
)
def test_what_readers_could_take_differently_is_refused_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(data, max_depth=64)
    assert refused.value.message == reason


@pytest.mark.parametrize("text", [b"\\u0000", b"\\ud83d\\ude00", "\U0001f600".encode(), b"\\\\ud800", b"\\u00e9"])
def test_unusual_text_passes(text: bytes) -> None:
    assert read(b'{"a": "' + text + b'"}', max_depth=64)


@pytest.mark.parametrize("depth", [1, 2, 3, 64, 900, 5000, 200_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_the_depth_limit_is_exact(depth: int, opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    data = b'{"a":' + opening * (depth - 1) + b"1" + closing * (depth - 1) + b"}"
    if depth <= 64:
        assert read(data, max_depth=64)
        with pytest.raises(InvalidRequest, match="nested"):
            read(data, max_depth=depth - 1)
    else:
        with pytest.raises(InvalidRequest, match="nested"):
            read(data, max_depth=64)


def test_brackets_in_text_are_no_depth() -> None:
    assert read(json.dumps({"a": "[{" * 1000}).encode(), max_depth=2)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 2**24,
        b'{"a":' * 3_000_000,
        b'{"a":[' + b"[" * 2**24,
        b'{"a":' + b"1" * 2**24 + b"}",
        b'{"a":[' + b"1," * 2**23 + b"1]}",
        b'{"a":[' + b"{}," * 5_000_000 + b"1]}",
        b'{"a":"' + b'\\",' * 5_000_000,
        b'{"a":' + b'",\\' * 5_000_000,
        b'{"a":[' + b",".join([b"[" * 60 + b"]" * 60] * 130_000) + b"]}",
        b'{"a":[' + b",".join([b'{"a":' * 60 + b"1" + b"}" * 60] * 45_000) + b"]}",
        b'{"a":"' + b"," * 200_001 + b'"' + b'""' * 2**22,
    ],
    ids=[
        *("lists", "objects", "lists in an object", "digits", "numbers", "empty objects", "no end", "odd quotes"),
        *("few commas and many lists", "few commas and many objects", "empty texts"),
    ],
)
def test_sixteen_hostile_mebibytes_are_refused_quickly(data: bytes) -> None:
    started = time.process_time()
    with pytest.raises(InvalidRequest):
        read(data, max_depth=64)
    assert time.process_time() - started < 1.0


def test_commas_in_text_are_no_values_and_those_between_values_are_counted() -> None:
    body = {"a": ',",\\' * 100, "b": [1] * 10}
    assert read(json.dumps(body).encode(), max_depth=64, max_values=10) == body
    with pytest.raises(InvalidRequest, match="more than 9 values"):
        read(json.dumps(body).encode(), max_depth=64, max_values=9)


def test_containers_are_counted_where_few_commas_part_them() -> None:
    body = {"[{": [[[{"a": {}}]]], "b": "[{" * 100}
    assert read(json.dumps(body).encode(), max_depth=64, max_values=6) == body
    with pytest.raises(InvalidRequest, match="more than 5 values"):
        read(json.dumps(body).encode(), max_depth=64, max_values=5)


@given(st.dictionaries(st.text(), values, max_size=5), st.integers(0, 20))
def test_the_count_is_never_less_than_half_of_the_values(body: dict[str, object], most: int) -> None:
    counted = values_in(json.dumps(body).encode(), most)
    assert 2 * counted >= min(_values(body), most + 1)
    assert counted <= most or _values(body) >= most


def _values(value: object) -> int:
    """How many values there are below a value."""
    below = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return len(below) + sum(map(_values, below))
