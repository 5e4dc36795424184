import re

import pytest

from neuronetz.cli.output import write_rows

ROWS = [
    {"id": "0123456789" * 3, "name": "one of them", "n": 1234567},
    {"id": "abcdefghij" * 3, "name": "x\x1b[31m", "n": None},
]
COLUMNS = {"id": "ID", "name": "NAME", "n": "N"}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of a terminal that knows colours."""
    for name, value in (("TERM", "xterm-256color"), ("COLORTERM", "truecolor")):
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def table(capsys: pytest.CaptureFixture[str], terminal: pytest.MonkeyPatch | None = None) -> str:
    if terminal is not None:
        # Not in the fixture: the stream is exchanged between that and the test.
        terminal.setattr("sys.stdout.isatty", lambda: True)
    write_rows(ROWS, COLUMNS, json=False)
    return capsys.readouterr().out


def test_a_pipe_gets_whole_lines_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    lines = table(capsys).splitlines()
    assert [line.split() for line in lines] == [
        ["ID", "NAME", "N"],
        ["0123456789" * 3, "one", "of", "them", "1,234,567"],
        ["abcdefghij" * 3, "x\ufffd[31m", "-"],
    ]


def test_at_a_wide_terminal_the_heading_is_bold(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.setenv("COLUMNS", "80")
    out = table(capsys, terminal)
    assert "\x1b[1m" in out
    assert "\x1b[31m" not in out
    assert out.count("\n") == 3


def test_no_color_leaves_no_colours(terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.setenv("COLUMNS", "80")
    terminal.setenv("NO_COLOR", "1")
    assert not [code for code in ("\x1b[3", "\x1b[4", "\x1b[9") if code in table(capsys, terminal)]


def test_a_dumb_terminal_gets_plain_text(terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.setenv("COLUMNS", "80")
    terminal.setenv("TERM", "dumb")
    assert "\x1b" not in table(capsys, terminal)


def test_a_narrow_terminal_gets_a_block_for_each_row(
    terminal: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.setenv("COLUMNS", "40")
    blocks = re.sub(r"\x1b\[[0-9;]*m", "", table(capsys, terminal)).split("\n\n")
    assert [[line.split() for line in block.splitlines()] for block in blocks] == [
        [["ID", "0123456789" * 3], ["NAME", "one", "of", "them"], ["N", "1,234,567"]],
        [["ID", "abcdefghij" * 3], ["NAME", "x\ufffd[31m"], ["N", "-"]],
    ]
