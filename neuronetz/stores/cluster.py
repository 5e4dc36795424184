"""A Redis Cluster, asyncio flavoured: each call goes to the node that owns its key's slot.

redis-py's RedisCluster is not used. It closes every node's connections, with the calls under way on them,
when one node answers CLUSTERDOWN or when one caller is cancelled while the slots are read; one node that
hangs can hold up all others; and a call fails at once where a node's connections are all busy. Here each
node has a client of its own, and what goes wrong with one node is its own keys' trouble alone.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis.asyncio
from redis.asyncio.connection import parse_url
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, TryAgainError

from neuronetz.errors import SettingsError

Address = tuple[str, int]
Owners = Sequence[Address | None]

SCHEMES = ("redis+cluster", "rediss+cluster")
DEFAULT_PORT = 6379

# MOVED, ASK and TRYAGAIN that one call follows, with a pause (seconds) before asking again after the last.
_ATTEMPTS = 6
_TRY_AGAIN_PAUSE_S = 0.02

# A node that failed is tried anew by one call at a time, and not within so many seconds.
_DOUBT_PAUSE_S = 0.2

_BY_SCRIPT = ("EVAL", "EVALSHA")
_ANYWHERE = ("PING", "TIME", "INFO", "CLUSTER")
# Commands that concern every node, and what their replies come to.
_EVERYWHERE: dict[str, Callable[[list[Any]], Any]] = {
    "DBSIZE": sum,
    "FLUSHDB": lambda replies: replies[0],
    "KEYS": lambda replies: [name for names in replies for name in names],
}


class NodeAway(RedisError):
    """The node that would have to be asked is away, or nobody is known to own the slot: nothing was sent."""


# A node that answers so has done nothing of what it was asked.
NOT_DONE = (NodeAway, ClusterDownError, MovedError, AskError, TryAgainError)


@dataclass(frozen=True)
class Layout:
    """``nodes`` that own slots, the ``owners`` of all slots, and whether slots are ``moving`` between them."""

    nodes: list[Address]
    owners: tuple[Address | None, ...]
    moving: bool


@dataclass
class _Doubt:
    """A node whose last call failed. ``failures``: of attempts to reach it since."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    failures: int = 0
    not_before: float = 0.0


