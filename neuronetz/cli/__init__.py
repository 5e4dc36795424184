"""The command line: operators' commands and those that run something."""

import os
import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """The console script. Every failure that its user can mend is one line on stderr.

    With ``--json`` that line is a JSON object: ``error``, one line for people, and ``exit_code``.
    Exit codes: 0 done; 1 the command failed; 2 wrong usage or a wrong setting; 130 interrupted.
    """
    args = sys.argv[1:] if args is None else args
    message, code = _run(args)
    line = " ".join(message.split())
    if message.startswith("Usage: "):
        # A group without a command answers with its help.
        sys.stderr.write(message.rstrip() + "\n")
    elif line and "--json" in args:
        import msgspec

        sys.stderr.write(msgspec.json.encode({"error": line, "exit_code": code}).decode() + "\n")
    elif line:
        sys.stderr.write(f"neuronetz: {line}\n")
    sys.exit(code)


def _run(args: Sequence[str]) -> tuple[str, int]:
    """Run a command: what is left to say on stderr, and the exit code."""
    import typer

    from neuronetz.cli.app import app
    from neuronetz.cli.failure import Failure
    from neuronetz.errors import SettingsError

    _write_any_text()
    try:
        if not all(_is_text(arg) for arg in args):
            raise Failure("the arguments are not valid UTF-8", code=2)
        # Not typer's own handling: it prints usage and boxes around an error.
        code = app(args=args, prog_name="neuronetz", standalone_mode=False)
    except Failure as failure:
        return failure.message, failure.code
    except SettingsError as error:
        return str(error), 2
    except typer.Abort:
        return "aborted", 1
    except BrokenPipeError:
        # Whoever read our output has had enough of it.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter would flush the old one
        return "", 1
    except OSError as error:
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
    except KeyboardInterrupt:
        return "interrupted", 130
    except typer.TyperException as error:
        return (error.format_message() if hasattr(error, "format_message") else str(error)), 2
    return "", code if isinstance(code, int) else 0


def _write_any_text() -> None:
    # A terminal or file in an old encoding gets question marks for what that lacks, not an error.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _is_text(arg: str) -> bool:
    # What was no UTF-8 on the command line arrives as lone surrogates, which no store takes.
    return "\x00" not in arg and not any("\ud800" <= char <= "\udfff" for char in arg)
