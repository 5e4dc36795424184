"""What OpenAI's clients read of the installed models: Ollama's entries in OpenAI's shape, without I/O."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAMESPACE = "library"


def list_models(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """The reply to ``GET /v1/models``. ``entries`` are those of ``/api/tags``, each with its ``name``."""
    return msgspec.json.encode({"object": "list", "data": [_model(entry) for entry in entries]})


def show_model(entry: Mapping[str, Any]) -> bytes:
    """The reply to ``GET /v1/models/{model}``."""
    return msgspec.json.encode(_model(entry))


def _model(entry: Mapping[str, Any]) -> dict[str, object]:
    name: str = entry["name"]
    return {
        "id": name,
        "object": "model",
        "created": _unix_s(entry.get("modified_at")),
        "owned_by": _namespace(name),
    }


def _namespace(name: str) -> str:
    """Whose model it is: the part before its name's last, as ``acme`` in ``host/acme/tiny:1b``."""
    *place, _ = name.split("/")
    return (place[-1] if place else "") or _NAMESPACE


def _unix_s(moment: object) -> int:
    """A time of Ollama's in whole Unix seconds; 0 where it is none, since clients rely on a number."""
    try:
        at = datetime.fromisoformat(moment) if isinstance(moment, str) else _EPOCH
    except ValueError:
        return 0
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return (at - _EPOCH) // timedelta(seconds=1)
