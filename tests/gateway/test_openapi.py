"""The document holds: schemathesis asks a running gateway whatever it allows, and much that it does not."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import trio

from neuronetz.web.openapi.operations import OPERATIONS
from neuronetz.web.routes import ROUTES, Kind

# What JSON Schema cannot say: which models there are, what is JSON within a text, which of two names counts.
NARROWED = {
    "ModelName": {"type": "string", "enum": ["tiny", "acme/other:latest"]},
    "Arguments": {"type": "string", "enum": ["", "{}", '{"city": "Bonn"}']},
    "OllamaShow": {
        "type": "object",
        "properties": {
            "model": {"$ref": "#/components/schemas/ModelName"},
            "verbose": {"type": ["boolean", "null"]},
        },
        "required": ["model"],
    },
}

STREAMING = [route.path for route in ROUTES if route.path in OPERATIONS and OPERATIONS[route.path].stream]

# Boundary values of each field, unsupported methods and requests without a key: some for each field, so that of
# the large bodies of what streams there would be too many. Their methods and keys have a test of their own.
COVERED = [route.path for route in ROUTES if route.path not in STREAMING]


async def test_other_methods_and_no_key_are_refused(gateway: Any, client: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as stranger:
        for route in ROUTES:
            other = await client.patch(route.path)
            assert (other.status_code, other.headers["allow"]) == (405, ", ".join(route.methods))
            if route.kind is not Kind.PAGE:
                assert (await stranger.request(route.methods[0], route.path)).status_code == 401


async def test_the_document_needs_no_key_and_may_be_kept(gateway: Any) -> None:
    async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as stranger:
        reply = await stranger.get("/openapi.json")
        head = await stranger.head("/openapi.json")
    assert reply.status_code == head.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "public, max-age=300"
    assert reply.headers["x-request-id"]
    assert reply.json()["openapi"].startswith("3.1")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", [route.path for route in ROUTES])
async def test_an_operation_is_as_documented(
    gateway: Any, client: httpx.AsyncClient, key: str, mock_ollama: Any, tmp_path: Path, path: str
) -> None:
    mock_ollama.configure(thinking=True, tokens=2)
    document = (await client.get("/openapi.json")).json()
    document["components"]["schemas"] |= NARROWED
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    words = [
        *("run", "openapi.json", "--url", gateway.base_url, "-H", f"Authorization: Bearer {key}"),
        *("--include-path", path, "--checks", "all", "--continue-on-failure"),
        *("--phases", "examples,coverage,fuzzing" if path in COVERED else "examples,fuzzing"),
        *("--generation-deterministic", "--max-examples", "20", "--no-shrink", "--no-color"),
        # They judge how long data takes to make, which says nothing of the gateway.
        *("--suppress-health-check", "all"),
    ]
    with trio.fail_after(280):
        done = await trio.run_process(
            [sys.executable, "-m", "schemathesis.cli", *words],
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": str(Path(__file__).with_name("schemathesis_hooks.py"))},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


@pytest.mark.parametrize("path", STREAMING)
async def test_the_pieces_of_a_stream_are_as_documented(client: httpx.AsyncClient, path: str) -> None:
    document = (await client.get("/openapi.json")).json()
    about = OPERATIONS[path]
    content = document["paths"][path]["post"]["responses"]["200"]["content"][about.stream]
    schema = {**content["x-itemSchema"], "components": document["components"]}
    reply = await client.post(path, json=about.example | {"stream": True})
    assert reply.headers["content-type"].partition(";")[0] == about.stream
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith(("data: ", "{"))]
    pieces = [json.loads(line) for line in lines if line != "[DONE]"]
    assert len(pieces) > 3
    for piece in pieces:
        jsonschema_rs.validate(schema, piece)
