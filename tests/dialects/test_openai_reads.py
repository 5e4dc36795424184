"""Installed models in OpenAI's shape: the installed name, whose it is, and since when."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.dialects.openai_reads import list_models, show_model


def entry(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "model": name, "modified_at": "2026-01-01T00:00:00Z", "size": 7, "digest": "d"} | fields


def test_a_list_holds_its_entries_in_their_order_and_nothing_else_of_them() -> None:
    entries = [entry("tiny:latest", remote_host="h"), entry("acme/other:1b")]
    assert json.loads(list_models(entries)) == {
        "object": "list",
        "data": [
            {"id": "tiny:latest", "object": "model", "created": 1767225600, "owned_by": "library"},
            {"id": "acme/other:1b", "object": "model", "created": 1767225600, "owned_by": "acme"},
        ],
    }
    assert json.loads(list_models([])) == {"object": "list", "data": []}


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("tiny", "library"),
        ("tiny:1b", "library"),
        ("library/tiny:1b", "library"),
        ("acme/tiny:1b", "acme"),
        ("Acme/tiny:1b", "Acme"),
        ("hf.co/acme/tiny-GGUF:Q4_K_M", "acme"),
        ("localhost:5000/acme/tiny:1b", "acme"),
        ("/tiny", "library"),
        ("", "library"),
    ],
)
def test_a_model_is_owned_by_its_namespace(name: str, owner: str) -> None:
    shown = json.loads(show_model(entry(name)))
    assert (shown["id"], shown["owned_by"]) == (name, owner)


@pytest.mark.parametrize(
    ("modified_at", "created"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-01-01T00:00:00.000000000Z", 1767225600),
        ("2026-01-01T00:00:00.999999999Z", 1767225600),
        ("2026-01-01T02:00:00.5+02:00", 1767225600),
        ("2026-01-01T00:00:00", 1767225600),
        ("1969-12-31T23:59:59.5Z", -1),
        ("0001-01-01T00:00:00Z", -62135596800),
        ("0001-01-01T00:00:00+14:00", -62135596800 - 14 * 3600),
        ("", 0),
        ("yesterday", 0),
        (None, 0),
        (1767225600, 0),
    ],
)
def test_created_is_the_time_of_the_last_change_in_whole_seconds(modified_at: object, created: int) -> None:
    assert json.loads(show_model(entry("tiny", modified_at=modified_at)))["created"] == created


@given(st.text(), st.none() | st.text() | st.datetimes(timezones=st.timezones()).map(lambda at: at.isoformat()))
def test_every_entry_can_be_shown(name: str, modified_at: str | None) -> None:
    shown = json.loads(show_model(entry(name, modified_at=modified_at)))
    assert shown["id"] == name
    assert isinstance(shown["created"], int)


def test_an_entry_without_a_time_can_be_shown() -> None:
    assert json.loads(show_model({"name": "tiny"}))["created"] == 0
