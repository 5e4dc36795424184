from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis as redis_py

from neuronetz.admission import keyspace

Cli = Callable[..., Any]
Sql = Callable[..., list[dict[str, Any]]]

USE = "INSERT INTO gateway.budget_usage VALUES ($1, $2, $3, $4, $5, 1)"
TODAY = datetime.now(UTC).date


@pytest.fixture
def key(cli: Cli, sql: Sql) -> dict[str, Any]:
    """A key that used 300 tokens today, of a tenant with a monthly budget; it has a daily one itself."""
    cli("tenant", "create", "acme", "--budget", "1000", "--period", "month")
    key: dict[str, Any] = cli("key", "create", "acme", "--budget", "400", "--period", "day", "--json").document
    sql(USE, key["tenant_id"], key["id"], TODAY(), 100, 200)
    return key


def test_all_budgets_are_shown_with_their_period_and_what_is_left(cli: Cli, key: dict[str, Any]) -> None:
    cli("tenant", "create", "without")
    result = cli("budget", "show", "--json")
    assert (result.code, result.err) == (0, "")
    tenant, own = result.documents
    now = datetime.now(UTC)
    assert tenant == {
        "scope": "tenant",
        "tenant": "acme",
        "tenant_id": key["tenant_id"],
        "key": None,
        "key_id": None,
        "limit": 1000,
        "period": "month",
        "starts_at": f"{now:%Y-%m}-01T00:00:00Z",
        "ends_at": f"{(now.replace(day=1) + timedelta(days=31)):%Y-%m}-01T00:00:00Z",
        "used": 300,
        "redis_used": None,
        "redis_reserved": None,
        "remaining": 700,
    }
    assert (own["scope"], own["key"], own["limit"], own["period"], own["remaining"]) == (
        "key",
        key["prefix"],
        400,
        "day",
        100,
    )


def test_one_tenant_or_key_is_shown_even_without_a_budget(cli: Cli, key: dict[str, Any]) -> None:
    cli("tenant", "create", "without")
    (row,) = cli("budget", "show", "--tenant", "without", "--json").documents
    assert (row["limit"], row["remaining"]) == (None, None)
    assert [row["scope"] for row in cli("budget", "show", "--tenant", "acme", "--json").documents] == [
        "tenant",
        "key",
    ]
    assert [row["key"] for row in cli("budget", "show", "--key", key["prefix"], "--json").documents] == [
        key["prefix"]
    ]
    table = cli("budget", "show").out.splitlines()
    assert table[0].split()[:3] == ["TENANT", "KEY", "LIMIT"]
    assert len(table) == 3


def test_with_redis_the_counters_are_shown_and_decide_what_is_left(
    cli: Cli, key: dict[str, Any], redis_url: str
) -> None:
    start = int(datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp())
    name = keyspace.budget(key["tenant_id"], None, "month", start)
    with redis_py.Redis.from_url(redis_url) as client:
        client.hset(name, mapping={"used": 310, "reserved": 90, "generation": "1"})
    tenant, own = cli("budget", "show", "--redis-url", redis_url, "--json").documents
    assert (tenant["redis_used"], tenant["redis_reserved"], tenant["remaining"]) == (310, 90, 600)
    assert (own["redis_used"], own["redis_reserved"], own["remaining"]) == (None, None, 100)


def test_a_budget_is_set_changed_and_taken_away(cli: Cli, key: dict[str, Any]) -> None:
    changed = cli("budget", "set", "5000", "--tenant", "acme", "--json").document
    assert (changed["limit"], changed["period"], changed["remaining"]) == (5000, "month", 4700)
    changed = cli("budget", "set", "--tenant", "acme", "--period", "week", "--json").document
    assert (changed["limit"], changed["period"]) == (5000, "week")
    assert cli("budget", "set", "none", "--key", key["prefix"], "--json").document["limit"] is None
    assert cli("key", "show", key["prefix"], "--json").document["limits"]["budget_tokens"] is None
    assert (
        cli("budget", "set", "7", "--key", key["prefix"]).out == f"budget of key {key['prefix']}: 300 of 7 / day\n"
    )
    assert cli("budget", "set", "NONE", "--tenant", "acme").out == "budget of tenant acme: none\n"


