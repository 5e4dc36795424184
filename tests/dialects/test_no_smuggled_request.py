"""G10: whatever body is accepted, Ollama reads from what is sent exactly what was checked.

Ollama decodes with Go's ``encoding/json``. The model of it here: a key means the field whose name it
equals when both are folded, and the last one wins.
"""

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.calls import ENDPOINTS, parse_call

Shape = dict[str, Any]

PROPERTY: Shape = dict.fromkeys(["anyOf", "type", "items", "description", "enum", "properties", "required"])
PARAMETERS: Shape = {"type": None, "$defs": None, "items": None, "required": None, "properties": {"*": PROPERTY}}
TOOL: Shape = {
    "type": None,
    "items": None,
    "function": {"name": None, "description": None, "parameters": PARAMETERS},
}
TOOL_CALL: Shape = {"id": None, "function": {"index": None, "name": None, "arguments": None}}
MESSAGE: Shape = {
    "role": None,
    "content": None,
    "thinking": None,
    "images": None,
    "tool_calls": [TOOL_CALL],
    "tool_name": None,
    "tool_call_id": None,
}
CHAT: Shape = {
    "model": None,
    "messages": [MESSAGE],
    "stream": None,
    "format": None,
    "keep_alive": None,
    "tools": [TOOL],
    "options": None,
    "think": None,
    "truncate": None,
    "shift": None,
    "_debug_render_only": None,
    "logprobs": None,
    "top_logprobs": None,
}


def go_fold(key: str) -> str:
    def rune(character: str) -> str:
        if character == "\N{KELVIN SIGN}":
            return "k"
        if character == "\N{LATIN SMALL LETTER LONG S}":
            return "s"
        return character.lower() if character.isascii() else character

    return "".join(map(rune, key))


def go_read(value: Any, shape: Any) -> Any:
    """What Go's decoder makes of a value: fields by their folded names, unknown ones ignored."""
    if isinstance(shape, list):
        return [go_read(item, shape[0]) for item in value]
    if not isinstance(shape, dict):
        return value
    if "*" in shape:
        return {key: go_read(item, shape["*"]) for key, item in value.items()}
    names = {go_fold(name): name for name in shape}
    read: dict[str, Any] = {}
    for key, item in value.items():
        name = names.get(go_fold(key))
        if name is not None and item is not None:
            read[name] = go_read(item, shape[name])
    return read


def spelled(name: str) -> st.SearchStrategy[str]:
    """Mostly the name itself; sometimes a key that Go takes for it, or nearly so."""
    odd = [name.upper(), name.title(), name.replace("k", "\u212a"), name.replace("s", "\u017f"), name + "_", "x"]
    return st.sampled_from([name] * 60 + odd)


@st.composite
def objects(draw: st.DrawFn, fields: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    names = draw(st.permutations(list(fields)))
    chosen = draw(st.integers(0, len(names)))
    made = {}
    for name in names[:chosen]:
        made[draw(spelled(name))] = draw(st.none() | fields[name] | fields[name])
    return made


scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text(max_size=5)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["model", "MODEL", "a"]), inner),
    max_leaves=5,
)
maps = st.dictionaries(st.sampled_from(["model", "Model", "type", "TYPE", "z", "a"]), anything, max_size=4)
texts = st.text(max_size=8)
properties = st.deferred(
    lambda: st.dictionaries(
        st.sampled_from(["type", "Type", "properties", "b", "a"]),
        objects(
            {
                "type": texts | st.lists(texts, max_size=2),
                "description": texts,
                "items": anything,
                "enum": st.lists(scalars, max_size=2),
                "required": st.lists(texts, max_size=2),
            }
        ),
        max_size=3,
    )
)
tools = objects(
    {
        "type": texts,
        "function": objects(
            {
                "name": texts,
                "description": texts,
                "parameters": objects({"type": texts, "$defs": anything, "properties": properties}),
            }
        ),
    }
)
messages = objects(
    {
        "content": texts,
        "thinking": texts,
        "tool_calls": st.lists(
            objects({"id": texts, "function": objects({"name": texts, "arguments": maps})}), max_size=2
        ),
        "tool_name": texts,
        "images": st.lists(st.sampled_from(["AAAA", "AA=="]), max_size=2),
    }
).map(lambda message: {"role": "user", **message})
chats = objects(
    {
        "messages": st.lists(messages, max_size=3),
        "stream": st.booleans(),
        "format": st.sampled_from(["json", ""]) | maps,
        "keep_alive": st.integers(1, 100) | st.sampled_from(["5m", "1h", "-1s"]),
        "tools": st.lists(tools, max_size=2),
        "options": st.fixed_dictionaries(
            {},
            optional={
                "seed": st.integers(0, 9),
                "Seed": scalars,
                "num_gpu": scalars,
                "num_ctx": st.integers(1, 9),
            },
        ),
        "think": st.booleans(),
        "logprobs": st.booleans(),
        "top_logprobs": st.integers(0, 20),
        "_debug_render_only": st.just(True),
    }
).map(lambda body: {"model": "asked", **body})

POLICY = BodyPolicy()


@settings(max_examples=200, deadline=None)
@given(chats)
def test_ollama_reads_exactly_what_was_checked(body: dict[str, Any]) -> None:
    call = parse_call("/api/chat", json.dumps(body).encode(), POLICY)
    if call.problem is not None:
        return
    sent = msgspec.json.decode(call.upstream_body("installed", 5), type=dict[str, Any])
    seen = go_read(sent, CHAT)
    assert seen == sent
    assert "_debug_render_only" not in seen
    assert seen.pop("model") == "installed"
    assert seen.pop("stream") is call.stream
    assert seen.pop("options") == {**call.body.get("options", {}), "num_predict": 5}
    assert seen == {name: value for name, value in call.body.items() if name != "options"}


@settings(max_examples=200, deadline=None)
@given(chats)
def test_what_is_sent_means_what_the_client_said(body: dict[str, Any]) -> None:
    call = parse_call("/api/chat", json.dumps(body).encode(), POLICY)
    if call.problem is not None:
        return
    sent = msgspec.json.decode(call.upstream_body("installed", None), type=dict[str, Any])
    said, meant = go_read(body, CHAT), go_read(sent, CHAT)
    for name in ("messages", "tools", "think", "logprobs", "top_logprobs"):
        assert json.dumps(meant.get(name)) == json.dumps(said.get(name))


@settings(max_examples=200, deadline=None)
@given(chats, st.sampled_from(sorted(CHAT.keys() - {"_debug_render_only"})), st.integers(1, 2**20 - 1))
def test_no_other_spelling_of_a_field_is_ever_accepted(body: dict[str, Any], name: str, mask: int) -> None:
    variants = {"k": "\u212a", "s": "\u017f"}
    key = "".join(
        (variants.get(letter, letter.upper()) if mask >> place & 1 else letter)
        for place, letter in enumerate(name)
    )
    if key == name:
        return
    assert parse_call("/api/chat", json.dumps({**body, key: None}).encode(), POLICY).problem is not None


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60) | anything.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(ENDPOINTS),
)
def test_no_body_makes_parsing_raise(data: bytes, endpoint: str) -> None:
    call = parse_call(endpoint, data, POLICY)
    assert call.problem is not None or call.upstream_body("m", None)
