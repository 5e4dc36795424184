"""Arguments of tool calls, which OpenAI's dialects write as JSON within a text."""

from typing import Any

from neuronetz.dialects import json_body
from neuronetz.dialects.fields import Wrong
from neuronetz.errors import InvalidRequest

# As the body itself is bounded: its bound sees these only as texts.
_MAX_DEPTH = 48
_MAX_VALUES = 200_000


class ArgumentsReader:
    """Reads the arguments of one request's calls, with a bound for all of them together."""

    def __init__(self) -> None:
        self._values_left = _MAX_VALUES

    def read(self, arguments: str) -> dict[str, Any]:
        """The object that a text holds; a blank one holds none. Raises ``Wrong``."""
        if not arguments.strip():
            return {}
        data = arguments.encode()
        self._values_left -= json_body.values_in(data, self._values_left)
        if self._values_left < 0:
            raise Wrong("hold too many values")
        try:
            return json_body.read(data, max_depth=_MAX_DEPTH)
        except InvalidRequest:
            raise Wrong("invalid tool call arguments: must be a JSON object, as text") from None
