"""Portkey's gateway, an npm package."""

import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from neuronetz.embedded.ports import held_port
from tests.bench.peers.peer import Peer, Serving, listening
from tests.bench.processes import started
from tests.bench.shapes import Shape

VARIABLE = "BENCH_PORTKEY"
_PACKAGE = "@portkey-ai/gateway"
# With a later one each stream is answered with 500 (TypeError: immutable): the package asks for any 1.x.
_SERVER_PACKAGE, _STREAMS_UP_TO = "@hono/node-server", (1, 14, 1)
_INSTALL = (
    f'in an empty folder: echo \'{{"overrides": {{"{_SERVER_PACKAGE}": "1.14.1"}}}}\' > package.json && '
    f"npm install {_PACKAGE}; then {VARIABLE}=FOLDER"
)
_SERVER = "build/start-server.js"


class Portkey(Peer):
    """One process of Node's, which takes from each request's headers where to send it. It has no keys and no books.

    The upstream speaks OpenAI's dialect to it. It listens on all addresses: there is no setting for it.
    """

    name = "portkey"

    def __init__(self) -> None:
        self._node = shutil.which("node")
        self._server = _found()

    def absent(self) -> str | None:
        if self._server is None:
            return f"no {_PACKAGE} was found: {_INSTALL}"
        if not self._node:
            return "node is not installed: apt-get install nodejs"
        if _version(self._server) > _STREAMS_UP_TO:
            return f"it cannot stream with the {_SERVER_PACKAGE} that it was installed with: {_INSTALL}"
        return None

    def answers(self, shape: Shape) -> bool:
        return shape.openai

    @asynccontextmanager
    async def opened(self, upstream_port: int, folder: Path) -> AsyncIterator[Serving]:
        log = folder / "portkey.log"
        with held_port() as port:
            command = [str(self._node), str(self._server), f"--port={port}", "--headless"]
            env = {"PATH": os.environ["PATH"], "HOME": str(folder), "NODE_ENV": "production"}
            async with started(command, log, env, heard=False) as process:
                await listening(port, process, log)
                where = f"x-portkey-custom-host: http://127.0.0.1:{upstream_port}/v1"
                yield Serving(port, (process.pid,), "none", ("x-portkey-provider: openai", where))


def _version(server: Path) -> tuple[int, ...]:
    """That of the package by which it serves, which npm puts beside it or below it."""
    own = server.parents[1]
    for modules in (own / "node_modules", own.parents[1]):
        described = modules / _SERVER_PACKAGE / "package.json"
        if described.is_file():
            return tuple(int(part) for part in json.loads(described.read_text())["version"].split(".")[:3])
    return ()


def _found() -> Path | None:
    """The server's file: below the folder that the variable names, or where npm linked it from."""
    if folder := os.environ.get(VARIABLE):
        server = Path(folder) / "node_modules" / _PACKAGE / _SERVER
        return server if server.is_file() else None
    # Its command is called plainly "gateway", as others' may be.
    program = shutil.which("gateway")
    linked = Path(program).resolve() if program else None
    return linked if linked and _PACKAGE in linked.as_posix() else None
