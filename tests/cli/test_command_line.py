import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from neuronetz import __version__
from neuronetz.cli.app import app

Cli = Callable[..., Any]

GROUPS = {"tenant": 6, "key": 5, "prompts": 3, "budget": 3, "model": 1}
ASK_POSTGRESQL = ["migrate", "usage", "audit", *GROUPS]
ROOT: Any = typer.main.get_command(app)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that is not hidden, with its words."""
    for name, command in ROOT.commands.items():
        if name in GROUPS:
            yield from ((f"{name} {below}", each) for below, each in command.commands.items())
        elif not command.hidden:
            yield name, command


COMMANDS = dict(commands())


def test_no_command_is_missing_here() -> None:
    singles = {"serve", "migrate", "demo", "dev", "mock-ollama", "usage", "audit", "doctor"}
    assert {name for name in COMMANDS if " " not in name} == singles
    assert len(COMMANDS) == len(singles) + sum(GROUPS.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_that_parse_and_knows_json(bare: Cli, command: str) -> None:
    result = bare(*command.split(), "--help")
    assert result.code == 0
    lines = [line.strip().removeprefix("Example: ") for line in result.out.splitlines()]
    examples = [line for line in lines if line.startswith(f"neuronetz {command}")]
    assert examples, result.out
    for example in examples:
        words = shlex.split(example.partition(" | ")[0])[1 + len(command.split()) :]
        # Raises where an option is unknown or a value is none.
        COMMANDS[command].make_context(command, words)
    assert "--json" in result.out
    if command.split()[0] in ASK_POSTGRESQL:
        assert "--database-url" in result.out


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("tenant", "list"), 2, "DATABASE_URL: is not set"),
        (("tenant", "create", "A"), 1, '"A" is no tenant\'s name'),
        (("tenant", "create"), 2, "Missing argument"),
        (("tenant", "list", "--nonsense"), 2, "--nonsense"),
        (("tenant", "list", "--database-url", "postgresql://user@127.0.0.1:1/x"), 1, "is not reachable"),
        (("migrate", "--database-url", "postgresql://user@127.0.0.1:1/x"), 1, "is not reachable"),
    ],
)
def test_with_json_an_error_is_json_too(bare: Cli, args: tuple[str, ...], code: int, says: str) -> None:
    result = bare(*args, "--json")
    assert (result.code, result.out) == (code, "")
    error = json.loads(result.err)
    assert error["exit_code"] == code
    assert says in error["error"]


def test_a_migration_tells_programs_what_it_did(cli: Cli) -> None:
    assert cli("migrate", "--json").document == {"applied": []}
    assert cli("migrate").out == "nothing to apply: the schema is up to date\n"


def test_an_output_in_an_old_encoding_is_no_error(database_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "neuronetz", "tenant", "show", "x\u2026", "--database-url", database_url],
        capture_output=True,
        check=False,
        env={"PYTHONIOENCODING": "latin-1"},
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b'neuronetz: no tenant "x?"')


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
