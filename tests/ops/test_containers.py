"""The image and the compose files: read by the engine's own tools, and held to what they promise."""

import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from neuronetz.settings import Settings
from neuronetz.workers.folder import _DYNAMIC, _FIRST_PERSON
from neuronetz.workers.parent import unwinding_s

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"
DOCKERFILE = (OPS / "Dockerfile").read_text()
SECRETS = {"POSTGRES_PASSWORD": "one", "GATEWAY_PASSWORD": "two", "REDIS_PASSWORD": "three"}
OUR_OWN = ("gateway", "migrate")


def tool(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this environment's in the project's folder."""
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def composed(*files: str) -> dict[str, Any]:
    """The project as compose itself reads it, variables filled in and files merged."""
    chosen = [argument for file in files for argument in ("--file", f"ops/{file}")]
    done = tool("docker-compose", "--env-file", "/dev/null", *chosen, "config", **SECRETS)
    assert done.returncode == 0, done.stderr
    project: dict[str, Any] = yaml.safe_load(done.stdout)
    return project


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return composed("compose.yaml")


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    return composed("compose.yaml", "compose.demo.yaml")


def test_the_dockerfile_passes_its_linter() -> None:
    done = tool("hadolint", "--no-color", "ops/Dockerfile")
    assert done.returncode == 0, done.stdout


def test_the_image_takes_the_readmes_steps() -> None:
    readme = (ROOT / "README.md").read_text().partition("## Run it for real")[2]
    [install] = re.findall(r"^(pip install \.)", readme, re.MULTILINE)
    assert f"\nRUN {install}\n" in DOCKERFILE
    assert '\nCMD ["neuronetz", "serve"]\n' in DOCKERFILE
    assert re.search(r"^neuronetz serve", readme, re.MULTILINE)
    assert re.search(r"^neuronetz migrate", readme, re.MULTILINE)


def test_the_image_has_what_the_package_is_built_from_and_nothing_else() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    build = DOCKERFILE.rpartition("\nFROM ")[0]
    copied = {word for line in re.findall(r"^COPY (.+) \S+$", build, re.MULTILINE) for word in line.split()}
    assert copied == let_in
    assert all((ROOT / name).exists() for name in let_in)
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*built["packages"], *built["force-include"]} <= copied


def test_the_image_runs_as_nobody_in_particular_and_says_how_it_is() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    found = re.search(r"^USER (\d+):(\d+)$", last, re.MULTILINE)
    assert found
    # Neither a system's number nor systemd's: then workers meet in /tmp, which is what is mounted writable.
    assert int(found[1]) >= _FIRST_PERSON
    assert int(found[1]) not in _DYNAMIC
    assert re.search(r"^HEALTHCHECK .*\n    CMD \[", last, re.MULTILINE)
    assert "/healthz" in last
    assert "uv" not in last.split()


@pytest.mark.parametrize("file", ["compose.yaml", "compose.demo.yaml"])
def test_a_compose_file_fits_the_specification(file: str) -> None:
    done = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", f"ops/{file}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_yaml_is_tidy() -> None:
    done = tool("yamllint", "--strict", "--config-file", "ops/yamllint.yml", "ops")
    assert done.returncode == 0, done.stdout


def test_without_passwords_nothing_starts() -> None:
    for missing in SECRETS:
        rest = {name: value for name, value in SECRETS.items() if name != missing}
        done = tool("docker-compose", "--env-file", "/dev/null", "--file", "ops/compose.yaml", "config", **rest)
        assert done.returncode != 0
        assert missing in done.stderr


def test_the_example_names_every_variable_and_gives_no_password() -> None:
    used = set(re.findall(r"\$\{(\w+)", (OPS / "compose.yaml").read_text()))
    given = dict(re.findall(r"^#?(\w+)=(.*)$", (OPS / "example.env").read_text(), re.MULTILINE))
    assert set(given) == used
    assert all(given[name] == "" for name in SECRETS)


@pytest.mark.parametrize("which", ["project", "demo"])
def test_only_caddy_publishes_ports(which: str, request: pytest.FixtureRequest) -> None:
    services = request.getfixturevalue(which)["services"]
    assert set(services) == {"caddy", "gateway", "migrate", "postgres", "redis", "ollama"}
    assert [name for name, service in services.items() if service.get("ports")] == ["caddy"]
    published = {(port["target"], port["protocol"]) for port in services["caddy"]["ports"]}
    assert published == {(80, "tcp"), (443, "tcp"), (443, "udp")}


@pytest.mark.parametrize("which", ["project", "demo"])
def test_only_the_gateway_reaches_ollama_and_the_stores_have_no_way_out(
    which: str, request: pytest.FixtureRequest
) -> None:
    project = request.getfixturevalue(which)
    on: dict[str, set[str]] = {}
    for name, service in project["services"].items():
        for network in service["networks"]:
            on.setdefault(network, set()).add(name)
    assert on == {
        "public": {"caddy"},
        "downloads": {"ollama"},
        "edge": {"caddy", "gateway"},
        "models": {"gateway", "ollama"},
        "stores": {"gateway", "migrate", "postgres", "redis"},
    }
    inner = {name for name, network in project["networks"].items() if network.get("internal")}
    assert inner == {"edge", "models", "stores"}


def test_the_gateway_trusts_the_network_that_it_shares_with_caddy_alone(project: dict[str, Any]) -> None:
    [subnet] = [each["subnet"] for each in project["networks"]["edge"]["ipam"]["config"]]
    gateway = project["services"]["gateway"]["environment"]
    settings = Settings.load(**{name.lower(): value for name, value in gateway.items()})
    assert [str(network) for network in settings.trusted_proxies] == [subnet]
    assert settings.metrics_host == "127.0.0.1"


@pytest.mark.parametrize("name", OUR_OWN)
def test_our_own_containers_may_write_nothing_but_tmp_and_have_no_capabilities(
    project: dict[str, Any], name: str
) -> None:
    service = project["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    assert "volumes" not in service


def test_every_container_is_denied_new_privileges(project: dict[str, Any]) -> None:
    for service in project["services"].values():
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")


def test_the_gateway_starts_after_its_schema_and_stops_later_than_its_drain(project: dict[str, Any]) -> None:
    gateway = project["services"]["gateway"]
    assert gateway["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert project["services"]["migrate"]["command"] == ["neuronetz", "migrate"]
    found = re.fullmatch(r"(\d+)m(\d+)s", gateway["stop_grace_period"])
    assert found
    settings = Settings.load(database_url="postgresql://db", redis_url="redis://r", ollama_url="http://o")
    assert int(found[1]) * 60 + int(found[2]) > settings.drain_timeout_s + unwinding_s(settings) + 5


def test_redis_evicts_nothing_and_keeps_what_it_has(project: dict[str, Any]) -> None:
    command = project["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendonly"] == "yes"
    assert options["--requirepass"] == SECRETS["REDIS_PASSWORD"]


def test_the_demo_is_another_project_with_the_mock_for_ollama(
    demo: dict[str, Any], project: dict[str, Any]
) -> None:
    assert demo["name"] != project["name"]
    assert demo["services"]["ollama"]["command"][:2] == ["neuronetz", "mock-ollama"]
    assert demo["services"]["ollama"]["image"] == demo["services"]["gateway"]["image"]


def test_the_demos_script_knows_what_it_is_told(tmp_path: Path) -> None:
    script = tmp_path / "demo.sh"
    shutil.copy(OPS / "demo.sh", script)
    assert script.stat().st_mode & stat.S_IXUSR
    for arguments, code, words in ((["--down"], 0, "no demo is here"), (["--up"], 2, "usage")):
        done = subprocess.run([script, *arguments], capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout) == (code, "")
        assert words in done.stderr
    assert list(tmp_path.iterdir()) == [script]
