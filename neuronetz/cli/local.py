"""Everything on one machine, in one Trio run: embedded stores, perhaps a mock Ollama, the gateway, a fresh key."""

import json
import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import trio
import typer

from neuronetz.access.keys import Hasher, generate
from neuronetz.cli.failure import Failure
from neuronetz.cli.progress import Steps
from neuronetz.cli.take_down import MARK
from neuronetz.embedded.child import EmbeddedServerError
from neuronetz.embedded.ollama import MockOptions, run_mock_ollama
from neuronetz.embedded.postgres import run_postgres
from neuronetz.embedded.valkey import run_valkey
from neuronetz.gateway import Gateway, open_gateway
from neuronetz.settings import Settings
from neuronetz.stores.migrations import migrate
from neuronetz.stores.postgres import open_postgres
from neuronetz.telemetry.logs import configure_logs
from neuronetz.web.routes import PLAYGROUND
from neuronetz.web.server import CannotListen

_HEALTHY_WITHIN_S = 30.0
_DRAIN_S = 5.0

_TENANT = "demo"

_MAKE_TENANT = """
WITH tenant AS (
    INSERT INTO gateway.tenants (name) VALUES ($1)
    ON CONFLICT (name) DO UPDATE SET suspended_at = NULL
    RETURNING id
)
INSERT INTO gateway.tenant_limits (tenant_id, allow_all_models) SELECT id, true FROM tenant
ON CONFLICT (tenant_id) DO UPDATE SET allow_all_models = true
RETURNING tenant_id
"""

_REVOKE_EARLIER = """
INSERT INTO gateway.revocations (prefix, reason)
SELECT prefix, 'replaced at start' FROM gateway.api_keys
WHERE tenant_id = $1 AND name = $2 AND revoked_at IS NULL
"""

_MAKE_KEY = """
WITH key AS (
    INSERT INTO gateway.api_keys (tenant_id, name, prefix, secret_hash) VALUES ($1, $2, $3, $4) RETURNING id
)
INSERT INTO gateway.key_limits (key_id) SELECT id FROM key
"""


