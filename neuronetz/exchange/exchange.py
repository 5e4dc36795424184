"""The story of a request, from its key to its audit row, in one nursery.

Whatever ends a request (reply complete, client gone, model failed, key revoked, deadline, shutdown, bug)
unwinds the same blocks in the same order: the upstream stream is closed, which stops the model; the lease is
settled, which frees the slot and trues up the budget; the account is concluded, which wakes the deferred
audit task. The end of a reply is held back until the lease is settled, so that a client which has read it
finds its slot free.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from neuronetz.access.directory import Directory
from neuronetz.admission.admission import Admission, Ask
from neuronetz.audit.prompts import PromptLog
from neuronetz.audit.recorder import Entry, Recorder
from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.call import Call, Reply
from neuronetz.dialects.calls import parse_call
from neuronetz.dialects.compression import ZSTD, declared_size, inflate
from neuronetz.errors import (
    BodyTimeout,
    BodyTooLarge,
    ClientDisconnected,
    ClientStalled,
    GatewayError,
    InvalidRequest,
    LeaseLost,
    UnsupportedEncoding,
)
from neuronetz.exchange.account import Account
from neuronetz.exchange.conversation import Conversation
from neuronetz.exchange.delivery import Delivery
from neuronetz.exchange.reads import Reads
from neuronetz.exchange.registry import Registry, Running
from neuronetz.exchange.relay import Ending, Relay, reply_headers
from neuronetz.exchange.request import Request
from neuronetz.exchange.reservation import Reservation, reserve
from neuronetz.models.discovery import Discovery
from neuronetz.policy import Principal
from neuronetz.settings import Settings
from neuronetz.telemetry.metrics import Metrics
from neuronetz.upstream.breaker import Breaker
from neuronetz.upstream.ollama import Upstream

log = structlog.get_logger("neuronetz.exchange")

_LARGE_BODY_BYTES = 256 * 1024

_JSON = "application/json; charset=utf-8"


@dataclass(frozen=True)
class Rooms:
    """What every exchange works with; made once for the process."""

    settings: Settings
    instance: str
    directory: Directory
    admission: Admission
    discovery: Discovery
    upstream: Upstream
    breaker: Breaker
    recorder: Recorder
    registry: Registry
    reads: Reads
    body_policy: BodyPolicy
    metrics: Metrics
    prompts: PromptLog
    threads: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(2))


@dataclass(frozen=True)
class Asked:
    """What a request asks for: its call, where it has a body that could be read, and what is wrong with it."""

    call: Call | None
    problem: GatewayError | None

    @property
    def runnable(self) -> Call | None:
        """The call, if it may be carried out."""
        return self.call if self.problem is None else None


class Exchange:
    """One request's way through the gateway."""

    def __init__(self, rooms: Rooms, request: Request, delivery: Delivery) -> None:
        self._rooms = rooms
        self._request = request
        self._delivery = delivery
        self._reply: Reply | None = None
        self._heartbeat = trio.CancelScope()

    async def run(self) -> None:
        """Answer the request.

        Raises ``GatewayError`` only before there is anything to audit: ``Unauthenticated``,
        ``Unavailable`` when the key cannot be checked, ``AuditDenied`` in deny mode. After that the
        client has been answered as far as it can be, and the row is in the recorder's hands. When
        cancelled from outside it unwinds within the settings' clean-up time and lets the cancellation
        pass.
        """
        rooms, request = self._rooms, self._request
        principal = await rooms.directory.authenticate(request.authorization)
        account = Account(request, principal, rooms.instance, Conversation(rooms.prompts, principal, request.id))
        deadline = request.arrived + rooms.settings.exchange_timeout_s
        with (
            rooms.recorder.open() as entry,
            rooms.registry.track(principal.prefix, deadline) as running,
            running.scope,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rooms.recorder.commit_when_known, entry)
                try:
                    await self._answer(account, entry, running, nursery)
                finally:
                    self._delivery.unwatch()
                    self._heartbeat.cancel()
                    account.conversation.close()

    async def _answer(self, account: Account, entry: Entry, running: Running, nursery: trio.Nursery) -> None:
        delivery = self._delivery
        try:
            with account.concluding(running):
                asked = await self._read(account)
                delivery.watch(running.stop)
                ending = await self._govern(account, asked, running, nursery)
            account.conclude(None)
        except GatewayError as error:
            with self._recorded(account, entry, running):
                await self._refuse(error)
        except Exception:
            log.exception("exchange.failed", request_id=account.request.id)
            with self._recorded(account, entry, running):
                await self._refuse(GatewayError())
        except BaseException:
            with self._recorded(account, entry, running):
                await self._refuse(account.error or GatewayError())
            raise
        else:
            with self._recorded(account, entry, running):
                if delivery.started:
                    await delivery.finish(ending.body, account.conversation.taken)
                else:
                    await delivery.whole(
                        200, reply_headers(ending.content_type), ending.body, account.conversation.taken
                    )

    def _recorded(self, account: Account, entry: Entry, running: Running) -> trio.CancelScope:
        """Hand the row over; what is left is to tell the client, in the scope that is returned.

        It holds nothing but its connection by now. Where the exchange was stopped before, or in the very
        moment in which it came to its end, the last words get the clean-up's time.
        """
        settings = self._rooms.settings
        running.over = True
        running.scope.deadline = trio.current_time() + settings.exchange_timeout_s
        entry.finish(account.record())
        account.publish(self._rooms.metrics)
        if trio.current_effective_deadline() == -math.inf:
            return trio.CancelScope(shield=True, deadline=trio.current_time() + settings.cleanup_timeout_s)
        return trio.CancelScope()

    async def _refuse(self, error: GatewayError) -> None:
        """Tell the client, in its dialect, what went wrong: as a reply, or as the end of one that has begun."""
        if self._delivery.ended or isinstance(error, (ClientDisconnected, ClientStalled)):
            return
        if self._delivery.started and self._reply is not None:
            await self._delivery.finish(self._reply.error_tail(error))
        elif not self._delivery.started:
            await self._delivery.refuse(error)

    async def _read(self, account: Account) -> Asked:
        """What is asked for. What is wrong with it is held, to be told only after admission."""
        request, settings = self._request, self._rooms.settings
        if request.refusal is not None or not request.has_body:
            account.asked(request.argument, False)
            return Asked(None, request.refusal)
        if request.content_encoding not in (None, "", "identity", ZSTD):
            return Asked(None, UnsupportedEncoding())
        limit = min(settings.max_body_bytes, account.principal.max_body_bytes or settings.max_body_bytes)
        try:
            data = await self._delivery.body(request.content_length, limit, settings.body_timeout_s)
            if request.content_encoding == ZSTD:
                data = await self._inflate(data, limit)
        except (BodyTooLarge, BodyTimeout, InvalidRequest) as problem:
            return Asked(None, problem)
        call = await self._parse(data)
        account.asked(call.model, call.stream)
        return Asked(call, call.problem)

    async def _inflate(self, data: bytes, limit: int) -> bytes:
        size = declared_size(data)
        if size is not None and max(size, len(data)) < _LARGE_BODY_BYTES:
            return inflate(data, limit)
        # It is large, or may be: a few bytes can take as long to inflate as the largest body.
        return await trio.to_thread.run_sync(inflate, data, limit, limiter=self._rooms.threads)

    async def _parse(self, data: bytes) -> Call:
        parse = partial(parse_call, self._request.action, data, self._rooms.body_policy)
        if len(data) < _LARGE_BODY_BYTES:
            return parse()
        # A large body takes long enough to parse to hold up every other stream of this thread.
        return await trio.to_thread.run_sync(parse, limiter=self._rooms.threads)

    async def _govern(self, account: Account, asked: Asked, running: Running, nursery: trio.Nursery) -> Ending:
        """Admit the request, check what it asks for, and carry it out, all under its lease."""
        call = asked.runnable
        reservation = self._reservation(account.principal, call)
        ask = Ask(
            request_id=self._request.id,
            principal=account.principal,
            slot=self._request.inference,
            prompt_estimate=call.prompt_estimate if call is not None else 0,
            predict=reservation.wanted,
            predict_min=reservation.least,
        )
        async with self._rooms.admission.lease(ask, stub=account.stub(), final_row=account.row) as lease:
            lease.on_lost = lambda: running.stop(LeaseLost())
            account.charged(lease.budget_day)
            self._delivery.add_headers(lease.headers)
            with account.concluding(running):
                try:
                    predict = lease.predict if reservation.written else None
                    ending = await self._carry_out(account, asked, predict, running, nursery)
                finally:
                    lease.used(account.counts.prompt, account.counts.completion)
            account.conclude(None)
        return ending

    def _reservation(self, principal: Principal, call: Call | None) -> Reservation:
        if call is None:
            return Reservation(0, 0, False)
        cap = self._rooms.settings.default_max_predict
        return reserve(principal, generates=call.generates, asked=call.asked_predict, default_cap=cap)

    async def _carry_out(
        self, account: Account, asked: Asked, predict: int | None, running: Running, nursery: trio.Nursery
    ) -> Ending:
        rooms, request, call = self._rooms, self._request, asked.call
        if call is None or call.model is None:
            if asked.problem is not None:
                raise asked.problem
            if request.argument is not None:
                account.served = rooms.discovery.resolve(account.principal, request.argument)
                return Ending(_JSON, rooms.reads.model(account.served, account.principal))
            return Ending(_JSON, await rooms.reads.answer(request.action, account.principal))
        account.served = model = rooms.discovery.resolve(account.principal, call.model)
        if asked.problem is not None:
            raise asked.problem
        body = call.upstream_body(model, predict, thinks=rooms.discovery.thinks(model))
        if not request.inference:
            return Ending(_JSON, await rooms.reads.show(body))
        relay = Relay(call, self._delivery, account, running, rooms.threads)
        self._reply = relay.reply
        if relay.reply.heartbeat:
            nursery.start_soon(self._keep_alive, relay)
        try:
            return await relay.run(rooms.upstream, rooms.breaker, body)
        finally:
            self._heartbeat.cancel()

    async def _keep_alive(self, relay: Relay) -> None:
        with self._heartbeat:
            await relay.keep_alive(self._rooms.settings.sse_heartbeat_s)
