"""OpenAI's embeddings as Ollama's, and back: the compatibility table, row by row."""

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronetz.dialects.call import Counts, ReplyState
from neuronetz.dialects.calls import parse_call
from neuronetz.errors import UpstreamFailed
from tests.dialects.openai_cases import POLICY, SECRET, call, drive, problem, read_again, sent

PATH = "/v1/embeddings"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "embed", "input": "one", **fields}


def test_the_least_request() -> None:
    assert sent(PATH, body()) == {"model": "installed:latest", "input": "one"}
    made = call(PATH, body(stream=True))
    assert (made.upstream_path, made.generates, made.stream) == ("/api/embed", False, False)


FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "input a list": ({"input": ["one", "two"]}, {"input": ["one", "two"]}),
    "input an empty string is a list of it": ({"input": ""}, {"input": [""]}),
    "input a list of an empty string": ({"input": [""]}, {"input": [""]}),
    "dimensions": ({"dimensions": 4}, {"dimensions": 4}),
    "dimensions 0 is absence": ({"dimensions": 0}, {}),
    "encoding_format is ours": ({"encoding_format": "base64"}, {}),
    "encoding_format in any case": ({"encoding_format": "Float"}, {}),
    "encoding_format empty": ({"encoding_format": ""}, {}),
    "accepted, not forwarded": ({"user": "u", "truncate": False, "keep_alive": 0}, {}),
    "null is absence": ({"dimensions": None, "encoding_format": None}, {}),
}


@pytest.mark.parametrize("row", FIELDS)
def test_a_field(row: str) -> None:
    given, native = FIELDS[row]
    assert sent(PATH, body(**given)) == {"model": "installed:latest", "input": "one", **native}


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "input absent": ({"model": "embed"}, "input", "invalid input"),
    "input null": (body(input=None), "input", "invalid input"),
    "input empty": (body(input=[]), "input", "invalid input"),
    "input of tokens": (body(input=[1, 2]), "input", "a list of strings"),
    "inputs of tokens": (body(input=[[1, 2]]), "input", "a list of strings"),
    "input a number": (body(input=1), "input", "a list of strings"),
    "encoding_format unknown": (body(encoding_format="int8"), "encoding_format", 'must be "float" or "base64"'),
    "dimensions below 0": (body(dimensions=-1), "dimensions", "must be from 0"),
    "model absent": ({"input": "one"}, "model", "model is required"),
    "another spelling": (body(INPUT="x"), "input", "spelled exactly"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_a_refusal(row: str) -> None:
    given, param, words = REFUSED[row]
    found = problem(PATH, given)
    assert (found.status, found.param) == (400, param)
    assert words in found.message


plain = st.text(st.characters(codec="utf-8"), max_size=5)
bodies = st.fixed_dictionaries(
    {"model": plain},
    optional={
        "input": plain | st.lists(plain | st.integers(), max_size=3) | st.none(),
        "dimensions": st.integers(-1, 9),
        "encoding_format": st.sampled_from(["float", "BASE64", "", "x", None]),
        "user": plain,
    },
)


@settings(max_examples=150, deadline=None)
@given(bodies)
def test_whatever_is_accepted_is_a_body_that_ollama_reads_as_it_stands(given_body: dict[str, Any]) -> None:
    made = parse_call(PATH, json.dumps(given_body).encode(), POLICY)
    if made.problem is not None:
        assert made.problem.status == 400
        return
    upstream = sent(PATH, given_body)
    assert {"model", "input"} <= set(upstream) <= {"model", "input", "dimensions"}
    assert read_again("/api/embed", upstream) == upstream


def answered(native: bytes, **fields: Any) -> Any:
    reading = call(PATH, body(**fields)).reply()
    found = drive(reading, [native])
    assert reading.state is ReplyState.FINISHED
    return json.loads(found)


def test_numbers_come_out_as_they_came() -> None:
    native = b'{"model":"m","embeddings":[[0.25,-2e-3,1],[ 1E+2 ,\n0]],"prompt_eval_count":8,"remote_host":"h"}'
    assert answered(native) == {
        "object": "list",
        "data": [
            {"object": "embedding", "embedding": [0.25, -2e-3, 1], "index": 0},
            {"object": "embedding", "embedding": [100.0, 0], "index": 1},
        ],
        "model": "embed",
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }


def test_no_embeddings_are_an_empty_list() -> None:
    assert answered(b'{"embeddings":[]}')["data"] == []


def test_usage_is_what_is_charged_where_the_count_is_left_out() -> None:
    reading = call(PATH, body()).reply()
    found = json.loads(drive(reading, [b'{"embeddings":[[1]]}']))
    assert reading.counts == Counts(found["usage"]["prompt_tokens"], 0, exact=False)
    assert reading.counts.prompt > 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5), max_size=3))
def test_base64_holds_the_same_numbers(vectors: list[list[float]]) -> None:
    native = json.dumps({"embeddings": vectors}).encode()
    told = answered(native, encoding_format="Base64")["data"]
    packed = [base64.b64decode(entry["embedding"], validate=True) for entry in told]
    assert packed == [struct.pack(f"<{len(vector)}f", *vector) for vector in vectors]
    assert [entry["embedding"] for entry in answered(native)["data"]] == vectors


BAD = [
    b"{}",
    b'{"embeddings":null}',
    b'{"embeddings":["' + SECRET.encode() + b'"]}',
    b'{"embeddings":[["' + SECRET.encode() + b'"]]}',
    b'{"embeddings":[[1],[null]]}',
    b'{"embeddings":[[true]]}',
    b'{"embeddings":[7]}',
    b'{"embeddings":[{"a":1}]}',
    b'{"embeddings":[[1,]]}',
    b'{"embeddings":[[1e]]}',
    b'{"embeddings":[[1]],"error":"' + SECRET.encode() + b'"}',
    b"<html>",
]


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("native", BAD)
def test_what_are_no_embeddings_is_a_failure(native: bytes, encoding: str) -> None:
    reading = call(PATH, body(encoding_format=encoding)).reply()
    assert drive(reading, [native]) == b""
    assert reading.state is ReplyState.FAILED
    error = {"message": "upstream failed", "type": "api_error", "param": None, "code": None}
    assert json.loads(reading.error_tail(UpstreamFailed())) == {"error": error}