def default_folder(name: str) -> Path:
    """The data folder of ``demo`` or ``dev``: the user's own; for root a folder of the system's.

    PostgreSQL does not run as root, and its user could not get into root's home.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/neuronetz") / name
    return Path(platformdirs.user_data_dir("neuronetz", appauthor=False)) / name


@dataclass(frozen=True)
class Stage:
    """One local run. Without ``ollama_url`` a mock Ollama runs in this process."""

    command: str
    host: str
    port: int
    metrics_port: int
    folder: Path
    json: bool
    ollama_url: str | None = None

    async def run(self, stop: trio.Event) -> None:
        """Start everything, announce it, and serve until ``stop`` is set; then stop it inside out.

        Raises ``Failure`` where its user can mend what is wrong. When cancelled, the servers are stopped too.
        """
        configure_logs("info" if self.json else "warning")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.command == "demo":
                self._mark()
        except OSError as error:
            raise Failure(
                f"cannot use {self.folder} for data: {error.strerror}; choose another --data-dir"
            ) from None
        try:
            with Steps(quiet=self.json) as steps:
                await self._run(stop, steps)
        except* EmbeddedServerError as group:
            raise Failure(_first(group)) from None
        except* CannotListen as group:
            raise Failure(f"{_first(group)}; --port 0 --metrics-port 0 take free ports") from None

    def _mark(self) -> None:
        """Mark the folder as one that ``--down`` may empty, which a folder that holds something else never is."""
        if not (self.folder / MARK).is_file() and any(self.folder.iterdir()):
            raise Failure(f"{self.folder} is not empty and no folder of a demo; choose another --data-dir")
        (self.folder / MARK).touch()

    async def _run(self, stop: trio.Event, steps: Steps) -> None:
        steps.step(f"starting PostgreSQL and Redis in {self.folder} …")
        async with (
            run_postgres(self.folder / "postgres") as database_url,
            run_valkey(self.folder / "redis") as redis_url,
            self._ollama() as ollama_url,
        ):
            # Only now: until the stores had the folder, another run might have been in it.
            (self.folder / "pid").write_text(str(os.getpid()))
            await migrate(database_url)
            settings = Settings.load(
                database_url=database_url,
                redis_url=redis_url,
                ollama_url=ollama_url,
                listen_host=self.host,
                listen_port=self.port,
                metrics_host="127.0.0.1",
                metrics_port=self.metrics_port,
                drain_timeout_s=_DRAIN_S,
                playground_enabled=True,
            )
            key = await self._fresh_key(settings)
            steps.step("starting the gateway …")
            async with open_gateway(settings) as gateway, trio.open_nursery() as nursery:
                await nursery.start(gateway.run, stop)
                await _healthy(gateway)
                steps.end()
                self._announce(gateway, key)
        if not self.json:
            typer.echo("stopped", err=True)

    @asynccontextmanager
    async def _ollama(self) -> AsyncIterator[str]:
        if self.ollama_url is not None:
            yield self.ollama_url
            return
        async with run_mock_ollama(
            MockOptions(tokens=32, tokens_per_second=40.0, time_to_first_token_s=0.2)
        ) as mock:
            yield mock.url

    async def _fresh_key(self, settings: Settings) -> str:
        key = generate()
        hasher = Hasher(settings.argon2_time_cost, settings.argon2_memory_kib, settings.argon2_parallelism, 1, 1)
        secret_hash = await hasher.hash(key.secret)
        async with open_postgres(settings.database_url, size=1, timeout_s=10.0) as postgres:
            tenant_id = await postgres.fetchval(_MAKE_TENANT, _TENANT)
            # A demo's earlier keys are thrown away with it; a developer's may stand in some client's settings.
            if self.command == "demo":
                await postgres.execute(_REVOKE_EARLIER, tenant_id, self.command)
            await postgres.execute(_MAKE_KEY, tenant_id, self.command, key.prefix, secret_hash)
        return key.text

    def _announce(self, gateway: Gateway, key: str) -> None:
        models = sorted(gateway.discovery.discovered())
        if not models:
            typer.echo(
                f"warning: no models at {gateway.settings.ollama_url} yet; they are picked up when they appear",
                err=True,
            )
        if self.json:
            ready = {
                "event": "ready",
                "base_url": gateway.base_url,
                "metrics_url": gateway.metrics_url,
                "api_key": key,
                "tenant": _TENANT,
                "models": models,
                "database_url": gateway.settings.database_url,
                "redis_url": gateway.settings.redis_url,
                "pid": os.getpid(),
            }
            typer.echo(json.dumps(ready, separators=(",", ":")))
        else:
            typer.echo(_greeting(self.command, gateway, key, models))


async def _healthy(gateway: Gateway) -> None:
    deadline = trio.current_time() + _HEALTHY_WITHIN_S
    while True:
        state = await gateway.readiness()
        if state.status != "unavailable":
            return
        if trio.current_time() > deadline:
            checks = ", ".join(f"{name} {value}" for name, value in state.checks.items())
            raise Failure(f"the gateway did not become healthy within {_HEALTHY_WITHIN_S:.0f} s: {checks}")
        await trio.sleep(0.1)


def _greeting(command: str, gateway: Gateway, key: str, models: list[str]) -> str:
    database_url, redis_url = gateway.settings.database_url, gateway.settings.redis_url
    base, auth = gateway.base_url, f'-H "Authorization: Bearer {key}"'
    model = min(models, key=lambda name: ("embed" in name, "/" in name, len(name), name), default="MODEL")
    chat = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
    events = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}], "stream": True})
    whole = json.dumps({"model": model, "prompt": "Say hello.", "stream": False})
    return f"""
neuronetz {command} is ready

  base URL    {base}
  API key     {key}
  playground  {base}{PLAYGROUND.path}
  metrics     {gateway.metrics_url}
  models      {", ".join(models) or "none yet"}

Paste any of these into another terminal:

  # a streaming chat (NDJSON)
  curl -N {base}/api/chat {auth} -d '{chat}'

  # the same for OpenAI's clients: base_url {base}/v1
  curl -N {base}/v1/chat/completions {auth} -d '{events}'

  # one whole reply, and the request's headers
  curl -i {base}/api/generate {auth} -d '{whole}'

  # the models of this key
  curl {base}/api/tags {auth}

  # a wrong key: 401
  curl -i {base}/api/tags -H "Authorization: Bearer wrong"

  # an endpoint that no key may use: 403
  curl -i {base}/api/pull {auth} -d '{{"model":"{model}"}}'

The operator's commands (neuronetz --help) find the stores, and curl the key, after:

  export DATABASE_URL={shlex.quote(database_url)} REDIS_URL={shlex.quote(redis_url)} KEY={key}

Ctrl-C stops everything."""


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
