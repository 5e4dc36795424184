"""OpenAI's embeddings: their body as one of ``/api/embed``, and its replies (Ollama's ``openai/openai.go``)."""

import sys
from array import array
from typing import Any

import msgspec

from neuronetz.dialects.call import Counts
from neuronetz.dialects.fields import ABSENT, Struct, Wrong, text, whole
from neuronetz.dialects.ollama_fields import INT32, embedding_input, model_name
from neuronetz.dialects.openai_reply import JSON, error_object
from neuronetz.dialects.reply import Writers
from neuronetz.dialects.sse import encode
from neuronetz.dialects.translation import Translation
from neuronetz.errors import GatewayError, InvalidRequest


def translate(given: dict[str, Any]) -> Translation:
    """The body for ``/api/embed``. Raises ``Wrong`` and ``InvalidRequest``."""
    body = _BODY(given)
    if not body.get("input"):
        raise InvalidRequest("invalid input", param="input")
    native: dict[str, Any] = {name: body[name] for name in ("model", "input", "dimensions") if name in body}
    model, base64 = body.get("model", ""), body.get("encoding_format") == "base64"
    return Translation(native, Writers(whole=lambda: EmbeddingList(model, base64=base64)))


def _input(value: Any) -> str | list[str]:
    # An empty text alone is no input to Ollama; one in a list is.
    return [""] if value == "" else embedding_input(value)


def _dimensions(value: Any) -> Any:
    return _count(value) or ABSENT


_count = whole(0, INT32)


def _encoding(value: Any) -> str:
    name = text(value).lower()
    if name not in {"", "float", "base64"}:
        raise Wrong('must be "float" or "base64"')
    return name


_BODY = Struct({"model": model_name, "input": _input, "dimensions": _dimensions, "encoding_format": _encoding})


class _Embeddings(msgspec.Struct):
    embeddings: list[msgspec.Raw]


_decode = msgspec.json.Decoder(_Embeddings).decode
_decode_numbers = msgspec.json.Decoder(list[float]).decode

# What the JSON of a list of numbers is made of.
_NUMERIC = b"0123456789+-.eE,[] \t\r\n"


class EmbeddingList:
    """Embeddings as numbers, or as 32-bit floats (little-endian) in base64, which the ``openai`` client asks for.

    ``model`` is the name that the client asked for.
    """

    content_type = JSON

    def __init__(self, model: str, *, base64: bool) -> None:
        self._model = model
        self._write = _packed if base64 else _as_it_is

    def whole(self, raw: bytes, counts: Counts) -> bytes:
        """See ``dialects.reply.WholeWriter``."""
        found = _decode(raw).embeddings
        return encode(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "embedding": self._write(vector), "index": index}
                    for index, vector in enumerate(found)
                ],
                "model": self._model,
                "usage": {"prompt_tokens": counts.prompt, "total_tokens": counts.prompt},
            }
        )

    def error(self, error: GatewayError) -> bytes:
        """See ``dialects.reply.WholeWriter``."""
        return error_object(error)


def _as_it_is(vector: msgspec.Raw) -> msgspec.Raw:
    # Numbers by the million are not read to be written again, but nothing else gets through.
    text = bytes(vector)
    if not text.startswith(b"[") or text.translate(None, _NUMERIC):
        raise msgspec.ValidationError("not a list of numbers")
    return vector


def _packed(vector: msgspec.Raw) -> bytes:
    # One vector at a time: as Python's numbers, all of them would take much memory. msgspec writes base64.
    numbers = array("f", _decode_numbers(vector))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
