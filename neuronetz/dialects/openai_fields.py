"""What OpenAI's request bodies have in common, as checks and as Ollama's fields."""

from collections.abc import Iterable, Mapping
from typing import Any

from neuronetz.dialects.fields import ABSENT, Check, Wrong, boolean, real, text, whole
from neuronetz.dialects.ollama_fields import EXACT_FLOAT, INT32, image, model_name

_EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}

# Ollama decodes these and no other (``openai/openai.go``, decodeImageURL).
_IMAGE_URIS = tuple(f"data:{kind};base64," for kind in ("image/jpeg", "image/jpg", "image/png", "image/webp", ""))

SAMPLING: dict[str, Check] = {
    "temperature": real,
    "top_p": real,
    "seed": whole(-EXACT_FLOAT, EXACT_FLOAT),
    "frequency_penalty": real,
    "presence_penalty": real,
}
"""Fields that are options of the same name at Ollama."""

MODEL_AND_STREAM: dict[str, Check] = {"model": model_name, "stream": boolean}

predict = whole(-INT32, INT32)


def sampling(given: Mapping[str, Any], defaults: Mapping[str, float]) -> dict[str, Any]:
    """The sampling options of a body, with what stands for those it leaves out."""
    return {**defaults, **{name: given[name] for name in SAMPLING if name in given}}


def one(value: Any) -> Any:
    """``n``: there is one choice, always."""
    if value != 1:
        raise Wrong("must be 1: a request has one choice")
    return ABSENT


def stop(value: Any) -> Any:
    """One text or several, that end a completion. Of a list, what is no text is left out, as at Ollama."""
    if type(value) is str:
        return [value]
    if type(value) is list:
        return [item for item in value if type(item) is str] or ABSENT
    raise Wrong("must be a string or a list of strings")


def effort(value: Any) -> Any:
    """How much the model thinks, as Ollama's ``think``."""
    name = text(value)
    if not name:
        return ABSENT
    if name not in _EFFORTS:
        raise Wrong(f"must be one of {_listed(_EFFORTS)}")
    return _EFFORTS[name]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def image_uri(value: Any) -> str:
    """The base64 of an image given as a data URI."""
    uri = text(value)
    if uri.startswith(("http://", "https://")):
        raise Wrong("must be a data URI: images are not fetched from elsewhere")
    for start in _IMAGE_URIS:
        if uri.startswith(start):
            return image(uri[len(start) :])
    raise Wrong("invalid image input: must be a data URI of a JPEG, PNG or WebP in base64")
