"""httpx over the pool, for replies that are read whole; and a request's head as httpx writes it."""

import httpx

from neuronetz.errors import ReplyTooLarge
from neuronetz.upstream.pool import Pool
from neuronetz.upstream.reply import BrokenReply


class WholeReplies(httpx.AsyncBaseTransport):
    """Reads a reply's body before it returns, so that no response is left that owns a connection.

    The request's extension ``limit`` bounds the body in bytes; beyond it ``ReplyTooLarge`` is raised. Of what
    is not a 200 only the status is told. Cancelled, or on an error, it closes the connection. Deadlines are the
    caller's, but for that of connecting.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limit: int = request.extensions["limit"]
        try:
            connection = await self._pool.ask(head_of(request), await request.aread())
            try:
                reply = bytearray()
                while connection.status == 200 and (chunk := await connection.read()):
                    reply += chunk
                    if len(reply) > limit:
                        raise ReplyTooLarge
            finally:
                self._pool.release(connection)
        except BrokenReply as error:
            raise httpx.RemoteProtocolError("broken reply", request=request) from error
        except OSError as error:
            raise httpx.NetworkError("connection failed", request=request) from error
        return httpx.Response(connection.status, content=bytes(reply), request=request)


def head_of(request: httpx.Request) -> bytes:
    """The request's line and headers, with the empty line that ends them."""
    lines = [b"%b %b HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%b: %b" % field for field in request.headers.raw]
    return b"\r\n".join((*lines, b"", b""))
