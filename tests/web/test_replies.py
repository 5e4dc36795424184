"""Typed errors become the right reply in the caller's dialect, with nothing more in it."""

import inspect
import json

import pytest

from neuronetz import errors
from neuronetz.errors import GatewayError
from neuronetz.web.replies import identified, render

ID = "00000000-0000-4000-8000-000000000000"

ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, GatewayError) and kind not in (errors.MethodNotAllowed, errors.Unavailable)
]


def headers_of(error: GatewayError, dialect: str = "ollama") -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in render(error, dialect, ID).headers}  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ALL)
def test_native_errors_are_one_object_with_one_text(kind: type[GatewayError]) -> None:
    rendered = render(kind(), "ollama", ID)
    assert rendered.status == kind.status
    assert json.loads(rendered.body) == {"error": kind.default}


@pytest.mark.parametrize("kind", ALL)
def test_openai_errors_are_an_error_object(kind: type[GatewayError]) -> None:
    body = json.loads(render(kind(), "openai", ID).body)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("kind", ALL)
def test_anthropic_errors_name_their_request(kind: type[GatewayError]) -> None:
    body = json.loads(render(kind(), "anthropic", ID).body)
    assert body == {
        "type": "error",
        "error": {"type": body["error"]["type"], "message": kind.default},
        "request_id": ID,
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidRequest(), "invalid_request_error"),
        (errors.Unauthenticated(), "authentication_error"),
        (errors.ModelDenied(), "permission_error"),
        (errors.NotFound(), "not_found_error"),
        (errors.RateLimited(), "rate_limit_error"),
        (errors.BudgetExhausted(), "rate_limit_error"),
        (errors.BodyTooLarge(), "request_too_large"),
        (GatewayError(), "api_error"),
        (errors.UpstreamFailed(), "api_error"),
        (errors.Unavailable("redis"), "overloaded_error"),
        (errors.BreakerOpen(), "overloaded_error"),
        (errors.UpstreamTimeout(), "api_error"),
    ],
)
def test_anthropics_types_go_by_status(error: GatewayError, kind: str) -> None:
    assert json.loads(render(error, "anthropic", ID).body)["error"]["type"] == kind


@pytest.mark.parametrize("kind", ALL)
def test_status_and_headers_are_the_same_in_every_dialect(kind: type[GatewayError]) -> None:
    one, *others = (render(kind(), dialect, ID)[:2] for dialect in ("ollama", "openai", "anthropic"))
    assert all(other == one for other in others)


def test_a_reply_names_its_request_where_its_clients_look() -> None:
    usual = (b"x-request-id", ID.encode())
    assert identified(ID, "ollama") == identified(ID, "openai") == [usual]
    assert identified(ID, "anthropic") == [usual, (b"request-id", ID.encode())]


def test_415_says_what_is_taken() -> None:
    assert headers_of(errors.UnsupportedEncoding())["accept-encoding"] == "zstd"


def test_retry_after_is_whole_seconds_rounded_up() -> None:
    assert headers_of(errors.RateLimited(retry_after=0.2))["retry-after"] == "1"
    assert headers_of(errors.RateLimited(retry_after=12.1))["retry-after"] == "13"


def test_an_exhausted_budget_says_that_a_retry_cannot_help() -> None:
    assert headers_of(errors.BudgetExhausted())["x-should-retry"] == "false"
    assert "x-should-retry" not in headers_of(errors.RateLimited())


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (errors.BudgetExhausted(), "insufficient_quota", "insufficient_quota"),
        (errors.BudgetReserved(), "rate_limit_error", "rate_limit_exceeded"),
    ],
)
def test_only_a_spent_budget_is_an_insufficient_quota(error: GatewayError, kind: str, code: str) -> None:
    body = json.loads(render(error, "openai", ID).body)["error"]
    assert (error.status, body["type"], body["code"]) == (429, kind, code)
    assert ("x-should-retry" in headers_of(error)) == (kind == "insufficient_quota")


def test_401_says_how_to_authenticate_and_405_what_is_allowed() -> None:
    assert headers_of(errors.Unauthenticated())["www-authenticate"].startswith("Bearer")
    assert headers_of(errors.MethodNotAllowed(("GET", "HEAD")))["allow"] == "GET, HEAD"


def test_headers_of_the_refusal_are_passed_on() -> None:
    error = errors.RateLimited(headers={"x-ratelimit-remaining-requests": "0"})
    assert headers_of(error)["x-ratelimit-remaining-requests"] == "0"


def test_an_unavailable_store_is_not_named_to_the_client() -> None:
    for store in ("redis", "postgres"):
        assert (
            render(errors.Unavailable(store), "ollama", ID).body
            == render(errors.Unavailable("x"), "ollama", ID).body
        )
