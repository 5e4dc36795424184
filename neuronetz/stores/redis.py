"""Redis (or Valkey, which speaks its protocol) behind Trio: redis-py through trio-asyncio, errors mapped here.

A ``trio_asyncio.open_loop()`` must be running. Connections are made when first used.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio
import trio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from neuronetz.errors import SettingsError, StoreUnavailable
from neuronetz.stores import cluster
from neuronetz.stores.bridge import in_asyncio

Argument = str | bytes | int | float
Visit = Callable[[list[bytes]], Awaitable[None]]

_SCAN_COUNT = 1000


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

    async def scan(self, pattern: str, visit: Visit) -> None:
        """Call ``visit`` with the names of the keys that match, in batches: each at least once, if it is there
        throughout.
        """
        cursor = None
        while cursor != 0:
            found, names = await self.command("SCAN", cursor or 0, "MATCH", pattern, "COUNT", _SCAN_COUNT)
            await visit(names)
            cursor = int(found)

    async def on_each_node(self, *args: Argument) -> list[Any]:
        """The replies to one command of every node that owns slots; here, of the one server."""
        return [await self.command(*args)]

    def place(self, key: str) -> str:
        """Who answers for a key: what fails for one key need not be tried for another of the same place."""
        return ""

    async def _call(self, function: Any, *args: Any) -> Any:
        try:
            return await in_asyncio(function, *args)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable("redis", type(error).__name__) from error


class ClusterRedis(Redis):
    """The same, before a Redis Cluster: a key's node answers for it, and for it alone.

    A script's keys must share a hash tag. ``StoreUnavailable.sent`` is False where it is certain that nothing
    was done: the node is known to be away, or said so.
    """

    def __init__(self, nodes: cluster.Cluster) -> None:
        self._nodes = nodes

    async def command(self, *args: Argument) -> Any:
        """One command, at its key's node; KEYS, DBSIZE and FLUSHDB at all, PING and TIME at any."""
        return await self._call(self._nodes.execute, *args)

    async def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Several commands in one round trip to each node, not atomic. An error of one is raised after all
        were run: one node being away does not keep the others from theirs.
        """
        replies: list[Any] = await super()._call(self._nodes.pipeline, commands)
        return replies

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run a script atomically; it is sent whole only to a node that does not know it yet."""

        async def run() -> Any:
            try:
                return await self._nodes.execute("EVALSHA", script.sha, len(keys), *keys, *args)
            except NoScriptError:
                return await self._nodes.execute("EVAL", script.text, len(keys), *keys, *args)

        return await self._call(run)

    async def scan(self, pattern: str, visit: Visit) -> None:
        """The same, over all nodes. Where a node fails, or ``visit`` by raising ``StoreUnavailable``, the
        others are walked all the same and the error is raised at the end.
        """
        failure: StoreUnavailable | None = None
        for _ in range(2):
            before = await self._call(self._nodes.layout)
            for node in before.nodes:
                try:
                    await self._walk(node, pattern, visit)
                except StoreUnavailable as error:
                    failure = error
            # A key that moved meanwhile, from a node not yet walked to one that was, is found the second time.
            if not before.moving and before == await self._call(self._nodes.layout):
                break
        if failure is not None:
            raise failure

    async def _walk(self, node: cluster.Address, pattern: str, visit: Visit) -> None:
        cursor = None
        while cursor != 0:
            scan = ("SCAN", cursor or 0, "MATCH", pattern, "COUNT", _SCAN_COUNT)
            found, names = await self._call(self._nodes.at, node, *scan)
            await visit(names)
            cursor = int(found)

    async def on_each_node(self, *args: Argument) -> list[Any]:
        return [await self._call(self._nodes.at, node, *args) for node in await self._call(self._nodes.primaries)]

    def place(self, key: str) -> str:
        return str(self._nodes.owner(key))

    async def check_nodes(self) -> None:
        """Raises ``StoreUnavailable`` unless every node that owns slots answers."""
        nodes = await self._call(self._nodes.primaries)
        away = 0
        async with trio.open_nursery() as nursery:

            async def ask(node: cluster.Address) -> None:
                nonlocal away
                try:
                    await self._call(self._nodes.at, node, "PING")
                except StoreUnavailable:
                    away += 1

            for node in nodes:
                nursery.start_soon(ask, node)
        if away:
            raise StoreUnavailable("redis", f"{away} of {len(nodes)} nodes away")

    async def _call(self, function: Any, *args: Any) -> Any:
        try:
            return await super()._call(function, *args)
        except StoreUnavailable as error:
            if isinstance(error.__cause__, cluster.NOT_DONE):
                raise StoreUnavailable("redis", error.reason, sent=False) from error.__cause__
            raise


# Not the error's text: it may repeat a password.
_NO_URL = "REDIS_URL: is not a URL that Redis's clients understand"
_UNUSABLE = (ValueError, TypeError, AttributeError)


def _check(pool: "redis.asyncio.ConnectionPool") -> None:
    """Raises where the URL's options are no good, which shows only in making a connection; nothing is sent."""
    pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py's own gap


@asynccontextmanager
async def open_redis(url: str, *, size: int, timeout_s: float) -> AsyncIterator[Redis]:
    """At most ``size`` connections (to each node of a cluster, ``redis+cluster://host:port,host:port``); when
    all are busy, a call waits ``timeout_s`` seconds for one. Raises ``SettingsError`` for a URL that cannot be
    used.
    """
    options: dict[str, Any] = {
        "max_connections": size,
        "timeout": timeout_s,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # One try: a command whose fate is unknown must not be repeated behind the caller's back.
        "retry": Retry(NoBackoff(), 0),
        "client_name": "neuronetz",
    }
    if urlsplit(url).scheme in cluster.SCHEMES:
        async with _open_cluster(url, options, timeout_s) as nodes:
            yield nodes
        return
    try:
        pool = redis.asyncio.BlockingConnectionPool.from_url(url, **options)
        _check(pool)
    except _UNUSABLE as error:
        raise SettingsError(_NO_URL) from error
    client = redis.asyncio.Redis(connection_pool=pool)
    try:
        yield Redis(client)
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(2.0):
            await in_asyncio(client.aclose)
            await in_asyncio(pool.disconnect)


@asynccontextmanager
async def _open_cluster(url: str, options: dict[str, Any], timeout_s: float) -> AsyncIterator[Redis]:
    try:
        seeds, of_url = cluster.read_url(url)
        _check(redis.asyncio.ConnectionPool(host=seeds[0][0], port=seeds[0][1], **of_url))
    except _UNUSABLE as error:
        raise SettingsError(_NO_URL) from error

    def connect(address: cluster.Address) -> "redis.asyncio.Redis":
        host, port = address
        pool = redis.asyncio.BlockingConnectionPool(host=host, port=port, **(options | of_url))
        return redis.asyncio.Redis(connection_pool=pool)

    nodes = cluster.Cluster(seeds, connect, timeout_s=timeout_s)
    try:
        yield ClusterRedis(nodes)
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(2.0):
            await in_asyncio(nodes.close)
