from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import redis as redis_py

Cli = Callable[..., Any]
Sql = Callable[..., list[dict[str, Any]]]

INSERT_ROW = """
INSERT INTO gateway.audit_log VALUES (
    $1, $2, $3, $4, '/api/chat', 'ollama', $5, true, $6, $7, $8, $9, $10, $11, 1234, 56, '192.0.2.1', 'one')
"""
INSERT_USE = """
INSERT INTO gateway.budget_usage VALUES ($1, $2, $3, $4, $5, 1)
ON CONFLICT (tenant_id, key_id, day) DO UPDATE SET
    prompt_tokens = budget_usage.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = budget_usage.completion_tokens + excluded.completion_tokens,
    requests = budget_usage.requests + 1
"""


@pytest.fixture
def keys(cli: Cli, sql: Sql) -> dict[str, dict[str, Any]]:
    """A key each of two tenants, with requests of today, yesterday and long ago."""
    keys = {}
    for name in ("acme", "zeta"):
        cli("tenant", "create", name, "--model", "llama3.2")
        keys[name] = cli("key", "create", name, "--json").document
    now = datetime.now(UTC)
    rows = [
        # tenant, days ago, model, status, outcome, prompt, completion, exact
        ("acme", 0, "llama3.2:latest", 200, "completed", 10, 20, True),
        ("acme", 1, "qwen3:8b", 499, "client_disconnected", 3, 4, False),
        ("zeta", 0, "llama3.2:latest", 200, "completed", 100, 200, True),
        ("zeta", 0, "x\x1b[31m[red]\u202e", 403, "model_denied", 0, 0, True),
        ("acme", 400, "llama3.2:latest", 200, "completed", 7, 7, True),
    ]
    for number, (name, days, model, status, outcome, prompt, completion, exact) in enumerate(rows):
        at = now - timedelta(days=days, seconds=number)
        tenant_id, key_id = keys[name]["tenant_id"], keys[name]["id"]
        sql(
            INSERT_ROW,
            UUID(int=number + 1),
            at,
            tenant_id,
            key_id,
            model,
            status,
            outcome,
            prompt,
            completion,
            exact,
            at.date(),
        )
        sql(INSERT_USE, tenant_id, key_id, at.date(), prompt, completion)
    return keys


def sums(document: dict[str, Any]) -> tuple[int, int, int, int]:
    return tuple(document[name] for name in ("requests", "prompt_tokens", "completion_tokens", "total_tokens"))  # type: ignore[return-value]


def test_usage_is_summed_by_tenant_of_the_last_thirty_days(cli: Cli, keys: dict[str, Any]) -> None:
    result = cli("usage", "--json")
    assert (result.code, result.err) == (0, "")
    assert {row["tenant"]: sums(row) for row in result.documents} == {
        "zeta": (2, 100, 200, 300),
        "acme": (2, 13, 24, 37),
    }
    assert list(result.documents[0]) == [
        "tenant",
        "requests",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "budget",
    ]


def test_usage_goes_back_as_far_as_told(cli: Cli, keys: dict[str, Any]) -> None:
    (row,) = cli("usage", "--tenant", "acme", "--since", "2020-01-01", "--json").documents
    assert sums(row) == (3, 20, 31, 51)


def test_usage_by_key_model_and_day(cli: Cli, keys: dict[str, Any]) -> None:
    today, yesterday = (str((datetime.now(UTC) - timedelta(days=days)).date()) for days in (0, 1))
    by_key = cli("usage", "--by", "key", "--json").documents
    assert {row["key"]: row["total_tokens"] for row in by_key} == {
        keys["zeta"]["prefix"]: 300,
        keys["acme"]["prefix"]: 37,
    }
    by_model = cli("usage", "--by", "model", "--tenant", "acme", "--json").documents
    assert [(row["model"], *sums(row)) for row in by_model] == [
        ("llama3.2:latest", 1, 10, 20, 30),
        ("qwen3:8b", 1, 3, 4, 7),
    ]
    by_day = cli("usage", "--by", "day", "--by", "tenant", "--json").documents
    found = {(row["day"], row["tenant"]): row["total_tokens"] for row in by_day}
    assert found == {(today, "zeta"): 300, (today, "acme"): 30, (yesterday, "acme"): 7}


