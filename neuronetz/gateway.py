"""The composition root: builds every room and nests their lifetimes, which is the order of shutdown.

stores: PostgreSQL pool, Redis client, upstream connections
    recorder, prompt log (commit rows; last to stop: they drain)
        services, each supervised
            servers: the gateway's and the metrics' listener
                a request: the exchange's nursery
"""

import math
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial

import structlog
import trio

from neuronetz.access.directory import Directory
from neuronetz.access.keys import Hasher
from neuronetz.access.revocation import PolicyListener
from neuronetz.admission import keyspace
from neuronetz.admission.admission import Admission
from neuronetz.admission.ledger_check import LedgerCheck
from neuronetz.admission.reaper import Reaper
from neuronetz.audit.partitions import Partitions
from neuronetz.audit.prompts import PromptLog, PromptPurge
from neuronetz.audit.recorder import Recorder
from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.errors import StoreUnavailable
from neuronetz.exchange.exchange import Rooms
from neuronetz.exchange.reads import Reads
from neuronetz.exchange.registry import Registry
from neuronetz.models.discovery import Discovery
from neuronetz.services import LONGEST_PAUSE_S, ServiceBoard, supervise
from neuronetz.settings import Settings
from neuronetz.stores.postgres import Postgres, open_postgres
from neuronetz.stores.redis import ClusterRedis, Redis, open_redis
from neuronetz.telemetry.metrics import Metrics
from neuronetz.upstream.breaker import Breaker
from neuronetz.upstream.ollama import Upstream, open_upstream
from neuronetz.web.asgi import FrontDoor
from neuronetz.web.listening import Listener
from neuronetz.web.metrics import MetricsPage
from neuronetz.web.pages import Readiness, make_pages
from neuronetz.web.playground import load_playground
from neuronetz.web.server import Server, address_of, open_server
from neuronetz.web.sharing import Load

log = structlog.get_logger("neuronetz.gateway")

# How long a start waits for the first heartbeat and the first look at the models. The gateway starts
# without them, and denies until they are there.
_START_PATIENCE_S = 3.0

# Of the readiness: how long the stores may take to answer, and how long their answer counts.
_ASK_S = 2.0
_RECENT_S = 0.5

# The longest pause (seconds) before the policy listener tries again to reach PostgreSQL.
_LISTENER_PAUSE_S = 1.0


