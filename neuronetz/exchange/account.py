"""What is known of one request: it becomes the audit row, the lease's stub and the metrics."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

import structlog
import trio

from neuronetz.audit.record import AuditRecord, encode
from neuronetz.dialects.call import Counts
from neuronetz.errors import GatewayError
from neuronetz.exchange.conversation import Conversation
from neuronetz.exchange.outcome import COMPLETED
from neuronetz.exchange.registry import Running
from neuronetz.exchange.request import Request
from neuronetz.policy import Principal
from neuronetz.telemetry.metrics import NO_MODEL, OTHER_CAUSE, Metrics

log = structlog.get_logger("neuronetz.exchange")

_ABANDONED = "abandoned"
_MODEL_NAME_LENGTH = 200


class Account:
    """One request's account. It is concluded once; what comes after the first conclusion changes nothing.

    ``model`` is what the client asked for (shortened, and without what no terminal should be shown),
    ``served`` the installed model it was given to.
    ``conversation`` is for the prompt log alone: nothing of it gets into the row.
    """

    def __init__(self, request: Request, principal: Principal, instance: str, conversation: Conversation) -> None:
        self.request = request
        self.principal = principal
        self.conversation = conversation
        self.model: str | None = None
        self.served: str | None = None
        self.stream = False
        self.counts = Counts(exact=True)
        self.budget_day: date = request.started_at.date()
        self.first_byte_at: float | None = None
        self._instance = instance
        self._ended: float | None = None
        self._final: AuditRecord | None = None
        self._admitted = False
        self._unwinding_since: float | None = None
        self._error: GatewayError | None = None

    @property
    def error(self) -> GatewayError | None:
        """Why it did not complete; None while it runs, and where it did."""
        return self._error

    def asked(self, model: str | None, stream: bool) -> None:
        """Note what the body, or the path, asks for."""
        self.model = "".join(filter(str.isprintable, model[:_MODEL_NAME_LENGTH])) if model is not None else None
        self.stream = stream

    def charged(self, day: date) -> None:
        """Note the UTC day whose ledger bears the tokens: the day that admission reserved them in."""
        self.budget_day = day
        self._admitted = True

    def first_byte(self) -> None:
        """Note that the client was sent its first byte."""
        if self.first_byte_at is None:
            self.first_byte_at = trio.current_time()

    def conclude(self, error: GatewayError | None) -> None:
        """Fix how it ended; None is success."""
        if self._ended is None:
            self._ended = trio.current_time()
            self._error = error

    @contextmanager
    def concluding(self, running: Running) -> Iterator[None]:
        """Whatever leaves the block concludes the account, and goes on as it is."""
        try:
            yield
        except BaseException as error:
            if self._ended is None:
                self._unwinding_since = running.since(error)
            self.conclude(running.reason_for(error))
            raise

    def stub(self) -> bytes:
        """The row that stands for this request should its process die before telling how it ended."""
        return encode(self._record(499, _ABANDONED, Counts()))

    def row(self) -> bytes:
        """The final row as it waits in Redis."""
        return encode(self.record())

    def record(self) -> AuditRecord:
        """The final row; once concluded, always the same."""
        if self._final is not None:
            return self._final
        error = self._error
        record = self._record(error.status if error else 200, error.outcome if error else COMPLETED, self.counts)
        if self._ended is not None:
            self._final = record
        return record

    def _record(self, status: int, outcome: str, counts: Counts) -> AuditRecord:
        request, principal = self.request, self.principal
        ended = self._ended if self._ended is not None else trio.current_time()
        return AuditRecord(
            request_id=request.id,
            started_at=request.started_at,
            tenant_id=principal.tenant_id,
            key_id=principal.key_id,
            endpoint=request.endpoint,
            dialect=request.dialect,
            model=self.served or self.model,
            stream=self.stream,
            status=status,
            outcome=outcome,
            prompt_tokens=counts.prompt,
            completion_tokens=counts.completion,
            tokens_exact=counts.exact,
            budget_day=self.budget_day,
            duration_ms=max(0, round((ended - request.arrived) * 1000)),
            first_byte_ms=(
                None
                if self.first_byte_at is None
                else max(0, round((self.first_byte_at - request.arrived) * 1000))
            ),
            client_ip=request.client_ip,
            instance=self._instance,
        )

    def publish(self, metrics: Metrics) -> None:
        """Count the request in the metrics and say in the log how it ended.

        To be called once its lease is settled, without a checkpoint in between: it takes the time of that.
        """
        record = self.record()
        tenant = self.principal.tenant
        series = metrics.of(tenant, self.served or NO_MODEL)
        series.answered(record.status).inc()
        series.duration.observe(record.duration_ms / 1000)
        if record.stream and record.first_byte_ms is not None:
            series.first_token.observe(record.first_byte_ms / 1000)
        if record.prompt_tokens:
            series.prompt.inc(record.prompt_tokens)
        if record.completion_tokens:
            series.completion.inc(record.completion_tokens)
        if self._error is not None:
            self._publish_ending(metrics, record.outcome)
        write = log.debug if self._error is None else log.info
        write(
            "request.ended",
            request_id=record.request_id,
            tenant=tenant,
            key=self.principal.prefix,
            endpoint=record.endpoint,
            status=record.status,
            outcome=record.outcome,
            duration_ms=record.duration_ms,
        )

    def _publish_ending(self, metrics: Metrics, outcome: str) -> None:
        if outcome in metrics.cancellations:
            metrics.cancellations[outcome].inc()
        if self._admitted and self._unwinding_since is not None:
            took_s = trio.current_time() - self._unwinding_since
            metrics.unwinding.get(outcome, metrics.unwinding[OTHER_CAUSE]).observe(took_s)
