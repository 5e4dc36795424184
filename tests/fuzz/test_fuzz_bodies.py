"""Whatever body comes: it is refused, or what is sent for it means one thing, to Ollama as to us."""

import json
import time
from typing import Any

import msgspec
from hypothesis import strategies as st

from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.calls import parse_call
from neuronetz.dialects.native_call import NativeCall
from neuronetz.dialects.ollama_fields import bodies
from neuronetz.embedded.mock_requests import check_options, read_body
from tests.fuzz.examples import fuzzed, mangled
from tests.shapes import SHAPES, Shape

POLICY = BodyPolicy()
PREDICT = 7
PATHS = [*sorted({shape.path for shape in SHAPES}), "/api/show"]

# Processor time (seconds) that any body may take, and what each of its bytes adds.
AT_MOST_S, AT_MOST_S_PER_BYTE = 0.2, 2e-5

_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":"\\ud83d"}'}}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
_PARTS = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:;base64,AAAA"}}]
_BLOCKS = [
    {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "a"}]},
    {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
]
_ITEMS = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "a"},
]
# What a field may be given besides what the seeds hold, wherever it stands.
_MEMBERS: dict[str, list[Any]] = {
    "options": [
        {"num_predict": 99, "num_ctx": 10**6, "stop": ["a"], "seed": 2**53, "Temperature": 1, "temperature": 1e39}
    ],
    "keep_alive": ["5m", 0, -1, "1h", "0.1ns", "9" * 60 + "h"],
    "format": ["json", {"type": "object"}, ""],
    "think": [True, "low", "x"],
    "tools": [[_TOOL], [{"type": "function", "name": "f", "parameters": {}}], [{"name": "f", "input_schema": {}}]],
    "tool_choice": ["none", "auto"],
    "tool_calls": [[_CALL], [{"function": {"name": "f", "arguments": {"A": 1, "a": 2}}}]],
    "content": [_PARTS, _BLOCKS, [], "a", None],
    "messages": [
        [{"role": "assistant", "content": None, "tool_calls": [_CALL]}, {"role": "TOOL", "content": "a"}]
    ],
    "input": [_ITEMS, ["a", "b"], [], ""],
    "system": ["a", [{"type": "text", "text": "a"}]],
    "stop": ["a", ["a", "b"], [], [1]],
    "max_tokens": [1, 0, -1, 2**31],
    "max_completion_tokens": [9],
    "max_output_tokens": [9],
    "response_format": [
        {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
        {"type": "JSON_object"},
    ],
    "reasoning": [{"effort": "high"}, {}, "a"],
    "images": [["AAAA"], ["AA\n=="], ["!"]],
    "stream_options": [{"include_usage": True}],
    "temperature": [0, 1.5, -1e38, "hot"],
    "top_logprobs": [3, 20.0, 21],
    "role": ["system", "developer", "tool", "USER", " ", "\u212a"],
    "name": ["f", "other"],
    "x": [{"model": "other"}],
}

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["tiny", "user", "{}", '{"a": "\\ud800"}', "\ud800", "\x00", "a" * 300, "json"])
)
_anything = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(_MEMBERS)), inner, max_size=3)
    ),
    max_leaves=6,
)


def _spelled(name: str) -> st.SearchStrategy[str]:
    odd = [name.upper(), name.replace("k", "\u212a"), name.replace("s", "\u017f"), name.title(), f"{name} "]
    return st.sampled_from([name] * 20 + odd)


@st.composite
def _altered(draw: st.DrawFn, value: Any, left: int = 3) -> Any:
    """A JSON value with some members exchanged, added, misspelled or left out, at any depth."""
    if isinstance(value, list):
        items = [draw(_altered(item, left)) for item in value]
        return draw(st.sampled_from([items] * 8 + [items * 2, []]))
    if not isinstance(value, dict):
        return draw(_anything) if draw(st.integers(0, 11)) == 0 else value
    changed = {
        draw(_spelled(name)): draw(_altered(item, left))
        for name, item in value.items()
        if draw(st.integers(0, 30))
    }
    for _ in range(draw(st.integers(0, left))):
        name = draw(st.sampled_from(sorted(_MEMBERS)))
        plain = draw(st.sampled_from(_MEMBERS[name]))
        changed[draw(_spelled(name))] = draw(_altered(plain, 0) | st.just(plain) | st.just(plain) | _anything)
    return changed


def _seed(path: str) -> dict[str, Any]:
    return {"model": "tiny"} if path == "/api/show" else Shape(path, False).body("rivers")


@st.composite
def _calls(draw: st.DrawFn) -> tuple[str, bytes]:
    path = draw(st.sampled_from(PATHS))
    body = json.dumps(draw(_altered(_seed(path)))).encode()
    return path, draw(st.just(body) | st.just(body) | mangled(st.just(body)))


@fuzzed(drawn=_calls())
def test_a_body_is_refused_or_sent_with_one_meaning(drawn: tuple[str, bytes]) -> None:
    path, data = drawn
    _hold(path, data)


@fuzzed(path=st.sampled_from(PATHS), data=st.binary(max_size=300))
def test_bytes_at_random_are_refused_or_sent_with_one_meaning(path: str, data: bytes) -> None:
    _hold(path, data)


def _hold(path: str, data: bytes) -> None:
    began = time.thread_time()
    call = parse_call(path, data, POLICY)
    took = time.thread_time() - began
    assert took < AT_MOST_S + AT_MOST_S_PER_BYTE * len(data)
    assert call.prompt_estimate >= 0
    assert len(call.prompt_text(50).text.encode()) <= 50
    if call.problem is not None:
        assert "\n" not in call.problem.message
        return
    assert call.model is not None
    assert call.asked_predict is None or call.asked_predict >= 1
    for thinks in (True, False):
        _hold_sent(call, call.upstream_body("checked", PREDICT, thinks=thinks))


def _hold_sent(call: NativeCall, sent: bytes) -> None:
    """Ollama's reader and our own find in what is sent what was checked, and nothing else."""
    plain: dict[str, Any] = msgspec.json.decode(sent)
    known = bodies(POLICY)[call.kind]
    assert set(plain) <= set(known.fields)
    # What was checked once passes unchanged: nothing in it has a second spelling or is unknown.
    assert known(plain) == plain
    read = read_body(sent)
    assert read.fields == plain
    assert read.get("model") == "checked"
    check_options(read, thinks=True)
    if call.generates:
        assert read.get("stream") is call.stream
        assert read.predict == PREDICT
