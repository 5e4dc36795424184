"""Clients at the level of sockets, which leave, stall and half-close as no library's client does."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio


@asynccontextmanager
async def connected(gateway: Any, small_window: bool = False) -> AsyncIterator[trio.SocketStream]:
    """A connection to the gateway; with a small window, replies soon find no room."""
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if small_window:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    port = int(gateway.base_url.rsplit(":", 1)[1])
    await sock.connect(("127.0.0.1", port))
    async with trio.SocketStream(sock) as stream:
        yield stream
