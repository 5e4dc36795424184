"""G10, no smuggled request: what goes upstream is written anew from what was checked; the client's own bytes never.

Here: each endpoint is sent what no check knows, in its body and its headers, and what the upstream got is looked
at. Further: whatever a body is, Ollama reads from it what was checked (tests/dialects/test_no_smuggled_request.py),
models in two spellings (tests/gateway/test_inference.py), bodies that are none (tests/gateway/test_bad_input.py).
"""

import json
from typing import Any

import httpx
import pytest

from tests.shapes import SHAPES, Shape, named

MARK = "smuggled"


@pytest.mark.parametrize("shape", SHAPES, ids=named)
async def test_nothing_that_was_not_checked_goes_upstream(
    client: httpx.AsyncClient, mock_ollama: Any, shape: Shape
) -> None:
    extra = {f"x_{MARK}": MARK, "raw_body": {MARK: [MARK]}}
    reply = await client.post(
        f"{shape.path}?{MARK}=1",
        json=shape.body("rivers", **extra),
        headers={f"x-{MARK}": MARK, "cookie": MARK, "user-agent": MARK, "x-openwebui-user-name": MARK},
    )
    assert reply.status_code == 200
    seen = next(request for request in reversed(mock_ollama.stats.last) if request.method == "POST")
    assert MARK not in repr(seen)
    assert set(seen.headers) == {"host", "accept", "accept-encoding", "connection", "user-agent"} | {
        "content-length",
        "content-type",
    }
    assert seen.json()["model"] == "tiny:latest"


@pytest.mark.parametrize("shape", SHAPES, ids=named)
async def test_a_second_spelling_of_the_model_is_refused_and_nothing_goes_upstream(
    client: httpx.AsyncClient, mock_ollama: Any, shape: Shape
) -> None:
    body = json.dumps(shape.body("rivers"))
    for smuggled in ('"MODEL": "acme/other", ', '"model": "acme/other", '):
        asked = sum(request.method == "POST" for request in mock_ollama.stats.last)
        reply = await client.post(shape.path, content="{" + smuggled + body[1:])
        assert reply.status_code == 400
        assert sum(request.method == "POST" for request in mock_ollama.stats.last) == asked
    assert (await client.post(shape.path, content=body + body)).status_code == 400
