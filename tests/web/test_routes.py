"""The endpoint table is positive: what it does not name is closed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.errors import EndpointBlocked, MethodNotAllowed, NotFound
from neuronetz.web.routes import Kind, match

MUTATING = [
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/sha256:abc"),
    ("HEAD", "/api/blobs/sha256:abc"),
]
ACCOUNT = [
    ("GET", "/api/status"),
    ("POST", "/api/me"),
    ("POST", "/api/signout"),
    ("DELETE", "/api/user/keys/abc"),
    ("POST", "/api/experimental/web_search"),
    ("POST", "/api/experimental/web_fetch"),
    ("GET", "/api/experimental/model-recommendations"),
]


@pytest.mark.parametrize(("method", "path"), MUTATING + ACCOUNT)
def test_mutating_and_account_routes_are_blocked(method: str, path: str) -> None:
    found = match(method, path)
    assert isinstance(found.refusal, EndpointBlocked)
    assert found.route is None


@pytest.mark.parametrize(("method", "path"), MUTATING + ACCOUNT)
def test_blocked_routes_are_blocked_whatever_the_method(method: str, path: str) -> None:
    for other in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert isinstance(match(other, path).refusal, EndpointBlocked)


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/", Kind.PAGE),
        ("HEAD", "/", Kind.PAGE),
        ("GET", "/healthz", Kind.PAGE),
        ("GET", "/readyz", Kind.PAGE),
        ("GET", "/api/version", Kind.READ),
        ("GET", "/api/tags", Kind.READ),
        ("HEAD", "/api/tags", Kind.READ),
        ("GET", "/api/ps", Kind.READ),
        ("POST", "/api/show", Kind.READ),
        ("POST", "/api/chat", Kind.INFERENCE),
        ("POST", "/api/generate", Kind.INFERENCE),
        ("POST", "/api/embed", Kind.INFERENCE),
        ("POST", "/api/embeddings", Kind.INFERENCE),
    ],
)
def test_open_routes(method: str, path: str, kind: Kind) -> None:
    found = match(method, path)
    assert found.refusal is None
    assert found.route is not None
    assert found.route.kind is kind


@pytest.mark.parametrize("path", ["/api/chat", "/api/tags"])
def test_a_wrong_method_names_the_right_ones(path: str) -> None:
    refusal = match("PATCH", path).refusal
    assert isinstance(refusal, MethodNotAllowed)
    assert refusal.allow


@pytest.mark.parametrize(
    "path",
    [
        "/api",
        "/api/",
        "/api/chat/",
        "/API/CHAT",
        "/api/chat/../pull",
        "//api/chat",
        "/debug/pprof",
        "/metrics",
        "/v1/chats",
    ],
)
def test_near_misses_are_unknown_and_not_forwarded(path: str) -> None:
    found = match("POST", path)
    assert isinstance(found.refusal, NotFound)
    assert found.endpoint == "unknown"


@given(st.text(), st.text())
def test_every_input_has_an_answer(method: str, path: str) -> None:
    found = match(method, path)
    assert (found.route is None) <= (found.refusal is not None)
