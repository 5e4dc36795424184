"""The endpoint table is positive: what it does not name is closed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.errors import EndpointBlocked, MethodNotAllowed, NotFound
from neuronetz.web.routes import BLOCKED, ROUTES, Kind, dialect_of, match

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
        ("POST", "/v1/messages", Kind.INFERENCE),
        ("GET", "/v1/models", Kind.READ),
        ("HEAD", "/v1/models", Kind.READ),
        ("GET", "/v1/models/tiny", Kind.READ),
        ("HEAD", "/v1/models/tiny", Kind.READ),
    ],
)
def test_open_routes(method: str, path: str, kind: Kind) -> None:
    found = match(method, path)
    assert found.refusal is None
    assert found.route is not None
    assert found.route.kind is kind


@pytest.mark.parametrize("path", ["/api/chat", "/api/tags", "/v1/models", "/v1/models/tiny"])
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
        "/v1/models/",
        "/v1/modelsx",
        "/V1/models/tiny",
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


@pytest.mark.parametrize(
    "argument",
    [
        "tiny",
        "tiny:1b",
        "acme/tiny:1b",
        "hf.co/acme/tiny:Q4_K_M",
        "a%2Fb",
        " ",
        "/",
        "..",
        "../../api/pull",
        "{model}",
        "\x00",
    ],
)
def test_everything_below_a_parameter_is_the_argument_and_no_endpoint(argument: str) -> None:
    for method in ("GET", "DELETE"):
        found = match(method, f"/v1/models/{argument}")
        assert found.argument == argument
        assert found.endpoint == "/v1/models/{model}"
        assert found.dialect == "openai"
    assert match("GET", "/v1/models").argument is None


@given(st.text(min_size=1))
def test_any_text_can_be_an_argument(argument: str) -> None:
    found = match("GET", f"/v1/models/{argument}")
    assert (found.argument, found.refusal) == (argument, None)


@given(st.sampled_from(["GET", "POST", "PUT"]), st.text())
def test_an_endpoint_is_never_the_clients_text(method: str, path: str) -> None:
    blocked = {path + "*" if path.endswith("/") else path for path in BLOCKED}
    known = {route.path for route in ROUTES} | blocked | {"unknown"}
    for place in ("", "/", "/v1/", "/v1/models/", "/v1/messages/"):
        assert match(method, place + path).endpoint in known


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages", "anthropic"),
        ("/v1/messages/", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/v1/messages/batches/x", "anthropic"),
        ("/v1/messagesx", "openai"),
        ("/v1/models", "openai"),
        ("/v1/models/messages", "openai"),
        ("/v1/nowhere", "openai"),
        ("/v1/", "openai"),
        ("/v1", "ollama"),
        ("/", "ollama"),
        ("/api/chat", "ollama"),
        ("/api/v1/messages", "ollama"),
        ("/nowhere", "ollama"),
        ("", "ollama"),
    ],
)
def test_the_dialect_goes_by_the_path(path: str, dialect: str) -> None:
    assert dialect_of(path) == dialect
    for method in ("GET", "POST"):
        assert match(method, path).dialect == dialect
