"""The playground's file: its cards are the endpoint table, its samples are as documented, its headers fit it."""

import base64
import hashlib
import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.calls import parse_call
from neuronetz.errors import NotFound
from neuronetz.settings import Settings
from neuronetz.web.openapi.document import document
from neuronetz.web.openapi.operations import EVENTS, NDJSON, OPERATIONS
from neuronetz.web.playground import load_playground, playground_file
from neuronetz.web.routes import PLAYGROUND, ROUTES, Kind, match

ROOT = Path(__file__).parents[2]
PAGE, HEADERS = load_playground()
TEXT = PAGE.decode()
TABLE: dict[str, list[dict[str, Any]]] = json.loads(
    re.search(r'<script type="application/json" id="table">(.*?)</script>', TEXT, re.DOTALL)[1]  # type: ignore[index]
)
CARDS = [card for group in TABLE.values() for card in group]
OPERATED = [card for card in CARDS if card["path"] in OPERATIONS]
DOCUMENT = document()


def path_of(card: dict[str, Any]) -> str:
    return str(card["path"])


def test_there_is_a_card_for_each_endpoint_of_the_table_and_no_other() -> None:
    assert sorted((card["method"], card["path"]) for card in CARDS) == sorted(
        (route.methods[0], route.path) for route in ROUTES
    )


@pytest.mark.parametrize("card", CARDS, ids=path_of)
def test_a_cards_badges_are_true(card: dict[str, Any]) -> None:
    route = match(card["method"], card["path"]).route
    assert route is not None
    assert card["auth"] == (route.kind is not Kind.PAGE)
    assert ("body" in card) == route.has_body
    about = OPERATIONS.get(card["path"])
    kinds = {NDJSON: "ndjson", EVENTS: "sse", "": None}
    assert card["stream"] == (None if about is None else kinds[about.stream])


@pytest.mark.parametrize("card", OPERATED, ids=path_of)
def test_a_cards_words_and_samples_are_those_of_the_document(card: dict[str, Any]) -> None:
    about = OPERATIONS[card["path"]]
    assert card["summary"] == about.summary
    pieces = card["reply"] if about.stream else [card["reply"]]
    schema = {
        "$ref": f"#/components/schemas/{about.item if about.stream else about.gives}",
        "components": DOCUMENT["components"],
    }
    for piece in pieces:
        if not isinstance(piece, str):
            jsonschema_rs.validate(schema, piece)
    if "body" in card:
        takes = {"$ref": f"#/components/schemas/{about.takes}", "components": DOCUMENT["components"]}
        jsonschema_rs.validate(takes, card["body"])
        settings = Settings.load(database_url="postgresql://db", redis_url="redis://r", ollama_url="http://o")
        call = parse_call(card["path"], json.dumps(card["body"]).encode(), BodyPolicy.of(settings))
        assert (call.problem, call.stream) == (None, bool(about.stream))


class Elements(HTMLParser):
    """What the page's tags say."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_it_is_one_file_that_asks_nobody_for_anything_and_has_no_code_in_attributes() -> None:
    elements = Elements()
    elements.feed(TEXT)
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset")]
        assert (attributes.get("href") or "#").startswith(("#", "data:")), tag
    addresses = set(re.findall(r"(?:https?|wss?):(?://|\\/\\/)[^\s'\"]+", TEXT))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert (
        re.search(
            r"@import|\burl\(|innerHTML|outerHTML|insertAdjacent|eval\(|localStorage|sessionStorage|cookie", TEXT
        )
        is None
    )


def test_its_policy_allows_its_own_script_and_style_by_their_hashes_alone() -> None:
    policy = dict(part.split(" ", 1) for part in HEADERS["content-security-policy"].split("; "))
    for directive, tag in (("script-src", "script"), ("style-src", "style")):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", TEXT, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert (
        policy["default-src"]
        == policy["base-uri"]
        == policy["form-action"]
        == policy["frame-ancestors"]
        == "'none'"
    )
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_the_wheel_and_the_sdist_hold_it() -> None:
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["force-include"]["playground"] == "neuronetz/playground"
    assert "playground" in targets["sdist"]["include"]
    assert playground_file() == ROOT / "playground" / "index.html"


def test_its_path_is_a_path_only_where_it_is_enabled() -> None:
    assert match("GET", "/playground", playground=True).route is PLAYGROUND
    for unknown in (match("GET", "/playground"), match("GET", "/playground/", playground=True)):
        assert (unknown.route, unknown.endpoint, type(unknown.refusal)) == (None, "unknown", NotFound)
