"""The command line: operators' commands and those that run something."""

import os
import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """The console script. Every failure that its user can mend is one line on stderr.

    Exit codes: 0 done; 1 the command failed; 2 wrong usage or a wrong setting; 130 interrupted.
    """
    import typer

    from neuronetz.cli.app import app
    from neuronetz.cli.failure import Failure
    from neuronetz.errors import SettingsError

    args = sys.argv[1:] if args is None else args
    try:
        if any("\x00" in arg or not _is_text(arg) for arg in args):
            raise Failure("the arguments are not valid UTF-8", code=2)
        # Not typer's own handling: it prints usage and boxes around an error.
        code = app(args=args, prog_name="neuronetz", standalone_mode=False)
    except Failure as failure:
        code = _say(failure.message, failure.code)
    except SettingsError as error:
        code = _say(str(error), 2)
    except typer.Abort:
        code = _say("aborted", 1)
    except BrokenPipeError:
        # Whoever read our output has had enough of it.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter would flush the old one
        code = 1
    except OSError as error:
        code = _say(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
    except KeyboardInterrupt:
        code = _say("interrupted", 130)
    except typer.TyperException as error:
        code = _say_usage(error)
    sys.exit(code if isinstance(code, int) else 0)


def _is_text(arg: str) -> bool:
    # What was no UTF-8 on the command line arrives as lone surrogates, which no store takes.
    return not any("\ud800" <= char <= "\udfff" for char in arg)


def _say_usage(error: Exception) -> int:
    message: str = error.format_message() if hasattr(error, "format_message") else str(error)
    if message.startswith("Usage: "):
        # A group without a command answers with its help.
        sys.stderr.write(message.rstrip() + "\n")
        return 2
    return _say(message, 2)


def _say(message: str, code: int) -> int:
    line = " ".join(message.split())
    if line:
        sys.stderr.write(f"neuronetz: {line}\n")
    return code
