"""A held port: nobody's, until the server that it is held for listens."""

import socket
import struct
from contextlib import suppress

import pytest
import trio

from neuronetz.embedded.ports import held_port

# Linux 6.3 and later: from which ports the kernel chooses for this socket; Python has no name for it yet.
_IP_LOCAL_PORT_RANGE = 51


async def test_it_refuses_until_its_server_listens_and_again_once_that_has_ended() -> None:
    with held_port() as port:
        for _ in range(2):
            with pytest.raises(OSError, match="connect"):
                await trio.open_tcp_stream("127.0.0.1", port)
            (server,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
            async with server, await trio.open_tcp_stream("127.0.0.1", port):
                pass


def test_who_asks_for_it_without_the_option_is_refused() -> None:
    with held_port() as port, socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(("0.0.0.0", port))


@pytest.mark.parametrize("reuse", [0, 1])
def test_who_asks_for_any_port_is_not_given_it(reuse: int) -> None:
    with held_port() as port, only_from(port) as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        with suppress(OSError):
            stranger.bind(("127.0.0.1", 0))
        assert stranger.getsockname()[1] != port


def test_nobody_connects_from_it() -> None:
    with held_port() as port, only_from(port) as stranger, socket.create_server(("127.0.0.1", 0)) as server:
        with suppress(OSError):
            stranger.connect(server.getsockname())
        assert stranger.getsockname()[1] != port


def only_from(port: int) -> socket.socket:
    """For which the kernel has just this port to give, where it can be told so."""
    stranger = socket.socket()
    with suppress(OSError):
        stranger.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, struct.pack("I", port | port << 16))
    return stranger
