"""Three gateways, more than two thousand requests, and everything that can go away goes away once.

While random clients come, stream and leave, PostgreSQL, Redis and the mock Ollama are each stopped and started,
and one gateway is killed and started again. Afterwards the books must balance.

**How requests are counted.** Each request asks for a model of its own, so that a row, and what the mock did, can
be told to belong to it. What a client can know of its request decides what must be true of its row:

- The connection was refused: it was not sent. The client tries the next gateway.
- A gateway logged ``request.refused`` with its ``x-request-id``: it was refused before it was authenticated, since
  Redis or the directory was away. It has no row.
- Any other reply: it was authenticated, and has exactly one row, with the reply's ``x-request-id`` and the status
  that the client read.
- No reply at all (the client left first, or its gateway was killed): whether it was authenticated nobody knows but
  the gateway. It has one row or none; and exactly one if the mock was asked for its model, since who comes so far
  was admitted. No one else can own a row: every row belongs to a request that was sent.

So ``rows = replies to authenticated requests + unheard requests that came so far``, each counted on its own side.

**Tokens.** For each request whose row is ``completed``, the row says what the mock said that it produced for it,
and what the client read in its reply's last line. The ledger is the sum of all rows.
"""

import json
import os
import random
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from neuronetz.embedded import ollama
from neuronetz.embedded.mock_inference import Completion
from neuronetz.embedded.postgres import EmbeddedPostgres
from neuronetz.embedded.valkey import EmbeddedValkey
from neuronetz.stores.postgres import Postgres, open_postgres

REQUESTS = 2100
CUSTOMERS = 24
GATEWAYS = 3
AWAY_S = 1.5
# After a refusal a customer waits, or an outage would use up all requests.
BACK_OFF_S = 0.25
SETTLED_WITHIN_S = 20.0


@pytest.fixture
def database_url(own_postgres: EmbeddedPostgres) -> str:
    return own_postgres.dsn()


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url, size=4, timeout_s=10.0) as store:
        yield store


@pytest.fixture
def redis_url(own_valkey: EmbeddedValkey) -> str:
    return own_valkey.url()


@pytest.fixture
def env(database_url: str, redis_url: str, mock_ollama: Any) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "OLLAMA_URL": mock_ollama.url,
        "LISTEN_PORT": "0",
        "METRICS_PORT": "0",
        "DRAIN_TIMEOUT_S": "2",
        "HEARTBEAT_S": "1",
        # Longer than Redis is away: else the living would be taken for dead.
        "DEAD_AFTER_S": "8",
        "BREAKER_OPEN_S": "1",
        "MODEL_DISCOVERY_INTERVAL_S": "5",
        "LOG_FORMAT": "json",
    }


def seed_of_this_run() -> int:
    return int(os.environ.get("NEURONETZ_SEED") or random.SystemRandom().randrange(2**32))


@dataclass
class Plan:
    """What one request asks for, drawn from the seed and its number alone."""

    number: int
    kind: str
    key: int
    gateway: int
    tokens: int
    leaves_after_s: float | None
    body: bytes

    @classmethod
    def draw(cls, seed: int, number: int) -> "Plan":
        dice = random.Random(f"{seed}-{number}")
        kind = dice.choices(("whole", "streamed", "leaving", "denied", "broken"), (35, 35, 22, 4, 4))[0]
        tokens = 200 if kind == "leaving" else dice.randint(1, 24)
        pace = " [[tps:100]]" if kind == "leaving" else dice.choice(("", " [[tps:400]]"))
        content = f"[[tokens:{tokens}]]{pace} " + "x" * dice.randint(0, 400)
        body = {
            "model": model(number) if kind != "denied" else f"nobody-has-{number}",
            "messages": [{"role": "user", "content": content}],
            "stream": kind != "whole",
        }
        if kind == "broken":
            body["messages"] = "no list"
        return cls(
            number,
            kind,
            dice.randrange(3),
            dice.randrange(GATEWAYS),
            tokens,
            dice.random() * 0.4 if kind == "leaving" else None,
            json.dumps(body).encode(),
        )

    @classmethod
    def endless(cls, number: int, gateway: int) -> "Plan":
        """A stream that ends only with its gateway."""
        body = {"model": model(number), "messages": [{"role": "user", "content": "[[tokens:99999]] [[tps:50]]"}]}
        return cls(number, "endless", 1, gateway, 99999, None, json.dumps(body).encode())


