from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

Cli = Callable[..., Any]
Sql = Callable[..., list[dict[str, Any]]]

MARKER = "a-marker-that-no-list-shows"
REQUEST = str(UUID(int=1))

INSERT = """
INSERT INTO gateway.prompt_log
    (request_id, tenant_id, key_id, prompt, completion, prompt_truncated, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, now() - make_interval(mins => $7), now() + make_interval(hours => $8))
"""


@pytest.fixture
def keys(cli: Cli, sql: Sql) -> dict[str, dict[str, Any]]:
    """A key each of two tenants, with logged prompts, one of them expired."""
    keys = {}
    for name in ("acme", "zeta"):
        cli("tenant", "create", name)
        keys[name] = cli("key", "create", name, "--log-prompts", "--json").document
    for number, name, prompt, completion, cut, hours in (
        (1, "acme", f"user: {MARKER}\n  two\x1b[31m\tlines", f"so {MARKER}", True, 1),
        (2, "acme", f"user: {MARKER}", "", False, 2),
        (3, "zeta", f"user: {MARKER}", "é", False, 1),
        (4, "zeta", f"user: {MARKER}", "", False, -1),
    ):
        key = keys[name]
        sql(INSERT, UUID(int=number), key["tenant_id"], key["id"], prompt, completion, cut, number, hours)
    return keys


def numbers(result: Any) -> list[int]:
    assert (result.code, result.err) == (0, "")
    return [UUID(row["request_id"]).int for row in result.documents]


def test_a_list_is_newest_first_without_what_expired(cli: Cli, keys: dict[str, Any]) -> None:
    assert numbers(cli("prompts", "list", "--json")) == [1, 2, 3]
    assert numbers(cli("prompts", "list", "--key", keys["zeta"]["prefix"], "--json")) == [3]
    assert numbers(cli("prompts", "list", "--tenant", "acme", "--json")) == [1, 2]
    assert numbers(cli("prompts", "list", "--limit", "1", "--json")) == [1]


def test_a_list_shows_sizes_and_no_text(cli: Cli, keys: dict[str, Any]) -> None:
    documents = cli("prompts", "list", "--json")
    assert MARKER not in documents.out
    first, _, third = documents.documents
    assert set(first) == {
        *("request_id", "created_at", "expires_at", "tenant", "key"),
        *("prompt_bytes", "prompt_truncated", "completion_bytes", "completion_truncated"),
    }
    assert (first["tenant"], first["key"]) == ("acme", keys["acme"]["prefix"])
    assert (first["prompt_truncated"], first["completion_truncated"]) == (True, False)
    assert (third["prompt_bytes"], third["completion_bytes"]) == (len(f"user: {MARKER}"), 2)
    table = cli("prompts", "list")
    assert MARKER not in table.out
    assert REQUEST in table.out


def test_an_empty_list_says_how_a_key_opts_in(cli: Cli) -> None:
    assert cli("prompts", "list", "--json").out == ""
    assert "--log-prompts" in cli("prompts", "list").err


def test_the_text_is_shown_by_request_and_steers_no_terminal(cli: Cli, keys: dict[str, Any]) -> None:
    shown = cli("prompts", "show", REQUEST)
    assert (shown.code, shown.err) == (0, "")
    assert f"user: {MARKER}\n  two\ufffd[31m    lines\n" in shown.out
    assert f"so {MARKER}\n" in shown.out
    assert "bytes, cut)" in shown.out
    assert "\x1b" not in shown.out
    document = cli("prompts", "show", REQUEST, "--json").document
    assert document["prompt"] == f"user: {MARKER}\n  two\x1b[31m\tlines"
    assert document["completion"] == f"so {MARKER}"


@pytest.mark.parametrize(
    ("request_id", "says"),
    [(UUID(int=4), "nothing is logged"), (UUID(int=99), "nothing is logged"), ("x", '"x" is no request id')],
)
def test_what_is_not_there_or_has_expired_is_one_line(
    cli: Cli, keys: dict[str, Any], request_id: object, says: str
) -> None:
    result = cli("prompts", "show", str(request_id))
    assert (result.code, result.out) == (1, "")
    assert says in result.err
    assert result.err.count("\n") == 1


def left(sql: Sql) -> list[int]:
    return [row["request_id"].int for row in sql("SELECT request_id FROM gateway.prompt_log ORDER BY 1")]


def test_a_purge_deletes_what_it_names(cli: Cli, sql: Sql, keys: dict[str, Any]) -> None:
    result = cli("prompts", "purge", "--key", keys["zeta"]["prefix"], "--yes")
    assert (result.code, result.err, result.out) == (0, "", "2 rows deleted\n")
    assert left(sql) == [1, 2]
    assert cli("prompts", "purge", "--tenant", "zeta", "--yes", "--json").document == {"deleted": 0}
    assert cli("prompts", "purge", "--all", "--yes", "--json").document == {"deleted": 2}
    assert left(sql) == []


def test_a_purge_goes_on_beyond_its_batch(
    cli: Cli, sql: Sql, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuronetz.cli.prompts._BATCH", 2)
    assert cli("prompts", "purge", "--all", "--yes", "--json").document == {"deleted": 4}


@pytest.mark.parametrize(("answer", "rows"), [(True, 2), (False, 4)])
def test_a_purge_asks_at_a_terminal(
    cli: Cli, sql: Sql, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch, answer: bool, rows: int
) -> None:
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    asked: list[str] = []

    def confirm(question: str, err: bool) -> bool:
        asked.append(question)
        return answer

    monkeypatch.setattr("typer.confirm", confirm)
    result = cli("prompts", "purge", "--tenant", "acme")
    assert "2 rows" in asked[0]
    assert (result.code, result.err) == ((0, "") if answer else (1, "neuronetz: not deleted\n"))
    assert len(left(sql)) == rows


def test_without_a_terminal_a_purge_must_be_confirmed_by_an_option(
    cli: Cli, sql: Sql, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", type("Pipe", (), {"isatty": lambda self: False})())
    told = "not deleted: there is no terminal to ask at; confirm with --yes"
    for mode, err in (((), f"neuronetz: {told}\n"), (("--json",), f'{{"error":"{told}","exit_code":2}}\n')):
        result = cli("prompts", "purge", "--all", *mode)
        assert (result.code, result.out, result.err) == (2, "", err)
    assert len(left(sql)) == 4


@pytest.mark.parametrize("options", [(), ("--all", "--tenant", "acme"), ("--all", "--key", "x")])
def test_a_purge_must_say_of_what(cli: Cli, sql: Sql, keys: dict[str, Any], options: tuple[str, ...]) -> None:
    result = cli("prompts", "purge", "--yes", *options)
    assert (result.code, result.out) == (2, "")
    assert "--key, --tenant or --all" in result.err
    assert len(left(sql)) == 4
