"""Bytes to a gateway and what came back, for requests that no client's library would send."""

from typing import Any, NamedTuple

import trio

from tests.patience import until
from tests.sockets import connected

_PROBE = b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n"
_READS = {"/api/tags", "/api/show", "/api/version", "/api/ps"}


class Heard(NamedTuple):
    """The replies' statuses, and whether the server closed the connection behind them."""

    statuses: tuple[int, ...]
    closed: bool
    text: bytes


async def converse(gateway: Any, data: bytes, *, closed: bool, replies: int, within_s: float = 10.0) -> Heard:
    """Send ``data`` and hear the replies; then the connection's end, or on a connection that stays, a page.

    Returns once the gateway holds nothing of it any more: its rows are then written.
    """
    received = b""
    ended = False
    with trio.fail_after(within_s):
        async with connected(gateway) as client:
            try:
                await client.send_all(data)
            except trio.BrokenResourceError:
                ended = True
            while not ended and (closed or len(_statuses(received)) < replies):
                chunk = await _some(client)
                received += chunk
                ended = not chunk
            if not ended:
                await client.send_all(_PROBE)
                before = received
                while not ended and len(_statuses(received)) <= len(_statuses(before)):
                    chunk = await _some(client)
                    received += chunk
                    ended = not chunk
                if not ended:
                    assert received.endswith(b'{"status":"ok"}'), received[-200:]
                    received = before
        await until(lambda: gateway.connections == 0, within_s)
    return Heard(_statuses(received), ended, received)


async def _some(client: trio.SocketStream) -> bytes:
    try:
        return bytes(await client.receive_some(65536))
    except trio.BrokenResourceError:
        return b""


def _statuses(received: bytes) -> tuple[int, ...]:
    """The statuses of the whole replies in ``received``, each with a length of its own or none."""
    statuses = []
    while b"\r\n\r\n" in received:
        head, received = received.split(b"\r\n\r\n", 1)
        lines = head.lower().split(b"\r\n")
        lengths = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]
        status = int(lines[0].split(b" ")[1])
        if len(received) < sum(lengths):
            break
        statuses.append(status)
        received = received[sum(lengths) :]
    return tuple(statuses)


def asked_upstream(mock: Any) -> int:
    """How many requests went to the upstream that run, or change, a model."""
    return sum(count for path, count in mock.stats.requests.items() if path not in _READS)
