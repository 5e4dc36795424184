"""Values that a JSON Schema allows, always the same ones: arguments of tool calls, and structured replies.

Known are ``type``, ``properties``, ``required``, ``enum``, ``const``, ``items``, ``anyOf``, ``oneOf`` and
``$ref`` into the schema itself; what else a schema demands is not heeded.
"""

import json
from typing import Any

# Where a schema refers to itself, its lists end here, and its choices turn to their last branch.
_DEEP = 6
# A schema without a finite value, or with far too large a one, gets a wrong one.
_DEEPEST = 32
_MOST_VALUES = 2_000

_PLAIN: dict[str, Any] = {"string": "quick", "integer": 7, "number": 1.5, "boolean": True, "null": None}


def value_for(schema: object) -> Any:
    """A value that the schema allows: an object's required properties alone, one item in a list."""
    return _Making(schema).value(schema, 0)


def json_pieces(value: Any) -> list[str]:
    """The value's JSON as tokens of at most four characters, two of them or more."""
    text = json.dumps(value)
    size = max(1, min(4, len(text) // 2))
    return [text[start : start + size] for start in range(0, len(text), size)]


class _Making:
    def __init__(self, root: object) -> None:
        self._root = root
        self._left = _MOST_VALUES

    def value(self, schema: object, depth: int) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            return {}
        if not isinstance(schema, dict):
            return _PLAIN["string"]
        if "$ref" in schema:
            return self.value(self._referred(schema["$ref"]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if allowed := _list(schema.get("enum")):
            return allowed[0]
        if branches := _list(schema.get("anyOf")) or _list(schema.get("oneOf")):
            return self.value(branches[-1 if depth > _DEEP else 0], depth + 1)
        kind = _kind(schema)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return [] if depth > _DEEP else [self.value(schema.get("items"), depth + 1)]
        return _PLAIN.get(kind, _PLAIN["string"])

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        known = properties if isinstance(properties, dict) else {}
        names = [name for name in _list(schema.get("required")) if isinstance(name, str)]
        return {name: self.value(known.get(name), depth + 1) for name in names}

    def _referred(self, reference: object) -> object:
        found: Any = self._root
        for step in str(reference).removeprefix("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, dict) else None
        return found


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _kind(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if named := _list(kind):
        kind = named[0]
    if isinstance(kind, str):
        return kind
    if "properties" in schema or "required" in schema:
        return "object"
    return "array" if "items" in schema else "string"
