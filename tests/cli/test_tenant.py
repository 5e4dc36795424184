from collections.abc import Callable
from typing import Any

Cli = Callable[..., Any]
Sql = Callable[..., list[dict[str, Any]]]

FULL = "--rpm 9 --concurrency 2 --budget 50 --period day --max-predict 6 --max-body 10 --model M"

NO_LIMITS = {
    "rpm": None,
    "concurrency": None,
    "budget_tokens": None,
    "budget_period": "month",
    "max_predict": None,
    "max_body_bytes": None,
    "allow_all_models": False,
    "models": [],
}


def test_a_tenant_is_created_with_its_limits(cli: Cli, sql: Sql) -> None:
    result = cli("tenant", "create", "acme", *FULL.split(), "--model", "LLama3.2", "--model", "a/b:c", "--json")
    assert (result.code, result.err) == (0, "")
    limits = NO_LIMITS | {
        "rpm": 9,
        "concurrency": 2,
        "budget_tokens": 50,
        "budget_period": "day",
        "max_predict": 6,
        "max_body_bytes": 10,
        "models": ["a/b:c", "llama3.2:latest", "m:latest"],
    }
    assert result.document["limits"] == limits
    stored = sql("SELECT * FROM gateway.tenant_limits")[0]
    assert {name: stored[name] for name in limits} == limits
    assert str(stored["tenant_id"]) == result.document["id"]


def test_a_tenant_without_options_has_no_limit_and_no_model(cli: Cli) -> None:
    assert cli("tenant", "create", "acme", "--json").document["limits"] == NO_LIMITS


def test_creating_says_what_to_do_next(cli: Cli) -> None:
    result = cli("tenant", "create", "acme", "--allow-all-models")
    assert (result.code, result.err) == (0, "")
    assert "neuronetz key create acme" in result.out


def test_tenants_are_listed(cli: Cli, sql: Sql) -> None:
    assert cli("tenant", "list", "--json").out == ""
    empty = cli("tenant", "list")
    assert (empty.code, empty.out) == (0, "")
    assert "neuronetz tenant create" in empty.err
    cli("tenant", "create", "zeta", "--budget", "1234567", "--period", "day")
    cli("tenant", "create", "acme", "--allow-all-models")
    tenants = cli("tenant", "list", "--json").documents
    assert [tenant["name"] for tenant in tenants] == ["acme", "zeta"]
    table = cli("tenant", "list").out
    assert [line.split()[:2] for line in table.splitlines()] == [
        ["NAME", "STATE"],
        ["acme", "active"],
        ["zeta", "active"],
    ]
    assert "1,234,567 / day" in table
    assert "all installed" in table


def test_a_tenant_is_shown_by_name_and_by_id_with_what_it_used(cli: Cli, sql: Sql) -> None:
    tenant = cli("tenant", "create", "acme", "--budget", "5000", "--period", "week", "--json").document
    for days_ago in (0, 40):
        sql(
            "INSERT INTO gateway.budget_usage"
            " VALUES ($1, $1, (now() AT TIME ZONE 'UTC')::date - $2::int, 30, 12, 1)",
            tenant["id"],
            days_ago,
        )
    by_name, by_id = cli("tenant", "show", "acme", "--json"), cli("tenant", "show", tenant["id"].upper(), "--json")
    assert by_name.document == by_id.document == tenant | {"used_tokens": 42}
    shown = cli("tenant", "show", "acme").out
    assert "42 tokens this week" in shown
    assert "5,000 / week" in shown


UNSET = {
    "rpm": ("rpm", None),
    "concurrency": ("concurrency", None),
    "budget": ("budget_tokens", None),
    "period": ("budget_period", "month"),
    "max-predict": ("max_predict", None),
    "max-body": ("max_body_bytes", None),
    "models": ("models", []),
    "allow-all-models": ("allow_all_models", False),
}


def test_each_limit_is_cleared_and_the_others_stay(cli: Cli) -> None:
    cli("tenant", "create", "acme", *FULL.split())
    limits = cli("tenant", "set", "acme", "--allow-all-models", "--json").document["limits"]
    assert all(limits[column] != default for column, default in UNSET.values())
    for option, (column, default) in UNSET.items():
        cleared = cli("tenant", "set", "acme", "--unset", option, "--json").document
        limits |= {column: default}
        assert cleared["limits"] == limits
        assert cleared == cli("tenant", "show", "acme", "--json").document
    assert limits == NO_LIMITS


def test_several_limits_are_cleared_at_once(cli: Cli) -> None:
    cli("tenant", "create", "acme", *FULL.split())
    every = [part for option in UNSET for part in ("--unset", option)]
    assert cli("tenant", "set", "acme", *every, "--json").document["limits"] == NO_LIMITS


