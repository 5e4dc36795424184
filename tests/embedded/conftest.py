"""Running an embedded server in a process of its own, to be killed."""

import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

_RUNNER = """
import sys, pathlib, trio
from neuronetz.embedded.postgres import EmbeddedPostgres
from neuronetz.embedded.valkey import EmbeddedValkey

async def main():
    kind = {"postgres": EmbeddedPostgres, "valkey": EmbeddedValkey}[sys.argv[1]]
    server = kind(pathlib.Path(sys.argv[2]))
    await server.start()
    if sys.argv[3] == "frozen":
        server.pause()
    sys.stderr.write("ready %d\\n" % server.pid)
    sys.stderr.flush()
    await trio.sleep_forever()

trio.run(main)
"""

KilledRun = Callable[[str, Path, str], Awaitable[int]]


@pytest.fixture
def killed_run() -> KilledRun:
    """Runs a server of a kind on a folder, kills the run by SIGKILL, and returns the server's process id.

    ``frozen``: the server is paused before, so that it cannot notice its parent's death.
    """

    async def run(kind: str, folder: Path, state: str) -> int:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", _RUNNER, kind, str(folder), state],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            text = b""
            while b"ready" not in text:
                more = await process.stderr.receive_some()
                assert more, text
                text += more
        finally:
            process.send_signal(signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.stderr.aclose()
        return int(text.rsplit(b"ready", 1)[1])

    return run
