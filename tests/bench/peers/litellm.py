"""LiteLLM's proxy, in an environment of its own."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from neuronetz.embedded.ports import held_port
from tests.bench.peers.peer import Peer, Serving, listening
from tests.bench.processes import started
from tests.bench.shapes import MODEL, Shape

VARIABLE = "BENCH_LITELLM"
_INSTALL = f"uv tool install 'litellm[proxy]', or {VARIABLE}=/path/to/its/bin/litellm"
_KEY = "sk-bench"
# What only the proxy's extra brings. The client library has the same script, which fails when it is started.
_NEEDED = ("litellm", "fastapi", "uvicorn", "backoff", "apscheduler")
_INTERPRETER = re.compile(rb"(/[^\s'\"]*python[\d.]*)")
_LOOK_S = 10.0


class LiteLLM(Peer):
    """One worker with a master key: no database, no callbacks, no network but to the upstream.

    The upstream speaks OpenAI's dialect to it, so that it need not translate, which is the cheapest for it.
    """

    name = "litellm"

    def __init__(self) -> None:
        self._program = os.environ.get(VARIABLE) or shutil.which("litellm")

    def absent(self) -> str | None:
        if not self._program or not Path(self._program).is_file():
            return f"no litellm was found: {_INSTALL}"
        if not _has_proxy(Path(self._program)):
            return f"{self._program} is the client library without the proxy: {_INSTALL}"
        return None

    def answers(self, shape: Shape) -> bool:
        return shape.openai

    @asynccontextmanager
    async def opened(self, upstream_port: int, folder: Path) -> AsyncIterator[Serving]:
        log = folder / "litellm.log"
        with held_port() as port:
            configuration, logging = folder / "litellm.yaml", folder / "litellm-logging.json"
            # YAML reads JSON.
            configuration.write_text(json.dumps(_configuration(upstream_port)))
            logging.write_text(json.dumps({"version": 1, "disable_existing_loggers": True}))
            command = [str(self._program), "--config", str(configuration), "--log_config", str(logging)]
            command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--telemetry", "False"]
            async with started(command, log, _environment(folder), heard=False) as process:
                await listening(port, process, log)
                yield Serving(port, (process.pid,), _KEY)


def _configuration(upstream_port: int) -> dict[str, object]:
    backend = {"model": "openai/bench", "api_base": f"http://127.0.0.1:{upstream_port}/v1", "api_key": "none"}
    return {
        "model_list": [{"model_name": MODEL, "litellm_params": backend}],
        "litellm_settings": {"telemetry": False},
        "general_settings": {"master_key": _KEY},
    }


def _environment(folder: Path) -> dict[str, str]:
    own = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "HOME": str(folder),
    }
    # Nothing of the caller's: a database or a cache that is named there would be used.
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **own}


def _has_proxy(program: Path) -> bool:
    """Whether the environment of this script has what the proxy needs; looked up, since importing takes seconds."""
    found = _INTERPRETER.search(program.read_bytes()[:512])
    if found is None:
        return False
    look = f"import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, {_NEEDED!r})))"
    try:
        done = subprocess.run([found[1].decode(), "-c", look], capture_output=True, timeout=_LOOK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