@dataclass
class Heard:
    """What a client heard: nothing, a part of a reply, or all of it."""

    plan: Plan
    request_id: str | None = None
    status: int | None = None
    body: bytes = b""
    whole: bool = False


@dataclass
class Storm:
    """All that happened, for the reckoning."""

    seed: int
    keys: list[str]
    urls: list[str]
    begun: int = 0
    not_sent: int = 0
    heard: list[Heard] = field(default_factory=list)
    produced: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    asked_upstream: Counter[str] = field(default_factory=Counter)
    logs: list[bytearray] = field(default_factory=list)

    async def customer(self) -> None:
        while self.begun < REQUESTS:
            self.begun += 1
            plan = Plan.draw(self.seed, self.begun)
            status = await self.request(plan)
            if status != 200 and plan.leaves_after_s is None:
                await trio.sleep(BACK_OFF_S)

    async def connect(self, plan: Plan) -> trio.SocketStream:
        while True:
            try:
                return await trio.open_tcp_stream("127.0.0.1", int(self.urls[plan.gateway].rsplit(":", 1)[1]))
            except OSError:
                self.not_sent += 1
                plan.gateway = (plan.gateway + 1) % GATEWAYS

    async def request(self, plan: Plan) -> int | None:
        stream = await self.connect(plan)
        heard = Heard(plan)
        self.heard.append(heard)
        head = (
            f"POST /api/chat HTTP/1.1\r\nHost: storm\r\nAuthorization: Bearer {self.keys[plan.key]}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(plan.body)}\r\nConnection: close\r\n\r\n"
        )
        received = bytearray()
        async with stream:
            try:
                await stream.send_all(head.encode() + plan.body)
                patience = 60.0 if plan.leaves_after_s is None else plan.leaves_after_s
                with trio.move_on_after(patience) as scope:
                    while chunk := await stream.receive_some(65536):
                        received += chunk
                assert not scope.cancelled_caught or plan.leaves_after_s is not None, "no end within a minute"
            except trio.BrokenResourceError:
                pass
        read_reply(bytes(received), heard)
        return heard.status

    async def progress(self, share: float) -> None:
        while self.begun < REQUESTS * share:
            await trio.sleep(0.01)


def model(number: int) -> str:
    return f"s{number:05}:latest"


