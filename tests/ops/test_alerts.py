"""Each alert fires when its guarantee is in danger and not otherwise, and names only metrics that exist."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.ops import promql
from tests.ops.exposed import FROM_SCRAPING, exposed

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "ops/prometheus"
GROUPS = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
TESTS = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
STEP_S = 15


def seconds(text: str) -> int:
    units = {"s": 1, "m": 60, "h": 3600}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([smh])", text))


def firing(test: dict[str, Any], rules: list[dict[str, Any]] = RULES) -> set[promql.Labels]:
    """What fires at the test's time, as Prometheus would find by evaluating each rule every 15 seconds."""
    samples: dict[promql.Labels, dict[int, float]] = {}
    for series in test["input_series"]:
        values = promql.values_of(series["values"])
        samples[promql.labels_of(series["series"])] = {
            n * STEP_S: v for n, v in enumerate(values) if v is not None
        }
    end = seconds(test["promql_expr_test"][0]["eval_time"])
    parsed = [(rule, promql_parser.parse(rule["expr"])) for rule in rules]
    since: dict[promql.Labels, int] = {}
    for at in range(0, end + 1, STEP_S):
        active: set[promql.Labels] = set()
        for rule, expression in parsed:
            vector = promql.evaluate(expression, samples, at)
            assert isinstance(vector, dict)
            for labels, value in vector.items():
                own = dict(labels) | rule.get("labels", {})
                if "record" in rule:
                    recorded = frozenset((own | {promql.NAME: rule["record"]}).items())
                    samples.setdefault(recorded, {})[at] = value
                    continue
                alert = frozenset((own | {promql.NAME: "ALERTS", "alertname": rule["alert"]}).items())
                active.add(alert)
                since.setdefault(alert, at)
        since = {alert: began for alert, began in since.items() if alert in active}
    patience = {rule["alert"]: seconds(rule.get("for", "0s")) for rule in rules if "alert" in rule}
    return {
        alert | {("alertstate", "firing")}
        for alert, began in since.items()
        if end - began >= patience[dict(alert)["alertname"]]
    }


def expected(test: dict[str, Any]) -> set[promql.Labels]:
    return {promql.labels_of(sample["labels"]) for sample in test["promql_expr_test"][0]["exp_samples"]}


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test["name"].replace(" ", "-"))
def test_what_fires_is_exactly_what_should(test: dict[str, Any]) -> None:
    assert firing(test) == expected(test)


def test_every_alert_is_seen_firing_and_seen_quiet_on_the_series_it_is_about() -> None:
    for rule in ALERTS:
        metrics = {s.name for s in promql.selectors(promql_parser.parse(rule["expr"]))}
        recorded = {r["record"]: r["expr"] for r in RULES if "record" in r}
        names = {s.name for m in metrics for s in promql.selectors(promql_parser.parse(recorded.get(m, m)))}
        about = [t for t in TESTS if names & {s["series"].partition("{")[0] for s in t["input_series"]}]
        fires = [t for t in TESTS if any(("alertname", rule["alert"]) in labels for labels in expected(t))]
        assert fires, rule["alert"]
        assert [t for t in about if t not in fires], rule["alert"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_rule_names_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    known = exposed() | {each["record"]: set() for each in RULES if "record" in each}
    for selector in promql.selectors(promql_parser.parse(rule["expr"])):
        assert selector.name in known
        for label, _, _ in promql.matchers_of(selector):
            assert label in known[selector.name] | FROM_SCRAPING


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^### (\w+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in [heading.lower() for heading in headings]
    assert anchor == rule["alert"].lower()


def test_the_page_of_alerts_tells_of_no_other() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/ALERTS.md").read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in ALERTS]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheuss_own_tool_agrees() -> None:
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