class Gateway:
    """A gateway process: its rooms, its services' health, and, while it runs, its addresses."""

    def __init__(self, settings: Settings, postgres: Postgres, redis: Redis, upstream: Upstream) -> None:
        self.settings = settings
        self.instance = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.metrics = Metrics()
        self.board = ServiceBoard()
        self.base_url = self.metrics_url = ""
        self._server: Server | None = None
        self._asking = trio.Lock()
        self._said: tuple[float, dict[str, str]] | None = None
        self._draining_since: float | None = None
        self._postgres = postgres
        self._redis = redis
        self._upstream = upstream
        self.recorder = Recorder(
            postgres,
            redis,
            instance=self.instance,
            capacity=settings.audit_ring,
            commit_timeout_s=settings.audit_commit_timeout_s,
            on_rejected=self.metrics.audit_rejected.inc,
            on_committed=self.metrics.audit_committed.inc,
        )
        self.prompts = PromptLog(
            postgres,
            ttl_s=settings.prompt_log_ttl_s,
            max_bytes=settings.prompt_log_max_bytes,
            max_rows=settings.prompt_log_queue,
            queue_bytes=settings.prompt_log_queue_bytes,
            on_dropped=self.metrics.prompts_dropped.inc,
        )
        self.prompt_purge = PromptPurge(postgres, every_s=settings.prompt_purge_interval_s)
        self.registry = Registry()
        self.directory = Directory(
            postgres,
            redis,
            Hasher(
                settings.argon2_time_cost,
                settings.argon2_memory_kib,
                settings.argon2_parallelism,
                settings.argon2_workers,
                settings.argon2_waiting,
            ),
            cache_ttl_s=settings.key_cache_ttl_s,
        )
        self.admission = Admission(
            redis,
            postgres,
            instance=self.instance,
            cleanup_timeout_s=settings.cleanup_timeout_s,
            store_timeout_s=settings.store_timeout_s,
        )
        # Nothing is admitted before the first heartbeat: the leases of an instance that nobody knows would
        # be nobody's to reap.
        self.admission.alive_until = -math.inf
        self.reaper = Reaper(
            redis,
            instance=self.instance,
            admission=self.admission,
            adopt=self.recorder.adopt,
            heartbeat_s=settings.heartbeat_s,
            dead_after_s=settings.dead_after_s,
            on_leases=self.metrics.reaped_leases.inc,
            on_reaped=self.metrics.reaped_instances.inc,
        )
        self.ledger_check = LedgerCheck(redis, postgres, self.metrics, interval_s=settings.ledger_check_interval_s)
        self.admission.on_seeded = self.ledger_check.seeded
        self.listener = PolicyListener(
            settings.database_url,
            postgres,
            self.directory,
            self.registry.revoke,
            on_changed=self.ledger_check.changed,
            on_lag=self.metrics.revocation_lag.observe,
        )
        self.discovery = Discovery(
            partial(upstream.fetch, "GET", "/api/tags", timeout_s=5.0, limit=settings.max_reply_bytes),
            redis,
            interval_s=settings.model_discovery_interval_s,
            ttl_s=settings.model_discovery_cache_ttl_s,
            remote_models=settings.remote_models,
        )
        self.breaker = Breaker(failures=settings.breaker_failures, open_s=settings.breaker_open_s)
        self.partitions = Partitions(postgres)
        self.rooms = Rooms(
            settings=settings,
            instance=self.instance,
            directory=self.directory,
            admission=self.admission,
            discovery=self.discovery,
            upstream=upstream,
            breaker=self.breaker,
            recorder=self.recorder,
            registry=self.registry,
            reads=Reads(upstream, self.discovery, show_full=settings.show_full),
            body_policy=BodyPolicy.of(settings),
            metrics=self.metrics,
            prompts=self.prompts,
        )

    async def run(
        self,
        stop: trio.Event,
        *,
        shared: tuple[Sequence[Listener], Load] | None = None,
        task_status: "trio.TaskStatus[Gateway]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until ``stop`` is set, then drain: no new requests, running ones get the drain's time.

        Reports itself as started once it serves. Raises ``CannotListen`` when an address is taken. When
        cancelled it ends at once, each request unwinding within the clean-up's time.

        ``shared``: as one of several workers, serve these listeners; the metrics' listener is the parent's.
        """
        playground = load_playground() if self.settings.playground_enabled else None
        pages = make_pages(self._recent_readiness, playground)
        front_door = FrontDoor(self.rooms, pages, self.settings.trusted_proxies)
        metrics_page: AbstractAsyncContextManager[str] = nullcontext("") if shared else self._metrics_page()
        async with (
            self._recording(),
            self._services(),
            metrics_page as self.metrics_url,
            open_server(
                front_door,
                self.settings.listen_host,
                self.settings.listen_port,
                write_timeout_s=self.settings.write_timeout_s,
                max_connections=self.settings.max_connections,
                shared=shared,
            ) as server,
        ):
            self.base_url = address_of(self.settings.listen_host, server.port)
            log.info(
                "gateway.ready",
                base_url=self.base_url,
                metrics_url=self.metrics_url or None,
                instance=self.instance,
            )
            self._server = server
            task_status.started(self)
            await stop.wait()
            await self._drain(server)

    @asynccontextmanager
    async def _metrics_page(self) -> AsyncIterator[str]:
        async def exposition() -> bytes:
            return self.exposition()

        async with open_server(
            MetricsPage(exposition),
            self.settings.metrics_host,
            self.settings.metrics_port,
            write_timeout_s=self.settings.write_timeout_s,
            max_connections=64,
        ) as server:
            yield address_of(self.settings.metrics_host, server.port) + "/metrics"

    async def _drain(self, server: Server) -> None:
        self._draining_since = trio.current_time()
        log.info("gateway.draining", exchanges=len(self.registry), patience_s=self.settings.drain_timeout_s)
        await server.stop_accepting()
        with trio.move_on_after(self.settings.drain_timeout_s):
            # Not the registry alone: a request that is being authenticated does not stand there yet.
            await server.wait_idle()
        self.registry.stop_all()
        with trio.move_on_after(self.settings.cleanup_timeout_s):
            await self.registry.wait_idle()
        log.info("gateway.drained", exchanges=len(self.registry))

    @asynccontextmanager
    async def _recording(self) -> AsyncIterator[None]:
        """The recorder's and the prompt log's lifetime: they go on, uncancelled, until the requests within
        have handed in their rows.
        """
        async with trio.open_nursery() as nursery:
            keep = trio.CancelScope(shield=True)
            nursery.start_soon(self._run_shielded, keep)
            try:
                yield
            finally:
                # Whatever goes wrong here: a shield that nobody lifts would keep the process for ever.
                try:
                    left = await self._drain_rows()
                finally:
                    keep.cancel()
                if not left:  # otherwise it stays listed, to be reaped
                    await self.reaper.retire()

    async def _drain_rows(self) -> int:
        """Commit what waits; the number of audit rows that remain. The audit rows come first in the time."""
        until = trio.current_time() + self.settings.audit_commit_timeout_s
        try:
            return await self.recorder.drain(self.settings.audit_commit_timeout_s)
        finally:
            await self.prompts.drain(until - trio.current_time())

    async def _run_shielded(self, keep: trio.CancelScope) -> None:
        with keep:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(supervise, "recorder", self.recorder.run, self.board)
                nursery.start_soon(supervise, "prompt_log", self.prompts.run, self.board)

    @asynccontextmanager
    async def _services(self) -> AsyncIterator[None]:
        services: dict[str, Callable[[], Awaitable[None]]] = {
            "heartbeat": self.reaper.run,
            "discovery": self.discovery.run,
            "policy_listener": self.listener.run,
            "settlement": self.admission.settle_unsettled,
            "partitions": self.partitions.run,
            "prompt_purge": self.prompt_purge.run,
            "ledger_check": self.ledger_check.run,
        }
        async with trio.open_nursery() as nursery:
            for name, run in services.items():
                # Each second that nobody listens is one in which a cached key outlives its revocation.
                cap_s = _LISTENER_PAUSE_S if name == "policy_listener" else LONGEST_PAUSE_S
                nursery.start_soon(partial(supervise, name, run, self.board, cap_s=cap_s))
            with trio.move_on_after(_START_PATIENCE_S):
                await self.reaper.started.wait()
                await self.discovery.wait_until_known(_START_PATIENCE_S)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()

    async def _recent_readiness(self) -> Readiness:
        """As ``readiness``, but of the stores what they said within the last half second.

        Whoever asks has no key, and must not keep the stores busy.
        """
        async with self._asking:
            if self._said is None or trio.current_time() - self._said[0] > _RECENT_S:
                self._said = (trio.current_time(), await self._ask_stores())
            return self._judge(self._said[1])

    async def readiness(self) -> Readiness:
        """Ask the stores, and gather what the services say of themselves. At most about two seconds."""
        return self._judge(await self._ask_stores())

    async def _ask_stores(self) -> dict[str, str]:
        checks: dict[str, str] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_check, checks, "postgres", partial(self._postgres.fetchval, "SELECT 1"))
            # The key without which nothing is admitted: of a cluster, its node must be there above all.
            heartbeats = partial(self._redis.command, "EXISTS", keyspace.INSTANCES)
            nursery.start_soon(_check, checks, "redis", heartbeats)
            if isinstance(self._redis, ClusterRedis):
                nursery.start_soon(_check, checks, "redis_nodes", self._redis.check_nodes)
        return checks

    def _judge(self, stores: Mapping[str, str]) -> Readiness:
        checks = dict(stores)
        checks["audit"] = "deny_mode" if self.recorder.deny_mode else "failing" if self.recorder.failing else "ok"
        checks["models"] = "ok" if self.discovery.fresh else "stale"
        checks["upstream"] = "ok" if self.breaker.state == "closed" else f"breaker_{self.breaker.state}"
        services = {entry.name: entry.shown for entry in self.board.services.values()}
        # PostgreSQL away is not down: cached keys are served while their rows have room in the ring.
        down = checks["redis"] != "ok" or self.recorder.deny_mode
        weak = any(value != "ok" for value in checks.values()) or any(v != "running" for v in services.values())
        return Readiness("unavailable" if down else "degraded" if weak else "ready", checks, services)

    @property
    def connections(self) -> int:
        """Connections that clients have open now."""
        return self._server.open if self._server is not None else 0

    def exposition(self) -> bytes:
        """The metrics, with the gauges read now."""
        self.read_gauges()
        return self.metrics.exposition()

    def read_gauges(self) -> None:
        """Set the gauges to what they are now."""
        metrics, now = self.metrics, trio.current_time()
        metrics.connections.set(self.connections)
        metrics.connections_limit.set(self.settings.max_connections)
        metrics.alive.set(now < self.admission.alive_until)
        metrics.heartbeat_age.set(self.reaper.age_s)
        metrics.heartbeat_limit.set(self.settings.dead_after_s)
        metrics.draining.set(0 if self._draining_since is None else now - self._draining_since)
        metrics.drain_limit.set(self.settings.drain_timeout_s + self.settings.cleanup_timeout_s)
        metrics.leases.set(self.admission.held)
        metrics.unsettled.set(len(self.admission.unsettled))
        metrics.ring.set(self.recorder.waiting)
        metrics.ring_capacity.set(self.recorder.capacity)
        metrics.audit_failing.set(self.recorder.failing)
        metrics.deny_mode.set(self.recorder.deny_mode)
        metrics.prompts_waiting.set(self.prompts.waiting)
        metrics.models.set(len(self.discovery.discovered()))
        metrics.models_fresh.set(self.discovery.fresh)
        for state in ("closed", "open", "half_open"):
            metrics.breaker.labels(state).set(self.breaker.state == state)
        for entry in self.board.services.values():
            for reason in entry.reasons:
                metrics.service_failing.labels(entry.name, reason).set(entry.reason == reason)
            metrics.service_up.labels(entry.name).set(entry.state == "running")
            metrics.service_restarts.labels(entry.name).set(entry.restarts)


async def _check(checks: dict[str, str], name: str, ask: Callable[[], Awaitable[object]]) -> None:
    checks[name] = "timeout"
    with trio.move_on_after(_ASK_S):
        try:
            await ask()
            checks[name] = "ok"
        except StoreUnavailable as error:
            checks[name] = error.reason


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """A gateway with its stores open, ready to ``run``. A ``trio_asyncio.open_loop()`` must be running."""
    async with (
        open_postgres(
            settings.database_url, size=settings.postgres_pool, timeout_s=settings.store_timeout_s
        ) as postgres,
        open_redis(settings.redis_url, size=settings.redis_pool, timeout_s=settings.store_timeout_s) as redis,
        open_upstream(
            settings.ollama_url,
            connect_timeout_s=settings.connect_timeout_s,
            first_byte_timeout_s=settings.first_byte_timeout_s,
            chunk_timeout_s=settings.chunk_timeout_s,
        ) as upstream,
    ):
        yield Gateway(settings, postgres, redis, upstream)
