"""``neuronetz serve --workers N``: several processes on one socket, and the parent that keeps them."""

import json
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import pytest
import trio

from neuronetz.stores.postgres import Postgres
from neuronetz.workers.folder import in_use
from tests.gateway_fixtures import Books, MakeKey

READY_WITHIN_S = 60
DYING_FAST = {"HEARTBEAT_S": "0.5", "DEAD_AFTER_S": "2"}


@pytest.fixture
def env(database_url: str, redis_url: str, mock_ollama: Any) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "OLLAMA_URL": mock_ollama.url,
        "LISTEN_PORT": "0",
        "METRICS_PORT": "0",
        "DRAIN_TIMEOUT_S": "10",
        "LOG_FORMAT": "json",
    }


@dataclass
class Served:
    """A parent with its workers, all of which were ready."""

    process: trio.Process
    errors: bytearray
    base_url: str
    metrics_url: str

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.errors.decode().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def workers(self) -> list[int]:
        """The process ids of the living workers."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE and "worker" in child.cmdline():
                    found.append(child.pid)
        return sorted(found)

    def folders(self) -> set[Path]:
        """The folders that the workers were started with."""
        lines = [psutil.Process(pid).cmdline() for pid in self.workers()]
        return {Path(line[line.index("--folder") + 1]) for line in lines}

    async def metrics(self) -> dict[str, float]:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            text = (await client.get(self.metrics_url)).text
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    async def until_ready(self, workers: int) -> None:
        with trio.fail_after(READY_WITHIN_S):
            while (await self.metrics()).get('gateway_workers{state="ready"}') != workers:
                await trio.sleep(0.05)


@pytest.fixture
def serve(launch: Any, env: dict[str, str]) -> Callable[..., Any]:
    @asynccontextmanager
    async def serve(workers: int = 2, **more: str) -> AsyncIterator[Served]:
        async with launch("serve", "--workers", str(workers), **(env | more)) as (process, errors):
            with trio.fail_after(READY_WITHIN_S):
                # The parent's line, which comes when all are ready.
                while not (found := re.search(rb'"base_url":"([^"]+)","metrics_url":"([^"]+)","workers"', errors)):
                    assert process.poll() is None, errors.decode()
                    await trio.sleep(0.02)
            yield Served(process, errors, found[1].decode(), found[2].decode())

    return serve


def asking(text: str) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}]}


LONG = asking("[[tokens:70]] [[tps:20]]")


def serving_pid(reply: httpx.Response, pids: list[int]) -> int:
    """The worker at the other end of a reply's connection."""
    stream = reply.extensions["network_stream"]
    port = stream.get_extra_info("client_addr")[1]
    for pid in pids:
        if any(c.raddr and c.raddr.port == port for c in psutil.Process(pid).net_connections("tcp")):
            return pid
    raise AssertionError("nobody serves this connection")


class Streams:
    """A long stream running on each worker, each over a connection of its own."""

    def __init__(self, served: Served, key: str) -> None:
        self.served = served
        self._key = key
        self._stack = AsyncExitStack()
        self._lines: dict[int, AsyncIterator[str]] = {}

    async def __aenter__(self) -> Self:
        pids = self.served.workers()
        with trio.fail_after(READY_WITHIN_S):
            while set(self._lines) != set(pids):
                client = await self._stack.enter_async_context(
                    httpx.AsyncClient(
                        trust_env=False, timeout=30, headers={"authorization": f"Bearer {self._key}"}
                    )
                )
                async with client.stream("GET", self.served.base_url + "/healthz") as reply:
                    if (pid := serving_pid(reply, pids)) in self._lines:
                        continue
                    await reply.aread()
                reply = await self._stack.enter_async_context(
                    client.stream("POST", self.served.base_url + "/api/chat", json=LONG)
                )
                assert reply.status_code == 200
                assert serving_pid(reply, pids) == pid
                self._lines[pid] = reply.aiter_lines()
                await anext(self._lines[pid])
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._stack.aclose()

    async def rest_of(self, pid: int) -> dict[str, Any]:
        """The last line of the stream on that worker, read to its end."""
        last = [line async for line in self._lines[pid]][-1]
        return json.loads(last)


