"""The fault matrix, run: real stores behind wires that fail at a chosen call, real sockets on all sides.

Each cell stops one request at its stage by an event (a call held on the wire, a held method of a room, or what
the client or the mock has seen), lets the fault happen, and lets the request go on. Then the status that the
client read, the row and the breaker must be those of the cell, and nothing may be left.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import product
from typing import Any
from uuid import UUID

import httpx
import pytest
import trio

from neuronetz.embedded import mock_inference
from neuronetz.embedded.mock_http import chunk
from neuronetz.errors import GatewayError
from neuronetz.exchange.delivery import Delivery
from neuronetz.gateway import Gateway, open_gateway
from neuronetz.upstream.ollama import Upstream, UpstreamStream
from tests.guarantees.at_rest import quiet
from tests.guarantees.fault_matrix import (
    CELLS,
    CLIENT,
    FAILURE,
    FAULTS,
    NEUTRAL,
    OURS,
    POSTGRES,
    REDIS,
    STAGES,
    SUCCESS,
    Cell,
    reasons,
)
from tests.guarantees.faulty_wire import FaultyWire, wires
from tests.patience import until
from tests.shapes import Shape
from tests.sockets import connected

CHAT = Shape("/api/chat", True)
STORE = {*REDIS, *POSTGRES}
BOUND_S = 0.1

# What the request asks the mock for, where the fault itself does not say.
PROMPTS = {
    "authenticate": "[[ttft:30]] rivers",
    "read the body": "[[ttft:30]] rivers",
    "admit": "[[ttft:30]] rivers",
    "open": "[[fail:stall]] rivers",
    "first byte": "[[fail:stall_stream]] [[after:0]] rivers",
    "mid-stream": "[[fail:stall_stream]] [[after:3]] rivers",
    "last line": "[[tokens:5]] rivers",
    "settle": "[[tokens:5]] rivers",
    "commit": "[[tokens:5]] rivers",
}
UPSTREAM_PROMPTS = {
    ("open", "upstream answers 500"): "[[fail:500]] rivers",
    ("open", "upstream resets"): "[[fail:refuse]] rivers",
    ("open", "upstream sends garbage"): "rivers",
    ("first byte", "upstream resets"): "[[fail:reset]] [[after:0]] rivers",
    ("first byte", "upstream sends garbage"): "[[fail:garbage]] [[after:0]] rivers",
    ("first byte", "upstream sends an error line"): "[[fail:error_line]] [[after:0]] rivers",
    ("mid-stream", "upstream resets"): "[[fail:reset]] [[after:3]] rivers",
    ("mid-stream", "upstream sends garbage"): "[[fail:garbage]] [[after:3]] rivers",
    ("mid-stream", "upstream sends an error line"): "[[fail:error_line]] [[after:3]] rivers",
    ("mid-stream", "client stalls"): "[[tokens:1000000]] rivers",
    ("mid-stream", "Redis drops"): "[[tokens:20]] [[tps:100]] rivers",
    ("mid-stream", "PostgreSQL drops"): "[[tokens:20]] [[tps:100]] rivers",
}


def test_each_fault_at_each_stage_is_a_cell_or_has_a_reason_not_to_be() -> None:
    counted = Counter([(cell.stage, cell.fault) for cell in CELLS] + list(reasons()))
    assert dict(counted) == dict.fromkeys(product(STAGES, FAULTS), 1)


def test_a_cells_row_says_what_the_errors_say() -> None:
    statuses = {error.outcome: error.status for error in _errors(GatewayError)} | {"completed": 200, None: None}
    assert [cell for cell in CELLS if statuses[cell.outcome] != cell.row] == []


def _errors(kind: type[GatewayError]) -> list[type[GatewayError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _errors(child))]


class Hold:
    """A room's method that waits: ``came`` once it was called, until ``go``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, waits: bool) -> None:
        self.came = trio.Event()
        self.passed = trio.Event()
        method = getattr(owner, name)

        async def held(*args: Any, **kwargs: Any) -> Any:
            self.came.set()
            if waits:
                await self.passed.wait()
            return await method(*args, **kwargs)

        monkeypatch.setattr(owner, name, held)

    def go(self) -> None:
        self.passed.set()