class Cluster:
    """The nodes of a cluster. Calls raise redis-py's errors, ``OSError`` or ``TimeoutError``.

    ``connect`` makes a node's client, with its own bound on connections. ``timeout_s`` bounds each step of a
    call as it does for a single server, and a whole call three times over: waiting, connecting, answering.
    """

    def __init__(
        self,
        seeds: Iterable[Address],
        connect: Callable[[Address], "redis.asyncio.Redis"],
        *,
        timeout_s: float,
    ) -> None:
        self._seeds = tuple(seeds)
        self._connect = connect
        self._timeout_s = timeout_s
        self._clients: dict[Address, redis.asyncio.Redis] = {}
        self._owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._learning = asyncio.Lock()
        self._failures = 0
        self._doubts: dict[Address, _Doubt] = {}

    def owner(self, key: str) -> Address | None:
        """Who owns a key, as far as is known."""
        return self._owners[slot_of(key)]

    async def execute(self, *args: Any) -> Any:
        """One command, by its key; commands without a key go to any node, or to all."""
        name = str(args[0]).upper()
        async with asyncio.timeout(3 * self._timeout_s):
            if name in _EVERYWHERE:
                return _EVERYWHERE[name](await self._everywhere(args))
            if name in _ANYWHERE:
                return await self._anywhere(args)
            return await self._execute(slot_of(key_of(args)), args)

    async def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Several commands, one round trip to each node. An error of one is raised after all were run."""
        slots = [slot_of(key_of(command)) for command in commands]
        replies: list[Any] = [None] * len(commands)
        async with asyncio.timeout(3 * self._timeout_s):
            groups: dict[Address, list[int]] = {}
            for index, slot in enumerate(slots):
                try:
                    groups.setdefault(await self._route(slot), []).append(index)
                except RedisError as error:
                    replies[index] = error
            batches = [[commands[index] for index in indexes] for indexes in groups.values()]
            answers = await _all(map(self._send_all, groups, batches))
            for indexes, answer in zip(groups.values(), answers, strict=True):
                for place, index in enumerate(indexes):
                    replies[index] = answer if isinstance(answer, BaseException) else answer[place]
            for index, reply in enumerate(replies):
                if isinstance(reply, (AskError, TryAgainError)):
                    replies[index] = await _caught(self._execute(slots[index], commands[index]))
        return _first_error_raised(replies)

    async def primaries(self) -> list[Address]:
        """All who own slots, asked for anew."""
        async with asyncio.timeout(3 * self._timeout_s):
            await self._learn(self._owners)
        return sorted({owner for owner in self._owners if owner is not None})

    async def at(self, address: Address, *args: Any) -> Any:
        """One command at a certain node."""
        async with asyncio.timeout(3 * self._timeout_s):
            await self._clear_up(address)
            return await self._send(address, args)

    async def layout(self) -> Layout:
        """Who owns what, and whether slots are being moved, both asked for anew."""
        nodes = await self.primaries()
        owners = tuple(self._owners)
        views = await _all(self.at(node, "CLUSTER", "NODES") for node in nodes)
        moving = any(mark in view for view in views if isinstance(view, bytes) for mark in (b"->-", b"-<-"))
        return Layout(nodes, owners, moving)

    async def close(self) -> None:
        """Close all connections."""
        clients = list(self._clients.values())
        await _all(client.aclose() for client in clients)
        await _all(client.connection_pool.disconnect() for client in clients)

    async def _execute(self, slot: int, args: Sequence[Any]) -> Any:
        asking: Address | None = None
        refused: RedisError = NodeAway("no attempt")
        for _ in range(_ATTEMPTS):
            address = asking or await self._route(slot)
            try:
                return await self._send(address, args, asking=asking is not None)
            except MovedError as error:
                refused, asking = error, None
                self._owners[slot] = _named(error, address)
            except AskError as error:
                refused, asking = error, _named(error, address)
            except TryAgainError as error:
                refused, asking = error, None
                await asyncio.sleep(_TRY_AGAIN_PAUSE_S)
        raise refused

    async def _everywhere(self, args: Sequence[Any]) -> list[Any]:
        nodes = await self.primaries()
        return _first_error_raised(await _all(self.at(node, *args) for node in nodes))

    async def _anywhere(self, args: Sequence[Any]) -> Any:
        failure: BaseException = NodeAway("no node")
        for address in self._candidates():
            try:
                return await self._send(address, args)
            except (RedisError, OSError) as error:
                failure = error
        raise failure

    async def _send(self, address: Address, args: Sequence[Any], *, asking: bool = False) -> Any:
        if asking:
            return _first_error_raised(await self._send_all(address, [("ASKING",), args]))[1]
        return await self._doubting(address, self._client(address).execute_command(*args))

    async def _send_all(self, address: Address, commands: Sequence[Sequence[Any]]) -> list[Any]:
        async def run() -> list[Any]:
            async with self._client(address).pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return list(await pipe.execute(raise_on_error=False))

        replies: list[Any] = await self._doubting(address, run())
        return replies

    async def _doubting(self, address: Address, call: Awaitable[Any]) -> Any:
        """Await ``call``; a node that fails in it is tried before it is next relied on."""
        began = time.monotonic()
        try:
            return await call
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, ClusterDownError, OSError):
            self._doubts.setdefault(address, _Doubt())
            raise
        except asyncio.CancelledError:
            # The caller's deadline may be as short as ours: what took so long may be a node that hangs.
            if time.monotonic() - began > self._timeout_s / 2:
                self._doubts.setdefault(address, _Doubt())
            raise

    async def _route(self, slot: int) -> Address:
        """Whom to send to. Raises ``NodeAway`` where that node is away."""
        for _ in range(3):
            owner = self._owners[slot]
            if owner is None:
                await self._learn(self._owners)
                owner = self._owners[slot]
                if owner is None:
                    raise NodeAway("slot without an owner")
            if owner not in self._doubts:
                return owner
            await self._clear_up(owner)
        raise NodeAway("slot without a steady owner")

    async def _clear_up(self, address: Address) -> None:
        """Return once a doubted node answers, or is known to own nothing more; else raise ``NodeAway``.

        One caller tries for all who wait meanwhile; if it is cancelled, the next does.
        """
        doubt = self._doubts.get(address)
        if doubt is None:
            return
        seen = doubt.failures
        if time.monotonic() < doubt.not_before:
            raise NodeAway("node is away")
        async with doubt.lock:
            if doubt.failures != seen:
                raise NodeAway("node is away")
            if self._doubts.get(address) is not doubt:
                return
            try:
                # Its replica may own the slots by now.
                await self._learn(self._owners)
                if address in self._owners:
                    await self._client(address).execute_command("PING")
            except (RedisError, OSError) as error:
                doubt.failures += 1
                doubt.not_before = time.monotonic() + _DOUBT_PAUSE_S
                raise NodeAway("node is away") from error
            # What was learnt may have struck out the node, and the doubt with it.
            self._doubts.pop(address, None)

    async def _learn(self, known: Owners) -> None:
        """Read anew who owns which slots, unless that has changed from ``known``; one asks for all who wait."""
        seen = self._failures
        async with self._learning:
            if self._owners is not known:
                return
            if self._failures != seen:
                raise NodeAway("no node tells the slots")
            candidates = self._candidates()
            for address in candidates:
                try:
                    async with asyncio.timeout(self._timeout_s / min(3, len(candidates))):
                        reply = await self._client(address).execute_command("CLUSTER", "SLOTS")
                except (RedisError, OSError) as error:
                    failure: Exception = error
                    self._doubts.setdefault(address, _Doubt())
                    continue
                if reply:
                    self._owners = read_slots(reply, address)
                    await self._forget_the_gone()
                    return
                failure = NodeAway("node knows no slots")
            self._failures += 1
            raise failure

    def _candidates(self) -> list[Address]:
        """Whom to ask what any node can tell: at random, those in doubt last."""
        known = {owner for owner in self._owners if owner is not None}
        candidates = [*known, *(seed for seed in self._seeds if seed not in known)]
        random.shuffle(candidates)
        return sorted(candidates, key=lambda address: address in self._doubts)

    async def _forget_the_gone(self) -> None:
        kept = {*self._owners, *self._seeds}
        for address in [address for address in self._clients if address not in kept]:
            client = self._clients.pop(address)
            self._doubts.pop(address, None)
            await client.aclose()
            await client.connection_pool.disconnect()

    def _client(self, address: Address) -> Any:
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = self._connect(address)
        return client


def read_url(url: str) -> tuple[list[Address], dict[str, Any]]:
    """The first nodes to ask, and redis-py's options for every node, of ``redis+cluster://host:port,…``.

    Raises ``SettingsError`` for a database other than 0: a cluster has no other.
    """
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    seeds: list[Address] = []
    options: dict[str, Any] = {}
    for host in hosts.split(","):
        node = (parts.scheme.removesuffix("+cluster"), user + at + host, parts.path, parts.query, "")
        options = dict(parse_url(urlunsplit(node)))
        seeds.append((str(options.pop("host", "localhost")), int(options.pop("port", DEFAULT_PORT))))
    if options.pop("db", 0) != 0:
        raise SettingsError("REDIS_URL: a cluster has database 0 alone")
    return seeds, options


def read_slots(reply: Iterable[Sequence[Any]], asked: Address) -> list[Address | None]:
    """The owner of each slot, of a reply to ``CLUSTER SLOTS``. An owner without a host has that of ``asked``."""
    owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    for first, last, primary, *_ in reply:
        host = (primary[0] or b"").decode()
        owner = (host if host not in ("", "?") else asked[0], int(primary[1]))
        owners[int(first) : int(last) + 1] = [owner] * (int(last) + 1 - int(first))
    return owners


def key_of(args: Sequence[Any]) -> Any:
    """The key by which a command finds its node. Raises ``ValueError`` where it names none."""
    place = 3 if str(args[0]).upper() in _BY_SCRIPT else 1
    if len(args) <= place or (place == 3 and int(args[2]) < 1):
        raise ValueError(f"{args[0]}: no key to find a node by")
    return args[place]


def slot_of(key: str | bytes) -> int:
    return key_slot(key.encode() if isinstance(key, str) else key)


def _named(error: AskError, asked: Address) -> Address:
    # Without a host the node means its own.
    return error.host or asked[0], int(error.port)


async def _all(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """All calls at once; errors take the place of results."""
    return list(await asyncio.gather(*calls, return_exceptions=True))


async def _caught(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except (RedisError, OSError) as error:
        return error


def _first_error_raised(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
    return replies
