"""Listings hold exactly the effective set; what belongs to the operator stays with the operator (G9)."""

import json
from typing import Any

import pytest

from neuronetz.dialects.ollama_reads import filter_ps, filter_tags, redact_show
from neuronetz.errors import UpstreamFailed

TAG: dict[str, Any] = {
    "name": "a:latest",
    "model": "a:latest",
    "modified_at": "2026-01-01T00:00:00Z",
    "size": 7,
    "digest": "d",
    "details": {"parent_model": "", "family": "llama", "families": None},
    "capabilities": ["completion"],
}


def test_tags_hold_the_entries_as_ollama_lists_them() -> None:
    assert json.loads(filter_tags({"a:latest": TAG})) == {"models": [TAG]}
    assert json.loads(filter_tags({})) == {"models": []}


def test_tags_tell_neither_remote_places_nor_other_models_nor_unheard_of_fields() -> None:
    entry = {
        **TAG,
        "remote_host": "https://ollama.com",
        "remote_model": "x",
        "path": "/root/.ollama",
        "details": {**TAG["details"], "parent_model": "secret:latest"},
    }
    assert json.loads(filter_tags({"a:latest": entry})) == {"models": [TAG]}


def test_ps_is_cut_to_the_effective_set() -> None:
    running = [{"name": name, "model": name, "size": 1, "size_vram": 1, "expires_at": "x"} for name in ("a", "b")]
    assert json.loads(filter_ps(json.dumps({"models": running}).encode(), {"b"})) == {"models": [running[1]]}
    assert json.loads(filter_ps(json.dumps({"models": running}).encode(), set())) == {"models": []}


@pytest.mark.parametrize("reply", [b'{"models":null}', b"{}", b'{"models":[{}]}', b'{"models":[{"name":7}]}'])
def test_ps_of_nothing_is_empty(reply: bytes) -> None:
    assert json.loads(filter_ps(reply, {"a"})) == {"models": []}


@pytest.mark.parametrize("reply", [b"", b"<html>", b"[]", b'{"models":7}', b'{"models":[7]}', b"[" * 5000])
def test_a_reply_that_is_none_is_an_upstream_failure(reply: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        filter_ps(reply, {"a"})


SHOW: dict[str, Any] = {
    "parameters": "num_ctx 4096",
    "details": {"family": "llama"},
    "model_info": {"general.basename": "x", "llama.context_length": 4096},
    "capabilities": ["tools"],
    "modified_at": "2026-01-01T00:00:00Z",
}
OPERATORS: dict[str, Any] = {
    "modelfile": "FROM /root/x",
    "system": "secret",
    "template": "{{ .System }}",
    "license": "l",
    "messages": [{"role": "user", "content": "secret"}],
    "projector_info": {"a": 1},
    "tensors": [],
}


def test_show_is_redacted_unless_the_operator_opens_it() -> None:
    reply = json.dumps({**SHOW, **OPERATORS, "remote_host": "h", "remote_model": "m", "unheard_of": 1}).encode()
    assert json.loads(redact_show(reply, full=False)) == SHOW
    assert json.loads(redact_show(reply, full=True)) == {**SHOW, **OPERATORS}


@pytest.mark.parametrize("reply", [b"", b"[]", b'{"error":"x"}', b"nope"])
def test_a_show_that_is_none_is_an_upstream_failure(reply: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        redact_show(reply, full=True)
