import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from neuronetz.access.keys import KEY_PATTERN, Hasher, parse

Cli = Callable[..., Any]
Sql = Callable[..., list[dict[str, Any]]]

FULL = "--rpm 9 --concurrency 2 --budget 50 --period day --max-predict 6 --max-body 10 --model M"

INHERITED = dict.fromkeys(
    (
        "rpm",
        "concurrency",
        "budget_tokens",
        "budget_period",
        "max_predict",
        "max_body_bytes",
        "allow_all_models",
        "models",
    )
)


@pytest.fixture
def tenant(cli: Cli) -> str:
    cli("tenant", "create", "acme", "--rpm", "100", "--allow-all-models")
    return "acme"


@pytest.fixture
def key(cli: Cli, tenant: str) -> dict[str, Any]:
    return dict(cli("key", "create", tenant, "--json").document)


def test_a_key_is_shown_once_and_only_its_hash_is_stored(
    cli: Cli, sql: Sql, tenant: str, in_trio: Callable[..., Any]
) -> None:
    created = cli("key", "create", tenant, "--name", "ci", "--json")
    assert (created.code, created.err) == (0, "")
    text = created.document["api_key"]
    presented = parse(text)
    assert presented is not None
    assert presented.prefix == created.document["prefix"]
    stored = sql("SELECT * FROM gateway.api_keys")[0]
    assert in_trio(lambda: Hasher(1, 8, 1, 1, 1).verify(stored["secret_hash"], presented.secret))
    assert presented.secret not in json.dumps([sql("SELECT * FROM gateway.key_limits"), stored], default=str)
    for command in (("list",), ("show", presented.prefix), ("set", presented.prefix, "--rpm", "3")):
        for mode in ((), ("--json",)):
            shown = cli("key", *command, *mode)
            assert shown.code == 0
            assert presented.secret not in shown.out + shown.err
            assert stored["secret_hash"] not in shown.out + shown.err
            assert "$argon2" not in shown.out + shown.err


def test_the_key_for_people_comes_with_a_warning_and_a_curl_line(cli: Cli, tenant: str) -> None:
    created = cli("key", "create", tenant)
    assert (created.code, created.err) == (0, "")
    texts = re.findall(KEY_PATTERN, created.out)
    assert len(texts) == 2
    assert len(set(texts)) == 1
    assert "this once" in created.out
    (line,) = (line for line in created.out.splitlines() if "curl" in line)
    assert f'-H "Authorization: Bearer {texts[0]}"' in line


def test_the_hash_has_the_gateways_parameters(cli: Cli, sql: Sql, key: dict[str, Any]) -> None:
    assert "$m=8,t=1,p=1$" in sql("SELECT secret_hash FROM gateway.api_keys")[0]["secret_hash"]


def test_a_key_without_options_inherits_everything(cli: Cli, key: dict[str, Any]) -> None:
    assert key["limits"] == INHERITED
    assert key["tenant_limits"]["rpm"] == 100
    assert (key["name"], key["tenant"], key["state"], key["expires_at"]) == ("default", "acme", "active", None)


def test_a_key_is_created_with_its_own_limits(cli: Cli, tenant: str) -> None:
    assert cli("key", "create", tenant, *FULL.split(), "--json").document["limits"] == {
        "rpm": 9,
        "concurrency": 2,
        "budget_tokens": 50,
        "budget_period": "day",
        "max_predict": 6,
        "max_body_bytes": 10,
        "allow_all_models": False,
        "models": ["m:latest"],
    }


UNSET = {
    "rpm": "rpm",
    "concurrency": "concurrency",
    "budget": "budget_tokens",
    "period": "budget_period",
    "max-predict": "max_predict",
    "max-body": "max_body_bytes",
    "models": "models",
    "allow-all-models": "allow_all_models",
}


def test_each_limit_taken_back_is_inherited_again(cli: Cli, tenant: str) -> None:
    key = cli("key", "create", tenant, *FULL.split(), "--json").document
    limits = key["limits"]
    assert None not in limits.values()
    for option, column in UNSET.items():
        limits |= {column: None}
        assert cli("key", "set", key["prefix"], "--unset", option, "--json").document["limits"] == limits
    assert limits == INHERITED


