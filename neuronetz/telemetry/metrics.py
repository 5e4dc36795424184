"""The metrics, as one object that owns its registry, so that tests and processes do not share counters."""

from functools import cached_property

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# Around G1's bound, a tenth of a second.
_UNWINDINGS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LAGS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60, 300, 900)
_DURATIONS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

# A model that is not in the tenant's effective set never becomes a label value: a client could otherwise
# make time series without end.
NO_MODEL = "none"

# What cuts an exchange short, by the name that its audit row has for it.
CAUSES = (
    "client_disconnected",
    "client_stalled",
    "deadline_exceeded",
    "revoked",
    "shutdown",
    "lease_lost",
    "internal_error",
)
# All else that ends an exchange which holds a lease: the upstream, or a refusal after admission.
OTHER_CAUSE = "other"


class ModelSeries:
    """The series of one tenant and model, looked up once: a look-up by labels takes a lock for each."""

    def __init__(self, metrics: "Metrics", tenant: str, model: str) -> None:
        self.duration = metrics.duration.labels(tenant, model)
        self._requests = metrics.requests
        self._first_token = metrics.first_token
        self._tokens = metrics.tokens
        self._names = (tenant, model)
        self._answered: dict[int, Counter] = {}

    def answered(self, status: int) -> Counter:
        """Of requests with this status."""
        series = self._answered.get(status)
        if series is None:
            series = self._answered[status] = self._requests.labels(*self._names, str(status))
        return series

    # Made when first needed: a series that is there says that there was such a thing.
    @cached_property
    def first_token(self) -> Histogram:
        return self._first_token.labels(*self._names)

    @cached_property
    def prompt(self) -> Counter:
        return self._tokens.labels(*self._names, "prompt")

    @cached_property
    def completion(self) -> Counter:
        return self._tokens.labels(*self._names, "completion")


