"""The commands that run something: migrate, demo, dev, mock-ollama; serve is next door."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from neuronetz.cli import serve
from neuronetz.cli.confirmation import Yes
from neuronetz.cli.database import DatabaseUrl
from neuronetz.cli.output import Json, ReadyJson, write_json

if TYPE_CHECKING:
    import trio

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")]
MetricsPort = Annotated[
    int, typer.Option(min=0, max=65535, help="Port of the metrics listener (loopback); 0 picks a free one.")
]
DataDir = Annotated[Path | None, typer.Option(help="Where the embedded stores keep their data.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(serve.serve)
    app.command("worker", hidden=True)(serve.worker)
    app.command()(migrate)
    app.command()(demo)
    app.command()(dev)
    app.command("mock-ollama")(mock_ollama)


def migrate(json: Json = False, database_url: DatabaseUrl = None) -> None:
    """Apply the schema to DATABASE_URL. Safe to repeat, and safe when two start at once.

    \b
    Example: neuronetz migrate --database-url postgresql://gateway@db/gateway
    """
    from neuronetz.cli.database import postgres_url, with_loop
    from neuronetz.cli.failure import Failure
    from neuronetz.stores.migrations import MigrationError
    from neuronetz.stores.migrations import migrate as apply
    from neuronetz.telemetry.logs import configure_logs

    configure_logs("warning")
    url = postgres_url(database_url)
    try:
        applied = with_loop(lambda: apply(url), doing="applying the schema …")
    except MigrationError as error:
        raise Failure(str(error)) from None
    if json:
        write_json({"applied": applied})
        return
    typer.echo("\n".join(f"applied {name}" for name in applied) or "nothing to apply: the schema is up to date")


def demo(
    host: Host = "127.0.0.1",
    port: Port = 8080,
    metrics_port: MetricsPort = 9464,
    data_dir: DataDir = None,
    json: ReadyJson = False,
    down: Annotated[bool, typer.Option("--down", help="Stop a running demo and remove its data.")] = False,
    yes: Yes = False,
) -> None:
    """Start everything on this machine: PostgreSQL, Redis, a mock Ollama, the gateway, a fresh key.

    Ctrl-C stops all of it; its data stays until --down, which asks first.

    \b
    Examples:
      neuronetz demo
      neuronetz demo --port 0 --json
      neuronetz demo --down --yes
    """
    from neuronetz.cli.until_signal import run_until_signal

    local = _local()
    folder = data_dir or local.default_folder("demo")
    if down:
        _take_down(folder, yes=yes, json=json)
        return
    stage = local.Stage(command="demo", host=host, port=port, metrics_port=metrics_port, folder=folder, json=json)
    run_until_signal(stage.run)


def _take_down(folder: Path, *, yes: bool, json: bool) -> None:
    from neuronetz.cli.take_down import take_down

    removed = take_down(folder, yes=yes)
    if json:
        write_json({"removed": str(folder) if removed else None})
    else:
        typer.echo(f"removed {folder}" if removed else "nothing to remove", err=True)


def dev(
    ollama: Annotated[str, typer.Option(envvar="OLLAMA_URL", help="Your Ollama.")] = "http://127.0.0.1:11434",
    host: Host = "127.0.0.1",
    port: Port = 8080,
    metrics_port: MetricsPort = 9464,
    data_dir: DataDir = None,
    json: ReadyJson = False,
) -> None:
    """Start the embedded stores and the gateway before your own Ollama; data is kept between runs.

    \b
    Example: neuronetz dev --ollama http://127.0.0.1:11434
    """
    from neuronetz.cli.until_signal import run_until_signal

    local = _local()
    folder = data_dir or local.default_folder("dev")
    stage = local.Stage(
        command="dev", host=host, port=port, metrics_port=metrics_port, folder=folder, json=json, ollama_url=ollama
    )
    run_until_signal(stage.run)


def mock_ollama(host: Host = "127.0.0.1", port: Port = 11434, json: ReadyJson = False) -> None:
    """Run the mock Ollama alone: Ollama's API, made-up tokens, failures on demand.

    \b
    Example: neuronetz mock-ollama --port 11500
    """
    from neuronetz.cli.until_signal import run_until_signal
    from neuronetz.telemetry.logs import configure_logs

    configure_logs()

    async def main(stop: "trio.Event") -> None:
        from neuronetz.embedded.ollama import MockOptions, run_mock_ollama

        async with run_mock_ollama(MockOptions(), host=host, port=port) as mock:
            if json:
                write_json({"event": "ready", "base_url": mock.url})
            else:
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
