"""The metrics, as one object that owns its registry, so that tests and processes do not share counters."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_DURATIONS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

# A model that is not in the tenant's effective set never becomes a label value: a client could otherwise
# make time series without end.
NO_MODEL = "none"


class Metrics:
    """neuronetz's metrics. Labels hold only names from PostgreSQL or from the discovered set.

    A gauge's ``multiprocess_mode`` says what several workers' values make together: a sum, or where each
    says the same, the worst. All are of living workers alone.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self.unauthenticated = Counter(
            "gateway_unauthenticated_total",
            "Requests refused with 401; they leave no audit row.",
            registry=self.registry,
        )
        self.cancellations = Counter(
            "gateway_cancellations_total", "Exchanges cut short, by cause.", ("cause",), registry=self.registry
        )
        self.connections = Gauge(
            "gateway_connections", "Connections of clients.", multiprocess_mode="livesum", registry=self.registry
        )
        self.leases = Gauge("gateway_leases", "Leases held.", multiprocess_mode="livesum", registry=self.registry)
        self.unsettled = Gauge(
            "gateway_settles_pending",
            "Settles that Redis has not taken yet.",
            multiprocess_mode="livesum",
            registry=self.registry,
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

    def exposition(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self.registry)
