"""The values that the mock makes for a schema are allowed by it, and are the same each time."""

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.embedded.mock_schema import json_pieces, value_for

TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["children", "next"],
        }
    },
}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "quick"),
        ({"type": "integer"}, 7),
        ({"type": "number"}, 1.5),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": ["integer", "null"]}, 7),
        ({"type": "array", "items": {"type": "integer"}}, [7]),
        ({"items": {"type": "integer"}}, [7]),
        ({"type": "string", "enum": ["red", "green"]}, "red"),
        ({"const": None}, None),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, 7),
        ({"type": "object", "properties": {"a": {}, "b": {"type": "integer"}}, "required": ["b"]}, {"b": 7}),
        ({"properties": {"a": {}}, "required": ["c", "a"]}, {"c": "quick", "a": "quick"}),
        ({"type": "object"}, {}),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 5}}}, 5),
        ({}, "quick"),
        (True, "quick"),
        (None, "quick"),
    ],
)
def test_the_value_of_a_schema(schema: object, value: object) -> None:
    assert value_for(schema) == value


def test_a_schema_that_refers_to_itself_has_an_end() -> None:
    assert jsonschema_rs.is_valid(TREE, value_for(TREE))


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"$ref": 5},
        {"properties": {name: {"$ref": "#"} for name in "abcdefgh"}, "required": list("abcdefgh")},
        {"type": [], "enum": [], "anyOf": [], "required": 5, "properties": []},
        {"type": "object", "enum": 5, "anyOf": {"a": 1}, "required": [5, "a"], "properties": {"a": 5}},
        {"const": {"a": [1]}, "$defs": 5},
    ],
)
def test_a_schema_without_a_finite_or_a_clear_value_still_has_one(schema: object) -> None:
    assert len(json.dumps(value_for(schema))) < 100_000


_plain = st.sampled_from(["string", "integer", "number", "boolean", "null"]).map(lambda kind: {"type": kind})
_chosen = st.lists(st.integers() | st.text() | st.none(), min_size=1, max_size=3).map(lambda some: {"enum": some})
_named = st.just({"$ref": "#/$defs/named"})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    required = [*properties][::2]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return (
        inner.map(lambda items: {"type": "array", "items": items})
        | st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches})
        | st.dictionaries(st.text(max_size=5), inner, max_size=4).map(_object)
    )


@given(st.recursive(_plain | _chosen | _named, _nested, max_leaves=12), _plain | _chosen)
def test_the_value_is_allowed_and_its_json_is_split(schema: dict[str, Any], named: dict[str, Any]) -> None:
    whole = {**schema, "$defs": {"named": named}}
    value = value_for(whole)
    assert jsonschema_rs.is_valid(whole, value)
    assert value_for(whole) == value
    pieces = json_pieces(value)
    assert json.loads("".join(pieces)) == value
    assert all(0 < len(piece) <= 4 for piece in pieces)
    assert len(pieces) > 1 or len(pieces[0]) == 1