async def gone(pids: list[int], *, within_s: float) -> None:
    with trio.fail_after(within_s):
        for pid in pids:
            while lives(pid):
                await trio.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def refused(url: str) -> bool:
    with socket.socket() as sock:
        sock.settimeout(2)
        return sock.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0


async def test_two_workers_share_a_keys_rate_and_its_slots(
    serve: Any, make_key: MakeKey, books: Books, mock_ollama: Any
) -> None:
    key = await make_key(rpm=12, concurrency=3)
    statuses: Counter[int] = Counter()
    servers: set[int] = set()
    peak = 0
    async with serve() as served:
        pids = served.workers()
        assert len(pids) == 2

        async def ask() -> None:
            headers = {"authorization": f"Bearer {key}"}
            async with (
                httpx.AsyncClient(trust_env=False, timeout=30, headers=headers) as client,
                client.stream("POST", served.base_url + "/api/chat", json=asking("[[ttft:0.2]]")) as reply,
            ):
                servers.add(serving_pid(reply, pids))
                statuses[reply.status_code] += 1
                await reply.aread()

        async def look() -> None:
            nonlocal peak
            while True:
                peak = max(peak, mock_ollama.stats.open)
                await trio.sleep(0.005)

        async with trio.open_nursery() as looking:
            looking.start_soon(look)
            for _ in range(8):
                async with trio.open_nursery() as nursery:
                    for _ in range(5):
                        nursery.start_soon(ask)
            looking.cancel_scope.cancel()
        assert servers == set(pids)
        assert statuses == {200: 12, 429: 28}
        assert peak == 3
        await books.settled(within_s=1)
        rows = await books.rows(40)
        assert {"rate_limited", "concurrency_limited"} <= {row["outcome"] for row in rows}


async def test_two_hosts_worth_of_workers_keep_a_keys_rate_its_slots_and_its_budget(
    serve: Any, make_key: MakeKey, books: Books, mock_ollama: Any
) -> None:
    """Two parents with two workers each know nothing of each other but the stores, as on two hosts."""
    key = await make_key(rpm=30, concurrency=3, budget_tokens=400, budget_period="day")
    statuses: Counter[int] = Counter()
    headers = {"authorization": f"Bearer {key}"}
    body = asking("[[ttft:0.05]]") | {"stream": False, "options": {"num_predict": 16}}
    async with serve() as one, serve() as two:

        async def ask(base_url: str) -> None:
            async with httpx.AsyncClient(trust_env=False, timeout=30, headers=headers) as client:
                statuses[(await client.post(base_url + "/api/chat", json=body)).status_code] += 1
                assert mock_ollama.stats.open <= 3

        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for served in (one, two, one, two, one, two):
                    nursery.start_soon(ask, served.base_url)
        await books.settled(within_s=1)
        rows = await books.rows(60)
    assert set(statuses) == {200, 429}
    assert statuses[200] <= 30
    prompt, completion, _ = await books.ledger()
    assert 0 < prompt + completion <= 400
    assert sum(row["outcome"] == "completed" for row in rows) == statuses[200]


