"""Request bodies as Ollama reads them, its traps included, so that a request smuggled past a gateway really runs.

Keys are matched without regard to case, the Kelvin sign and the long s included, and the last one wins; what
follows the first JSON value is ignored; a wrong option is a 500, as in Go's and Ollama's own code.
"""

import binascii
import json
import re
from typing import Any, NoReturn

import msgspec

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "name": str,
    "messages": list,
    "prompt": str,
    "suffix": str,
    "system": str,
    "template": str,
    "context": list,
    "raw": bool,
    "images": list,
    "input": object,
    "dimensions": int,
    "stream": bool,
    "format": object,
    "tools": list,
    "think": object,
    "truncate": bool,
    "shift": bool,
    "keep_alive": (int, float, str),
    "options": dict,
    "logprobs": bool,
    "top_logprobs": int,
    "verbose": bool,
    "_debug_render_only": bool,
}
_MESSAGE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "role": str,
    "content": str,
    "thinking": str,
    "images": list,
    "tool_calls": list,
    "tool_name": str,
    "tool_call_id": str,
}
_INTEGERS = (
    *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "num_keep", "seed"),
    *("num_predict", "top_k", "repeat_last_n"),
)
_FLOATS = (
    *("top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty"),
    "frequency_penalty",
)
_THINK_LEVELS = ("low", "medium", "high", "max")


class Refused(Exception):
    """An answer other than 200: Ollama's status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Body(msgspec.Struct):
    """The fields of a body that were there, by their exact names."""

    fields: dict[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        return self.fields.get(name, default)

    @property
    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = self.fields.get("options") or {}
        return options

    @property
    def text(self) -> str:
        """All of the prompt."""
        messages = "\n".join(str(message.get("content", "")) for message in self.fields.get("messages") or ())
        given = self.get("input")
        inputs = "\n".join(str(item) for item in given) if isinstance(given, list) else str(given or "")
        return "\n".join(part for part in (self.get("system"), self.get("prompt"), inputs, messages) if part)

    @property
    def predict(self) -> int | None:
        """The bound on completion tokens; None for none, which 0 and less mean as well."""
        value = self.options.get("num_predict")
        return int(value) if value is not None and value > 0 else None

    @property
    def ends_with_tool(self) -> bool:
        """Whether the last message is what a tool answered."""
        messages = self.get("messages")
        return bool(messages) and messages[-1].get("role") == "tool"

    @property
    def unloads(self) -> bool:
        return self.get("keep_alive") in (0, 0.0, "0", "0s")


def read_body(data: bytes) -> Body:
    """Read a body as Go would. Raises ``Refused`` with a 400."""
    if not data:
        raise Refused(400, "missing request body")
    text = data.decode("utf-8", "replace").lstrip(" \t\r\n")
    try:
        pairs, _end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        raise Refused(400, "invalid character in request body") from None
    if not isinstance(pairs, _Pairs):
        raise Refused(400, f"json: cannot unmarshal {type(pairs).__name__} into Go value of type api.Request")
    fields = _folded(pairs, _FIELDS, "Request")
    if "messages" in fields:
        fields["messages"] = [_message(value) for value in fields["messages"]]
    _check_images(fields)
    return Body({name: _plain(value) for name, value in fields.items()})


def check_options(body: Body, *, thinks: bool) -> None:
    """Ollama's checks behind the decoding: options and format end in a 500, the others in a 400."""
    for name, value in body.options.items():
        if value is not None:
            _check_option(name, value)
    form = body.get("format")
    if form not in (None, "", "json") and not isinstance(form, dict):
        raise Refused(500, 'invalid format: expected "json" or a JSON schema')
    think = body.get("think")
    if not (think is None or isinstance(think, bool) or think in _THINK_LEVELS):
        raise Refused(400, 'invalid think value: must be "low", "medium", "high", "max", true or false')
    if think and not thinks:
        raise Refused(400, f'"{body.get("model")}" does not support thinking')
    if not 0 <= body.get("top_logprobs", 0) <= 20:
        raise Refused(400, "top_logprobs must be between 0 and 20")


def _check_option(name: str, value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in _INTEGERS and not number:
        raise Refused(500, f'option "{name}" must be of type integer')
    if name in _FLOATS and not number:
        raise Refused(500, f'option "{name}" must be of type float32')
    if name == "use_mmap" and not isinstance(value, bool):
        raise Refused(500, f'option "{name}" must be of type boolean')
    if name == "stop" and not (isinstance(value, list) and all(isinstance(word, str) for word in value)):
        raise Refused(500, f'option "{name}" must be of an array of strings')


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as written: its keys in order, the repeated ones too."""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_Pairs, parse_constant=_no_constant, strict=True)


_HALVES = re.compile("[\ud800-\udfff]")


def _fold(key: str) -> str:
    return "".join(folded if len(folded := char.casefold()) == 1 else char for char in key)


def _folded(pairs: _Pairs, known: dict[str, type | tuple[type, ...]], where: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        name = _fold(key)
        if name not in known or value is None:
            continue  # Go leaves a field alone for null
        wanted = known[name]
        plain = _plain(value) if wanted is dict else value
        if wanted is not object and (
            not isinstance(plain, wanted)
            or (isinstance(plain, bool) and wanted is not bool)
            or (wanted is list and isinstance(plain, _Pairs))
        ):
            raise Refused(400, f"json: cannot unmarshal value into Go struct field {where}.{name}")
        fields[name] = value
    return fields


def _message(value: object) -> dict[str, Any]:
    if not isinstance(value, _Pairs):
        raise Refused(400, "json: cannot unmarshal value into Go struct field Request.messages")
    fields = _folded(value, _MESSAGE_FIELDS, "Message")
    if "role" in fields:
        fields["role"] = fields["role"].lower()
    _check_images(fields)
    return {name: _plain(item) for name, item in fields.items()}


def _check_images(fields: dict[str, Any]) -> None:
    """Go's ``[]byte`` is base64 with its padding; line ends in it are skipped."""
    for image in fields.get("images") or ():
        if not isinstance(image, str):
            raise Refused(400, "json: cannot unmarshal value into Go struct field images of type []uint8")
        try:
            binascii.a2b_base64(image.replace("\r", "").replace("\n", ""), strict_mode=True)
        except ValueError:
            raise Refused(400, "illegal base64 data in images") from None


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        # Go reads half a surrogate pair so; Python's strings would keep it, and could not be written again.
        return value if value.isascii() else _HALVES.sub("\ufffd", value)
    if isinstance(value, _Pairs):
        return {_plain(key): _plain(item) for key, item in value}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
