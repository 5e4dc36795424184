"""A client's JSON body, read strictly: what two readers could understand differently is refused.

Ollama takes the last of duplicate keys, ignores bytes behind the first value and reads halves of surrogate
pairs as U+FFFD. Whoever checks a body must see what Ollama will see, so none of these gets through.
"""

import json
import math
import re
from typing import Any, NoReturn

import msgspec

from neuronetz.errors import InvalidRequest

_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_COMMA, _OPENING = ord(","), b"[{"
# A text, or a mark outside of texts. It matches a text that never ends, too: nothing is tried twice.
_TEXT_OR_MARK = re.compile(rb'"(?:[^"\\]+|\\.)*+"?|[,\[{]', re.DOTALL)


def read(data: bytes, *, max_depth: int, max_values: int = 200_000) -> dict[str, Any]:
    """The object that ``data`` holds.

    Containers are nested at most ``max_depth`` deep, the object included, and there are at most about
    ``max_values`` values (see ``values_in``): reading costs by the value, not by the byte.

    Raises ``InvalidRequest`` for anything else than one JSON object in UTF-8 without duplicate keys, with
    integers of 64 bits and finite numbers.
    """
    if not data:
        raise InvalidRequest("missing request body")
    if values_in(data, max_values) > max_values:
        raise InvalidRequest(f"body holds more than {max_values} values")
    value = _decode(data)
    if type(value) is not dict:
        raise InvalidRequest("body must be a JSON object")
    # Counting brackets is cheap and a body that has few of them cannot be deep.
    if data.count(b"{") + data.count(b"[") > max_depth and _deeper_than(value, max_depth):
        raise InvalidRequest(f"body is nested deeper than {max_depth} levels")
    if b"\\ud" in data or b"\\uD" in data:
        _refuse_half_pairs(value)
    return value


def values_in(data: bytes, most: int) -> int:
    """About how many values a JSON text holds: its commas or its containers, whichever are more.

    Each value is behind a comma or the first of a container, so there are at most twice as many. Above
    ``most`` the number is ``most`` + 1; below, marks within texts may count too.
    """
    counted = max(data.count(b","), data.count(b"[") + data.count(b"{"))
    if counted <= most:
        return counted
    # Texts may hold such marks by the million. One by one, so that it takes no memory and can stop early.
    commas = containers = 0
    for seen, found in enumerate(_TEXT_OR_MARK.finditer(data)):
        mark = data[found.start()]
        commas += mark == _COMMA
        containers += mark in _OPENING
        # With each value at most two texts come: itself and its key.
        if max(commas, containers) > most or seen > 6 * (most + 1):
            return most + 1
    return max(commas, containers)


def _decode(data: bytes) -> Any:
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidRequest("body is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise InvalidRequest("body holds more than one JSON value") from None
        raise InvalidRequest("body is not valid JSON") from None
    except RecursionError:
        # The C scanner counts its depth against the interpreter's limit: hostile nesting ends here, early.
        raise InvalidRequest("body is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise InvalidRequest("body holds a duplicate key" + _name_of_duplicate(pairs))
    return value


def _name_of_duplicate(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return f": {key}" if key.isprintable() and len(key) <= 64 else ""
        seen.add(key)
    return ""


def _integer(text: str) -> int:
    # The length first: converting a million digits is slow.
    if len(text) > 20 or not _INT_MIN <= (value := int(text)) <= _INT_MAX:
        raise InvalidRequest("body holds an integer beyond 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise InvalidRequest("body holds a number out of range")
    return value


def _constant(_: str) -> NoReturn:
    raise InvalidRequest("body is not valid JSON: NaN and Infinity are no numbers")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _deeper_than(value: dict[str, Any], limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def _refuse_half_pairs(value: dict[str, Any]) -> None:
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        raise InvalidRequest("body holds half of a surrogate pair") from None
