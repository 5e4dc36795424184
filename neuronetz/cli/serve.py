"""neuronetz serve, and the worker that it starts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuronetz.cli.output import ReadyJson, write_json

if TYPE_CHECKING:
    import trio

    from neuronetz.settings import Settings


def serve(
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes on the one port, each with its own pools; WORKERS by default.", show_default=False
        ),
    ] = None,
    json: ReadyJson = False,
) -> None:
    """Run the gateway, with everything from the environment.

    Needs DATABASE_URL, REDIS_URL and OLLAMA_URL; apply the schema first with: neuronetz migrate

    SIGTERM drains and exits; a second one does not wait. With several workers, send it to the parent.

    \b
    Example: neuronetz serve --workers 4
    """
    from neuronetz import garbage

    with garbage.put_off():
        _run_gateway(workers, json=json)


def _run_gateway(workers: int | None, *, json: bool) -> None:
    from neuronetz.cli.failure import Failure
    from neuronetz.cli.until_signal import run_until_signal
    from neuronetz.settings import Settings
    from neuronetz.telemetry.logs import configure_logs

    settings = Settings.load() if workers is None else Settings.load(workers=workers)
    configure_logs(settings.log_level, settings.log_format)

    async def main(stop: "trio.Event") -> None:
        from neuronetz.web.server import CannotListen

        if missing := await _missing_migrations(settings):
            raise Failure(f"the database lacks {', '.join(missing)}: run 'neuronetz migrate' first")
        try:
            # What was wrong with a worker is said in its own line, or in the log.
            if code := await _serve(settings, stop, json=json):
                raise Failure("", code=code)
        except* CannotListen as group:
            raise Failure(str(_first(group))) from None

    run_until_signal(main)


async def _missing_migrations(settings: "Settings") -> list[str]:
    """What the schema lacks; nothing where PostgreSQL is away, since the gateway starts all the same."""
    import structlog

    from neuronetz.cli.database import away, explained
    from neuronetz.cli.failure import Failure
    from neuronetz.errors import StoreUnavailable
    from neuronetz.stores.migrations import pending
    from neuronetz.stores.postgres import open_postgres

    async with open_postgres(settings.database_url, size=1, timeout_s=settings.store_timeout_s) as postgres:
        try:
            return await pending(postgres)
        except StoreUnavailable as error:
            if isinstance(failure := explained(error), Failure) and not away(error):
                raise failure from None
            structlog.get_logger("neuronetz.cli").warning(
                "postgres.unavailable", reason=error.reason, effect="requests are denied until it is back"
            )
            return []


async def _serve(settings: "Settings", stop: "trio.Event", *, json: bool) -> int:
    """Serve in this process, or in workers; the exit code."""
    import os

    import trio

    from neuronetz.garbage import leave_out_the_start
    from neuronetz.gateway import open_gateway
    from neuronetz.workers.parent import Workers

    def announce(serving: Any) -> None:
        if json:
            urls = {"base_url": serving.base_url, "metrics_url": serving.metrics_url or None}
            write_json({"event": "ready", **urls, "workers": settings.workers, "pid": os.getpid()})

    if settings.workers > 1:
        leave_out_the_start()
        return await Workers(settings).run(stop, announce)
    async with open_gateway(settings) as gateway, trio.open_nursery() as nursery:
        await nursery.start(gateway.run, stop)
        leave_out_the_start()
        announce(gateway)
    return 0


def worker(
    number: Annotated[int, typer.Option()],
    folder: Annotated[Path, typer.Option()],
    control: Annotated[int, typer.Option()],
    listen: Annotated[list[int], typer.Option()],
) -> None:
    """One of the workers of: neuronetz serve --workers. Started by it alone, with inherited sockets."""
    from neuronetz import garbage

    with garbage.put_off():
        _run_worker(number, folder, control, listen)


def _run_worker(number: int, folder: Path, control: int, listen: list[int]) -> None:
    from neuronetz.cli.until_signal import only
    from neuronetz.settings import Settings
    from neuronetz.telemetry.logs import configure_logs
    from neuronetz.workers.process import run_worker

    settings = Settings.load()
    configure_logs(settings.log_level, settings.log_format)
    try:
        run_worker(settings, number=number, listen=listen, control=control, folder=folder)
    except BaseExceptionGroup as group:
        raise only(group) from None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
