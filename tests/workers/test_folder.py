"""The folder that a parent shares with its workers."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from neuronetz.telemetry.metrics import Metrics
from neuronetz.workers import folder
from neuronetz.workers.folder import collect_from, forget, in_use, remove_if_unused, shared_folder

COUNTS = """
import sys
from pathlib import Path
from neuronetz.workers.folder import count_into
count_into(Path(sys.argv[1]), int(sys.argv[2]))
from neuronetz.telemetry.metrics import Metrics
metrics = Metrics()
metrics.unauthenticated.inc()
metrics.requests.labels("acme", "tiny", "200").inc(2)
metrics.duration.labels("acme", "tiny").observe(0.2)
metrics.leases.set(3)
metrics.deny_mode.set(int(sys.argv[2]))
metrics.models.set(int(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(folder, "_place", lambda: tmp_path)
    return tmp_path


def count(where: Path, number: int) -> None:
    subprocess.run([sys.executable, "-c", COUNTS, str(where), str(number)], check=True, timeout=60)


def read(where: Path) -> dict[str, float]:
    registry = CollectorRegistry()
    collect_from(where, registry)
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_counts_of_all_processes_add_up_and_a_dead_workers_gauges_vanish() -> None:
    requests = 'gateway_requests_total{model="tiny",status="200",tenant="acme"}'
    bucket = 'gateway_request_duration_seconds_bucket{le="0.25",model="tiny",tenant="acme"}'
    with shared_folder(2) as where:
        count(where, 0)
        count(where, 1)
        both = read(where)
        assert (both[requests], both[bucket], both["gateway_unauthenticated_total"]) == (4, 2, 2)
        assert (both["gateway_leases"], both["gateway_audit_deny_mode"], both["gateway_models_discovered"]) == (
            6,
            1,
            0,
        )
        forget(where, 1)
        one = read(where)
        assert (one[requests], one[bucket]) == (4, 2)
        assert (one["gateway_leases"], one["gateway_audit_deny_mode"]) == (3, 0)
        count(where, 1)
        again = read(where)
        assert (again[requests], again[bucket], again["gateway_leases"]) == (6, 3, 6)
        assert len(list(where.glob("counter_*.db"))) == 2, "a replacement does not add a file"


def test_every_gauge_says_what_several_workers_values_make_together_and_is_of_the_living_alone() -> None:
    gauges = [metric for metric in vars(Metrics()).values() if isinstance(metric, Gauge)]
    assert gauges
    for gauge in gauges:
        assert gauge._multiprocess_mode in ("livesum", "livemin", "livemax"), gauge


def test_the_folder_is_private_and_gone_afterwards() -> None:
    with shared_folder(1) as where:
        assert where.stat().st_mode & 0o777 == 0o700
    assert not where.exists()


def test_a_folder_is_removed_once_nobody_uses_it(place: Path) -> None:
    left = place / "neuronetz-workers-left"
    left.mkdir()
    remove_if_unused(left)
    assert left.exists(), "it may just have been made"
    (left / "connections").write_bytes(b"x")
    with in_use(left):
        with shared_folder(1):
            assert left.exists()
        remove_if_unused(left)
        assert left.exists()
    with shared_folder(1) as other:
        assert not left.exists()
        remove_if_unused(other)
        assert other.exists()
