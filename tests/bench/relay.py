"""``python -m tests.bench.relay PORT``: passes bytes on between its clients and that port, and does nothing else.

It prints its own port. It makes as few calls of Trio's as can be made, and knows no HTTP: what it costs is what Trio and
the system take from anybody.
"""

import os
import sys
from functools import partial

import trio

_BYTES = 65536


async def _serve(port: int, client: trio.SocketStream) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as upstream, trio.open_nursery() as nursery:
        nursery.start_soon(_pass_on, client, upstream, nursery.cancel_scope)
        nursery.start_soon(_pass_on, upstream, client, nursery.cancel_scope)


async def _pass_on(source: trio.SocketStream, target: trio.SocketStream, both: trio.CancelScope) -> None:
    reader, writer = source.socket, target.socket
    try:
        while True:
            await trio.lowlevel.wait_readable(reader)
            data = os.read(reader.fileno(), _BYTES)
            # What does not fit at once is more than any load here sends: it ends the connection.
            if not data or os.write(writer.fileno(), data) < len(data):
                break
    except OSError:
        pass
    both.cancel()


async def _main(port: int) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=2048)
    sys.stdout.write(f"{listeners[0].socket.getsockname()[1]}\n")
    sys.stdout.flush()
    await trio.serve_listeners(partial(_serve, port), listeners)


if __name__ == "__main__":
    trio.run(_main, int(sys.argv[1]))
