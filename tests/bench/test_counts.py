"""What a request costs does not grow unseen: counts, which no machine's speed can change, against ``bounds.json``."""

import json
import os
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis
from neuronetz.web.connection import Connection
from tests.bench.counts import BOUNDS, bounds_of, counted_settings, counting, counts, exceeded

linux = pytest.mark.skipif(sys.platform != "linux", reason="the load client waits with epoll")


@linux
async def test_a_request_calls_writes_and_asks_no_more_than_it_may(
    postgres: Postgres, redis: Redis, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    found = await counts(counted_settings(database_url, redis_url), postgres, redis, tmp_path)
    # Nothing is counted where nothing is served: each reply needs a write, and each admission a round trip.
    assert all(value >= 1 for value in found.values()), found
    said = "\n".join(exceeded(found, json.loads(BOUNDS.read_text())))
    assert not said, f"{said}\nwhere that is meant: python -m tests.bench.counts --set"


async def test_calls_and_writes_to_clients_are_counted() -> None:
    def called() -> int:
        return len("abc")

    listener, *_ = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, await trio.testing.open_stream_to_socket_listener(listener) as client:
        own = Connection(await listener.accept(), 1.0)
        with counting() as few:
            called()
        with counting() as counter:
            for _ in range(10):
                called()
            os.write(client.socket.fileno(), b"x")
        with counting() as written:
            await own.send_all(b"x")
            await own.send_all(b"y")
        await own.aclose()
    # Of the ten, each is two calls: Python's and that of len. Then fileno, twice, and a write that is not the server's.
    assert counter.calls - few.calls == 9 * 2 + 3
    assert (few.writes, counter.writes, written.writes) == (0, 0, 2)


def test_what_is_above_its_bound_or_has_none_is_said() -> None:
    found = {"calls": 111.0, "writes": 2.0, "new": 1.0}
    assert exceeded(found, {"calls": 110.0, "writes": 2.2}) == [
        "new has no bound",
        "calls: 111.00, and at most 110.0 are allowed",
    ]
    assert exceeded(found, bounds_of(found)) == []
    assert exceeded({name: value * 1.3 for name, value in found.items()}, bounds_of(found)) != []
