"""What a request costs does not grow unseen: counts, which no machine's speed can change, against ``bounds.json``."""

import json
import socket
import sys
from pathlib import Path

import pytest

from neuronetz.stores.postgres import Postgres
from neuronetz.stores.redis import Redis
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


def test_calls_and_writes_of_this_thread_are_counted() -> None:
    def called() -> int:
        return len("abc")

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            own, _ = server.accept()
            with own:
                with counting(port) as few:
                    called()
                with counting(port) as counter:
                    for _ in range(10):
                        called()
                    own.send(b"x")
                    socket.socket.send(own, b"x")
                    client.send(b"x")
    # Of the ten more, each is two calls: Python's and that of len; and three writes, of which two are the server's.
    assert counter.calls - few.calls == 9 * 2 + 3
    assert (few.writes, counter.writes) == (0, 2)


def test_what_is_above_its_bound_or_has_none_is_said() -> None:
    found = {"calls": 111.0, "writes": 2.0, "new": 1.0}
    assert exceeded(found, {"calls": 110.0, "writes": 2.2}) == [
        "new has no bound",
        "calls: 111.00, and at most 110.0 are allowed",
    ]
    assert exceeded(found, bounds_of(found)) == []
    assert exceeded({name: value * 1.2 for name, value in found.items()}, bounds_of(found)) != []
