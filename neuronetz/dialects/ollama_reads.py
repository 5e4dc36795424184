"""Ollama's small replies (what is installed, what runs, what a model is), cut to what a tenant may see (G9)."""

from collections.abc import Container, Mapping
from typing import Any

import msgspec

from neuronetz.errors import UpstreamFailed

# Positive lists: what a newer Ollama adds stays closed until it is known to give nothing away.
_TAG = ("name", "model", "modified_at", "size", "digest", "details", "capabilities")
_PS = ("name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length")
_SHOW = ("parameters", "details", "model_info", "capabilities", "modified_at", "renderer", "parser", "requires")
# Clients read these for tool support and the like; they hold what the operator wrote into the model.
_SHOW_FULL = (*_SHOW, "license", "modelfile", "template", "system", "messages", "projector_info", "tensors")

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Ps(msgspec.Struct):
    models: list[dict[str, Any]] | None = None


def filter_tags(effective: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The reply to ``/api/tags`` that lists exactly the effective set."""
    return msgspec.json.encode({"models": [_kept(entry, _TAG) for entry in effective.values()]})


def filter_ps(reply: bytes, effective: Container[str]) -> bytes:
    """The reply to ``/api/ps`` cut to the effective set. Raises ``UpstreamFailed`` if it is no such reply."""
    try:
        running = msgspec.json.decode(reply, type=_Ps).models or []
    except _UNREADABLE:
        raise UpstreamFailed from None
    shown = [_kept(entry, _PS) for entry in running if _name(entry) in effective]
    return msgspec.json.encode({"models": shown})


def redact_show(reply: bytes, *, full: bool) -> bytes:
    """The reply to ``/api/show`` without what belongs to the operator: Modelfile, system prompt, template,
    licence, messages. ``full`` leaves these in. Raises ``UpstreamFailed`` if it is no such reply.
    """
    try:
        shown = msgspec.json.decode(reply, type=dict[str, Any])
    except _UNREADABLE:
        raise UpstreamFailed from None
    if "error" in shown:
        raise UpstreamFailed
    return msgspec.json.encode(_kept(shown, _SHOW_FULL if full else _SHOW))


def _name(entry: Mapping[str, Any]) -> str:
    name = entry.get("model") or entry.get("name")
    return name if isinstance(name, str) else ""


def _kept(entry: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    kept = {name: entry[name] for name in fields if name in entry}
    details = kept.get("details")
    # A model made from another names it here: one that the tenant may have no business knowing.
    if isinstance(details, dict) and details.get("parent_model"):
        kept["details"] = {**details, "parent_model": ""}
    return kept
