"""JSON Schema in few words, and what bodies of all dialects are made of."""

from collections.abc import Mapping
from typing import Any

from neuronetz.dialects.ollama_fields import EXACT_FLOAT, INT32, MODEL_NAME_LENGTH, MOST_MESSAGES, SHORT_LENGTH

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
ANYTHING: Schema = {}
OBJECT: Schema = {"type": "object"}
SHORT: Schema = {"type": "string", "maxLength": SHORT_LENGTH}
TOKENS: Schema = {"type": "integer", "minimum": 0}
REAL: Schema = {"type": "number", "minimum": -3.4e38, "maximum": 3.4e38}
SEED: Schema = {"type": "integer", "minimum": -EXACT_FLOAT, "maximum": EXACT_FLOAT}
TOP_LOGPROBS: Schema = {"type": "integer", "minimum": 0, "maximum": 20}
MODEL: Schema = {"$ref": "#/components/schemas/ModelName"}


def ref(name: str) -> Schema:
    """A schema of ``components``."""
    return {"$ref": f"#/components/schemas/{name}"}


def whole(low: int = -INT32, high: int = INT32) -> Schema:
    """A whole number."""
    return {"type": "integer", "minimum": low, "maximum": high}


def constant(value: str) -> Schema:
    """A text that is always the same."""
    return {"type": "string", "const": value}


def one_of(*values: str) -> Schema:
    """One of several texts."""
    return {"type": "string", "enum": list(values)}


def any_of(*schemas: Schema) -> Schema:
    """What fits one of several schemas, or more than one."""
    return {"anyOf": list(schemas)}


def list_of(items: Schema, **bounds: int) -> Schema:
    """A list; ``bounds`` are ``minItems`` and ``maxItems``."""
    return {"type": "array", "items": items, **bounds}


def said(schema: Schema, description: str) -> Schema:
    """The same, explained."""
    return {**schema, "description": description}


def messages(of: Schema, **bounds: int) -> Schema:
    """A conversation, of as many messages as a body may hold."""
    return list_of(of, maxItems=MOST_MESSAGES, **bounds)


def body(properties: Mapping[str, Schema], required: tuple[str, ...] = (), **more: Any) -> Schema:
    """An object of a request. ``null`` stands for a field that was left out; what is not listed is dropped."""
    given = {name: schema if name in required else _or_null(schema) for name, schema in properties.items()}
    return {"type": "object", "properties": given, **({"required": list(required)} if required else {}), **more}


def reply(properties: Mapping[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    """An object of a reply; all of its fields are there, but for the ``optional``."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), **({"required": required} if required else {})}


def _or_null(schema: Schema) -> Schema:
    if not schema:
        return schema
    if isinstance(schema.get("type"), str) and "enum" not in schema and "const" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    explained = {"description": schema["description"]} if "description" in schema else {}
    bare = {name: value for name, value in schema.items() if name != "description"}
    return {"anyOf": [bare, {"type": "null"}], **explained}


_BASE64 = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"

SHARED: dict[str, Schema] = {
    "ModelName": {
        "type": "string",
        "minLength": 1,
        "maxLength": MODEL_NAME_LENGTH,
        "description": "A model as /api/tags lists it; a name without a tag means its latest.",
        "examples": ["tiny"],
    },
    "Base64": {"type": "string", "pattern": f"^{_BASE64}", "contentEncoding": "base64", "examples": ["QUJD"]},
    "ImageUri": {
        "type": "string",
        "pattern": f"^data:(?:image/(?:jpeg|jpg|png|webp))?;base64,{_BASE64}",
        "description": "A data URI. Images are not fetched from elsewhere: http and https URLs are refused.",
        "examples": ["data:image/png;base64,QUJD"],
    },
    "Arguments": {
        "type": "string",
        "contentMediaType": "application/json",
        "description": "A JSON object as text; a blank text is an empty object.",
        "examples": ["{}"],
    },
    "Role": {
        "type": "string",
        "pattern": "\\S",
        "maxLength": SHORT_LENGTH,
        "description": "Usually system, user, assistant or tool; its case does not count.",
        "examples": ["user"],
    },
    "Effort": {
        "type": "string",
        "enum": ["none", "minimal", "low", "medium", "high", "max", "xhigh", "ultra", ""],
        "description": "How much a model that can think thinks first; an empty text is as good as none.",
    },
    "Stop": {
        "anyOf": [TEXT, list_of(ANYTHING)],
        "description": "A text or several that end the completion. What is no text in a list is left out.",
    },
}
