"""What commands print: JSON for programs, tables for people. Results go to stdout alone."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout; a list is one object a line.")]
ReadyJson = Annotated[bool, typer.Option("--json", help="One JSON line on stdout when ready; logs on stderr.")]

# A table that is piped somewhere is as wide as it needs to be.
_PIPED_WIDTH = 1000

# rich takes about a millisecond for each row.
_MANY = 500


def write_json(value: object) -> None:
    """One JSON document, on one line."""
    import msgspec

    typer.echo(msgspec.json.encode(value).decode())


def write_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    json: bool,
    empty: str = "nothing found",
    shown: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> None:
    """A list: one JSON object a line, or a table of ``columns`` (field name to heading).

    ``shown`` gives a row as the table has it. At a terminal that is too narrow for the longest words of the
    table, each row is a block of lines instead.
    """
    if json:
        for row in rows:
            write_json(row)
        return
    if not rows:
        typer.echo(empty, err=True)
        return
    rows = rows if shown is None else [shown(row) for row in rows]
    if not sys.stdout.isatty() or len(rows) > _MANY:
        _write_lines(rows, columns)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, heading in columns.items():
        table.add_column(heading, justify="right" if _is_number(rows, name) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in columns))
    console = _console()
    if console.measure(table, options=console.options.update(max_width=10_000)).minimum <= console.width:
        console.print(table)
        return
    for number, row in enumerate(rows):
        if number:
            console.print()
        write_fields((heading, row[name]) for name, heading in columns.items())


def _write_lines(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """The table without colours and folds, each row one line."""
    from rich.cells import cell_len

    lines = [[printable(plain(row[name])) for name in columns] for row in rows]
    lines.insert(0, list(columns.values()))
    sides = [_is_number(rows, name) for name in columns]
    widths = [max(cell_len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        gaps = (" " * (width - cell_len(text)) for text, width in zip(line, widths, strict=True))
        cells = (gap + text if right else text + gap for text, gap, right in zip(line, gaps, sides, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    # Here and not at the interpreter's end, where nobody hears that the reader has gone.
    sys.stdout.flush()


def _is_number(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(isinstance(row[name], int) and not isinstance(row[name], bool) for row in rows)


def write_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """One thing's fields, a line each."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(name, _cell(value))
    _console().print(table)


def say(text: str) -> None:
    """A line about what was done, for people."""
    typer.echo(text)


def printable(text: str) -> str:
    """``text`` without what could steer a terminal: names come from clients and from upstream."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def quoted(text: str) -> str:
    """A name as an argument gave it, for an error's line."""
    shown = printable(text)
    return f'"{shown[:80]}…"' if len(shown) > 80 else f'"{shown}"'


def _cell(value: Any) -> Any:
    from rich.text import Text

    return Text(printable(plain(value)))


def plain(value: Any) -> str:
    """A value as a table shows it; what could steer a terminal is still in it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}"
        case list() | tuple():
            return ", ".join(str(item) for item in value) or "-"
        case _:
            return str(value)


def _console() -> "Console":
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_PIPED_WIDTH, no_color=True)
