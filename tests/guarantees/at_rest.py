"""What must be there no more once a request is over."""

from typing import Any

import trio

from neuronetz.gateway import Gateway
from tests.patience import until


async def quiet(gateway: Gateway, mock: Any) -> None:
    """Fails unless the model is at rest within the guarantee's bound, every connection back in its pool, and no call of Redis under way.

    A query that was cancelled is cancelled at PostgreSQL too, which takes a connection of its own and longer.
    """
    postgres, redis = gateway._postgres._pool, gateway._redis._server._link.pipe
    upstream = gateway._upstream._pool
    await until(lambda: mock.stats.open == 0, 0.1)
    left: dict[str, int] = {}
    with trio.move_on_after(2):
        while True:
            left = {
                "postgres": postgres.get_size() - postgres.get_idle_size(),
                "redis": len(redis._pending),
                "upstream": len(upstream.in_use),
            }
            if not any(left.values()):
                return
            await trio.lowlevel.checkpoint()
    raise AssertionError(left)