def test_setting_changes_only_what_is_named_and_tells_the_gateways(cli: Cli, sql: Sql) -> None:
    cli("tenant", "create", "acme", "--rpm", "9", "--budget", "50")
    result = cli("tenant", "set", "acme", "--rpm", "10", "--unset", "budget")
    assert (result.code, result.err, result.out) == (0, "", "tenant acme changed\n")
    assert cli("tenant", "show", "acme", "--json").document["limits"] == NO_LIMITS | {"rpm": 10}


def test_a_budget_of_nothing_is_a_limit(cli: Cli) -> None:
    assert cli("tenant", "create", "acme", "--budget", "0", "--json").document["limits"]["budget_tokens"] == 0


def test_listing_models_turns_off_all_models(cli: Cli) -> None:
    cli("tenant", "create", "acme", "--allow-all-models")
    limits = cli("tenant", "set", "acme", "--model", "llama3.2", "--json").document["limits"]
    assert (limits["allow_all_models"], limits["models"]) == (False, ["llama3.2:latest"])


def test_a_tenant_is_suspended_and_resumed_any_number_of_times(cli: Cli, sql: Sql) -> None:
    cli("tenant", "create", "acme")
    refused = cli("tenant", "suspend", "acme")
    assert (refused.code, refused.out) == (2, "")
    assert "confirm with --yes" in refused.err
    assert sql("SELECT suspended_at FROM gateway.tenants")[0]["suspended_at"] is None
    assert cli("tenant", "suspend", "acme", "--yes").out == "tenant acme is suspended\n"
    at = sql("SELECT suspended_at FROM gateway.tenants")[0]["suspended_at"]
    assert at is not None
    assert cli("tenant", "suspend", "acme").out == "tenant acme was suspended already\n"
    assert sql("SELECT suspended_at FROM gateway.tenants")[0]["suspended_at"] == at
    assert cli("tenant", "show", "acme", "--json").document["state"] == "suspended"
    assert cli("tenant", "resume", "acme", "--json").document["suspended_at"] is None
    again = cli("tenant", "resume", "acme")
    assert (again.code, again.out) == (0, "tenant acme was active already\n")


MISTAKES: list[tuple[tuple[str, ...], int, str]] = [
    (("create", "acme"), 1, '"acme" exists already'),
    (("create", "Acme"), 1, '"Acme" is no tenant\'s name'),
    (("create", "a" * 64), 1, "is no tenant's name"),
    (("create", "a\x1b[31m"), 1, '"a\ufffd[31m" is no tenant\'s name'),
    (("show", "nobody"), 1, "no tenant \"nobody\"; 'neuronetz tenant list'"),
    (("set", "nobody", "--rpm", "1"), 1, 'no tenant "nobody"'),
    (("suspend", "nobody"), 1, 'no tenant "nobody"'),
    (("resume", "nobody"), 1, 'no tenant "nobody"'),
    (("set", "acme"), 1, "nothing to change"),
    (("set", "acme", "--rpm", "0"), 2, "--rpm"),
    (("set", "acme", "--rpm", "many"), 2, "--rpm"),
    (("set", "acme", "--rpm", "2147483648"), 2, "--rpm"),
    (("set", "acme", "--budget", "-1"), 2, "--budget"),
    (("set", "acme", "--period", "year"), 2, "--period"),
    (("set", "acme", "--unset", "everything"), 2, "--unset"),
    (("set", "acme", "--rpm", "1", "--unset", "rpm"), 2, "cannot be set and --unset"),
    (("set", "acme", "--model", " "), 2, "no model's name"),
    (("set", "acme", "--model", "m", "--allow-all-models"), 2, "no effect"),
    (("create",), 2, "Missing argument"),
    (("crate", "x"), 2, "Did you mean 'create'"),
    (("show", "x\udcff"), 2, "not valid UTF-8"),
]


def test_every_mistake_is_one_line_and_changes_nothing(cli: Cli, sql: Sql) -> None:
    cli("tenant", "create", "acme", "--rpm", "9")
    before = sql("SELECT * FROM gateway.tenants JOIN gateway.tenant_limits ON tenant_id = id")
    for args, code, says in MISTAKES:
        result = cli("tenant", *args)
        assert (result.code, result.out) == (code, ""), args
        assert says in result.err
        assert result.err.startswith("neuronetz: ")
        assert result.err.count("\n") == 1
    assert sql("SELECT * FROM gateway.tenants JOIN gateway.tenant_limits ON tenant_id = id") == before
