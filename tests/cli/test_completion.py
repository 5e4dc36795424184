import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

Cli = Callable[..., Any]


@pytest.fixture
def complete(environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], list[str]]:
    """What bash is offered for a line that breaks off."""
    from neuronetz.cli import main

    def run(line: str) -> list[str]:
        environment.setenv("_NEURONETZ_COMPLETE", "complete_bash")
        environment.setenv("COMP_WORDS", line)
        environment.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main(())
        environment.delenv("_NEURONETZ_COMPLETE")
        out, err = capsys.readouterr()
        assert (exited.value.code, err) == (0, "")
        return out.split()

    return run


def test_commands_and_options_are_completed(complete: Callable[[str], list[str]]) -> None:
    assert complete("neuronetz ten") == ["tenant"]
    assert complete("neuronetz budget ") == ["show", "set", "reset"]
    assert complete("neuronetz audit --fol") == ["--follow"]
    assert complete("neuronetz usage --by ") == ["day", "tenant", "key", "model"]


def test_names_of_tenants_and_keys_are_completed(cli: Cli, complete: Callable[[str], list[str]]) -> None:
    for name in ("acme", "a_me", "zeta"):
        cli("tenant", "create", name)
    kept, revoked = (cli("key", "create", "acme", "--json").document["prefix"] for _ in range(2))
    cli("key", "revoke", revoked, "--yes")
    assert complete("neuronetz tenant show a") == ["a_me", "acme"]
    assert complete("neuronetz usage --tenant a_") == ["a_me"]
    assert complete("neuronetz key create z") == ["zeta"]
    for line in ("key show ", "key revoke nnz_", "audit --key ", "budget reset --key ", "model list --key "):
        assert complete(f"neuronetz {line}") == [kept], line


def test_names_of_models_are_completed(
    complete: Callable[[str], list[str]], environment: pytest.MonkeyPatch, redis_url: str
) -> None:
    environment.setenv("REDIS_URL", redis_url)
    assert complete("neuronetz tenant create x --model ") == []
    with redis_py.Redis.from_url(redis_url) as client:
        client.set("gateway:models:discovered", b'["qwen3:8b","llama3.2:latest","evil\\u001b"]')
    assert complete("neuronetz tenant create x --model ") == ["llama3.2:latest", "qwen3:8b"]
    assert complete("neuronetz audit --model q") == ["qwen3:8b"]


@pytest.mark.parametrize("url", [None, "", "nonsense", "postgresql://u@127.0.0.1:1/x"])
def test_without_stores_nothing_is_completed_and_nothing_said(
    complete: Callable[[str], list[str]], environment: pytest.MonkeyPatch, url: str | None
) -> None:
    if url is not None:
        environment.setenv("DATABASE_URL", url)
        environment.setenv("REDIS_URL", url.replace("postgresql", "redis"))
    assert complete("neuronetz tenant show ") == []
    assert complete("neuronetz tenant create x --model ") == []


def test_a_database_without_the_schema_is_silent_too(
    cli: Cli, complete: Callable[[str], list[str]], sql: Callable[..., Any]
) -> None:
    sql("ALTER SCHEMA gateway RENAME TO elsewhere")
    assert complete("neuronetz key show ") == []


def test_completion_is_installed_for_the_shell_that_asks(tmp_path: Path) -> None:
    (tmp_path / "neuronetz").write_text(f'#!/bin/sh\nexec {sys.executable} -m neuronetz "$@"\n')
    (tmp_path / "neuronetz").chmod(0o755)
    done = subprocess.run(
        ["bash", "--norc", "-c", "neuronetz --install-completion; true"],
        env={"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "bash completion installed" in done.stdout, done.stderr
    installed = "\n".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "_NEURONETZ_COMPLETE=complete_bash" in installed
