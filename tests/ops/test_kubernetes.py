"""The Kubernetes manifests: valid, hardened, and only the gateway reaches Ollama."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from neuronetz.settings import Settings
from neuronetz.workers.parent import unwinding_s
from tests.ops.exposed import exposed

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "ops/kubernetes"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
OBJECTS = [each for path in FILES for each in yaml.safe_load_all(path.read_text())]
GATEWAY = {"app.kubernetes.io/name": "neuronetz"}
OLLAMA = {"app.kubernetes.io/name": "ollama"}


def one(kind: str, name: str) -> dict[str, Any]:
    [found] = [each for each in OBJECTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return dict(found)


PODS = {
    each["metadata"]["name"]: each["spec"]["template"]
    for each in OBJECTS
    if each["kind"] in ("Deployment", "StatefulSet", "Job")
}
POLICIES = [each["spec"] for each in OBJECTS if each["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_manifest_fits_kubernetes_schemas(path: Path) -> None:
    program = Path(sys.executable).with_name("kubernetes-validate")
    done = subprocess.run([program, "--strict", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_kustomization_lists_every_manifest_and_all_are_of_one_namespace() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == [path.name for path in FILES]
    assert {each["metadata"].get("namespace", each["metadata"]["name"]) for each in OBJECTS} == {
        kustomization["namespace"]
    }


@pytest.mark.parametrize("name", ["neuronetz", "neuronetz-migrate"])
def test_our_own_pods_are_hardened_and_may_write_nothing_but_tmp(name: str) -> None:
    pod = PODS[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    user = re.search(r"^USER (\d+):", (ROOT / "ops/Dockerfile").read_text(), re.MULTILINE)
    assert user
    assert pod["securityContext"]["runAsUser"] == int(user[1])
    [container] = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    assert "memory" in container["resources"]["limits"]


def test_secrets_are_referred_to_and_never_written_down() -> None:
    assert not [each for each in OBJECTS if each["kind"] == "Secret"]
    for name in ("neuronetz", "neuronetz-migrate"):
        [container] = PODS[name]["spec"]["containers"]
        for variable in container["env"]:
            assert set(variable["valueFrom"]) == {"secretKeyRef"}
    settings = one("ConfigMap", "neuronetz")["data"]
    assert not {"DATABASE_URL", "REDIS_URL"} & set(settings)
    secret = {variable["name"] for variable in PODS["neuronetz"]["spec"]["containers"][0]["env"]}
    assert secret == {"DATABASE_URL", "REDIS_URL"}


def settings_of_the_pod() -> Settings:
    given = {name.lower(): value for name, value in one("ConfigMap", "neuronetz")["data"].items()}
    assert set(given) <= set(Settings.model_fields)
    return Settings.load(database_url="postgresql://db", redis_url="redis://r", **given)


def test_there_is_time_for_the_whole_drain() -> None:
    pod = PODS["neuronetz"]["spec"]
    [container] = pod["containers"]
    [_, pause] = container["lifecycle"]["preStop"]["exec"]["command"]
    settings = settings_of_the_pod()
    needed = float(pause) + settings.drain_timeout_s + unwinding_s(settings) + 5
    assert pod["terminationGracePeriodSeconds"] > needed


def test_ports_and_probes_are_the_gateways() -> None:
    [container] = PODS["neuronetz"]["spec"]["containers"]
    settings = settings_of_the_pod()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings.listen_port, "metrics": settings.metrics_port}
    paths = {
        probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("readiness", "liveness", "startup")
    }
    assert paths == {"readiness": "/readyz", "liveness": "/healthz", "startup": "/healthz"}


def test_there_are_several_and_they_go_one_by_one() -> None:
    deployment = one("Deployment", "neuronetz")["spec"]
    scaler = one("HorizontalPodAutoscaler", "neuronetz")["spec"]
    budget = one("PodDisruptionBudget", "neuronetz")["spec"]
    assert deployment["replicas"] >= 2
    assert scaler["minReplicas"] >= 2
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert budget["maxUnavailable"] == 1
    labels = PODS["neuronetz"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"] == deployment["selector"]["matchLabels"] == labels == GATEWAY


def test_it_scales_by_leases_which_prometheus_adapter_makes_known() -> None:
    scaler = one("HorizontalPodAutoscaler", "neuronetz")["spec"]
    assert scaler["scaleTargetRef"]["name"] == "neuronetz"
    [metric] = scaler["metrics"]
    name = metric["pods"]["metric"]["name"]
    [rule] = yaml.safe_load((ROOT / "ops/prometheus/adapter.yml").read_text())["rules"]
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert name in exposed()


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "this test reads no other selector"
    return selector.get("matchLabels", {}).items() <= labels.items()


def may_enter(labels: dict[str, str], port: int, peer: dict[str, str]) -> bool:
    """Whether a pod of this namespace with the labels ``peer`` reaches the port, as Kubernetes adds policies up."""
    chosen = [
        each for each in POLICIES if selects(each["podSelector"], labels) and "Ingress" in each["policyTypes"]
    ]
    assert chosen, "no policy at all lets everybody in"
    return any(
        any(selects(source["podSelector"], peer) for source in rule["from"] if set(source) == {"podSelector"})
        and any(each["port"] == port for each in rule["ports"])
        for policy in chosen
        for rule in policy.get("ingress", [])
    )


def test_only_the_gateway_reaches_ollama() -> None:
    assert PODS["ollama"]["metadata"]["labels"] == OLLAMA
    assert may_enter(OLLAMA, 11434, GATEWAY)
    for stranger in ({}, OLLAMA, {"app.kubernetes.io/name": "neuronetz-migrate"}, {"app": "neuronetz"}):
        assert not may_enter(OLLAMA, 11434, stranger)
    # Nor from any other namespace or address, or at any other port.
    for policy in POLICIES:
        if selects(policy["podSelector"], OLLAMA):
            for rule in policy.get("ingress", []):
                assert rule["from"] == [{"podSelector": {"matchLabels": GATEWAY}}]
                assert rule["ports"] == [{"port": 11434, "protocol": "TCP"}]


def test_what_no_policy_names_is_denied() -> None:
    everything = [each for each in POLICIES if each["podSelector"] == {}]
    assert everything == [{"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}]
    assert not may_enter(GATEWAY, 8080, {})
    assert not may_enter(GATEWAY, 9464, OLLAMA)


def test_only_labelled_namespaces_reach_the_gateway_each_at_its_own_port() -> None:
    [policy] = [each for each in POLICIES if each["podSelector"] == {"matchLabels": GATEWAY}]
    doors = {
        rule["from"][0]["namespaceSelector"]["matchLabels"].popitem()[0]: [port["port"] for port in rule["ports"]]
        for rule in yaml.safe_load(yaml.safe_dump(policy["ingress"]))
        if len(rule["from"]) == 1
    }
    assert doors == {"neuronetz/ingress": [8080], "neuronetz/metrics": [9464]}
    assert len(policy["ingress"]) == 2
