"""The commands that run something: serve, migrate, demo, dev, mock-ollama."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from neuronetz.cli.database import DatabaseUrl

if TYPE_CHECKING:
    import trio

# A supervisor that signals the whole process group, and a runner in between that passes the signal on, deliver it
# twice. That is no second signal.
_SAME_SIGNAL_S = 1.0

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")]
MetricsPort = Annotated[
    int, typer.Option(min=0, max=65535, help="Port of the metrics listener (loopback); 0 picks a free one.")
]
DataDir = Annotated[Path | None, typer.Option(help="Where the embedded stores keep their data.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON line on stdout when ready; logs on stderr.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(serve)
    app.command("worker", hidden=True)(worker)
    app.command()(migrate)
    app.command()(demo)
    app.command()(dev)
    app.command("mock-ollama")(mock_ollama)


def serve(
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes on the one port, each with its own pools; WORKERS by default.", show_default=False
        ),
    ] = None,
) -> None:
    """Run the gateway, with everything from the environment.

    Needs DATABASE_URL, REDIS_URL and OLLAMA_URL; apply the schema first with: neuronetz migrate

    SIGTERM drains and exits; a second one does not wait. With several workers, send it to the parent.
    """
    from neuronetz.cli.failure import Failure
    from neuronetz.settings import Settings
    from neuronetz.telemetry.logs import configure_logs

    settings = Settings.load() if workers is None else Settings.load(workers=workers)
    configure_logs(settings.log_level, settings.log_format)

    async def main(stop: "trio.Event") -> None:
        import structlog

        from neuronetz.cli.database import away, explained
        from neuronetz.errors import StoreUnavailable
        from neuronetz.gateway import open_gateway
        from neuronetz.stores.migrations import pending
        from neuronetz.stores.postgres import open_postgres
        from neuronetz.web.server import CannotListen
        from neuronetz.workers.parent import Workers

        async with open_postgres(settings.database_url, size=1, timeout_s=settings.store_timeout_s) as postgres:
            try:
                missing = await pending(postgres)
            except StoreUnavailable as error:
                if isinstance(failure := explained(error), Failure) and not away(error):
                    raise failure from None
                structlog.get_logger("neuronetz.cli").warning(
                    "postgres.unavailable", reason=error.reason, effect="requests are denied until it is back"
                )
                missing = []
        if missing:
            raise Failure(f"the database lacks {', '.join(missing)}: run 'neuronetz migrate' first")
        try:
            if settings.workers > 1:
                # What was wrong is said in the line of the worker that found it, or in the log.
                if code := await Workers(settings).run(stop):
                    raise Failure("", code=code)
            else:
                async with open_gateway(settings) as gateway:
                    await gateway.run(stop)
        except* CannotListen as group:
            raise Failure(str(_first(group))) from None

    run_until_signal(main)


def worker(
    number: Annotated[int, typer.Option()],
    folder: Annotated[Path, typer.Option()],
    control: Annotated[int, typer.Option()],
    listen: Annotated[list[int], typer.Option()],
) -> None:
    """One of the workers of: neuronetz serve --workers. Started by it alone, with inherited sockets."""
    from neuronetz.settings import Settings
    from neuronetz.telemetry.logs import configure_logs
    from neuronetz.workers.process import run_worker

    settings = Settings.load()
    configure_logs(settings.log_level, settings.log_format)
    try:
        run_worker(settings, number=number, listen=listen, control=control, folder=folder)
    except BaseExceptionGroup as group:
        raise _only(group) from None


def migrate(database_url: DatabaseUrl = None) -> None:
    """Apply the schema to DATABASE_URL. Safe to repeat, and safe when two start at once.

    Example: DATABASE_URL=postgresql://gateway@db/gateway neuronetz migrate
    """
    from neuronetz.cli.database import postgres_url, with_loop
    from neuronetz.cli.failure import Failure
    from neuronetz.stores.migrations import MigrationError
    from neuronetz.stores.migrations import migrate as apply
    from neuronetz.telemetry.logs import configure_logs

    configure_logs("warning")
    url = postgres_url(database_url)
    try:
        applied = with_loop(lambda: apply(url))
    except MigrationError as error:
        raise Failure(str(error)) from None
    typer.echo("\n".join(f"applied {name}" for name in applied) or "nothing to apply: the schema is up to date")


def demo(
    host: Host = "127.0.0.1",
    port: Port = 8080,
    metrics_port: MetricsPort = 9464,
    data_dir: DataDir = None,
    json: Json = False,
    down: Annotated[bool, typer.Option("--down", help="Stop a running demo and remove its data.")] = False,
) -> None:
    """Start everything on this machine: PostgreSQL, Redis, a mock Ollama, the gateway, a fresh key.

    Ctrl-C stops all of it. Example: neuronetz demo --port 0 --json
    """
    local = _local()
    folder = data_dir or local.default_folder("demo")
    if down:
        local.take_down(folder)
        return
    stage = local.Stage(command="demo", host=host, port=port, metrics_port=metrics_port, folder=folder, json=json)
    run_until_signal(stage.run)


def dev(
    ollama: Annotated[str, typer.Option(envvar="OLLAMA_URL", help="Your Ollama.")] = "http://127.0.0.1:11434",
    host: Host = "127.0.0.1",
    port: Port = 8080,
    metrics_port: MetricsPort = 9464,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Start the embedded stores and the gateway before your own Ollama; data is kept between runs.

    Example: neuronetz dev --ollama http://127.0.0.1:11434
    """
    local = _local()
    folder = data_dir or local.default_folder("dev")
    stage = local.Stage(
        command="dev", host=host, port=port, metrics_port=metrics_port, folder=folder, json=json, ollama_url=ollama
    )
    run_until_signal(stage.run)


def mock_ollama(host: Host = "127.0.0.1", port: Port = 11434) -> None:
    """Run the mock Ollama alone: Ollama's API, made-up tokens, failures on demand.

    Example: neuronetz mock-ollama --port 11500
    """
    from neuronetz.telemetry.logs import configure_logs

    configure_logs()

    async def main(stop: "trio.Event") -> None:
        from neuronetz.embedded.ollama import MockOptions, run_mock_ollama

        async with run_mock_ollama(MockOptions(), host=host, port=port) as mock:
            typer.echo(f"mock Ollama is running at {mock.url}", err=True)
            await stop.wait()

    run_until_signal(main)


def _local() -> ModuleType:
    from neuronetz.cli.failure import Failure

    try:
        from neuronetz.cli import local
    except ModuleNotFoundError as error:
        raise Failure(
            f"{error.name} is missing; install the embedded servers: pip install 'neuronetz[embedded]'"
        ) from None
    return local


def run_until_signal(main: "Callable[[trio.Event], Awaitable[None]]") -> None:
    """Run ``main`` with an event that SIGINT or SIGTERM sets; a second signal cancels what is left."""

    import trio
    import trio_asyncio

    async def root() -> None:
        stop = trio.Event()
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio_asyncio.open_loop(), trio.open_nursery() as nursery:
                nursery.start_soon(_heed, signals, stop, nursery.cancel_scope)
                await main(stop)
                nursery.cancel_scope.cancel()

    try:
        trio.run(root)
    except BaseExceptionGroup as group:
        raise _only(group) from None


async def _heed(signals: AsyncIterator[int], stop: "trio.Event", scope: "trio.CancelScope") -> None:
    import trio

    first = 0.0
    async for _ in signals:
        if not stop.is_set():
            first = trio.current_time()
            stop.set()
        elif trio.current_time() - first > _SAME_SIGNAL_S:
            scope.cancel()
            return


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