def test_usage_of_one_key_and_of_one_model(cli: Cli, keys: dict[str, Any]) -> None:
    (row,) = cli("usage", "--key", keys["zeta"]["prefix"], "--json").documents
    assert (row["tenant"], row["total_tokens"]) == ("zeta", 300)
    rows = cli("usage", "--model", "LLAMA3.2", "--json").documents
    assert {row["tenant"]: row["total_tokens"] for row in rows} == {"zeta": 300, "acme": 30}


def test_usage_is_a_table_for_people(cli: Cli, keys: dict[str, Any]) -> None:
    lines = cli("usage").out.splitlines()
    assert [line.split() for line in lines] == [
        ["TENANT", "REQUESTS", "PROMPT", "COMPLETION", "TOKENS", "PER", "DAY"],
        ["zeta", "2", "100", "200", "300", "·" * 30 + "█"],
        ["acme", "2", "13", "24", "37", "·" * 29 + "▂█"],
    ]


def test_usage_over_a_long_time_has_a_character_for_several_days(cli: Cli, keys: dict[str, Any]) -> None:
    lines = cli("usage", "--since", "410d", "--tenant", "acme").out.splitlines()
    assert lines[0].split()[-3:] == ["PER", "14", "DAYS"]
    assert lines[1].split()[-1] == "·▄" + "·" * 27 + "█"


