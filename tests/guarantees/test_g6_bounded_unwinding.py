"""G6, bounded unwinding: a shutdown ends within the drain's deadline and a constant, whatever is in its way.

Here: both stores stop answering while a stream runs whose client does not read; the gateway has to end all the
same. Further: two workers and a stuck one (tests/local/test_workers.py), Redis hung while settling
(tests/admission/test_unsettled.py), clean-up at every checkpoint (tests/guarantees/test_exhaustive_cancellation.py).
"""

from typing import Any

import httpx
import trio

from neuronetz.gateway import open_gateway
from neuronetz.workers.parent import unwinding_s
from tests.guarantees.faulty_wire import wires
from tests.patience import until
from tests.shapes import Shape
from tests.sockets import connected

CHAT = Shape("/api/chat", True)
QUICK = {
    "store_timeout_s": 0.2,
    "cleanup_timeout_s": 0.3,
    "audit_commit_timeout_s": 0.3,
    "drain_timeout_s": 0.2,
    "write_timeout_s": 60.0,
}


async def test_a_shutdown_ends_in_time_with_both_stores_hung_and_a_client_that_does_not_read(
    asyncio_loop: Any, settings: Any, database_url: str, redis_url: str, mock_ollama: Any, key: str
) -> None:
    bearer = {"authorization": f"Bearer {key}"}
    async with wires(database_url, redis_url) as (postgres, postgres_url, redis, faulty_redis_url):
        urls = {"database_url": postgres_url, "redis_url": faulty_redis_url}
        quick = settings.model_copy(update=QUICK | urls)
        stop = trio.Event()
        ended = trio.Event()
        async with open_gateway(quick) as gateway, trio.open_nursery() as nursery:

            async def run(task_status: Any) -> None:
                await gateway.run(stop, task_status=task_status)
                ended.set()

            await nursery.start(run)
            await gateway.discovery.wait_until_known(5)
            async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as visitor:
                with trio.fail_after(10):  # on a busy machine the first connections may take longer than they may
                    while (
                        await visitor.post(CHAT.path, json=CHAT.body("rivers"), headers=bearer)
                    ).status_code != 200:
                        await trio.sleep(0.05)
            async with connected(gateway, small_window=True) as client:
                await client.send_all(CHAT.request(key, "[[tokens:1000000]] rivers"))
                await until(lambda: mock_ollama.stats.open == 1, 3)
                postgres.stall()
                redis.stall()
                stop.set()
                with trio.fail_after(quick.drain_timeout_s + unwinding_s(quick)):
                    await ended.wait()
                # The model was not kept for so long.
                assert mock_ollama.stats.open == 0
                assert (gateway.admission.held, len(gateway.registry)) == (0, 0)
