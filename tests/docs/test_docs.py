"""What the documents say is what the code does."""

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from pydantic_core import PydanticUndefined

from neuronetz.doctor.examination import STEPS
from neuronetz.embedded.mock_options import MARKERS, MODELS
from neuronetz.settings import Settings
from neuronetz.telemetry.metrics import Metrics
from neuronetz.workers.parent import own_metrics, unwinding_s

ROOT = Path(__file__).parents[2]


def test_the_configuration_page_lists_every_setting_with_its_default() -> None:
    page = (ROOT / "docs/CONFIGURATION.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| ([^|]+) \|", page, re.MULTILINE))
    expected = {
        name.upper(): {PydanticUndefined: "required", (): "empty"}.get(field.default, f"`{field.default}`")
        for name, field in Settings.model_fields.items()
    }
    assert {name: value.strip() for name, value in rows.items()} == expected


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = [
        page for section in nav for entries in section.values() for entry in entries for page in entry.values()
    ]
    assert len(listed) == len(set(listed))
    assert set(listed) == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}


def test_the_page_of_metrics_lists_exactly_those_that_are_exposed() -> None:
    page = (ROOT / "docs/METRICS.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    listed = {name: (kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels in rows}
    own = CollectorRegistry()
    own_metrics(own)
    exposed = {}
    for registry in (Metrics().registry, own):
        for collector in registry._collector_to_names:
            [metric] = collector.describe()
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            exposed[name] = (metric.type, list(collector._labelnames))
    assert len(rows) == len(listed)
    assert listed == exposed


def test_the_doctors_page_lists_its_checks_in_their_order() -> None:
    page = (ROOT / "docs/DOCTOR.md").read_text()
    assert re.findall(r"^\| `([a-z ]+)` \|", page, re.MULTILINE) == [step.name for step in STEPS]


def test_the_mocks_page_names_every_marker_and_model() -> None:
    page = (ROOT / "docs/MOCK_OLLAMA.md").read_text()
    assert set(re.findall(r"\[\[(\w+):", page)) == set(MARKERS)
    assert [name for name in MODELS if f"`{name.removesuffix(':latest')}`" not in page] == []


@pytest.mark.parametrize("page", ["README.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))])
def test_links_to_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_paths_named_in_the_architecture_exist() -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text()
    for path in re.findall(r"`((?:neuronetz|tests|schema)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path


def test_files_and_variables_named_on_the_page_of_deployment_exist() -> None:
    page = (ROOT / "docs/DEPLOYMENT.md").read_text()
    made_there = {"ops/.env", "ops/gateway.env"}
    for path in set(re.findall(r"\bops/[\w./-]*\w", page)) - made_there:
        assert (ROOT / path).exists(), path
    used = re.findall(r"\{\$(\w+):([^}]*)\}", (ROOT / "Caddyfile").read_text())
    section = page.partition("## TLS")[2].partition("\n## ")[0]
    listed = {
        pair
        for names, defaults in re.findall(r"^\| (`[A-Z_`, ]+) \| ([^|]+) \|", section, re.MULTILINE)
        for pair in zip(re.findall(r"`(\w+)`", names), re.findall(r"`([^`]+)`", defaults), strict=True)
    }
    assert listed == set(used)


def test_the_readmes_recipes_exist() -> None:
    recipes = set(re.findall(r"^([a-z-]+)(?: \*args)?:", (ROOT / "justfile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?just ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test", "dev"} <= named <= recipes | {"lists"}


def test_the_environment_file_has_every_setting_with_its_default() -> None:
    found = dict(re.findall(r"^#?([A-Z0-9_]+)=(.*)$", (ROOT / "ops/neuronetz.env").read_text(), re.MULTILINE))
    assert set(found) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        if field.default is not PydanticUndefined:
            assert found[name.upper()] == ("" if field.default == () else str(field.default))


def test_the_service_stops_later_than_the_drain() -> None:
    unit = (ROOT / "ops/neuronetz.service").read_text()
    stop = int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[1])  # type: ignore[index]
    settings = Settings.load(database_url="postgresql://db", redis_url="redis://r", ollama_url="http://o")
    assert stop > settings.drain_timeout_s + unwinding_s(settings) + 5
