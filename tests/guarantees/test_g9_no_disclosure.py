"""G9, no disclosure: replies hold nothing of other tenants' models, of the upstream's own words, or of the inside.

Here: the answers for models that are not there and not allowed, byte by byte; and every way for the upstream to fail,
in every dialect. Further: listings (tests/gateway/test_reads.py, tests/models/test_effective.py), logs
(tests/gateway/test_observability.py, tests/telemetry/test_logs.py), the errors (tests/web/test_replies.py).
"""

from typing import Any

import httpx
import pytest

from neuronetz.embedded.mock_replies import SECRET_TEXT
from tests.shapes import SHAPES, Shape, named

FAULTS = ("500", "503", "400", "404", "refuse", "reset", "close", "garbage", "error_line", "eof")


@pytest.mark.parametrize("shape", SHAPES, ids=named)
async def test_a_model_that_is_not_there_is_one_that_is_not_allowed(
    client: httpx.AsyncClient, make_key: Any, shape: Shape
) -> None:
    narrow = {
        "authorization": f"Bearer {await make_key('narrow', allow_all_models=False, models=['tiny:latest'])}"
    }
    replies = [
        await client.post(shape.path, json=shape.body("rivers", model=model), headers=narrow)
        for model in ("acme/other", "nowhere/to-be-found", "big:cloud", "tiny:1b")
    ]
    assert {reply.status_code for reply in replies} == {403}
    bodies = {reply.content.replace(reply.headers["x-request-id"].encode(), b"ID") for reply in replies}
    assert len(bodies) == 1
    assert len({tuple(name for name, _ in reply.headers.raw) for reply in replies}) == 1


@pytest.mark.parametrize("shape", SHAPES, ids=named)
async def test_no_failure_of_the_upstream_is_told_in_its_own_words(
    asyncio_loop: Any, settings: Any, run_gateway: Any, mock_ollama: Any, key: str, shape: Shape
) -> None:
    inner = [SECRET_TEXT.encode(), b"/var/lib", b"Traceback", mock_ollama.url.encode(), b"127.0.0.1", b"httpx"]
    async with (
        run_gateway(settings.model_copy(update={"breaker_failures": 1000})) as gateway,
        httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as client,
    ):
        for fault in FAULTS:
            reply = await client.post(
                shape.path,
                json=shape.body(f"[[fail:{fault}]] rivers"),
                headers={"authorization": f"Bearer {key}"},
            )
            said = reply.content + repr(reply.headers.raw).encode()
            assert [word for word in inner if word in said] == [], fault
