"""Every reason for which a request can be refused or cut short, as a type.

Rooms raise these; ``web.replies`` alone turns them into HTTP, in the caller's dialect. ``message`` is
what a client reads: it never holds upstream text, a host, a path, a secret or a prompt. ``outcome`` is
what the audit row says.
"""

from collections.abc import Mapping
from typing import ClassVar


class GatewayError(Exception):
    """A refusal with an HTTP status and a message that a client may read.

    ``retry_after``: seconds until another try may help, sent as ``Retry-After``; ``None`` sends none.
    ``headers``: further reply headers that belong to the refusal (the state of a limit).
    ``retryable`` is False where a retry cannot help; it becomes ``x-should-retry: false``.
    """

    status: ClassVar[int] = 500
    outcome: ClassVar[str] = "internal_error"
    default: ClassVar[str] = "internal error"
    retryable: ClassVar[bool] = True

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message or self.default)
        self.message = message or self.default
        self.retry_after = retry_after
        self.headers: Mapping[str, str] = headers or {}


class Unauthenticated(GatewayError):
    """No key, or not a valid one. Every cause gives the same bytes (G8)."""

    status = 401
    outcome = "unauthenticated"
    default = "invalid API key"


class RateLimited(GatewayError):
    status = 429
    outcome = "rate_limited"
    default = "rate limit exceeded: too many requests in the last 60 seconds"


class ConcurrencyLimited(GatewayError):
    status = 429
    outcome = "concurrency_limited"
    default = "concurrency limit exceeded: too many requests at once"


class BudgetExhausted(GatewayError):
    """Too little is left of a budget: only the next period, or an operator, can help."""

    status = 429
    outcome = "budget_exhausted"
    default = "token budget exhausted for this period"
    retryable = False


class BudgetReserved(BudgetExhausted):
    """Enough is left of a budget, but running requests have reserved it; they may give some of it back."""

    default = "token budget reserved by running requests"
    retryable = True


class ModelDenied(GatewayError):
    """Not installed and not permitted are one answer, to the byte (G9)."""

    status = 403
    outcome = "model_denied"
    default = "model not available for this key"


class EndpointBlocked(GatewayError):
    status = 403
    outcome = "endpoint_blocked"
    default = "endpoint not available through this gateway"


class NotFound(GatewayError):
    status = 404
    outcome = "not_found"
    default = "not found"


class MethodNotAllowed(GatewayError):
    status = 405
    outcome = "method_not_allowed"
    default = "method not allowed"

    def __init__(self, allow: tuple[str, ...]) -> None:
        super().__init__()
        self.allow = allow


class InvalidRequest(GatewayError):
    """The body is not one that this endpoint takes. ``param`` names the field, where there is one."""

    status = 400
    outcome = "invalid_request"
    default = "invalid request"

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BodyTooLarge(GatewayError):
    status = 413
    outcome = "body_too_large"
    default = "request body too large"


class BodyTimeout(GatewayError):
    status = 408
    outcome = "body_timeout"
    default = "request body not received in time"


class UnsupportedEncoding(GatewayError):
    status = 415
    outcome = "unsupported_encoding"
    default = "unsupported content encoding: send the body uncompressed, or compressed with zstd alone"

    def __init__(self) -> None:
        # RFC 9110, 15.5.16: what would have been taken.
        super().__init__(headers={"accept-encoding": "zstd"})


class UpstreamFailed(GatewayError):
    """Ollama refused the connection, broke off, answered 5xx or something that is no reply."""

    status = 502
    outcome = "upstream_error"
    default = "upstream failed"


class UpstreamErrored(UpstreamFailed):
    """Ollama answered 500. A body that passed our checks can still cause one (an image that does not decode)."""


class ReplyTooLarge(UpstreamFailed):
    """The reply is larger than it may be. The request asked for it, so it says nothing of the upstream."""


class UpstreamTimeout(GatewayError):
    status = 504
    outcome = "upstream_timeout"
    default = "upstream did not answer in time"


class UpstreamRejected(GatewayError):
    """Ollama answered 4xx: the request is at fault, not the upstream."""

    status = 400
    outcome = "upstream_rejected"
    default = "the model cannot do what this request asks for"


class UpstreamBusy(GatewayError):
    status = 503
    outcome = "upstream_busy"
    default = "upstream queue is full"


class BreakerOpen(GatewayError):
    status = 503
    outcome = "breaker_open"
    default = "upstream is failing: circuit open"


class DeadlineExceeded(GatewayError):
    """The whole exchange took longer than it may."""

    status = 504
    outcome = "deadline_exceeded"
    default = "request took longer than allowed"


class KeyRevoked(GatewayError):
    """The key was revoked while its request ran."""

    status = 401
    outcome = "revoked"
    default = "invalid API key"


class ShuttingDown(GatewayError):
    status = 503
    outcome = "shutdown"
    default = "gateway is shutting down"


class LeaseLost(GatewayError):
    """This process stood still for so long that others took it for dead, and gave its lease back."""

    status = 503
    outcome = "lease_lost"
    default = "request given up: the gateway was held up"


class Unavailable(GatewayError):
    """A store or a service that a decision needs cannot be reached: fail closed (G7)."""

    status = 503
    outcome = "unavailable"
    default = "service temporarily unavailable"

    def __init__(self, dependency: str, *, retry_after: float | None = 1.0) -> None:
        super().__init__(retry_after=retry_after)
        self.dependency = dependency


class AuditDenied(GatewayError):
    """Deny mode: audit rows cannot be written and the ring is full."""

    status = 503
    outcome = "audit_denied"
    default = "service temporarily unavailable"


class ClientDisconnected(GatewayError):
    """The client went away; nobody reads a reply to this. 499 is nginx's status for it."""

    status = 499
    outcome = "client_disconnected"
    default = "client closed the connection"


class ClientStalled(GatewayError):
    """The client stopped reading for longer than the write deadline."""

    status = 499
    outcome = "client_stalled"
    default = "client stopped reading"


class StoreUnavailable(Exception):
    """PostgreSQL or Redis did not answer, or not in time. ``store`` is ``postgres`` or ``redis``.

    ``sent`` is False only where it is certain that nothing of the call was, or will be, carried out.
    """

    def __init__(self, store: str, reason: str, *, sent: bool = True) -> None:
        super().__init__(f"{store}: {reason}")
        self.store = store
        self.reason = reason
        self.sent = sent


class SettingsError(Exception):
    """A setting is missing or wrong; the message is one line that names the variable."""
