"""What cannot be taken back is asked about first: at a terminal by a question, elsewhere by ``--yes``."""

import sys
from typing import Annotated

import typer

from neuronetz.cli.failure import Failure
from neuronetz.cli.output import printable

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def confirm(question: str, otherwise: str) -> None:
    """Ask ``question`` on stderr and return if the answer is yes.

    Raises ``Failure`` with ``otherwise`` ("not revoked") on a no, exit code 1, and where nobody can be asked,
    exit code 2. An end of input or an interrupt raises ``typer.Abort``.
    """
    if not sys.stdin.isatty():
        raise Failure(f"{otherwise}: there is no terminal to ask at; confirm with --yes", code=2)
    if not typer.confirm(printable(question), err=True):
        raise Failure(otherwise)
