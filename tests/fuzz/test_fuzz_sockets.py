"""Mangled requests at the socket of one running gateway: it stays well, holds nothing, and writes no row too many."""

import logging
import random
from typing import Any

import httpx
import pytest
import structlog
import trio

from neuronetz.web.routes import BLOCKED, ROUTES
from tests.fuzz.examples import EXAMPLES, SEED, SNIPPETS, seen
from tests.hostile.test_requests import CASES, KEY
from tests.patience import until
from tests.shapes import SHAPES
from tests.sockets import connected

COUNT = min(EXAMPLES, 1000) or 60
AT_ONCE = 8


def requests(key: str) -> list[bytes]:
    """What is mangled: requests of every shape, reads, what is blocked, and the hostile ones that are small."""
    plain = [shape.request(key, "rivers") for shape in SHAPES]
    for method, path in [
        *((route.methods[0], route.path) for route in ROUTES),
        *(("POST", path) for path in BLOCKED),
    ]:
        head = f"{method} {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\n\r\n"
        plain.append(head.encode())
    return [*plain, *(case.data.replace(KEY, key.encode()) for case in CASES if len(case.data) < 2000)]


def mangle(rng: random.Random, sources: list[bytes]) -> bytes:
    """One or two of the requests, one behind the other, with a few places changed."""
    data = b"".join(rng.choices(sources, k=rng.choice([1, 1, 2])))
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        start = rng.randrange(len(data) + 1)
        end = start + rng.choice([0, 0, 1, 2, 10])
        data = data[:start] + rng.choice([*SNIPPETS, b"", rng.randbytes(2)]) + data[end:]
    return data


async def provoke(gateway: Any, rng: random.Random, data: bytes) -> None:
    """Send it, in one piece or two, and leave: at once, after something came, or when the server closes."""
    place, patience = rng.randrange(len(data) + 1), rng.choice(["none", "some", "half", "half"])
    async with connected(gateway) as client:
        try:
            for part in (data[:place], data[place:]):
                if part:
                    await client.send_all(part)
                    await trio.lowlevel.checkpoint()
            if patience == "half":
                await client.send_eof()
            with trio.move_on_after(0 if patience == "none" else 0.3 if patience == "some" else 5):
                while await client.receive_some(65536) and patience == "half":
                    pass
        except trio.BrokenResourceError:
            pass


@pytest.mark.timeout(600)
async def test_a_gateway_outlives_mangled_requests(
    gateway: Any,
    client: httpx.AsyncClient,
    mock_ollama: Any,
    key: str,
    books: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rng = random.Random(SEED)
    mangled = [mangle(rng, requests(key)) for _ in range(COUNT)]
    slots = trio.CapacityLimiter(AT_ONCE)
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:

            async def one(data: bytes, seed: int) -> None:
                async with slots:
                    await provoke(gateway, random.Random(seed), data)

            for number, data in enumerate(mangled):
                nursery.start_soon(one, data, SEED * COUNT + number)
        seen["test_a_gateway_outlives_mangled_requests"] += COUNT
        await until(lambda: gateway.connections == 0, 10)
    await books.settled()
    rows = await books.postgres.fetchval("SELECT count(*) FROM gateway.audit_log")
    # A request is authenticated only by the whole key, which no mangling makes.
    assert 0 < rows <= sum(data.count(key.encode()) for data in mangled)
    assert not [path for path in mock_ollama.stats.requests if path.startswith(BLOCKED)]
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert (await client.post(SHAPES[-1].path, json=SHAPES[-1].body("rivers"))).status_code == 200
