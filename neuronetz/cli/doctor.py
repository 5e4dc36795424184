"""neuronetz doctor: what is wrong with a deployment, and what to do about it."""

from typing import TYPE_CHECKING, Annotated

import typer

from neuronetz.cli.output import Json, printable, write_json

if TYPE_CHECKING:
    from neuronetz.doctor.finding import Finding


def doctor(
    days: Annotated[
        int, typer.Option(min=1, max=366, help="UTC days of the ledger to compare with the audit log.")
    ] = 2,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=600, metavar="SECONDS", help="For each check, at most.")
    ] = 10.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what is not ok.")] = False,
    json: Json = False,
) -> None:
    """Examine a deployment: stores, schema, leases, ledger, clocks, Ollama, this host.

    Takes the gateway's settings from the environment; run it where the gateway runs, as it runs. It changes
    nothing and may be run at any time. One line for each finding: ok, warning or failed, with what to do.

    Exit code 1 when something failed, 0 otherwise, 2 for a wrong setting.

    \b
    Examples:
      neuronetz doctor
      neuronetz doctor --quiet --days 31 --timeout 60
      neuronetz doctor --json | jq 'select(.state == "failed")'
    """
    from neuronetz.cli.database import with_loop
    from neuronetz.cli.failure import Failure
    from neuronetz.settings import Settings
    from neuronetz.telemetry.logs import configure_logs

    settings = Settings.load()
    configure_logs("error", settings.log_format)

    found: list[Finding] = []

    def tell(finding: "Finding") -> None:
        found.append(finding)
        if not quiet or finding.state != "ok":
            _write(finding, json)

    async def report() -> None:
        from neuronetz.doctor.examination import examine

        await examine(settings, tell, days=days, timeout_s=timeout)

    with_loop(report)
    if any(finding.state == "failed" for finding in found):
        raise Failure("", code=1)


def _write(finding: "Finding", json: bool) -> None:
    if json:
        write_json(finding)
        return
    line = f"{finding.state:<8}{finding.check}: {finding.what}"
    typer.echo(printable(line + (f" -> {finding.hint}" if finding.hint else "")))