def read_reply(data: bytes, heard: Heard) -> None:
    """Take a reply apart: its head must be whole to count, its body may be torn."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return
    heard.status = int(head.split(b" ", 2)[1])
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    heard.request_id = headers[b"x-request-id"].decode()
    if b"content-length" in headers:
        heard.body, heard.whole = rest, len(rest) == int(headers[b"content-length"])
        return
    while True:
        size, end, rest = rest.partition(b"\r\n")
        if not end or len(rest) < int(size, 16) + 2:
            return
        if int(size, 16) == 0:
            heard.whole = True
            return
        heard.body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


@pytest.fixture
def observe(mock_ollama: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Storm], None]:
    """Has the mock tell a storm what it was asked for, and what it reported for it."""

    def start(storm: Storm) -> None:
        class Noted(Completion):
            def __init__(self, http: Any, body: Any, *args: Any, **more: Any) -> None:
                super().__init__(http, body, *args, **more)
                self.model = body.get("model")

            def _counts(self) -> dict[str, Any]:
                counts = super()._counts()
                reported = (counts["prompt_eval_count"], counts["eval_count"])
                storm.produced.setdefault(self.model, []).append(reported)
                return counts

        monkeypatch.setattr(ollama, "Completion", Noted)
        note = mock_ollama.stats.note

        def noted(request: Any) -> None:
            note(request)
            if request.path == "/api/chat":
                storm.asked_upstream[json.loads(request.body)["model"]] += 1

        monkeypatch.setattr(mock_ollama.stats, "note", noted)

    return start


@dataclass
class Fleet:
    """The gateways, which can be killed and started again."""

    launch: Any
    env: dict[str, str]
    storm: Storm
    nursery: trio.Nursery
    processes: list[Any] = field(default_factory=lambda: [None] * GATEWAYS)

    async def start(self, number: int) -> None:
        await self.nursery.start(self._run, number)

    async def _run(self, number: int, task_status: Any) -> None:
        async with self.launch("serve", **self.env) as (process, errors):
            self.storm.logs.append(errors)
            with trio.fail_after(60):
                while not (found := re.search(rb'"base_url":"([^"]+)"', errors)):
                    assert process.returncode is None, errors.decode()
                    await trio.sleep(0.02)
            self.processes[number], self.storm.urls[number] = process, found[1].decode()
            task_status.started()
            await process.wait()
            await trio.sleep(0.3)  # for the last of its log to be read

    async def kill(self, number: int) -> None:
        self.processes[number].send_signal(signal.SIGKILL)
        await self.processes[number].wait()

    async def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        with trio.fail_after(40):
            for process in self.processes:
                assert await process.wait() == 0


@pytest.mark.timeout(600)
async def test_the_books_balance_after_a_storm(
    launch: Any,
    env: dict[str, str],
    own_postgres: EmbeddedPostgres,
    own_valkey: EmbeddedValkey,
    mock_ollama: Any,
    make_key: Any,
    books: Any,
    observe: Callable[[Storm], None],
) -> None:
    seed = seed_of_this_run()
    keys = [
        await make_key("free"),
        await make_key("rich", rpm=100_000, concurrency=100, budget_tokens=10**9, budget_period="week"),
        await make_key("tight", concurrency=3, key_rpm=5000, budget_tokens=10**8, budget_period="day"),
    ]
    storm = Storm(seed, keys, [""] * GATEWAYS)
    mock_ollama.configure(models=[model(number) for number in range(1, REQUESTS + 2)])
    observe(storm)
    try:
        async with trio.open_nursery() as nursery:
            fleet = Fleet(launch, env, storm, nursery)
            async with trio.open_nursery() as starting:
                for number in range(GATEWAYS):
                    starting.start_soon(fleet.start, number)
            async with trio.open_nursery() as running:
                for _ in range(CUSTOMERS):
                    running.start_soon(storm.customer)
                running.start_soon(disasters, storm, fleet, own_postgres, own_valkey, mock_ollama)
            # Gateways that live settle what they hold; what the killed one held is given back by the others.
            await books.settled(within_s=SETTLED_WITHIN_S)
            await reckon(storm, books, mock_ollama)
            await fleet.stop()
        assert await books.copies() == 0
        assert await books.redis.command("ZCARD", "gateway:instances") == 0
    except BaseException as error:
        error.add_note(f"to repeat: NEURONETZ_SEED={seed}")
        raise


async def disasters(
    storm: Storm, fleet: Fleet, own_postgres: EmbeddedPostgres, own_valkey: EmbeddedValkey, mock_ollama: Any
) -> None:
    """One after the other, each in the thick of it."""
    dice = random.Random(storm.seed)
    away: list[tuple[Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]]]] = [
        (own_postgres.stop, own_postgres.start),
        (own_valkey.stop, own_valkey.start),
        (mock_ollama.stop, mock_ollama.start),
    ]
    dice.shuffle(away)
    for share, (stop, start) in zip((0.1, 0.3, 0.5), away, strict=True):
        await storm.progress(share)
        await stop()
        await trio.sleep(AWAY_S)
        await start()
    await storm.progress(0.75)
    victim = dice.randrange(GATEWAYS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storm.request, Plan.endless(REQUESTS + 1, victim))
        with trio.fail_after(10):
            await mock_ollama.stats.wait_for(lambda _: storm.asked_upstream[model(REQUESTS + 1)])
        await fleet.kill(victim)
    await fleet.start(victim)


def strangers(logs: list[bytearray]) -> dict[str, str]:
    """The requests that a gateway refused before there was anything to audit, with the outcome it gave them."""
    found: dict[str, str] = {}
    for line in b"\n".join(logs).splitlines():
        if b"request.refused" in line:
            event = json.loads(line)
            found[event["request_id"]] = event["outcome"]
    return found


async def all_rows(books: Any, at_least: set[str]) -> list[dict[str, Any]]:
    """The audit rows, once those of these requests are there and none waits in Redis any more."""
    with trio.move_on_after(30):
        while True:
            rows = await books.postgres.fetch("SELECT * FROM gateway.audit_log")
            if at_least <= {str(row["request_id"]) for row in rows} and not await books.copies():
                break
            await trio.sleep(0.1)
    return [dict(row) for row in rows]


async def reckon(storm: Storm, books: Any, mock_ollama: Any) -> None:
    refused = strangers(storm.logs)
    assert set(refused.values()) <= {"unavailable"}
    authenticated = {
        heard.request_id: heard for heard in storm.heard if heard.request_id and heard.request_id not in refused
    }
    rows = await all_rows(books, set(authenticated))
    by_id = {str(row["request_id"]): row for row in rows}
    by_model: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)

    # The storm was one: enough was sent, all kinds of it, and all kinds of ends were met.
    assert len(storm.heard) == REQUESTS + 1
    outcomes = Counter(row["outcome"] for row in rows)
    seen = (dict(outcomes), len(refused), storm.not_sent)
    expected = {
        "completed",
        "client_disconnected",
        "upstream_error",
        "abandoned",
        "model_denied",
        "invalid_request",
    }
    assert expected <= set(outcomes), seen
    assert refused, seen
    assert storm.not_sent, seen

    # Exactly one row for each request that is known to have been authenticated.
    assert len(by_id) == len(rows)
    assert set(authenticated) <= set(by_id), [
        (heard.plan, heard.status) for id_, heard in authenticated.items() if id_ not in by_id
    ]
    assert not set(refused) & set(by_id)
    # At most one for the others, and one for each that came as far as the mock.
    names = {json.loads(heard.plan.body)["model"]: heard for heard in storm.heard}
    assert set(by_model) <= set(names)
    assert all(len(found) == 1 for found in by_model.values())
    assert all(times == 1 for times in storm.asked_upstream.values())
    assert set(storm.asked_upstream) <= set(by_model)
    unheard = {name for name, heard in names.items() if heard.request_id is None}
    assert len(rows) == len(authenticated) + len(unheard & set(by_model))

    # A row says what its client read, and what the mock produced.
    reported = 0
    for id_, heard in authenticated.items():
        row = by_id[id_]
        assert names[row["model"]] is heard
        if heard.whole and heard.status != 200:
            assert row["status"] == heard.status, (row, heard)
        if heard.whole and heard.status == 200:
            last = json.loads(heard.body.splitlines()[-1])
            if last.get("done"):
                assert row["outcome"] == "completed", (row, heard)
                assert (row["prompt_tokens"], row["completion_tokens"]) == (
                    last["prompt_eval_count"],
                    last["eval_count"],
                )
                assert last["eval_count"] == heard.plan.tokens
            else:
                assert row["outcome"] == "upstream_error", (row, heard)
    for row in rows:
        if row["outcome"] == "completed":
            assert row["tokens_exact"]
            assert [(row["prompt_tokens"], row["completion_tokens"])] == storm.produced[row["model"]]
            reported += row["prompt_tokens"] + row["completion_tokens"]
    assert reported == sum(
        prompt + completion
        for name, counts in storm.produced.items()
        for prompt, completion in counts
        if by_model[name][0]["outcome"] == "completed"
    )

    # The ledger is the sum of the rows, and Redis agrees with it.
    assert await books.ledger() == (
        sum(row["prompt_tokens"] for row in rows),
        sum(row["completion_tokens"] for row in rows),
        len(rows),
    )
    await books.settled()
    for name in await books.redis.command("KEYS", "gateway:{*}:budget:t:*"):
        tenant = re.search(rb"\{(.+)\}", name)
        assert tenant is not None
        used = await books.postgres.fetchval(
            "SELECT sum(prompt_tokens + completion_tokens)::bigint FROM gateway.budget_usage"
            " WHERE tenant_id = $1::uuid",
            tenant[1].decode(),
        )
        assert int(await books.redis.command("HGET", name, "used")) == used

    # Nobody generates for nobody, and nothing came apart.
    assert mock_ollama.stats.open == 0
    assert b"Traceback" not in b"".join(storm.logs)
