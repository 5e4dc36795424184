"""Redis (or Valkey, which speaks its protocol) behind Trio, errors mapped here.

Connections are made when first used. A single server has one, of our own. A cluster goes through redis-py and
asyncio: for that, a ``trio_asyncio.open_loop()`` must be running.
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
from neuronetz.stores.redis_replies import pack, refused, shaped
from neuronetz.stores.redis_server import OnChange, Server

Argument = str | bytes | int | float
Visit = Callable[[list[bytes]], Awaitable[None]]

_SCAN_COUNT = 1000
_FOLLOW = ("CLIENT", "CACHING", "YES")


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
    """One server, by one connection that all calls share. Every call raises ``StoreUnavailable`` for whatever
    goes wrong, script errors too; ``sent`` is False where nothing of it can have reached the server.

    When a call is cancelled or times out, the command may or may not have been carried out, even later. A
    cancelled one leaves the connection as it was; a reply that is late ends it, with all calls under way.
    """

    def __init__(self, server: Server) -> None:
        self._server = server

    async def command(self, *args: Argument) -> Any:
        """One command, its reply as redis-py gives it (bytes where Redis sends text)."""
        [reply] = await self._replies([args])
        return reply

    async def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Several commands in one round trip, not atomic. An error of one is raised after all were run."""
        return await self._replies(commands) if commands else []

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run a script atomically; it is sent whole only when the server does not know it yet."""
        link = await self._server.link()
        tail = (len(keys), *keys, *args)
        [reply] = await link.pipe.call(pack([("EVALSHA", script.sha, *tail)]))
        if isinstance(reply, NoScriptError):
            [reply] = await link.pipe.call(pack([("EVAL", script.text, *tail)]))
        if isinstance(reply, Exception):
            raise refused(reply) from reply
        return reply

    @property
    def follows(self) -> bool:
        """Whether ``read_followed`` is worth its while now: the server tells of changes."""
        return self._server.follows

    def on_change(self, listener: OnChange) -> None:
        """Have ``listener`` called with the names of keys that were read by ``read_followed`` and have changed
        since, or with None where any may have: they were flushed, or the connection is gone.

        A change that the server made before a reply is told before that reply's reader goes on. ``listener``
        may not block or raise.
        """
        self._server.listeners.append(listener)

    async def read_followed(self, *commands: Sequence[Argument]) -> tuple[list[Any], bool]:
        """Like ``pipeline``, and from now on the server tells of a change to the keys that the first command
        reads; False where it does not. It tells each once.
        """
        link = await self._server.link()
        replies = await link.pipe.call(pack([_FOLLOW, *commands]), 1 + len(commands))
        followed = not isinstance(replies.pop(0), Exception)
        link.follows = link.follows and followed
        return shaped(link.protocol, commands, replies), followed

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

    async def _replies(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        link = await self._server.link()
        return shaped(link.protocol, commands, await link.pipe.call(pack(commands), len(commands)))


class ClusterRedis(Redis):
    """The same, before a Redis Cluster: a key's node answers for it, and for it alone.

    A script's keys must share a hash tag. ``StoreUnavailable.sent`` is False where it is certain that nothing
    was done: the node is known to be away, or said so.
    """

    def __init__(self, nodes: cluster.Cluster) -> None:
        self._nodes = nodes

    @property
    def follows(self) -> bool:
        """Never: a change would have to be told by whichever node owns the key by then."""
        return False

    def on_change(self, listener: OnChange) -> None:
        """Nothing is followed, so nothing is told."""

    async def read_followed(self, *commands: Sequence[Argument]) -> tuple[list[Any], bool]:
        return await self.pipeline(commands), False

    async def command(self, *args: Argument) -> Any:
        """One command, at its key's node; KEYS, DBSIZE and FLUSHDB at all, PING and TIME at any."""
        return await self._call(self._nodes.execute, *args)

    async def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Several commands in one round trip to each node, not atomic. An error of one is raised after all
        were run: one node being away does not keep the others from theirs.
        """
        replies: list[Any] = await _in_asyncio(self._nodes.pipeline, commands)
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
            return await _in_asyncio(function, *args)
        except StoreUnavailable as error:
            if isinstance(error.__cause__, cluster.NOT_DONE):
                raise StoreUnavailable("redis", error.reason, sent=False) from error.__cause__
            raise


async def _in_asyncio(function: Any, *args: Any) -> Any:
    try:
        return await in_asyncio(function, *args)
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable("redis", type(error).__name__) from error


# Not the error's text: it may repeat a password.
_NO_URL = "REDIS_URL: is not a URL that Redis's clients understand"
_UNUSABLE = (ValueError, TypeError, AttributeError, RedisError)


def _options(pool: "redis.asyncio.ConnectionPool") -> Any:
    """A connection that is never made. Raises where the URL's options are no good, which shows only in it."""
    return pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py's own gap


@asynccontextmanager
async def open_redis(url: str, *, size: int, timeout_s: float) -> AsyncIterator[Redis]:
    """Nothing is connected before the first call. Raises ``SettingsError`` for a URL that cannot be used.

    ``timeout_s`` bounds connecting and each reply. Of a cluster (``redis+cluster://host:port,host:port``),
    ``size`` is how many connections there are to each node at most; when all are busy, a call waits
    ``timeout_s`` seconds for one. A single server has one, whatever ``size``.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        # One try: a command whose fate is unknown must not be repeated behind the caller's back.
        "retry": Retry(NoBackoff(), 0),
        "client_name": "neuronetz",
    }
    if urlsplit(url).scheme in cluster.SCHEMES:
        async with _open_cluster(
            url, options | {"max_connections": size, "timeout": timeout_s}, timeout_s
        ) as nodes:
            yield nodes
        return
    try:
        # A blocking pool, since a URL may set its options.
        connection = _options(redis.asyncio.BlockingConnectionPool.from_url(url, **options))
    except _UNUSABLE as error:
        raise SettingsError(_NO_URL) from error
    server = Server(connection)
    async with server.running():
        yield Redis(server)


@asynccontextmanager
async def _open_cluster(url: str, options: dict[str, Any], timeout_s: float) -> AsyncIterator[Redis]:
    try:
        seeds, of_url = cluster.read_url(url)
        _options(redis.asyncio.ConnectionPool(host=seeds[0][0], port=seeds[0][1], **of_url))
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
