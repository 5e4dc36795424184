"""The upstream: one Ollama, with every foreign error mapped here.

What goes upstream was written anew by a dialect; the client's bytes and headers never do (G10). Upstream's
own words never come back: an error of it becomes one of ours (G9). A reply that is relayed is read straight
from its connection; httpx, over the same connections, serves what is asked for seldom.
"""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import httpx
import trio

from neuronetz.errors import (
    GatewayError,
    ModelDenied,
    UpstreamBusy,
    UpstreamErrored,
    UpstreamFailed,
    UpstreamRejected,
    UpstreamTimeout,
)
from neuronetz.upstream.pool import Connection, Pool
from neuronetz.upstream.reply import BrokenReply
from neuronetz.upstream.transport import WholeReplies, head_of
from neuronetz.upstream.wire import Origin

_JSON = {"content-type": "application/json"}
_PORTS = {"http": 80, "https": 443}

# How much later than its time (seconds) silence between chunks may be noticed; at most a tenth of that time.
_SLACK_S = 1.0

_DRAIN_TIMEOUT_S = 0.05


def error_for(status: int) -> GatewayError | None:
    """What an upstream status means for our client; None for 200.

    404 is a model that vanished since the last discovery: the same answer as for one that was never
    there (G9). 4xx speaks of the request, so it is no failure of the upstream.
    """
    if status == 200:
        return None
    if status == 404:
        return ModelDenied()
    if status in (429, 503):
        return UpstreamBusy(retry_after=2.0)
    if status in (400, 413, 422):
        return UpstreamRejected()
    if status == 500:
        return UpstreamErrored(retry_after=1.0)
    return UpstreamFailed(retry_after=1.0)


class UpstreamStream:
    """One reply being read. As a context manager it owns the connection.

    Entering waits for the reply's headers, at most ``first_byte_timeout_s`` seconds; it raises
    ``UpstreamFailed``, ``UpstreamTimeout``, ``UpstreamRejected``, ``UpstreamBusy`` or ``ModelDenied``.
    Leaving, for whatever reason, closes a connection whose reply was not read to its end, which makes
    Ollama stop generating; a cancellation while entering does the same. Leaving waits for nothing.

    After ``UpstreamTimeout`` the block must be left: whatever waits in it is cancelled. ``read`` is called in
    the block itself, not in a cancel scope within it that may end in the moment of the deadline.
    """

    def __init__(
        self, pool: Pool, head: bytes, body: bytes, first_byte_timeout_s: float, chunk_timeout_s: float
    ) -> None:
        self._pool = pool
        self._head = head
        self._body = body
        self._first_byte_timeout_s = first_byte_timeout_s
        self._chunk_timeout_s = chunk_timeout_s
        self._slack_s = min(_SLACK_S, chunk_timeout_s / 10)
        self._first_byte_by = 0.0
        # One for all reads: each moves its deadline. A scope for each would cost as much as the read.
        self._scope = trio.CancelScope()
        self._connection: Connection

    async def __aenter__(self) -> Self:
        self._first_byte_by = trio.current_time() + self._first_byte_timeout_s
        scope = self._scope
        scope.deadline = self._first_byte_by
        scope.__enter__()
        try:
            connection = await self._pool.ask(self._head, self._body)
        except BaseException as error:
            scope.__exit__(type(error), error, error.__traceback__)
            if scope.cancelled_caught:
                raise UpstreamTimeout(retry_after=1.0) from None
            if isinstance(error, (BrokenReply, OSError)):
                raise UpstreamFailed(retry_after=1.0) from error
            raise
        self._lift()
        self._body = b""
        if (refusal := error_for(connection.status)) is not None:
            self._pool.release(connection)
            self._scope.__exit__(None, None, None)
            raise refusal
        self._connection = connection
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._pool.release(self._connection)
        self._scope.__exit__(exc_type, exc, tb)
        if self._scope.cancelled_caught:
            # The block went on waiting after the deadline.
            raise UpstreamTimeout(retry_after=1.0)

    async def read(self) -> bytes:
        """The bytes of one network read; empty at the end.

        Raises ``UpstreamTimeout`` when nothing comes within the deadline for the first byte, or between
        chunks, and ``UpstreamFailed`` when the connection breaks. A checkpoint whenever the network is asked.
        """
        if self._connection.ready:
            self._first_byte_by = 0.0
            return await self._connection.read()
        scope = self._scope
        if self._first_byte_by:
            scope.deadline = self._first_byte_by
        else:
            least = trio.current_time() + self._chunk_timeout_s
            # Moved only once in a while: to move it costs as much as to read.
            if not least <= scope.deadline <= least + self._slack_s:
                scope.deadline = least + self._slack_s
        try:
            chunk = await self._connection.read()
        except trio.Cancelled as error:
            if scope.cancel_called and self._renewed(error):
                self._scope.cancel()
                raise UpstreamTimeout(retry_after=1.0) from None
            scope.deadline = math.inf
            raise
        except (BrokenReply, OSError) as error:
            scope.deadline = math.inf
            raise UpstreamFailed(retry_after=1.0) from error
        if scope.cancel_called:
            self._lift()
        self._first_byte_by = 0.0
        return chunk

    def pause(self) -> None:
        """Have no deadline run until the next read: what is waited for now is not the upstream. Without this, the
        time after a read counts as its silence.
        """
        self._lift()

    def _lift(self) -> None:
        """No deadline any more. Where it passed in the moment in which the reply came, the reply counts: this
        process may have stood still, and was the late one.
        """
        self._scope.deadline = math.inf
        if self._scope.cancel_called:
            self._renewed(None)

    def _renewed(self, error: trio.Cancelled | None) -> bool:
        """A new scope for one that is cancelled; whether ``error`` came of that alone, and of none around it."""
        ended, self._scope = self._scope, trio.CancelScope()
        alone = ended.__exit__(None if error is None else type(error), error, None)
        self._scope.__enter__()
        return alone

    async def drain(self) -> None:
        """After a reply's last line: read what ends the body, so that the connection can serve again.

        It waits only briefly; whatever else comes is thrown away with the connection.
        """
        if self._connection.complete:
            return
        with trio.move_on_after(_DRAIN_TIMEOUT_S):
            try:
                await self._connection.read()
            except (BrokenReply, OSError):
                return


