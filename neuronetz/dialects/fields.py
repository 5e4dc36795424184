"""Checks of the fields of a JSON body, as a small algebra: a check takes a decoded value and returns what to send.

``Struct`` reads an object as Go's ``encoding/json`` reads a struct, which is how Ollama reads it: keys match
without regard to case there, and the last one wins (G10). So a key that is not a known field's exact name
but folds to one is refused, and what is not known at all is dropped.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

Check = Callable[[Any], Any]

ABSENT: Final = object()
"""What a check returns for a value that means the same as leaving the field out."""

# Go folds keys rune by rune. Besides the ASCII letters, these two runes alone fold to ASCII.
_FOLDS = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)} | {0x212A: ord("k"), 0x017F: ord("s")}


class Wrong(Exception):
    """A value is not what its field takes. ``path`` says where, from the place of the check inward."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path

    def within(self, outer: str) -> "Wrong":
        """The same, seen from the container that holds it under ``outer``."""
        inner = self.path
        joint = "" if not inner or inner.startswith("[") else "."
        return Wrong(self.reason, f"{outer}{joint}{inner}")


def fold(key: str) -> str:
    """A key as Go's ``encoding/json`` compares it."""
    return key.translate(_FOLDS)


class Struct:
    """An object of known fields. As in Go, ``null`` leaves a field out."""

    def __init__(self, fields: Mapping[str, Check], required: Iterable[str] = ()) -> None:
        self._fields = dict(fields)
        self._folded = {fold(name): name for name in fields}
        self._required = tuple(required)

    @property
    def fields(self) -> Mapping[str, Check]:
        """The known fields."""
        return self._fields

    def __call__(self, value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise Wrong("must be an object")
        checked: dict[str, Any] = {}
        for key, item in value.items():
            check = self._fields.get(key)
            if check is None:
                name = self._folded.get(fold(key))
                if name is not None:
                    raise Wrong(f'must be spelled exactly "{name}"', name)
                continue
            if item is None:
                continue
            try:
                result = check(item)
            except Wrong as wrong:
                raise wrong.within(key) from None
            if result is not ABSENT:
                checked[key] = result
        for name in self._required:
            if name not in checked:
                raise Wrong("is required", name)
        return checked


def text(value: Any) -> str:
    """A string."""
    if type(value) is not str:
        raise Wrong("must be a string")
    return value


def boolean(value: Any) -> bool:
    """A JSON ``true`` or ``false``."""
    if type(value) is not bool:
        raise Wrong("must be true or false")
    return value


def whole(low: int, high: int) -> Check:
    """An integer, or a float without a fraction, from ``low`` to ``high``."""

    def check(value: Any) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise Wrong("must be a whole number")
        if not low <= value <= high:
            raise Wrong(f"must be from {low} to {high}")
        return value

    return check


def real(value: Any) -> float:
    """A number that a 32-bit float can hold."""
    if type(value) is not float and type(value) is not int:
        raise Wrong("must be a number")
    if abs(value) > 3.4e38:
        raise Wrong("is out of range")
    return value


def list_of(check: Check, most: int | None = None) -> Check:
    """A list of at most ``most`` items that all pass ``check``."""

    def check_list(value: Any) -> list[Any]:
        if type(value) is not list:
            raise Wrong("must be a list")
        if most is not None and len(value) > most:
            raise Wrong(f"must have at most {most} items")
        checked = []
        for index, item in enumerate(value):
            try:
                checked.append(check(item))
            except Wrong as wrong:
                raise wrong.within(f"[{index}]") from None
        return checked

    return check_list


def map_of(check: Check) -> Check:
    """An object with keys of the client's choice, in their order, whose values all pass ``check``."""

    def check_map(value: Any) -> dict[str, Any]:
        checked = {}
        for key, item in anything_in_object(value).items():
            try:
                checked[key] = check(item)
            except Wrong as wrong:
                # The key is the client's text and has no place in a message.
                raise wrong.within("*") from None
        return checked

    return check_map


def anything_in_object(value: Any) -> dict[str, Any]:
    """An object that is passed on as it is: a map to Ollama, whose keys do not fold."""
    if type(value) is not dict:
        raise Wrong("must be an object")
    return value


def anything(value: Any) -> Any:
    """Any value, passed on as it is."""
    return value
