"""Ports whose numbers must be known before their servers are started."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """A TCP port of the loopback interface that nobody else is given within the block.

    It refuses connections until a server listens there that sets SO_REUSEADDR, as nearly all do; such a server
    may end and start again meanwhile. A port that was only seen to be free may be anybody's a moment later.
    """
    with socket.socket() as holder:
        # Bound and never listening: the kernel gives the port to nobody who asks for any, and to nobody's
        # outgoing connection, yet lets one listen who asks for this one with the same option.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