class Upstream:
    """The Ollama behind this gateway."""

    def __init__(
        self, client: httpx.AsyncClient, pool: Pool, *, first_byte_timeout_s: float, chunk_timeout_s: float
    ) -> None:
        self._client = client
        self._pool = pool
        self._first_byte_timeout_s = first_byte_timeout_s
        self._chunk_timeout_s = chunk_timeout_s
        # Of the few paths that a dialect asks for: all but the body's length.
        self._heads: dict[str, bytes] = {}

    def stream(self, path: str, body: bytes) -> UpstreamStream:
        """POST ``body`` (JSON, written by a dialect) to ``path``; use it as an async context manager.

        ``path`` is one of a dialect's own, never a client's text.
        """
        prepared = self._heads.get(path)
        if prepared is None:
            prepared = self._heads[path] = self._head(path)
        head = b"%b%d\r\n\r\n" % (prepared, len(body))
        return UpstreamStream(self._pool, head, body, self._first_byte_timeout_s, self._chunk_timeout_s)

    async def fetch(
        self, method: str, path: str, body: bytes | None = None, *, timeout_s: float, limit: int
    ) -> bytes:
        """A whole reply of at most ``limit`` bytes within ``timeout_s`` seconds.

        Raises as ``UpstreamStream`` does, and ``ReplyTooLarge``.
        """
        headers = _JSON if body else None
        try:
            with trio.fail_after(timeout_s):
                reply = await self._client.request(
                    method, path, content=body or None, headers=headers, extensions={"limit": limit}
                )
        except trio.TooSlowError:
            raise UpstreamTimeout(retry_after=1.0) from None
        except httpx.HTTPError as error:
            raise UpstreamFailed(retry_after=1.0) from error
        if (refusal := error_for(reply.status_code)) is not None:
            raise refusal
        return reply.content

    def _head(self, path: str) -> bytes:
        request = self._client.build_request("POST", path, headers=_JSON)
        if request.url.userinfo:
            # What httpx does on its way to the transport.
            credentials = httpx.BasicAuth(request.url.username, request.url.password)
            request = next(credentials.auth_flow(request))
        del request.headers["content-length"]
        return head_of(request).removesuffix(b"\r\n") + b"Content-Length: "


@asynccontextmanager
async def open_upstream(
    url: str, *, connect_timeout_s: float, first_byte_timeout_s: float, chunk_timeout_s: float
) -> AsyncIterator[Upstream]:
    """The Ollama at ``url``. Proxies and credentials of the environment are ignored, redirects not followed."""
    with Pool(_origin(httpx.URL(url)), connect_timeout_s=connect_timeout_s) as pool:
        async with httpx.AsyncClient(
            base_url=url,
            transport=WholeReplies(pool),
            # Our own deadlines bound everything; httpx's would count anew for each read.
            timeout=httpx.Timeout(None),
            headers={"user-agent": "neuronetz", "accept": "*/*", "accept-encoding": "identity"},
            trust_env=False,
            follow_redirects=False,
        ) as client:
            yield Upstream(
                client, pool, first_byte_timeout_s=first_byte_timeout_s, chunk_timeout_s=chunk_timeout_s
            )


def _origin(url: httpx.URL) -> Origin:
    trust = None
    if url.scheme == "https":
        trust = httpx.create_ssl_context(trust_env=False)
        trust.set_alpn_protocols(["http/1.1"])
    return Origin(url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme], trust)
