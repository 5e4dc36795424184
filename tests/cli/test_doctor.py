"""neuronetz doctor, as its user sees it."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from neuronetz.doctor.examination import STEPS


@pytest.fixture(autouse=True)
def logs_restored() -> Iterator[None]:
    """The command sets logging up for its whole process, which is that of the other tests too."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def doctor(cli: Callable[..., Any], environment: pytest.MonkeyPatch, redis_url: str) -> Callable[..., Any]:
    """Runs the doctor in an environment with stores and without an Ollama or a gateway."""
    environment.setenv("REDIS_URL", redis_url)
    environment.setenv("OLLAMA_URL", "http://user:secret-word@127.0.0.1:1")
    environment.setenv("LISTEN_PORT", "1")
    return lambda *args: cli("doctor", *args)


def test_one_line_for_each_finding_with_what_to_do_and_exit_code_1(doctor: Callable[..., Any]) -> None:
    result = doctor()
    assert (result.code, result.err) == (1, "")
    lines = result.out.splitlines()
    assert [line[8:].partition(":")[0] for line in lines] == [step.name for step in STEPS]
    assert all(line.startswith(("ok      ", "warning ", "failed  ")) for line in lines)
    assert all((" -> " in line) is not line.startswith("ok") for line in lines)
    [ollama] = [line for line in lines if line[8:].startswith("ollama: ")]
    assert ollama.startswith("failed  ollama: Ollama at 127.0.0.1:1")
    assert "secret-word" not in result.out


def test_quiet_leaves_out_what_is_ok(doctor: Callable[..., Any]) -> None:
    lines = doctor("--quiet").out.splitlines()
    assert lines
    assert not [line for line in lines if line.startswith("ok")]


def test_json_is_an_object_a_line(doctor: Callable[..., Any]) -> None:
    result = doctor("--json")
    assert result.code == 1
    assert [finding["check"] for finding in result.documents] == [step.name for step in STEPS]
    assert {tuple(finding) for finding in result.documents} == {("check", "state", "what", "hint")}
    json.dumps(result.documents)


def test_warnings_alone_are_exit_code_0(doctor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from neuronetz.doctor import examination

    gateway = [step for step in STEPS if step.name == "gateway"]
    monkeypatch.setattr(examination, "STEPS", gateway)
    result = doctor()
    assert result.code == 0
    assert result.out.startswith("warning gateway: no gateway answers")


def test_a_wrong_setting_is_exit_code_2_and_named(
    doctor: Callable[..., Any], environment: pytest.MonkeyPatch
) -> None:
    environment.delenv("OLLAMA_URL")
    result = doctor()
    assert (result.code, result.out, result.err) == (2, "", "neuronetz: OLLAMA_URL: is not set\n")


def test_help_has_examples(doctor: Callable[..., Any]) -> None:
    result = doctor("--help")
    assert result.code == 0
    assert "neuronetz doctor --quiet --days 31" in result.out
