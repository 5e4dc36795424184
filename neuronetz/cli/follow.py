"""neuronetz audit --follow: rows as they come, until somebody stops it."""

import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import trio
import typer

from neuronetz.cli import audit_store
from neuronetz.cli.audit_store import Mark, Selection
from neuronetz.cli.database import TIMEOUT_S, away, explained, postgres_url
from neuronetz.cli.output import plain, printable, write_json
from neuronetz.cli.until_signal import run_until_signal
from neuronetz.errors import StoreUnavailable

if TYPE_CHECKING:
    from neuronetz.stores.postgres import Postgres

INTERVAL_S = 1.0
# However many rows there are to look through, PostgreSQL has nine tenths of the time for others.
_REST = 9
_PATIENCE_S = 5.0

# In characters: rows come one by one, so that no column can be as wide as its longest word.
_WIDTHS = {
    "started_at": 19,
    "tenant": 12,
    "key": 12,
    "endpoint": 20,
    "model": 20,
    "status": 6,
    "outcome": 19,
    "tokens": 11,
    "duration_ms": 7,
    "request_id": 36,
}
_RIGHT = {"status", "duration_ms"}


def follow(
    database_url: str | None,
    selection: Selection,
    since: datetime | None,
    limit: int,
    columns: dict[str, str],
    shown: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    json: bool,
) -> None:
    """Write the latest ``limit`` rows and then each new one, oldest first, until SIGINT or SIGTERM.

    Raises ``Failure`` where PostgreSQL cannot be read at the start, or refuses to be; when it is away later,
    that is said on stderr, and so is its return.
    """
    url = postgres_url(database_url)

    def tell(rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            write_json(row) if json else typer.echo(_line(shown(row)))

    async def main(stop: trio.Event) -> None:
        from neuronetz.stores.postgres import open_postgres

        async def read() -> None:
            async with open_postgres(url, size=1, timeout_s=TIMEOUT_S) as postgres:
                arguments = await selection.arguments(postgres)
                rows, mark = await audit_store.latest_marked(postgres, arguments, since, limit)
                if not json:
                    typer.echo(_line(columns))
                tell(rows)
                await _go_on(postgres, arguments, mark, tell, json=json)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until, stop, nursery.cancel_scope)
            try:
                await read()
            except (StoreUnavailable, asyncpg.PostgresError) as error:
                raise explained(error) from None

    run_until_signal(main)


async def _until(stop: trio.Event, scope: trio.CancelScope) -> None:
    await stop.wait()
    scope.cancel()


async def _go_on(
    postgres: "Postgres",
    arguments: Sequence[Any],
    mark: Mark,
    tell: Callable[[Sequence[dict[str, Any]]], None],
    *,
    json: bool,
) -> None:
    gone, pause_s = False, INTERVAL_S
    while True:
        await trio.sleep(pause_s)
        asked_at = trio.current_time()
        try:
            rows, mark = await audit_store.new(postgres, arguments, mark)
        except StoreUnavailable as error:
            if not away(error):
                raise
            if not gone:
                _note(f"PostgreSQL is not reachable ({error.reason}); rows will follow when it is back", json)
            gone, pause_s = True, min(2 * pause_s, _PATIENCE_S)
            continue
        if gone:
            _note("PostgreSQL is back", json)
        tell(rows)
        gone, pause_s = False, max(INTERVAL_S, _REST * (trio.current_time() - asked_at))


def _note(text: str, json: bool) -> None:
    import msgspec

    sys.stderr.write((msgspec.json.encode({"note": text}).decode() if json else f"neuronetz: {text}") + "\n")
    sys.stderr.flush()


def _line(row: dict[str, Any]) -> str:
    cells = []
    for name, width in _WIDTHS.items():
        text = printable(plain(row[name]))
        cells.append(text.rjust(width) if name in _RIGHT else text.ljust(width))
    return "  ".join(cells).rstrip()
