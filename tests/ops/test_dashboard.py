"""The Grafana dashboard asks for metrics and labels that exist, and shows what operators must see."""

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from tests.ops import promql
from tests.ops.exposed import FROM_SCRAPING, exposed

DASHBOARD: dict[str, Any] = json.loads((Path(__file__).parents[2] / "ops/grafana/neuronetz.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
ASKING = [panel for panel in PANELS if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def expressions(panel: dict[str, Any]) -> list[Any]:
    """What a panel asks, parsed with Grafana's variables filled in."""
    filled = [target["expr"].replace("$__rate_interval", "5m") for target in panel["targets"]]
    return [promql_parser.parse(re.sub(r"\$(\w+)", ".*", text)) for text in filled]


def asked(panels: list[dict[str, Any]]) -> set[str]:
    return {
        each.name
        for panel in panels
        for parsed in map(expressions, [panel])
        for e in parsed
        for each in promql.selectors(e)
    }


@pytest.mark.parametrize("panel", ASKING, ids=lambda panel: panel["title"].replace(" ", "-"))
def test_a_panel_names_metrics_labels_and_variables_that_exist(panel: dict[str, Any]) -> None:
    known = exposed()
    assert panel["datasource"] == DATASOURCE
    for target, expression in zip(panel["targets"], expressions(panel), strict=True):
        assert target["datasource"] == DATASOURCE
        assert set(re.findall(r"\$(?!__)(\w+)", target["expr"])) <= set(VARIABLES)
        labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        for selector in promql.selectors(expression):
            assert selector.name in known
            for label, _, _ in promql.matchers_of(selector):
                assert label in known[selector.name] | FROM_SCRAPING
            assert labels <= known[selector.name] | FROM_SCRAPING
        grouped = re.search(r"\bby \(([^)]*)\)", target["expr"])
        assert labels <= set(re.split(r",\s*", grouped[1]) if grouped else ()), (
            "a legend's label is lost in the sum"
        )
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]


def test_every_metric_of_the_gateway_is_on_some_panel() -> None:
    histograms = re.compile(r"_(bucket|count|sum|created)$")
    series = {histograms.sub("", name) for name in exposed()} - {"up"}
    shown = {histograms.sub("", name) for name in asked(ASKING)}
    assert {name for name in series if name.endswith("_total") or f"{name}_total" not in series} == shown


def test_counters_are_shown_as_rates_and_gauges_as_they_are() -> None:
    for panel in ASKING:
        for target in panel["targets"]:
            for name in re.findall(r"gateway_\w+", target["expr"]):
                counting = name.endswith(("_total", "_bucket", "_count", "_sum"))
                assert bool(re.search(rf"(rate|increase)\({name}\{{", target["expr"])) == counting, name


def test_panels_have_ids_of_their_own_and_do_not_lie_on_each_other() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_the_datasource_is_chosen_and_not_written_down() -> None:
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert VARIABLES["datasource"]["query"] == "prometheus"
    for variable in VARIABLES.values():
        for name, label in re.findall(r"label_values\((\w+)[^)]*, (\w+)\)", variable.get("definition", "")):
            assert label in exposed()[name] | FROM_SCRAPING
