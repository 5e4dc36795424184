"""The command tree. What is heavy is imported in the commands, so that help and completion are quick."""

from typing import Annotated

import typer

from neuronetz.cli import audit, budget, doctor, key, model, prompts, run, tenant, usage

app = typer.Typer(
    name="neuronetz",
    no_args_is_help=True,
    # Plain help: it can be piped, and does not import rich.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from neuronetz import __version__

        typer.echo(f"neuronetz {__version__}")
        raise typer.Exit


@app.callback()
def neuronetz(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """neuronetz: a multi-tenant, streaming, audited gateway in front of Ollama."""


run.register(app)
app.add_typer(tenant.commands, name="tenant")
app.add_typer(key.commands, name="key")
app.add_typer(budget.commands, name="budget")
app.add_typer(model.commands, name="model")
app.command("usage")(usage.usage)
app.command("audit")(audit.audit)
app.command("doctor")(doctor.doctor)
app.add_typer(prompts.commands, name="prompts")
