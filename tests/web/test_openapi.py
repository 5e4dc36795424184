"""The OpenAPI document says what the code does."""

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import msgspec
import pytest
import schemathesis

from neuronetz import __version__
from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.calls import parse_call
from neuronetz.dialects.fields import Struct
from neuronetz.web.openapi.document import document, encoded
from neuronetz.web.openapi.operations import OPERATIONS
from neuronetz.web.routes import ROUTES, Kind, Route

DOCUMENT = document()
WITH_BODY = [route for route in ROUTES if route.has_body]


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["components"]["schemas"][name]
    return found


def test_it_is_valid_and_of_this_version() -> None:
    schemathesis.openapi.from_dict(document()).validate()
    assert DOCUMENT["openapi"].startswith("3.1")
    assert DOCUMENT["info"]["version"] == __version__
    assert DOCUMENT["servers"] == [{"url": "/"}]
    assert msgspec.json.decode(encoded()) == DOCUMENT


def test_it_has_the_tables_routes_and_methods_and_no_others() -> None:
    listed = {
        (method.upper(), path)
        for path, item in DOCUMENT["paths"].items()
        for method in item
        if method != "parameters"
    }
    assert listed == {(method, route.path) for route in ROUTES for method in route.methods}


def test_what_needs_no_key_is_what_the_table_calls_a_page() -> None:
    open_to_all = {
        path
        for path, item in DOCUMENT["paths"].items()
        if item["get" if "get" in item else "post"]["security"] == []
    }
    assert open_to_all == {route.path for route in ROUTES if route.kind is Kind.PAGE}


def test_operations_have_names_of_their_own() -> None:
    names = [
        item[method]["operationId"]
        for item in DOCUMENT["paths"].values()
        for method in item
        if method != "parameters"
    ]
    assert len(names) == len(set(names))


def test_references_lead_somewhere() -> None:
    for reference in references(DOCUMENT):
        place: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


@pytest.mark.parametrize("route", WITH_BODY, ids=[route.path for route in WITH_BODY])
def test_the_fields_of_a_body_are_those_that_are_checked(route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body with every documented field is read: its outermost check knows these and no others, and those within
    know none that is not documented.
    """
    given = filled(schema(OPERATIONS[route.path].takes), ())
    checks, fine = recorded(route, given, monkeypatch)
    assert fine, "the documented body is not taken"
    (outermost, keys), *nested = checks
    assert set(outermost.fields) == keys
    seen: dict[Struct, set[str]] = {}
    for check, some in nested:
        seen.setdefault(check, set()).update(some)
    for check, some in seen.items():
        assert set(check.fields) <= some


@pytest.mark.parametrize("route", WITH_BODY, ids=[route.path for route in WITH_BODY])
def test_examples_are_as_documented_and_taken(route: Route) -> None:
    about = OPERATIONS[route.path]
    whole = {**schema(about.takes), "components": DOCUMENT["components"]}
    jsonschema_rs.validate(whole, about.example)
    call = parse_call(route.action, msgspec.json.encode(about.example), BodyPolicy())
    assert call.problem is None


def recorded(
    route: Route, given: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[tuple[Struct, set[str]]], bool]:
    """The checks that ran within the outermost one, each with the keys that it got, and whether that one passed."""
    checks: list[tuple[Struct, set[str]]] = []
    passed: list[bool] = []
    check = Struct.__call__

    def recording(self: Struct, value: Any) -> dict[str, Any]:
        if passed:
            return check(self, value)
        outermost = not checks
        checks.append((self, set(value)))
        try:
            result = check(self, value)
        except BaseException:
            if outermost:
                passed.append(False)
            raise
        if outermost:
            passed.append(True)
        return result

    monkeypatch.setattr(Struct, "__call__", recording)
    parse_call(route.action, msgspec.json.encode(given), BodyPolicy())
    return checks, passed == [True]


def filled(found: Any, within: tuple[str, ...]) -> Any:
    """A value with every field of a schema; a list has an item of each kind."""
    if "$ref" in found:
        name = found["$ref"].rsplit("/", 1)[1]
        return {} if name in within else filled(schema(name), (*within, name))
    for key in ("examples", "enum"):
        if key in found:
            return found[key][0]
    if "const" in found:
        return found["const"]
    if "properties" in found:
        return {name: filled(part, within) for name, part in found["properties"].items()}
    if "anyOf" in found:
        # A list, where there may be one: it shows more than a text does.
        return filled(
            next((kind for kind in found["anyOf"] if kind.get("type") == "array"), found["anyOf"][0]), within
        )
    return _simple(found, within)


def _simple(found: Any, within: tuple[str, ...]) -> Any:
    kind = found.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "array":
        items = found["items"]
        if "$ref" in items and items["$ref"].rsplit("/", 1)[1] not in within:
            name = items["$ref"].rsplit("/", 1)[1]
            within, items = (*within, name), schema(name)
        kinds = items["anyOf"] if "anyOf" in items and "properties" not in items else [items]
        return [filled(item, within) for item in kinds]
    if kind == "object":
        values = found.get("additionalProperties")
        return {"one": filled(values, within)} if values else {}
    if kind in ("integer", "number"):
        return found["minimum"] if found.get("minimum", 0) > 0 else 0 if "exclusiveMaximum" not in found else -1
    return {"string": "text", "boolean": True}[kind]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)
