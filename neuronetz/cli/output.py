"""What commands print: JSON for programs, tables for people. Results go to stdout alone."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout; a list is one object a line.")]

# A table that is piped somewhere is as wide as it needs to be.
_PIPED_WIDTH = 1000


def write_json(value: object) -> None:
    """One JSON document, on one line."""
    import msgspec

    typer.echo(msgspec.json.encode(value).decode())


def write_rows(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, json: bool, empty: str = "nothing found"
) -> None:
    """A list: one JSON object a line, or a table of ``columns`` (field name to heading)."""
    if json:
        for row in rows:
            write_json(row)
        return
    if not rows:
        typer.echo(empty, err=True)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, heading in columns.items():
        numeric = any(isinstance(row[name], int) and not isinstance(row[name], bool) for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in columns))
    _print(table)


def write_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """One thing's fields, a line each."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(name, _cell(value))
    _print(table)


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

    return Text(printable(_plain(value)))


def _plain(value: Any) -> str:
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


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=_PIPED_WIDTH, no_color=True)
    console.print(table)
