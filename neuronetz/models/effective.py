"""Which models a key may use: those installed and permitted. Pure.

Names are compared as Ollama compares them (its ``types/model/name.go``): ``x`` is ``x:latest``, the default
registry and namespace may be written or not, case does not matter.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

Entry = Mapping[str, Any]
"""One model of ``/api/tags``, as Ollama lists it."""

_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_WORD = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}")
_NAMESPACE_WORD = re.compile(r"[a-z0-9_][a-z0-9_-]{0,79}")
_HOST_WORD = re.compile(r"[a-z0-9_][a-z0-9_.:-]{0,349}")


def normalise(name: str) -> str:
    """The one spelling of all names that mean the same model to Ollama.

    A name that Ollama would not take comes back as it is (trimmed): it equals no installed one.
    """
    name = name.strip()
    # Only ASCII letters fold; a Kelvin sign, say, is no k in a name.
    if not name.isascii():
        return name
    name = name.lower()
    rest, tag = name, _TAG
    if name.rfind(":") > name.rfind("/"):
        rest, _, tag = name.rpartition(":")
    *place, model = rest.rsplit("/", 2)
    namespace = place.pop() if place else _NAMESPACE
    host = place.pop().rpartition("://")[2] if place else _HOST
    if not (
        _WORD.fullmatch(model)
        and _WORD.fullmatch(tag)
        and _NAMESPACE_WORD.fullmatch(namespace)
        and _HOST_WORD.fullmatch(host)
    ):
        return name
    if host != _HOST:
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == _NAMESPACE else f"{namespace}/{model}:{tag}"


def is_remote(model: str | Entry) -> bool:
    """Whether a name, or an entry of ``/api/tags``, stands for a model that Ollama runs elsewhere.

    A tag that is ``cloud`` or ends in ``-cloud`` sends a request to ollama.com, whatever is installed.
    """
    if isinstance(model, str):
        tag = _source_tag(model)
        return tag == "cloud" or (tag.endswith("-cloud") and "/" not in tag)
    names = (model.get("name"), model.get("model"))
    return bool(model.get("remote_model") or model.get("remote_host")) or any(
        isinstance(name, str) and is_remote(name) for name in names
    )


def is_addressable(name: str) -> bool:
    """False for a tag ``local``: newer Ollamas take that for a word about the place and run another tag."""
    return _source_tag(name) != "local"


def _source_tag(name: str) -> str:
    return name.rpartition(":")[2].strip().lower() if ":" in name else ""


def find(discovered: Mapping[str, Entry], allow_all: bool, models: frozenset[str], asked: str) -> Entry | None:
    """The installed and permitted model that ``asked`` names, or None. ``models`` are normalised."""
    name = normalise(asked)
    if not allow_all and name not in models:
        return None
    return discovered.get(name)


class Effective(Mapping[str, Entry]):
    """The models that a key may use, by normalised name. Look-ups take any spelling."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> Entry:
        return self._entries[normalise(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def effective(discovered: Mapping[str, Entry], allow_all: bool, models: frozenset[str]) -> Effective:
    """Installed and permitted. ``discovered`` and ``models`` go by normalised names.

    Nothing discovered means nothing allowed.
    """
    return Effective(
        dict(discovered) if allow_all else {name: entry for name, entry in discovered.items() if name in models}
    )
