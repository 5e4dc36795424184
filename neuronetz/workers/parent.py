"""The parent of the workers: it binds, starts them, replaces those that die, and adds up their metrics.

It serves no request itself. All state that workers share is in the stores, so limits, leases and budgets
hold over them as they do over hosts.
"""

import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import structlog
import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from neuronetz.services import ServiceBoard, supervise
from neuronetz.settings import Settings
from neuronetz.web.listening import Listener
from neuronetz.web.metrics import MetricsPage
from neuronetz.web.server import address_of, listen, open_server
from neuronetz.workers.folder import collect_from, shared_folder
from neuronetz.workers.worker import STATES, Worker, command

log = structlog.get_logger("neuronetz.workers")

WRONG_SETTING = 2

# What a worker's end takes beside the times that are settings: its stores' closing, the interpreter's end.
_MARGIN_S = 6.0


def unwinding_s(settings: Settings) -> float:
    """How long (seconds) a worker may take to end once its exchanges were stopped, both stores away at worst.

    A request's audit task and then the recorder wait for a commit, exchanges and then settlements for Redis.
    """
    return 2 * settings.audit_commit_timeout_s + 2 * settings.cleanup_timeout_s + _MARGIN_S


def own_metrics(registry: CollectorRegistry) -> tuple[Gauge, Counter]:
    """The parent's own metrics: its workers by state, and the deaths among them."""
    return (
        Gauge("gateway_workers", "Workers, by state.", ("state",), registry=registry),
        Counter("gateway_worker_deaths_total", "Workers that ended unasked.", registry=registry),
    )


class Workers:
    """``settings.workers`` processes on one listening socket, and the one metrics listener."""

    def __init__(self, settings: Settings, *, command: Sequence[str] | None = None) -> None:
        self.base_url = self.metrics_url = ""
        self.workers: list[Worker] = []
        self._settings = settings
        self._command = command
        self._fault: int | None = None
        self._over = trio.Event()
        self._registry = CollectorRegistry()
        self._states, self._ends = own_metrics(self._registry)

    async def run(self, stop: trio.Event, ready: Callable[["Workers"], None] = lambda _: None) -> int:
        """Serve until ``stop`` is set, then drain all workers together; returns the exit code.

        ``ready`` is called once every worker serves.

        That is 0 when each ended by itself, 1 when one had to be killed or failed in ending, and a
        worker's own exit code where its configuration is at fault, which ends the others too. Raises
        ``CannotListen`` when an address is taken. When cancelled, the workers are ended hard: each cancels
        what is left, and is killed if that takes too long.
        """
        settings = self._settings
        with shared_folder(settings.workers) as folder:
            collect_from(folder, self._registry)
            async with (
                _bound(settings.listen_host, settings.listen_port) as listeners,
                open_server(
                    MetricsPage(self.exposition),
                    settings.metrics_host,
                    settings.metrics_port,
                    write_timeout_s=settings.write_timeout_s,
                    max_connections=64,
                ) as metrics_server,
                trio.open_nursery() as nursery,
            ):
                self.base_url = address_of(settings.listen_host, listeners[0].socket.getsockname()[1])
                self.metrics_url = address_of(settings.metrics_host, metrics_server.port) + "/metrics"
                self.workers += [
                    Worker(
                        number,
                        command=self._command or command(),
                        listen=[listener.socket.fileno() for listener in listeners],
                        folder=folder,
                        hard_s=unwinding_s(settings),
                        judge=self._hopeless,
                    )
                    for number in range(settings.workers)
                ]
                board = ServiceBoard()
                for worker in self.workers:
                    nursery.start_soon(supervise, worker.name, worker.live, board)
                nursery.start_soon(self._announce, ready)
                nursery.start_soon(self._heed, stop)
                await self._over.wait()
                # First, or clients would wait in the backlog of a socket that nobody accepts from.
                for listener in listeners:
                    await listener.aclose()
                await self._drain()
                nursery.cancel_scope.cancel()
        if self._fault is not None:
            return self._fault
        return 1 if any(worker.returncode for worker in self.workers) else 0

    async def _heed(self, stop: trio.Event) -> None:
        await stop.wait()
        self._over.set()

    async def _announce(self, ready: Callable[["Workers"], None]) -> None:
        for worker in self.workers:
            await worker.was_ready.wait()
        log.info("gateway.ready", base_url=self.base_url, metrics_url=self.metrics_url, workers=len(self.workers))
        ready(self)

    def _hopeless(self, code: int) -> bool:
        """Whether a worker that ended with ``code`` would do so again, for ever: then all of it ends."""
        if code != 0:  # 0 is a worker that was asked to end, to be replaced
            self._ends.inc()
        nobody_ever_served = not any(worker.was_ready.is_set() for worker in self.workers)
        hopeless = code == WRONG_SETTING or (code > 0 and nobody_ever_served)
        if hopeless:
            self._fault = code
            self._over.set()
        return hopeless

    async def _drain(self) -> None:
        settings = self._settings
        log.info("workers.draining", workers=len(self.workers), patience_s=settings.drain_timeout_s)
        for worker in self.workers:
            worker.drain()
        with trio.move_on_after(settings.drain_timeout_s + unwinding_s(settings)) as scope:
            await self._all_gone()
        if scope.cancelled_caught:
            log.error("workers.killed", workers=[w.number for w in self.workers if not w.gone.is_set()])
            for worker in self.workers:
                worker.kill()
            await self._all_gone()
        log.info("workers.drained")

    async def _all_gone(self) -> None:
        for worker in self.workers:
            await worker.gone.wait()

    async def exposition(self) -> bytes:
        """The metrics summed over the workers, with the gauges read now, and how many workers there are."""
        async with trio.open_nursery() as nursery:
            for worker in self.workers:
                nursery.start_soon(worker.refresh)
        for state in STATES:
            self._states.labels(state).set(sum(worker.state == state for worker in self.workers))
        for _ in range(10):
            try:
                return generate_latest(self._registry)
            except (struct.error, RuntimeError):
                # A worker that starts is making its files at this moment.
                await trio.sleep(0.02)
        return generate_latest(self._registry)


@asynccontextmanager
async def _bound(host: str, port: int) -> AsyncIterator[list[Listener]]:
    listeners = await listen(host, port)
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.socket.close()
