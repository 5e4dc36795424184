import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from neuronetz import __version__

Cli = Callable[..., Any]

COMMANDS = [
    *(f"tenant {name}" for name in ("create", "list", "show", "set", "suspend", "resume")),
    *(f"key {name}" for name in ("create", "list", "show", "set", "revoke")),
    *(f"prompts {name}" for name in ("list", "show", "purge")),
    *(f"budget {name}" for name in ("show", "set", "reset")),
    "usage",
    "audit",
    "model list",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_in_its_help(bare: Cli, command: str) -> None:
    result = bare(*command.split(), "--help")
    assert result.code == 0
    assert f"Example: neuronetz {command}" in result.out
    assert "--json" in result.out
    assert "DATABASE_URL" in result.out


def test_the_version_is_told(bare: Cli) -> None:
    assert bare("--version").out == f"neuronetz {__version__}\n"


@pytest.mark.parametrize("args", [(), ("tenant",), ("key",), ("budget",), ("model",), ("prompts",)])
def test_without_a_command_the_help_is_shown(bare: Cli, args: tuple[str, ...]) -> None:
    result = bare(*args)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: neuronetz")
    assert "Commands:" in result.err


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (None, "DATABASE_URL: is not set"),
        ("", "DATABASE_URL: is not set"),
        ("mysql://host/x", "DATABASE_URL: must start with postgresql://"),
        ("postgresql://user:hunter2@host:port/x", "DATABASE_URL: is not a valid URL"),
    ],
)
def test_a_wrong_setting_is_exit_code_two_and_not_repeated(
    bare: Cli, environment: pytest.MonkeyPatch, url: str | None, says: str
) -> None:
    if url is not None:
        environment.setenv("DATABASE_URL", url)
    result = bare("tenant", "list")
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert "hunter2" not in result.err
    assert result.err.count("\n") == 1


def test_postgresql_away_is_one_line_that_says_what_to_check(bare: Cli) -> None:
    result = bare("tenant", "list", "--database-url", "postgresql://user:hunter2@127.0.0.1:1/x")
    assert (result.code, result.out) == (1, "")
    assert "PostgreSQL is not reachable (ConnectionRefusedError)" in result.err
    assert "DATABASE_URL" in result.err
    assert "hunter2" not in result.err
    assert result.err.count("\n") == 1


def test_redis_away_is_one_line_that_says_what_to_check(bare: Cli) -> None:
    result = bare("model", "list", "--redis-url", "redis://:hunter2@127.0.0.1:1/0")
    assert (result.code, result.out) == (1, "")
    assert "Redis is not reachable" in result.err
    assert "REDIS_URL" in result.err
    assert "hunter2" not in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("ALTER SCHEMA gateway RENAME TO elsewhere", "neuronetz migrate"),
        ("ALTER TABLE gateway.tenant_limits RENAME TO elsewhere", "neuronetz migrate"),
        ("ALTER TABLE gateway.tenant_limits DROP COLUMN rpm", "neuronetz migrate"),
    ],
)
def test_a_missing_schema_says_to_migrate(cli: Cli, sql: Callable[..., Any], statement: str, says: str) -> None:
    sql(statement)
    result = cli("tenant", "list")
    assert (result.code, result.out) == (1, "")
    assert says in result.err
    assert result.err.count("\n") == 1


def test_a_missing_database_is_said_so(bare: Cli, database_url: str) -> None:
    name = database_url.rsplit("?", 1)[0].rsplit("/", 1)[1]
    result = bare("tenant", "list", "--database-url", database_url.replace(name, "no_such_database"))
    assert (result.code, result.out) == (1, "")
    assert "does not exist" in result.err


def test_the_console_script_works_from_a_shell_pipe(database_url: str) -> None:
    command = [sys.executable, "-c", "from neuronetz.cli import main; main()"]
    for args, code in ((["tenant", "create", "acme", "--json"], 0), (["tenant", "create", "acme"], 1)):
        done = subprocess.run(
            [*command, *args, "--database-url", database_url], capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert bool(done.stdout) == (code == 0)
