"""One exchange of each shape, cancelled at each of its checkpoints in turn: nothing is ever left behind."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from neuronetz.errors import KeyRevoked
from neuronetz.exchange.delivery import Head
from neuronetz.exchange.registry import Running
from neuronetz.gateway import Gateway
from neuronetz.web.asgi import FrontDoor, Message
from neuronetz.web.body import Body
from tests.guarantees.at_rest import quiet
from tests.guarantees.checkpoints import Steps
from tests.shapes import SHAPES, Shape, named

PROMPT = "[[tokens:2]] rivers"


class Client:
    """A server's line with one request on it, whose client reads whatever comes; ``leave`` makes it go."""

    def __init__(self, shape: Shape, key: str) -> None:
        self.sent: list[tuple[Head | None, bytes]] = []
        self.ended = False
        self.stalled = False
        self.body = Body()
        self.body.feed(json.dumps(shape.body(PROMPT)).encode())
        self.body.end()
        self._has_left = False
        self._gone: Callable[[], None] | None = None
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": shape.path,
            "raw_path": shape.path.encode(),
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "state": {"line": self},
        }

    def leave(self) -> None:
        self._has_left = True
        self.body.close()
        self.watch(self._gone)

    def watch(self, gone: Callable[[], None] | None) -> None:
        self._gone = gone
        if gone is not None and self._has_left:
            gone()

    async def write(self, head: Head | None, data: bytes, *, more: bool) -> bool:
        await trio.lowlevel.checkpoint()
        self.sent.append((head, data))
        self.ended = self.ended or not more
        return not self._has_left

    async def offer(self, head: Head | None, data: bytes) -> None:
        await self.write(head, data, more=True)

    async def receive(self) -> dict[str, Any]:
        raise AssertionError("an exchange reads from its line")

    async def send(self, message: Message) -> None:
        raise AssertionError("an exchange writes to its line")


class Audited:
    """Counts the exchanges that were authenticated, which are those that owe a row; knows the one that runs."""

    def __init__(self, gateway: Gateway) -> None:
        self.count = 0
        self.running: Running | None = None
        self._track = gateway.registry.track
        gateway.registry.track = self.track  # type: ignore[method-assign]

    @contextmanager
    def track(self, prefix: str, deadline: float) -> Iterator[Running]:
        with self._track(prefix, deadline) as running:
            self.count += 1
            self.running = running
            try:
                yield running
            finally:
                self.running = None

    def revoke(self) -> None:
        """Stop the exchange as a revocation does."""
        if self.running is not None and not self.running.over:
            self.running.stop(KeyRevoked())


OUTCOMES = {
    "cancelled from outside": "shutdown",
    "client leaves": "client_disconnected",
    "key revoked": "revoked",
}


class Harness:
    """Runs one request again and again, cancelling one checkpoint further each time."""

    def __init__(self, gateway: Gateway, mock: Any, books: Any, how: str) -> None:
        self.gateway = gateway
        self.mock = mock
        self.books = books
        self.how = how
        self.audited = Audited(gateway)
        self.front_door = FrontDoor(gateway.rooms, None)  # type: ignore[arg-type]  # no page is asked for

    async def run(self, client: Client, point: int) -> bool:
        """Stop at a checkpoint, and check that nothing is left; False where the request has fewer than that."""
        scope = trio.CancelScope()
        stop: Callable[[], None] = {
            "cancelled from outside": scope.cancel,
            "client leaves": client.leave,
            "key revoked": self.audited.revoke,
        }[self.how]

        async def request() -> None:
            with scope:
                await self.front_door(client.scope, client.receive, client.send)

        steps = Steps(point, stop)
        with trio.fail_after(5):
            await steps.run(request)
        assert steps.left == 0
        await self.nothing_left(point)
        return steps.stopped

    async def nothing_left(self, point: int) -> None:
        gateway, books = self.gateway, self.books
        assert (len(gateway.registry), gateway.admission.held, gateway.recorder.open_entries) == (0, 0, 0), point
        assert not gateway.admission.unsettled, point
        await quiet(gateway, self.mock)
        assert (await books.slots(), await books.leases(), await books.reserved()) == (0, 0, 0), point
        rows = await books.postgres.fetchval("SELECT count(*) FROM gateway.audit_log")
        assert rows == self.audited.count, point

    async def outcomes(self) -> set[str]:
        rows = await self.books.postgres.fetch("SELECT DISTINCT outcome FROM gateway.audit_log")
        return {row["outcome"] for row in rows}

    async def ledger_is_the_sum_of_the_rows(self) -> None:
        row = await self.books.postgres.fetchrow(
            "SELECT sum(prompt_tokens)::bigint, sum(completion_tokens)::bigint, count(*) FROM gateway.audit_log"
        )
        assert await self.books.ledger() == tuple(row)


@pytest.fixture
async def key(make_key: Any) -> str:
    key: str = await make_key(budget_tokens=10**9, concurrency=1, rpm=100_000)
    return key


@pytest.mark.parametrize("how", OUTCOMES)
@pytest.mark.parametrize("shape", SHAPES, ids=named)
async def test_no_checkpoint_at_which_a_cancellation_leaves_anything(
    gateway: Gateway, mock_ollama: Any, key: str, books: Any, shape: Shape, how: str, record_property: Any
) -> None:
    harness = Harness(gateway, mock_ollama, books, how)
    points = {}
    for cold in (True, False):
        point = 0
        going = True
        while going:
            point += 1
            if cold:
                await forget(gateway, books)
            client = Client(shape, key)
            going = await harness.run(client, point)
        points[cold] = point - 1
        head, _ = client.sent[0]
        assert head is not None
        assert head[0] == 200
        assert client.ended
    assert await harness.outcomes() == {"completed", OUTCOMES[how]}
    await harness.ledger_is_the_sum_of_the_rows()
    record_property("checkpoints", sum(points.values()))


async def forget(gateway: Gateway, books: Any) -> None:
    """Have the next request look its key up in PostgreSQL, and open a connection to the model."""
    for name in await books.redis.command("KEYS", "gateway:key:*"):
        await books.redis.command("DEL", name)
    # And not the one on which the models are being discovered.
    gateway._upstream._pool.close_idle()