class Metrics:
    """neuronetz's metrics. Labels hold only names from PostgreSQL or from the discovered set.

    A gauge's ``multiprocess_mode`` says what several workers' values make together: a sum, or where each
    says the same, the worst. All are of living workers alone.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of_models: dict[tuple[str, str], ModelSeries] = {}
        self.requests = Counter(
            "gateway_requests_total", "Requests answered.", ("tenant", "model", "status"), registry=self.registry
        )
        self.tokens = Counter(
            "gateway_tokens_total",
            "Tokens of prompts and completions.",
            ("tenant", "model", "direction"),
            registry=self.registry,
        )
        self.duration = Histogram(
            "gateway_request_duration_seconds",
            "From the request's arrival to its outcome.",
            ("tenant", "model"),
            buckets=_DURATIONS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "gateway_first_token_seconds",
            "Of streams, from the request's arrival to the first token being passed on.",
            ("tenant", "model"),
            buckets=_DURATIONS,
            registry=self.registry,
        )
        self.unauthenticated = Counter(
            "gateway_unauthenticated_total",
            "Requests refused with 401; they leave no audit row.",
            registry=self.registry,
        )
        cancellations = Counter(
            "gateway_cancellations_total", "Exchanges cut short, by cause.", ("cause",), registry=self.registry
        )
        unwinding = Histogram(
            "gateway_unwinding_seconds",
            "From what ended an admitted exchange (a cancellation or an error) to its lease being settled.",
            ("cause",),
            buckets=_UNWINDINGS,
            registry=self.registry,
        )
        # Each there from the start: a first event is an increase only of a series that was there before it.
        self.cancellations = {cause: cancellations.labels(cause) for cause in CAUSES}
        self.unwinding = {cause: unwinding.labels(cause) for cause in (*CAUSES, OTHER_CAUSE)}
        self.connections = Gauge(
            "gateway_connections", "Connections of clients.", multiprocess_mode="livesum", registry=self.registry
        )
        self.connections_limit = Gauge(
            "gateway_connections_limit",
            "Connections of clients that are taken at once.",
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        self._of_admission()
        self._of_audit()
        self._of_services()

    def _of_admission(self) -> None:
        self.leases = Gauge("gateway_leases", "Leases held.", multiprocess_mode="livesum", registry=self.registry)
        self.alive = Gauge(
            "gateway_alive",
            "1 while the heartbeat is recent enough to admit requests.",
            multiprocess_mode="livemin",
            registry=self.registry,
        )
        self.heartbeat_age = Gauge(
            "gateway_heartbeat_age_seconds",
            "Since the last heartbeat that Redis took.",
            multiprocess_mode="livemax",
            registry=self.registry,
        )
        self.heartbeat_limit = Gauge(
            "gateway_heartbeat_limit_seconds",
            "The heartbeat's age from which nothing is admitted.",
            multiprocess_mode="livemax",
            registry=self.registry,
        )
        self.reaped_instances = Counter(
            "gateway_reaped_instances_total", "Dead instances taken over.", registry=self.registry
        )
        self.reaped_leases = Counter(
            "gateway_reaped_leases_total", "Leases of dead instances taken over.", registry=self.registry
        )
        self.unsettled = Gauge(
            "gateway_settles_pending",
            "Settles that Redis has not taken yet.",
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        self.ledger_drift = Gauge(
            "gateway_ledger_drift_tokens",
            "Tokens by which budget counters were last found to differ from the ledger.",
            ("scope",),
            multiprocess_mode="livemax",
            registry=self.registry,
        )
        self.ledger_repairs = Counter(
            "gateway_ledger_repairs_total", "Budget counters set to what the ledger says.", registry=self.registry
        )
        self.overspent = Gauge(
            "gateway_budget_overspent_tokens",
            "The most tokens by which a budget was last found to be overspent.",
            ("scope",),
            multiprocess_mode="livemax",
            registry=self.registry,
        )

    def _of_audit(self) -> None:
        self.audit_committed = Counter(
            "gateway_audit_committed_total", "Audit rows that PostgreSQL took.", registry=self.registry
        )
        self.ring = Gauge(
            "gateway_audit_ring_rows",
            "Audit rows not yet in PostgreSQL.",
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        self.ring_capacity = Gauge(
            "gateway_audit_ring_capacity",
            "Audit rows that may wait before deny mode.",
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        self.audit_rejected = Counter(
            "gateway_audit_rejected_total",
            "Audit rows that PostgreSQL refused for their data; they are lost.",
            registry=self.registry,
        )
        self.audit_failing = Gauge(
            "gateway_audit_failing",
            "1 while audit rows cannot be written.",
            multiprocess_mode="livemax",
            registry=self.registry,
        )
        self.deny_mode = Gauge(
            "gateway_audit_deny_mode",
            "1 while audit refuses requests.",
            multiprocess_mode="livemax",
            registry=self.registry,
        )
        self.prompts_waiting = Gauge(
            "gateway_prompts_waiting",
            "Rows of the prompt log not yet in PostgreSQL.",
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        self.prompts_dropped = Counter(
            "gateway_prompts_dropped_total",
            "Rows of the prompt log that were given up.",
            registry=self.registry,
        )

    def _of_services(self) -> None:
        self.breaker = Gauge(
            "gateway_breaker_state",
            "1 for the circuit breaker's current state.",
            ("state",),
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        self.service_up = Gauge(
            "gateway_service_up",
            "1 while a supervised service runs and has not failed of late.",
            ("service",),
            multiprocess_mode="livemin",
            registry=self.registry,
        )
        self.service_failing = Gauge(
            "gateway_service_failing",
            "1 for a supervised service that failed of late, with the class of the failure.",
            ("service", "reason"),
            multiprocess_mode="livemax",
            registry=self.registry,
        )
        self.service_restarts = Gauge(
            "gateway_service_restarts",
            "Restarts of a supervised service.",
            ("service",),
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        self.models = Gauge(
            "gateway_models_discovered",
            "Models known to be installed.",
            multiprocess_mode="livemin",
            registry=self.registry,
        )
        self.models_fresh = Gauge(
            "gateway_models_fresh",
            "1 while the set of installed models is recent enough to be relied on.",
            multiprocess_mode="livemin",
            registry=self.registry,
        )
        self.revocation_lag = Histogram(
            "gateway_revocation_lag_seconds",
            "From a revocation's row to its key being refused here and its streams being cut.",
            buckets=_LAGS,
            registry=self.registry,
        )
        self.draining = Gauge(
            "gateway_draining_seconds",
            "Since the drain began; 0 before it.",
            multiprocess_mode="livemax",
            registry=self.registry,
        )
        self.drain_limit = Gauge(
            "gateway_drain_limit_seconds",
            "How long a drain may take, the end of what is cut short included.",
            multiprocess_mode="livemax",
            registry=self.registry,
        )

    def of(self, tenant: str, model: str) -> ModelSeries:
        """The series of a tenant and a model, both of them names that may become labels."""
        series = self._of_models.get((tenant, model))
        if series is None:
            series = self._of_models[tenant, model] = ModelSeries(self, tenant, model)
        return series

    def exposition(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self.registry)
