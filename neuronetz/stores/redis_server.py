"""One Redis server: connected when first asked, connected anew after a failure, its keys followed for changes."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from redis.exceptions import (
    AuthenticationWrongNumberOfArgsError,
    ConnectionError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from neuronetz.errors import StoreUnavailable
from neuronetz.stores.redis_pipe import Pipe
from neuronetz.stores.redis_replies import pack
from neuronetz.stores.redis_transport import connect

# What of the keys followed has changed: their names, or None for all of them.
OnChange = Callable[[Iterable[bytes] | None], None]


@dataclass
class Link:
    """A connection that is ready. ``protocol``: of RESP, 2 or 3.

    ``follows`` is whether the server tells of changes to what was read after ``CLIENT CACHING YES``.
    """

    pipe: Pipe
    protocol: int
    follows: bool


@dataclass
class _Attempt:
    """One try to connect, which all calls of that time wait for."""

    done: trio.Event = field(default_factory=trio.Event)
    link: Link | None = None
    failure: RedisError | None = None


class Server:
    """A server, by ``options``: a connection of redis-py, made of a URL and never connected.

    ``listeners`` are called with the names of followed keys that changed, or with None where any of them may
    have: they were flushed, or the connection that followed them is gone. They may not block or raise.
    """

    def __init__(self, options: Any) -> None:
        self._options = options
        self.listeners: list[OnChange] = []
        self._link: Link | None = None
        self._attempt: _Attempt | None = None
        self._nursery: trio.Nursery | None = None
        self._scopes: set[trio.CancelScope] = set()

    @property
    def follows(self) -> bool:
        """Whether there is a connection now on which the server tells of changes."""
        link = self._link
        return link is not None and link.follows and link.pipe.failure is None

    async def link(self) -> Link:
        """The connection, made first where there is none. Raises ``StoreUnavailable``, nothing being sent."""
        link = self._link
        if link is not None and link.pipe.failure is None:
            return link
        attempt = self._attempt
        if attempt is None:
            if self._nursery is None:
                raise StoreUnavailable("redis", "ConnectionError", sent=False)
            attempt = self._attempt = _Attempt()
            self._nursery.start_soon(self._live, attempt)
        await attempt.done.wait()
        if attempt.link is None:
            failure = attempt.failure or ConnectionError("closed")
            raise StoreUnavailable("redis", type(failure).__name__, sent=False) from failure
        return attempt.link

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Own the connection's tasks. A cancellation from outside does not reach them, since the block's clean-up
        may still have something to say; they end when the block does, and all calls with them.
        """
        raised: BaseException | None = None
        try:
            async with trio.open_nursery() as self._nursery:
                try:
                    yield
                except BaseException as error:
                    raised = error
                    raise
                finally:
                    self._nursery = None
                    for scope in self._scopes:
                        scope.cancel()
        except BaseExceptionGroup as group:
            # What the block raises passes as it is, as if no nursery stood around it.
            if group.exceptions != (raised,):
                raise
        if raised is not None:
            raise raised

    async def _live(self, attempt: _Attempt) -> None:
        """A connection's whole life: made, announced to those who wait for it, and served to its end."""
        with trio.CancelScope(shield=True) as scope:
            self._scopes.add(scope)
            try:
                if self._nursery is not None:
                    await self._serve(attempt)
            except RedisError as error:
                attempt.failure = error
            except (OSError, ValueError, OverflowError, trio.BrokenResourceError) as error:
                attempt.failure = ConnectionError(str(error))
                attempt.failure.__cause__ = error
            finally:
                self._scopes.discard(scope)
                self._conclude(attempt)

    async def _serve(self, attempt: _Attempt) -> None:
        deadline = trio.current_time() + self._options.socket_connect_timeout
        transport = None
        with trio.CancelScope(deadline=deadline):
            transport = await connect(self._options)
        if transport is None:
            raise TimeoutError("not connected in time")
        pipe = Pipe(
            transport,
            timeout_s=self._options.socket_timeout,
            on_push=self._pushed,
            on_end=lambda: self._changed(None),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.run)
            try:
                with trio.CancelScope(deadline=deadline):
                    self._link = attempt.link = await _greeted(pipe, self._options)
            except StoreUnavailable:
                attempt.failure = pipe.failure
            except RedisError as error:
                attempt.failure = error
            if attempt.link is None:
                attempt.failure = attempt.failure or TimeoutError("not greeted in time")
                pipe.end(attempt.failure)
            self._conclude(attempt)

    def _conclude(self, attempt: _Attempt) -> None:
        if self._attempt is attempt:
            self._attempt = None
        attempt.done.set()

    def _changed(self, names: Iterable[bytes] | None) -> None:
        for listener in self.listeners:
            listener(names)

    def _pushed(self, push: list[Any]) -> None:
        if len(push) == 2 and push[0] == b"invalidate":
            self._changed(push[1])


async def _greeted(pipe: Pipe, options: Any) -> Link:
    """Log in and set the connection up. Raises ``StoreUnavailable``, or redis-py's error for a refusal."""
    credentials = (options.username or "default", options.password or "")
    known = bool(options.username or options.password)
    modern = options.protocol != 2
    if modern:
        try:
            await _ask(pipe, "HELLO", 3, *(("AUTH", *credentials) if known else ()))
        except ResponseError:
            # An old server, or a proxy or a list of rights that knows no HELLO. A wrong password is no such error.
            modern = False
    if not modern and known:
        try:
            await _ask(pipe, "AUTH", *(credentials if options.username else credentials[1:]))
        except AuthenticationWrongNumberOfArgsError:
            await _ask(pipe, "AUTH", credentials[1])
    if options.db:
        await _ask(pipe, "SELECT", options.db)
    courtesies: list[tuple[Any, ...]] = [("CLIENT", "SETNAME", options.client_name)]
    if options.driver_info is not None:
        courtesies.append(("CLIENT", "SETINFO", "LIB-NAME", options.driver_info.formatted_name))
        courtesies.append(("CLIENT", "SETINFO", "LIB-VER", options.driver_info.lib_version))
    if modern:
        courtesies.append(("CLIENT", "TRACKING", "ON", "OPTIN"))
    replies = await pipe.call(pack(courtesies), len(courtesies))
    return Link(pipe, 3 if modern else 2, modern and not isinstance(replies[-1], Exception))


async def _ask(pipe: Pipe, *command: Any) -> None:
    [reply] = await pipe.call(pack([command]))
    if isinstance(reply, Exception):
        raise reply