async def test_a_killed_worker_is_replaced_and_what_it_held_comes_back_unnoticed_by_the_others_clients(
    serve: Any, make_key: MakeKey, books: Books
) -> None:
    key = await make_key(concurrency=2, budget_tokens=1_000_000, budget_period="day")
    async with serve(**DYING_FAST) as served, Streams(served, key) as streams:
        killed, other = served.workers()
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(httpx.HTTPError):
            await streams.rest_of(killed)
        assert (await streams.rest_of(other))["done"]
        rows = await books.rows(2, within_s=10)
        assert sorted(row["outcome"] for row in rows) == ["abandoned", "completed"]
        await books.settled(within_s=5)
        await served.until_ready(2)
        assert other in served.workers()
        assert killed not in served.workers()
        ended = [event for event in served.events("worker.ended") if event["pid"] == killed]
        assert [event["how"] for event in ended] == ["SIGKILL"]
        async with Streams(served, key) as again:  # the replacement serves, and its predecessor's slot is free
            for pid in served.workers():
                assert (await again.rest_of(pid))["done"]
        assert served.process.poll() is None


async def test_new_connections_do_not_wait_for_a_dead_workers_replacement(serve: Any, key: str) -> None:
    async with serve() as served:
        os.kill(served.workers()[0], signal.SIGKILL)
        for _ in range(20):
            with trio.fail_after(5):
                async with httpx.AsyncClient(
                    trust_env=False, timeout=5, headers={"authorization": f"Bearer {key}"}
                ) as client:
                    assert (await client.get(served.base_url + "/api/tags")).status_code == 200
        assert len(served.events("worker.started")) <= 3


@pytest.mark.parametrize("to_all", [False, True])
async def test_sigterm_drains_a_stream_on_each_worker_and_leaves_nothing(
    serve: Any, make_key: MakeKey, books: Books, to_all: bool
) -> None:
    """``to_all``: as a service manager does it, to every process of the service, and more than once."""
    key = await make_key()
    async with serve() as served, Streams(served, key) as streams:
        pids, folders = served.workers(), served.folders()
        assert all(folder.is_dir() for folder in folders)
        for pid in [*pids, *pids] if to_all else []:
            os.kill(pid, signal.SIGTERM)
        served.process.send_signal(signal.SIGTERM)
        with trio.fail_after(10):
            while not refused(served.base_url):
                await trio.sleep(0.02)
        for pid in pids:
            assert (await streams.rest_of(pid))["done"]
        with trio.fail_after(15):
            assert await served.process.wait() == 0
        await gone(pids, within_s=0.5)
        assert not any(folder.exists() for folder in folders)
    rows = await books.rows(2)
    assert [row["outcome"] for row in rows] == ["completed", "completed"]
    await books.settled()
    assert await books.copies() == 0
    assert await books.redis.command("ZCARD", "gateway:instances") == 0
    assert "Traceback" not in served.errors.decode()


async def test_ctrl_c_in_the_parents_process_group_drops_no_request(serve: Any, make_key: MakeKey) -> None:
    key = await make_key()
    async with serve() as served, Streams(served, key) as streams:
        pids = served.workers()
        os.killpg(served.process.pid, signal.SIGINT)
        for pid in pids:
            assert (await streams.rest_of(pid))["done"]
        with trio.fail_after(15):
            assert await served.process.wait() == 0


async def test_a_second_signal_ends_all_of_them_without_waiting(
    serve: Any, make_key: MakeKey, books: Books
) -> None:
    key = await make_key()
    async with serve(DRAIN_TIMEOUT_S="600") as served, Streams(served, key) as streams:
        pids = served.workers()
        served.process.send_signal(signal.SIGTERM)
        with trio.fail_after(10):
            while not refused(served.base_url):
                await trio.sleep(0.02)
        await trio.sleep(1.1)  # sooner, it would be the same signal delivered twice
        served.process.send_signal(signal.SIGTERM)
        for pid in pids:
            assert "error" in await streams.rest_of(pid)
        with trio.fail_after(15):
            await served.process.wait()
        await gone(pids, within_s=0.5)
    rows = await books.rows(2)
    assert [row["outcome"] for row in rows] == ["shutdown", "shutdown"]
    await books.settled()


