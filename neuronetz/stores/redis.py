"""Redis (or Valkey, which speaks its protocol) behind Trio: redis-py through trio-asyncio, errors mapped here.

A ``trio_asyncio.open_loop()`` must be running. Connections are made when first used.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import redis.asyncio
import trio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from neuronetz.errors import StoreUnavailable
from neuronetz.stores.bridge import in_asyncio

Argument = str | bytes | int | float


@dataclass(frozen=True)
class Script:
    """A Lua script. ``load`` reads it from a package's resource."""

    name: str
    text: str

    @cached_property
    def sha(self) -> str:
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def load(cls, package: str, name: str) -> "Script":
        return cls(name, files(package).joinpath(name).read_text(encoding="utf-8"))


class Redis:
    """A pool of connections. Every call raises ``StoreUnavailable`` for whatever goes wrong, script errors too.

    When a call is cancelled or times out, the command may or may not have been carried out, even later;
    its connection is closed.
    """

    def __init__(self, client: "redis.asyncio.Redis") -> None:
        self._client = client

    async def command(self, *args: Argument) -> Any:
        """One command, its reply as redis-py gives it (bytes where Redis sends text)."""
        return await self._call(self._client.execute_command, *args)

    async def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Several commands in one round trip, not atomic. An error of one is raised after all were run."""

        async def run() -> list[Any]:
            async with self._client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return list(await pipe.execute())

        replies: list[Any] = await self._call(run)
        return replies

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run a script atomically; it is sent whole only when the server does not know it yet."""

        async def run() -> Any:
            try:
                return await self._client.evalsha(script.sha, len(keys), *keys, *args)
            except NoScriptError:
                return await self._client.eval(script.text, len(keys), *keys, *args)

        return await self._call(run)

    async def _call(self, function: Any, *args: Any) -> Any:
        try:
            return await in_asyncio(function, *args)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable("redis", type(error).__name__) from error


@asynccontextmanager
async def open_redis(url: str, *, size: int, timeout_s: float) -> AsyncIterator[Redis]:
    """A pool of at most ``size`` connections; when all are busy, a call waits ``timeout_s`` seconds for one."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=size,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # One try: a command whose fate is unknown must not be repeated behind the caller's back.
        retry=Retry(NoBackoff(), 0),
        client_name="neuronetz",
    )
    client = redis.asyncio.Redis(connection_pool=pool)
    try:
        yield Redis(client)
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(2.0):
            await in_asyncio(client.aclose)
            await in_asyncio(pool.disconnect)
