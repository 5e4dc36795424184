"""The upstream: one Ollama, reached through httpx, with every foreign error mapped here.

What goes upstream was written anew by a dialect; the client's bytes and headers never do (G10). Upstream's
own words never come back: an error of it becomes one of ours (G9).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

import httpx
import trio

from neuronetz.errors import (
    GatewayError,
    ModelDenied,
    ReplyTooLarge,
    UpstreamBusy,
    UpstreamErrored,
    UpstreamFailed,
    UpstreamRejected,
    UpstreamTimeout,
)

_JSON = {"content-type": "application/json"}

# Closing a connection is a local act; the bound is for a transport that would wait for its peer (TLS).
_CLOSE_TIMEOUT_S = 0.5
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
    Ollama stop generating; a cancellation while entering does the same.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        request: httpx.Request,
        first_byte_timeout_s: float,
        chunk_timeout_s: float,
    ) -> None:
        self._client = client
        self._request = request
        self._first_byte_timeout_s = first_byte_timeout_s
        self._chunk_timeout_s = chunk_timeout_s
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] = _nothing()
        self._first_byte_by = 0.0

    async def __aenter__(self) -> Self:
        self._first_byte_by = trio.current_time() + self._first_byte_timeout_s
        try:
            with trio.fail_at(self._first_byte_by):
                response = await self._client.send(self._request, stream=True)
        except trio.TooSlowError:
            raise UpstreamTimeout(retry_after=1.0) from None
        except (httpx.HTTPError, OSError) as error:
            raise UpstreamFailed(retry_after=1.0) from error
        self._response = response
        self._chunks = response.aiter_raw()
        refusal = error_for(response.status_code)
        if refusal is not None:
            await self._close()
            raise refusal
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._close()

    async def read(self) -> bytes:
        """The bytes of one network read; empty at the end.

        Raises ``UpstreamTimeout`` when nothing comes within the deadline for the first byte, or between
        chunks, and ``UpstreamFailed`` when the connection breaks.
        """
        deadline = self._first_byte_by or trio.current_time() + self._chunk_timeout_s
        try:
            with trio.fail_at(deadline):
                chunk = await anext(self._chunks, b"")
        except trio.TooSlowError:
            raise UpstreamTimeout(retry_after=1.0) from None
        except (httpx.HTTPError, OSError) as error:
            raise UpstreamFailed(retry_after=1.0) from error
        self._first_byte_by = 0.0
        return chunk

    async def drain(self) -> None:
        """After a reply's last line: read what ends the body, so that the connection can serve again.

        It waits only briefly; whatever else comes is thrown away with the connection.
        """
        with trio.move_on_after(_DRAIN_TIMEOUT_S):
            try:
                async for _ in self._chunks:
                    return
            except (httpx.HTTPError, OSError):
                return

    async def _close(self) -> None:
        if self._response is not None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_TIMEOUT_S):
                await self._response.aclose()
                # httpx's body is a pile of async generators, of which closing the topmost would leave the
                # rest to the garbage collector. Reading on from the closed connection ends them all.
                with suppress(httpx.HTTPError, httpx.StreamError, OSError):
                    async for _ in self._chunks:
                        pass


class Upstream:
    """The Ollama behind this gateway."""

    def __init__(self, client: httpx.AsyncClient, *, first_byte_timeout_s: float, chunk_timeout_s: float) -> None:
        self._client = client
        self._first_byte_timeout_s = first_byte_timeout_s
        self._chunk_timeout_s = chunk_timeout_s

    def stream(self, path: str, body: bytes) -> UpstreamStream:
        """POST ``body`` (JSON, written by a dialect) to ``path``; use it as an async context manager."""
        request = self._request("POST", path, body)
        return UpstreamStream(self._client, request, self._first_byte_timeout_s, self._chunk_timeout_s)

    async def fetch(
        self, method: str, path: str, body: bytes | None = None, *, timeout_s: float, limit: int
    ) -> bytes:
        """A whole reply of at most ``limit`` bytes within ``timeout_s`` seconds.

        Raises as ``UpstreamStream`` does, and ``ReplyTooLarge``.
        """
        request = self._request(method, path, body)
        reply = bytearray()
        try:
            with trio.fail_after(timeout_s):
                async with UpstreamStream(self._client, request, timeout_s, timeout_s) as stream:
                    while chunk := await stream.read():
                        reply += chunk
                        if len(reply) > limit:
                            raise ReplyTooLarge
        except trio.TooSlowError:
            raise UpstreamTimeout(retry_after=1.0) from None
        return bytes(reply)

    def _request(self, method: str, path: str, body: bytes | None) -> httpx.Request:
        if not body:
            return self._client.build_request(method, path)
        request = self._client.build_request(method, path, content=body, headers=_JSON)
        request.stream = _Body(body)
        return request


class _Body(httpx.AsyncByteStream):
    """A request's body. httpx's own is an async generator: one that is cancelled while the body is being
    written is left half-run, for the garbage collector to find.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._body)


class _Once(AsyncIterator[bytes]):
    """An iterator over one chunk, with nothing to clean up."""

    def __init__(self, chunk: bytes) -> None:
        self._chunk = chunk

    async def __anext__(self) -> bytes:
        chunk, self._chunk = self._chunk, b""
        if not chunk:
            raise StopAsyncIteration
        return chunk


async def _nothing() -> AsyncIterator[bytes]:
    """The chunks of a reply that has not begun."""
    for chunk in tuple[bytes, ...]():
        yield chunk


@asynccontextmanager
async def open_upstream(
    url: str, *, connect_timeout_s: float, first_byte_timeout_s: float, chunk_timeout_s: float
) -> AsyncIterator[Upstream]:
    """The Ollama at ``url``. Proxies and credentials of the environment are ignored, redirects not followed."""
    async with httpx.AsyncClient(
        base_url=url,
        # Our own deadlines bound everything else; httpx's would count anew for each read.
        timeout=httpx.Timeout(None, connect=connect_timeout_s),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=5.0),
        headers={"user-agent": "neuronetz", "accept": "*/*", "accept-encoding": "identity"},
        trust_env=False,
        follow_redirects=False,
    ) as client:
        yield Upstream(client, first_byte_timeout_s=first_byte_timeout_s, chunk_timeout_s=chunk_timeout_s)