async def test_a_stuck_worker_is_killed_at_the_second_signal(serve: Any) -> None:
    async with serve(CLEANUP_TIMEOUT_S="0.5", AUDIT_COMMIT_TIMEOUT_S="0.5") as served:
        pids, folders = served.workers(), served.folders()
        os.kill(pids[0], signal.SIGSTOP)
        served.process.send_signal(signal.SIGTERM)
        await gone(pids[1:], within_s=15)
        assert served.process.poll() is None
        await trio.sleep(1.1)  # sooner, it would be the same signal delivered twice
        served.process.send_signal(signal.SIGTERM)
        with trio.fail_after(15):
            await served.process.wait()
        await gone(pids, within_s=0.5)
        assert not any(folder.exists() for folder in folders)


async def test_a_killed_parent_leaves_no_worker_no_listener_and_no_folder(
    serve: Any, make_key: MakeKey, books: Books
) -> None:
    key = await make_key()
    async with serve() as served, Streams(served, key) as streams:
        pids, folders = served.workers(), served.folders()
        served.process.kill()
        await served.process.wait()
        with trio.fail_after(10):
            while not refused(served.base_url):
                await trio.sleep(0.02)
        for pid in pids:  # what they had begun they end, since nobody else can
            assert (await streams.rest_of(pid))["done"]
        await gone(pids, within_s=15)
        assert not any(folder.exists() for folder in folders)
    rows = await books.rows(2)
    assert [row["outcome"] for row in rows] == ["completed", "completed"]
    await books.settled()


async def test_what_a_parent_left_that_died_with_its_workers_is_removed_by_the_next(serve: Any) -> None:
    async with serve() as served:
        pids, (folder,) = served.workers(), served.folders()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # so that none of them tidies up when its parent is gone
        served.process.kill()
        await served.process.wait()
        with in_use(folder):  # another test's gateway may start meanwhile, and would remove it
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            await gone(pids, within_s=5)
            assert folder.exists()
    async with serve() as served:
        assert not folder.exists()
        assert all(other.is_dir() for other in served.folders())


async def test_metrics_are_the_sum_over_workers_and_a_replacement_goes_on_counting(
    serve: Any, make_key: MakeKey
) -> None:
    key = await make_key()
    async with serve(**DYING_FAST) as served:
        async with Streams(served, key) as streams:
            pids = served.workers()
            running = await served.metrics()
            assert running["gateway_leases"] == 2
            assert running["gateway_connections"] == 2
            for pid in pids:
                await streams.rest_of(pid)
        with trio.fail_after(5):
            while (before := await served.metrics())["gateway_leases"]:
                await trio.sleep(0.02)
        requests = 'gateway_requests_total{model="tiny:latest",status="200",tenant="acme"}'
        count = 'gateway_request_duration_seconds_count{model="tiny:latest",tenant="acme"}'
        assert (before[requests], before[count]) == (2, 2)
        assert before['gateway_breaker_state{state="closed"}'] == 2
        assert before['gateway_workers{state="ready"}'] == 2
        assert before['gateway_service_up{service="heartbeat"}'] == 1
        assert before["gateway_audit_ring_capacity"] == 2000

        os.kill(pids[0], signal.SIGKILL)
        with trio.fail_after(5):
            while (left := await served.metrics())['gateway_workers{state="ready"}'] == 2:
                await trio.sleep(0.01)
        assert left["gateway_audit_ring_capacity"] == 1000, "a dead worker's gauges vanish"
        assert left[requests] == 2
        await served.until_ready(2)
        async with Streams(served, key) as streams:
            for pid in served.workers():
                await streams.rest_of(pid)
        with trio.fail_after(5):
            while (after := await served.metrics())[requests] < 4:
                await trio.sleep(0.02)
        assert after["gateway_worker_deaths_total"] == 1
        backwards = {
            name: (value, after.get(name))
            for name, value in before.items()
            if name.partition("{")[0].endswith(("_total", "_count", "_sum", "_bucket"))
            and not after[name] >= value
        }
        assert backwards == {}


