"""G2, upstream: the upstream's connection is closed within 100 ms of whatever ended the request.

Here: the model stops, and not a token is made afterwards, for each inference endpoint whose client leaves, and for
a gateway that is cut down. Further: tests/gateway/test_cancellation.py, tests/incidents/test_incidents.py (what
users of other gateways saw go on), tests/guarantees/test_exhaustive_cancellation.py,
tests/guarantees/test_fault_matrix.py, tests/upstream/test_request_body.py.
"""

from typing import Any

import pytest
import trio

from neuronetz.gateway import open_gateway
from tests.patience import until
from tests.shapes import STREAMS, Shape, named
from tests.sockets import connected

BOUND_S = 0.1
RUNNING = "[[tokens:10000]] [[tps:200]] rivers"


@pytest.mark.parametrize("shape", STREAMS, ids=named)
async def test_no_token_is_made_for_a_client_that_left(
    gateway: Any, mock_ollama: Any, key: str, shape: Shape
) -> None:
    async with connected(gateway) as client:
        await client.send_all(shape.request(key, RUNNING))
        await mock_ollama.stats.wait_for(lambda stats: stats.tokens >= 5)
    await until(lambda: mock_ollama.stats.aborted == 1, BOUND_S)
    made = mock_ollama.stats.tokens
    with trio.move_on_after(0.1) as scope:  # twenty tokens' time
        await mock_ollama.stats.wait_for(lambda stats: stats.tokens > made)
    assert scope.cancelled_caught


async def test_no_model_runs_for_a_gateway_that_was_cut_down(
    asyncio_loop: Any, settings: Any, mock_ollama: Any, key: str
) -> None:
    async with open_gateway(settings) as gateway, trio.open_nursery() as nursery:
        await nursery.start(gateway.run, trio.Event())
        await gateway.discovery.wait_until_known(5)
        async with connected(gateway) as client:
            await client.send_all(STREAMS[0].request(key, RUNNING))
            await mock_ollama.stats.wait_for(lambda stats: stats.tokens >= 5)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await until(lambda: mock_ollama.stats.open == 0, BOUND_S)