def test_usage_by_day_has_bars_beside_the_largest_row(cli: Cli, keys: dict[str, Any]) -> None:
    lines = cli("usage", "--by", "day", "--tenant", "acme").out.splitlines()
    assert [line.split()[4] for line in lines[1:]] == ["30", "7"]
    bars = [line.split()[5] for line in lines[1:]]
    assert set(bars[0]) == {"█"}
    assert len(bars[1]) == -(-len(bars[0]) * 7 // 30)


def test_usage_tells_the_share_of_budgets(cli: Cli, keys: dict[str, Any]) -> None:
    # By day, so that what was used yesterday is in no running period.
    cli("tenant", "set", "acme", "--budget", "300", "--period", "day")
    cli("key", "set", keys["zeta"]["prefix"], "--budget", "1000", "--period", "day")
    shares = {row["tenant"]: row["budget"] for row in cli("usage", "--json").documents}
    assert shares == {"zeta": None, "acme": {"tokens": 300, "period": "day", "used": 30}}
    (by_key,) = cli("usage", "--key", keys["zeta"]["prefix"], "--json").documents
    assert by_key["budget"] == {"tokens": 1000, "period": "day", "used": 300}
    zeta, acme = cli("usage").out.splitlines()[1:]
    assert (zeta.split()[-1], acme.split()[-5:]) == ("-", ["10%", "of", "300", "/", "day"])
    days = cli("usage", "--by", "day", "--tenant", "acme").out.splitlines()[1:]
    assert [line.split()[6] for line in days] == ["10%", "2%"]
    assert "budget" not in cli("usage", "--by", "model", "--by", "tenant", "--json").documents[0]
    cli("budget", "reset", "--tenant", "acme", "--yes")
    assert {row["tenant"]: row["budget"] for row in cli("usage", "--json").documents}["acme"]["used"] == 0
    cli("tenant", "set", "acme", "--budget", "0")
    assert "none of 0 / day" in cli("usage").out


def test_no_usage_is_said_so(cli: Cli) -> None:
    result = cli("usage")
    assert (result.code, result.out) == (0, "")
    assert "no usage since" in result.err


def test_audit_shows_the_latest_rows_first(cli: Cli, keys: dict[str, Any]) -> None:
    result = cli("audit", "--json")
    assert (result.code, result.err) == (0, "")
    rows = result.documents
    assert [row["request_id"][-1] for row in rows] == ["1", "3", "4", "2", "5"]
    first = rows[0]
    assert (first["tenant"], first["key"], first["key_id"]) == (
        "acme",
        keys["acme"]["prefix"],
        keys["acme"]["id"],
    )
    assert (first["outcome"], first["status"], first["first_byte_ms"]) == ("completed", 200, 56)


def test_audit_filters(cli: Cli, keys: dict[str, Any]) -> None:
    for options, found in (
        (("--limit", "2"), "13"),
        (("--tenant", "acme"), "125"),
        (("--key", keys["zeta"]["prefix"]), "34"),
        (("--outcome", "client_disconnected"), "2"),
        (("--since", "2h"), "134"),
        (("--model", "LLAMA3.2", "--tenant", "acme"), "15"),
        (("--tenant", "acme", "--since", "2d"), "12"),
    ):
        rows = cli("audit", *options, "--json").documents
        assert "".join(row["request_id"][-1] for row in rows) == found, options


def test_the_audit_table_marks_counts_of_our_own_and_cannot_steer_the_terminal(
    cli: Cli, keys: dict[str, Any]
) -> None:
    table = cli("audit").out
    assert "~3+4" in table
    assert "10+20" in table
    assert "x\ufffd[31m[red]\ufffd" in table
    assert "\x1b" not in table


def test_an_empty_audit_log_is_said_so(cli: Cli) -> None:
    result = cli("audit")
    assert (result.code, result.out, result.err) == (0, "", "no requests found\n")


@pytest.fixture
def installed(redis_url: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("REDIS_URL", redis_url)
    with redis_py.Redis.from_url(redis_url) as client:
        client.set("gateway:models:discovered", b'["qwen3:8b","llama3.2:latest"]')


def test_models_are_listed_without_postgresql(bare: Cli, installed: None) -> None:
    assert bare("model", "list", "--json").documents == [{"name": "llama3.2:latest"}, {"name": "qwen3:8b"}]
    assert bare("model", "list").out.split() == ["MODEL", "llama3.2:latest", "qwen3:8b"]


def test_the_effective_set_is_what_is_installed_and_permitted(cli: Cli, installed: None) -> None:
    def names(*options: str) -> list[str]:
        return [row["name"] for row in cli("model", "list", *options, "--json").documents]

    cli("tenant", "create", "acme", "--model", "LLAMA3.2", "--model", "absent")
    inheriting, own, everything = (
        cli("key", "create", "acme", *options, "--json").document["prefix"]
        for options in ((), ("--model", "qwen3:8b"), ("--allow-all-models",))
    )
    assert names("--tenant", "acme") == names("--key", inheriting) == ["llama3.2:latest"]
    assert names("--key", own) == ["qwen3:8b"]
    assert names("--key", everything) == ["llama3.2:latest", "qwen3:8b"]
    cli("tenant", "create", "none")
    assert names("--tenant", "none") == []
    assert "none is both installed and permitted" in cli("model", "list", "--tenant", "none").err


def test_no_known_models_is_an_error(bare: Cli, redis_url: str) -> None:
    result = bare("model", "list", "--redis-url", redis_url)
    assert (result.code, result.out) == (1, "")
    assert "no models are known" in result.err


def test_what_is_no_list_of_models_is_an_error(bare: Cli, redis_url: str) -> None:
    with redis_py.Redis.from_url(redis_url) as client:
        client.set("gateway:models:discovered", b"{")
    assert "holds no list of models" in bare("model", "list", "--redis-url", redis_url).err


MISTAKES: list[tuple[tuple[str, ...], int, str]] = [
    (("usage", "--by", "planet"), 2, "--by"),
    (("usage", "--since", "yesterday"), 1, '"yesterday" is no time'),
    (("usage", "--tenant", "nobody"), 1, 'no tenant "nobody"'),
    (("usage", "--key", "nnz_00000000"), 1, "no key"),
    (("audit", "--limit", "0"), 2, "--limit"),
    (("audit", "--since", "?"), 1, '"?" is no time'),
    (("audit", "--tenant", "nobody"), 1, 'no tenant "nobody"'),
    (("model", "list", "--tenant", "nobody"), 1, 'no tenant "nobody"'),
    (("model", "list", "--key", "nnz_00000000"), 1, "no key"),
    (("model", "list", "--key", "a", "--tenant", "b"), 2, "not both"),
]


def test_every_mistake_is_one_line(cli: Cli, installed: None) -> None:
    for args, code, says in MISTAKES:
        result = cli(*args)
        assert (result.code, result.out) == (code, ""), args
        assert says in result.err
        assert result.err.count("\n") == 1