async def test_a_worker_that_fails_again_and_again_is_restarted_ever_more_slowly(serve: Any, key: str) -> None:
    async with serve() as served:
        keeper, victim = served.workers()
        os.kill(victim, signal.SIGKILL)
        killing_until = trio.current_time() + 4
        while trio.current_time() < killing_until:
            for pid in served.workers():
                if pid != keeper:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            await trio.sleep(0.01)
        pauses = [event["pause_s"] for event in served.events("service.restarting")]
        # At least 0.1, 0.2, 0.4, 0.8 and 1.6 s apart, had starting and dying taken no time at all.
        assert 2 <= len(pauses) <= 6
        assert pauses[-1] > pauses[0] * 1.5
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(trust_env=False, headers=headers, timeout=30) as client:
            assert (await client.get(served.base_url + "/api/tags")).status_code == 200
        await served.until_ready(2)


async def test_sigterm_to_one_worker_drains_and_replaces_it(serve: Any, make_key: MakeKey) -> None:
    key = await make_key()
    async with serve() as served, Streams(served, key) as streams:
        first, second = served.workers()
        os.kill(first, signal.SIGTERM)
        assert (await streams.rest_of(first))["done"]
        await gone([first], within_s=15)
        assert (await streams.rest_of(second))["done"]
        await served.until_ready(2)
        assert second in served.workers()


@pytest.mark.parametrize("workers", [3])
async def test_connections_are_spread_evenly_even_on_an_idle_machine(serve: Any, key: str, workers: int) -> None:
    async with serve(workers) as served:
        pids = served.workers()
        # Of 72, so that one round in which a worker does not get its turn (a busy machine) does not decide.
        by_worker = sum([await spread(served, pids) for _ in range(3)], Counter[int]())
    assert sum(by_worker.values()) == 72
    assert min(by_worker[pid] for pid in pids) >= 72 // workers // 2, by_worker


async def spread(served: Served, pids: list[int]) -> Counter[int]:
    """How many of 24 connections that come one after another each worker takes."""
    by_worker: Counter[int] = Counter()
    async with AsyncExitStack() as stack:
        for _ in range(24):
            client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=30))
            async with client.stream("GET", served.base_url + "/healthz") as reply:
                by_worker[serving_pid(reply, pids)] += 1
                await reply.aread()
    return by_worker


@pytest.mark.parametrize(
    ("args", "change", "says"),
    [
        (("--workers", "0"), {}, "WORKERS: "),
        ((), {"WORKERS": "many"}, "WORKERS: "),
        (("--workers", "2"), {"REDIS_URL": "localhost"}, "REDIS_URL: must start with redis://"),
    ],
)
async def test_a_wrong_setting_is_one_line_and_no_worker_is_started(
    run: Any, env: dict[str, str], args: tuple[str, ...], change: dict[str, str], says: str
) -> None:
    code, out, err = await run("serve", *args, **(env | change))
    assert (code, out) == (2, "")
    assert err.startswith(f"neuronetz: {says}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("listener", ["LISTEN_PORT", "METRICS_PORT"])
async def test_a_port_that_is_taken_is_one_line(
    run: Any, env: dict[str, str], workers: str, listener: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = await run("serve", **(env | {"WORKERS": workers, listener: str(port)}))
    assert code == 1
    assert err.splitlines()[-1] == f"neuronetz: cannot listen on 127.0.0.1 port {port}: Address already in use"
    assert "Traceback" not in err
    assert "worker.started" not in err


async def test_a_database_without_the_schema_is_refused_before_a_worker_starts(
    run: Any, env: dict[str, str], postgres: Postgres
) -> None:
    await postgres.execute("DROP SCHEMA gateway CASCADE")
    await postgres.execute("DROP TABLE public._pogo_migration, public._pogo_version")
    code, _, err = await run("serve", "--workers", "2", **env)
    assert code == 1
    assert "neuronetz migrate" in err.splitlines()[-1]
    assert "worker.started" not in err