class Scene:
    """One request, brought to its stage, and the fault that comes over it there."""

    def __init__(
        self,
        cell: Cell,
        gateway: Gateway,
        mock: Any,
        books: Any,
        postgres: FaultyWire,
        redis: FaultyWire,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.cell = cell
        self.gateway = gateway
        self.mock = mock
        self.books = books
        self.stop = trio.Event()
        self._wire = {"PostgreSQL": postgres, "Redis": redis}.get(cell.fault.split()[0])
        self._postgres = postgres
        self._redis = redis
        self._monkeypatch = monkeypatch
        self._go: Callable[[], None] = lambda: None
        self.received = b""

    async def play(self, client: trio.SocketStream, key: str, tenant: str) -> None:
        """From the request's first byte until its client has read what there is to read."""
        self.client, self.tenant, self._prefix = client, tenant, key[: len("nnz_") + 8]
        self._prepare()
        stage = "_".join(self.cell.stage.replace("-", " ").split())
        request = CHAT.request(key, self._prompt()).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        await getattr(self, stage)(request)
        await self._strike()
        self._go()
        await self._read_to_the_end()

    def _prompt(self) -> str:
        return UPSTREAM_PROMPTS.get((self.cell.stage, self.cell.fault), PROMPTS[self.cell.stage])

    # The stages.

    async def _send(self, request: bytes, *, until_held: FaultyWire | Hold | None = None) -> None:
        await self.client.send_all(request)
        if until_held is not None:
            self._go = until_held.go
            with trio.fail_after(3):
                await (until_held.held if isinstance(until_held, FaultyWire) else until_held.came).wait()

    async def authenticate(self, request: bytes) -> None:
        if self.cell.fault == "exception":
            await self.client.send_all(request)
            return
        wire = self._postgres if self._wire is self._postgres else self._redis
        wire.hold(self._prefix.encode())
        await self._send(request, until_held=wire)

    async def read_the_body(self, request: bytes) -> None:
        reads = Hold(self._monkeypatch, Delivery, "body", waits=False)
        await self._send(request[:-5], until_held=reads)

    async def admit(self, request: bytes) -> None:
        if self.cell.fault == "exception":
            await self.client.send_all(request)
        elif self._wire is self._postgres:
            self._postgres.hold(UUID(self.tenant).bytes)
            await self._send(request, until_held=self._postgres)
        else:
            self._redis.hold(b"gateway:{%s}:slots" % self.tenant.encode())
            await self._send(request, until_held=self._redis)

    async def open(self, request: bytes) -> None:
        if self.cell.fault == "upstream refuses":
            await self.mock.stop()
        await self._send(request)
        if self._prompt() == PROMPTS["open"] and self.cell.fault not in ("upstream refuses", "exception"):
            await until(lambda: self.mock.stats.open == 1, 3)

    async def first_byte(self, request: bytes) -> None:
        reads = Hold(self._monkeypatch, UpstreamStream, "read", waits=False)
        await self._send(request, until_held=reads)

    async def mid_stream(self, request: bytes) -> None:
        await self._send(request)
        if self.cell.fault != "client stalls":
            await self._read_until(CHAT.piece)

    async def last_line(self, request: bytes) -> None:
        waits = self.cell.fault in (*CLIENT, *OURS[:3])
        await self._send(request, until_held=Hold(self._monkeypatch, UpstreamStream, "drain", waits=waits))

    async def settle(self, request: bytes) -> None:
        waits = Hold(self._monkeypatch, UpstreamStream, "drain", waits=True)
        await self._send(request, until_held=waits)
        if self.cell.fault == "exception":
            return
        self._redis.hold(b"gateway:{%s}:slots" % self.tenant.encode())
        waits.go()
        self._go = self._redis.go
        with trio.fail_after(3):
            await self._redis.held.wait()

    async def commit(self, request: bytes) -> None:
        if self.cell.fault == "exception":
            await self._send(request)
            return
        waits = Hold(self._monkeypatch, UpstreamStream, "drain", waits=True)
        await self._send(request, until_held=waits)
        self._postgres.hold(self.tenant.encode())
        waits.go()
        self._go = self._postgres.go
        with trio.fail_after(3):
            await self._postgres.held.wait()

    # The faults.

    def _prepare(self) -> None:
        """What must be in place before the request comes."""
        match self.cell.stage, self.cell.fault:
            case "open", "upstream sends garbage":
                self._monkeypatch.setattr(
                    mock_inference, "reply_head", lambda *_, **__: b"this is no HTTP\r\n\r\n"
                )
            case "last line", "upstream stalls":
                self._monkeypatch.setattr(mock_inference, "LAST_CHUNK", b"")
            case "last line", "upstream sends garbage":
                self._monkeypatch.setattr(mock_inference, "LAST_CHUNK", mock_inference.GARBAGE)
            case "last line", "upstream sends an error line":
                self._monkeypatch.setattr(mock_inference, "LAST_CHUNK", chunk(b'{"error":"late"}\n'))
            case "last line", "upstream resets":
                self._monkeypatch.setattr(mock_inference, "LAST_CHUNK", b"")
                self._reset_after_the_last_line()
            case stage, "exception":
                self._break(stage)

    def _reset_after_the_last_line(self) -> None:
        streamed = mock_inference.Completion._streamed

        async def broken(self: Any) -> bool:
            await streamed(self)
            await self._http.reset()
            raise mock_inference.Broken

        self._monkeypatch.setattr(mock_inference.Completion, "_streamed", broken)

    def _break(self, stage: str) -> None:
        """Have a room raise what it never should, once the request comes to its stage."""
        gateway = self.gateway
        owner, name = {
            "authenticate": (gateway.directory, "authenticate"),
            "read the body": (Delivery, "body"),
            "admit": (gateway.admission, "admit"),
            "open": (Upstream, "stream"),
            "first byte": (UpstreamStream, "read"),
            "mid-stream": (UpstreamStream, "read"),
            "last line": (UpstreamStream, "drain"),
            "settle": (gateway._redis, "script"),
            "commit": (gateway._postgres, "execute"),
        }[stage]
        method = getattr(owner, name)
        calls = 0

        def due(args: tuple[Any, ...]) -> bool:
            nonlocal calls
            if stage == "settle" and args[0].name != "scripts/settle.lua":
                return False
            if stage == "commit" and "audit_log" not in args[0]:
                return False
            calls += 1
            return calls == (2 if stage == "mid-stream" else 1)

        async def broken(*args: Any, **kwargs: Any) -> Any:
            if due(args):
                raise RuntimeError("a bug")
            return await method(*args, **kwargs)

        def broken_at_once(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("a bug")

        self._monkeypatch.setattr(owner, name, broken_at_once if stage == "open" else broken)

    async def _strike(self) -> None:
        fault = self.cell.fault
        if fault == "client closes":
            await self.client.aclose()
        elif fault == "client half-closes":
            await self.client.send_eof()
        elif fault == "key is revoked":
            await self.books.postgres.execute("INSERT INTO gateway.revocations (prefix) VALUES ($1)", self._prefix)
            await until(lambda: self._prefix in self.gateway.registry._revoked, 3)
        elif fault == "deadline passes":
            await self._pass_the_deadline()
        elif fault == "SIGTERM":
            self.stop.set()
        elif self._wire is not None:
            self._strike_the_wire(self._wire)
        if fault in (*CLIENT[:2], *OURS[:3]) and self.cell.stage in ("admit", "last line", "settle"):
            await until(lambda: all(running.scope.cancel_called for running in self._running()), 3)
        if fault == "SIGTERM" and self.cell.stage == "commit":
            await until(lambda: self.gateway._server._accepting.cancel_called, 3)  # type: ignore[union-attr]
        if fault == "SIGTERM" and self.cell.stage == "authenticate":
            await self._read_to_the_end()

    def _strike_the_wire(self, wire: FaultyWire) -> None:
        if self.cell.stage == "mid-stream":
            wire.cut()
        elif self.cell.fault.endswith("refuses"):
            wire.refuse()
        elif self.cell.fault.endswith("stalls"):
            wire.stall()
        else:
            wire.lose_answer()

    async def _pass_the_deadline(self) -> None:
        now = trio.current_time()
        if self.cell.stage == "authenticate":  # nothing runs yet: the settings' own deadline has to pass
            limit = self.gateway.settings.exchange_timeout_s
            await until(lambda: trio.current_time() > now + limit, limit + 3)
        for running in self._running():
            if not running.over:
                running.scope.deadline = now

    def _running(self) -> list[Any]:
        return [running for peers in self.gateway.registry._running.values() for running in peers]

    # The client.

    async def _read_until(self, piece: bytes) -> None:
        with trio.fail_after(5):
            while piece not in self.received:
                data = await self.client.receive_some(65536)
                assert data, self.received
                self.received += data

    async def _read_to_the_end(self) -> None:
        if self.cell.fault == "client closes":
            return
        if self.cell.fault == "client stalls" and self.cell.stage == "mid-stream":
            await until(lambda: self.mock.stats.aborted == 1, 5)
        try:
            with trio.fail_after(5):
                while data := await self.client.receive_some(65536):
                    self.received += data
        except trio.BrokenResourceError:
            pass

    @property
    def wire_status(self) -> int | None:
        if self.cell.fault == "client closes" or not self.received:
            return None
        return int(self.received.split(b" ", 2)[1])

    # The books.

    async def nothing_left(self) -> None:
        gateway, books = self.gateway, self.books
        lasting = self.cell.fault in STORE or self.cell.fault == "exception"
        await until(lambda: not gateway.admission.held, BOUND_S if not lasting else 3)
        if lasting:
            await until(lambda: not gateway.admission.unsettled, 5)
        await books.settled(within_s=BOUND_S)
        await quiet(gateway, self.mock)
        recorder, registry = gateway.recorder, gateway.registry
        await until(lambda: not (len(registry) or recorder.open_entries or recorder.waiting), 5)
        await until(lambda: gateway.connections == 0, 1)
        with trio.fail_after(5):
            while await books.copies():
                await trio.sleep(0.005)
        assert (await books.slots(), await books.leases(), await books.reserved()) == (0, 0, 0)
        assert not gateway.admission.unsettled

    async def rows(self) -> list[tuple[int, str]]:
        rows = await self.books.postgres.fetch(
            "SELECT status, outcome FROM gateway.audit_log WHERE tenant_id = $1::uuid", self.tenant
        )
        return [(row["status"], row["outcome"]) for row in rows]


# The breaker stands at three failures in a row: a success forgets them, a failure adds one.
STANDING = 3
VERDICTS = {0: SUCCESS, STANDING: NEUTRAL, STANDING + 1: FAILURE}


@asynccontextmanager
async def served(gateway: Gateway, stop: trio.Event) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run, stop)
        with trio.fail_after(5):
            await gateway.listener.listening.wait()
            while not gateway.discovery.fresh:
                await trio.sleep(0.01)
        yield
        stop.set()


async def warm_up(gateway: Gateway, books: Any, key: str) -> None:
    """One request of another tenant: Redis knows the scripts then, and the pools have connections."""
    async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as client:
        with trio.fail_after(10):  # on a busy machine the first connections may take longer than they may
            while (
                await client.post(
                    CHAT.path,
                    json=CHAT.body("rivers"),
                    headers={"authorization": f"Bearer {key}", "connection": "close"},
                )
            ).status_code != 200:
                await trio.sleep(0.05)
            while not await books.postgres.fetchval("SELECT count(*) FROM gateway.audit_log WHERE status = 200"):
                await trio.sleep(0.01)
    for _ in range(STANDING):
        with gateway.breaker.attempt() as attempt:
            attempt.failure()


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.stage}: {cell.fault}")
async def test_a_fault_ends_as_the_matrix_says_and_leaves_nothing(
    asyncio_loop: Any,
    settings: Any,
    database_url: str,
    redis_url: str,
    mock_ollama: Any,
    make_key: Callable[..., Awaitable[str]],
    books: Any,
    monkeypatch: pytest.MonkeyPatch,
    cell: Cell,
) -> None:
    warm = await make_key("warm", budget_tokens=10**6)
    key = await make_key("acme", budget_tokens=10**6, concurrency=1)
    tenant = await books.postgres.fetchval("SELECT id::text FROM gateway.tenants WHERE name = 'acme'")
    stalls = cell.fault in ("Redis stalls", "PostgreSQL stalls")
    async with wires(database_url, redis_url) as (postgres, postgres_url, redis, faulty_redis_url):
        quick = settings.model_copy(
            update={
                "database_url": postgres_url,
                "redis_url": faulty_redis_url,
                "model_discovery_interval_s": 30.0,
                "store_timeout_s": 0.3 if stalls else 1.0,
                "cleanup_timeout_s": 0.3 if stalls else 1.0,
                "audit_commit_timeout_s": 2.0,
                "body_timeout_s": 0.3 if cell.fault == "client stalls" else 5.0,
                "first_byte_timeout_s": 0.3 if cell.fault == "upstream stalls" else 5.0,
                "chunk_timeout_s": 0.3 if cell.fault == "upstream stalls" else 5.0,
                "write_timeout_s": 0.3,
                "drain_timeout_s": 0.05,
                "exchange_timeout_s": 0.1
                if (cell.stage, cell.fault) == ("authenticate", "deadline passes")
                else 30.0,
            }
        )
        async with open_gateway(quick) as gateway:
            scene = Scene(cell, gateway, mock_ollama, books, postgres, redis, monkeypatch)
            async with served(gateway, scene.stop):
                await warm_up(gateway, books, warm)
                async with connected(gateway, small_window=cell.fault == "client stalls") as client:
                    await scene.play(client, key, tenant)
                    postgres.heal()
                    redis.heal()
                await scene.nothing_left()
                assert scene.wire_status == cell.wire
                assert await scene.rows() == ([(cell.row, cell.outcome)] if cell.outcome else [])
                assert VERDICTS[gateway.breaker._failures] == cell.verdict
                told = cell.fault not in CLIENT and scene.received
                assert not told or (b'"error"' in scene.received) == (cell.outcome != "completed")
