"""What Prometheus finds at a gateway: the series of every metric, with their labels."""

from prometheus_client import CollectorRegistry

from neuronetz.telemetry.metrics import Metrics
from neuronetz.workers.parent import own_metrics

# Labels that Prometheus itself puts on what it scrapes.
FROM_SCRAPING = {"job", "instance"}


def exposed() -> dict[str, set[str]]:
    """The labels of every metric, by the names of its series."""
    metrics = Metrics()
    registry = CollectorRegistry()
    own_metrics(registry)
    found: dict[str, set[str]] = {"up": set()}
    for collector in (*metrics.registry._collector_to_names, *registry._collector_to_names):
        for name in (
            *metrics.registry._collector_to_names.get(collector, ()),
            *registry._collector_to_names.get(collector, ()),
        ):
            labels = set(collector._labelnames)  # type: ignore[attr-defined]
            found[name] = labels | ({"le"} if name.endswith("_bucket") else set())
    return found