def test_a_reset_counts_what_was_used_as_nothing_and_keeps_the_reports(
    cli: Cli, sql: Sql, key: dict[str, Any]
) -> None:
    reports = [{**row, "budget": None} for row in cli("usage", "--json").documents]
    done = cli("budget", "reset", "--tenant", "acme", "--reason", "paid for more", "--yes", "--json").document
    assert (done["reset_tokens"], done["used"], done["remaining"]) == (300, 0, 1000)
    assert [{**row, "budget": None} for row in cli("usage", "--json").documents] == reports
    (own,) = cli("budget", "show", "--key", key["prefix"], "--json").documents
    assert own["used"] == 300
    again = cli("budget", "reset", "--tenant", "acme", "--yes")
    assert again.out == "budget of tenant acme: nothing counts in this month yet\n"
    (row,) = sql("SELECT tenant_id::text, key_id, day, tokens, reason FROM gateway.budget_adjustments")
    assert row == {
        "tenant_id": key["tenant_id"],
        "key_id": None,
        "day": TODAY(),
        "tokens": -300,
        "reason": "paid for more",
    }
    sql("UPDATE gateway.budget_usage SET prompt_tokens = prompt_tokens + 11")
    assert cli("budget", "show", "--tenant", "acme", "--json").documents[0]["used"] == 11


def test_a_key_s_reset_leaves_its_tenant_s_budget(cli: Cli, key: dict[str, Any]) -> None:
    done = cli("budget", "reset", "--key", key["prefix"], "--yes")
    assert done.out == f"budget of key {key['prefix']}: 300 tokens of this day count no more\n"
    assert [row["used"] for row in cli("budget", "show", "--json").documents] == [300, 0]


@pytest.mark.parametrize(("answer", "used"), [(True, 0), (False, 300)])
def test_at_a_terminal_a_reset_is_confirmed(
    cli: Cli, key: dict[str, Any], monkeypatch: pytest.MonkeyPatch, answer: bool, used: int
) -> None:
    asked: list[str] = []

    def confirm(question: str, **_: Any) -> bool:
        asked.append(question)
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("typer.confirm", confirm)
    result = cli("budget", "reset", "--tenant", "acme")
    assert result.code == (0 if answer else 1)
    assert asked == ["Let 300 tokens that tenant acme used this month count no more?"]
    assert cli("budget", "show", "--tenant", "acme", "--json").documents[0]["used"] == used
    cli("budget", "reset", "--tenant", "acme", "--yes")
    assert len(asked) == 1


def test_without_a_terminal_a_reset_must_be_confirmed_by_an_option(cli: Cli, key: dict[str, Any]) -> None:
    result = cli("budget", "reset", "--tenant", "acme")
    assert (result.code, result.out) == (2, "")
    assert result.err == "neuronetz: not reset: there is no terminal to ask at; confirm with --yes\n"
    assert [row["used"] for row in cli("budget", "show", "--json").documents] == [300, 300]


def test_no_budgets_are_said_so(cli: Cli) -> None:
    result = cli("budget", "show")
    assert (result.code, result.out) == (0, "")
    assert "no budgets yet" in result.err


MISTAKES: list[tuple[tuple[str, ...], int, str]] = [
    (("budget", "show", "--tenant", "a", "--key", "b"), 2, "not both"),
    (("budget", "show", "--tenant", "nobody"), 1, 'no tenant "nobody"'),
    (("budget", "set", "5"), 2, "--tenant or --key"),
    (("budget", "set", "5", "--tenant", "a", "--key", "b"), 2, "one of them"),
    (("budget", "set", "--tenant", "acme"), 1, "nothing to change"),
    (("budget", "set", "many", "--tenant", "acme"), 2, '"many" is no budget'),
    (("budget", "set", "9" * 30, "--tenant", "acme"), 2, "is no budget"),
    (("budget", "set", "5", "--tenant", "acme", "--period", "year"), 2, "--period"),
    (("budget", "set", "5", "--key", "nnz_00000000"), 1, "no key"),
    (("budget", "reset"), 2, "--tenant or --key"),
    (("budget", "reset", "--tenant", "nobody"), 1, 'no tenant "nobody"'),
]


def test_every_mistake_is_one_line(cli: Cli) -> None:
    for args, code, says in MISTAKES:
        result = cli(*args)
        assert (result.code, result.out) == (code, ""), args
        assert says in result.err
        assert result.err.count("\n") == 1