def test_a_key_expires_when_told(cli: Cli, tenant: str) -> None:
    key = cli("key", "create", tenant, "--expires", "2999-01-31T12:30+02:00", "--json").document
    assert datetime.fromisoformat(key["expires_at"]) == datetime(2999, 1, 31, 10, 30, tzinfo=UTC)
    changed = cli("key", "set", key["id"], "--expires", "30d", "--json").document
    left = datetime.fromisoformat(changed["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < left <= timedelta(days=30)
    assert cli("key", "set", key["id"], "--unset", "expires", "--json").document["expires_at"] is None


def test_name_and_expiry_change(cli: Cli, key: dict[str, Any]) -> None:
    changed = cli("key", "set", key["prefix"], "--name", "laptop", "--expires", "1h")
    assert (changed.code, changed.err, changed.out) == (0, "", f"key {key['prefix']} changed\n")
    shown = cli("key", "show", key["prefix"], "--json").document
    assert shown["name"] == "laptop"
    assert shown["expires_at"] is not None
    assert shown["limits"] == INHERITED


def test_prompts_are_logged_only_where_asked_for(cli: Cli, tenant: str, key: dict[str, Any]) -> None:
    assert (key["log_prompts"], key["prompt_ttl_s"]) == (False, None)
    assert re.search(r"^log-prompts +no *$", cli("key", "show", key["prefix"]).out, re.MULTILINE)
    opted = cli("key", "create", tenant, "--log-prompts", "--prompt-ttl", "12h", "--json").document
    assert (opted["log_prompts"], opted["prompt_ttl_s"]) == (True, 12 * 3600)
    assert re.search(r"^log-prompts +yes, kept for 12h *$", cli("key", "show", opted["prefix"]).out, re.MULTILINE)


def test_the_opt_in_and_the_time_to_live_change_each_for_itself(cli: Cli, key: dict[str, Any]) -> None:
    for options, state in (
        ("--log-prompts", (True, None)),
        ("--prompt-ttl 7d", (True, 7 * 86400)),
        ("--prompt-ttl 1m", (True, 60)),
        ("--no-log-prompts", (False, 60)),
        ("--prompt-ttl 365d --log-prompts", (True, 365 * 86400)),
        ("--unset prompt-ttl", (True, None)),
        ("--rpm 5", (True, None)),
    ):
        changed = cli("key", "set", key["prefix"], *options.split(), "--json").document
        assert (changed["log_prompts"], changed["prompt_ttl_s"]) == state, options


def test_keys_are_listed_all_and_by_tenant(cli: Cli, key: dict[str, Any]) -> None:
    cli("tenant", "create", "other")
    other = cli("key", "create", "other", "--json").document
    assert [each["prefix"] for each in cli("key", "list", "--json").documents] == [key["prefix"], other["prefix"]]
    assert [each["prefix"] for each in cli("key", "list", "--tenant", "other", "--json").documents] == [
        other["prefix"]
    ]
    lines = cli("key", "list").out.splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        [key["prefix"], "acme", "default", "active"],
        [other["prefix"], "other", "default", "active"],
    ]


def test_a_list_without_keys_says_how_to_create_one(cli: Cli, tenant: str) -> None:
    assert cli("key", "list", "--json").out == ""
    assert "neuronetz key create" in cli("key", "list").err


def test_showing_sets_own_limits_beside_the_tenants(cli: Cli, key: dict[str, Any]) -> None:
    cli("key", "set", key["prefix"], "--rpm", "7")
    shown = cli("key", "show", key["prefix"]).out
    assert "7 (tenant: 100)" in shown
    assert "all installed" in shown


def test_a_keys_state_is_told(cli: Cli, sql: Sql, key: dict[str, Any]) -> None:
    for change, state in (
        ("UPDATE gateway.tenants SET suspended_at = now()", "suspended"),
        ("UPDATE gateway.api_keys SET expires_at = now() - interval '1 second'", "expired"),
        ("UPDATE gateway.api_keys SET revoked_at = now()", "revoked"),
    ):
        sql(change)
        assert cli("key", "show", key["prefix"], "--json").document["state"] == state


def test_a_key_is_revoked_once(cli: Cli, sql: Sql, key: dict[str, Any]) -> None:
    first = cli("key", "revoke", key["prefix"], "--reason", "lost", "--yes")
    assert (first.code, first.err, first.out) == (0, "", f"key {key['prefix']} revoked\n")
    again = cli("key", "revoke", key["prefix"], "--yes")
    assert again.code == 0
    assert "was revoked already, at " in again.out
    rows = sql("SELECT prefix, reason FROM gateway.revocations")
    assert rows == [{"prefix": key["prefix"], "reason": "lost"}]
    assert sql("SELECT revoked_at FROM gateway.api_keys")[0]["revoked_at"] is not None


def test_without_a_terminal_a_revocation_must_be_confirmed_by_an_option(
    cli: Cli, sql: Sql, key: dict[str, Any]
) -> None:
    told = "not revoked: there is no terminal to ask at; confirm with --yes"
    for mode, err in (((), f"neuronetz: {told}\n"), (("--json",), f'{{"error":"{told}","exit_code":2}}\n')):
        result = cli("key", "revoke", key["prefix"], *mode)
        assert (result.code, result.out, result.err) == (2, "", err)
    assert sql("SELECT FROM gateway.revocations") == []


def test_revoking_for_programs_tells_whether_it_was_revoked_already(cli: Cli, key: dict[str, Any]) -> None:
    revoked = [cli("key", "revoke", key["id"], "--json", "--yes").document for _ in range(2)]
    assert [each["already_revoked"] for each in revoked] == [False, True]
    assert revoked[0]["revoked_at"] == revoked[1]["revoked_at"] is not None


@pytest.mark.parametrize(("answer", "revocations"), [(True, 1), (False, 0)])
def test_revoking_asks_at_a_terminal(
    cli: Cli, sql: Sql, key: dict[str, Any], monkeypatch: pytest.MonkeyPatch, answer: bool, revocations: int
) -> None:
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    asked: list[str] = []

    def confirm(question: str, err: bool) -> bool:
        asked.append(question)
        return answer

    monkeypatch.setattr("typer.confirm", confirm)
    result = cli("key", "revoke", key["prefix"])
    assert key["prefix"] in asked[0]
    assert (result.code, result.err) == ((0, "") if answer else (1, "neuronetz: not revoked\n"))
    assert len(sql("SELECT FROM gateway.revocations")) == revocations


MISTAKES: list[tuple[tuple[str, ...], int, str]] = [
    (("create", "nobody"), 1, 'no tenant "nobody"'),
    (("list", "--tenant", "nobody"), 1, 'no tenant "nobody"'),
    (("show", "nnz_00000000"), 1, "no key \"nnz_00000000\"; 'neuronetz key list'"),
    (("show", "x"), 1, 'no key "x"'),
    (("set", "nnz_00000000", "--rpm", "1"), 1, 'no key "nnz_00000000"'),
    (("revoke", "nnz_00000000", "--yes"), 1, 'no key "nnz_00000000"'),
    (("set", "nnz_00000000"), 1, "nothing to change"),
    (("create", "acme", "--name", ""), 1, "1 to 100"),
    (("create", "acme", "--name", "a\x1bb"), 1, "1 to 100"),
    (("create", "acme", "--expires", "soon"), 1, '"soon" is no time'),
    (("create", "acme", "--expires", "2020-01-01"), 1, "lies in the past"),
    (("create", "acme", "--expires", "0d"), 1, "lies in the past"),
    (("create", "acme", "--expires", "999999w"), 1, "is no time"),
    (("create", "acme", "--prompt-ttl", "soon"), 1, '"soon" is no duration'),
    (("create", "acme", "--prompt-ttl", "0m"), 1, "from 1m to 365d"),
    (("create", "acme", "--prompt-ttl", "366d"), 1, "from 1m to 365d"),
    (("create", "acme", "--prompt-ttl", "999999w"), 1, "from 1m to 365d"),
    (("set", "x", "--prompt-ttl", "1d", "--unset", "prompt-ttl"), 2, "cannot be set and --unset"),
    (("create", "acme", "--rpm", "0"), 2, "--rpm"),
    (("set", "x", "--expires", "1d", "--unset", "expires"), 2, "cannot be set and --unset"),
    (("set", "x", "--model", "m", "--unset", "models"), 2, "cannot be set and --unset"),
    (("show",), 2, "KEY"),
]


def test_every_mistake_is_one_line(cli: Cli, sql: Sql, tenant: str) -> None:
    for args, code, says in MISTAKES:
        result = cli("key", *args)
        assert (result.code, result.out) == (code, ""), args
        assert says in result.err
        assert result.err.count("\n") == 1
    assert sql("SELECT FROM gateway.api_keys") == []


def test_a_whole_key_as_argument_is_refused_and_not_repeated(cli: Cli, key: dict[str, Any]) -> None:
    for command in (("show",), ("revoke",), ("set", "--rpm", "1")):
        result = cli("key", *command, key["api_key"])
        assert result.code == 1
        assert "never pass the whole key" in result.err
        assert key["api_key"][12:] not in result.err
