"""Grafana's dashboard: made by its generator, of metrics that a pod has, in PromQL that parses."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "defender.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OF_THE_SCRAPE = {"namespace", "job", "instance", "pod", "le"}
PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}
TOPICS = {"Fleet", "Ring and handoffs", "Lag and latency", "Cache and history", "Judging", "Pods"}

every_panel = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])


def module_at(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """The labels of each metric that a pod has."""
    sys.path.insert(0, str(ROOT / "tests" / "unit"))
    found = module_at(ROOT / "tests" / "unit" / "test_alerts.py").exposed()
    return {name: {label for labels in samples for label in labels} for name, samples in found.items()}


def test_the_file_is_what_the_generator_makes() -> None:
    made = module_at(GRAFANA / "dashboard.py").text()
    assert (GRAFANA / "defender.json").read_text() == made, (
        "python deploy/grafana/dashboard.py > defender.json"
    )


@every_panel
def test_a_panel_asks_for_metrics_that_exist_by_labels_that_they_have(
    panel: dict[str, Any], exposed: dict[str, set[str]]
) -> None:
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", "1m")
        promql_parser.parse(query)
        names = set(re.findall(r"\b(?:defender|process)_\w+", query))
        assert names
        assert names <= exposed.keys() | PROCESS, names - exposed.keys()
        known = OF_THE_SCRAPE.union(*(exposed.get(name, set()) for name in names))
        used = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert used | shown <= known, (used | shown) - known


def test_a_metric_that_is_none_is_found(exposed: dict[str, set[str]]) -> None:
    panel = {"targets": [{"expr": "sum(defender_reportz_total)", "legendFormat": ""}]}
    with pytest.raises(AssertionError, match="defender_reportz_total"):
        test_a_panel_asks_for_metrics_that_exist_by_labels_that_they_have(panel, exposed)


@every_panel
def test_a_panel_says_what_it_shows_and_in_what_unit(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 10
    assert panel["fieldConfig"]["defaults"]["unit"]
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    known = {rule["alert"] for group in alerts["groups"] for rule in group["rules"]}
    assert set(re.findall(r"Alarm (\w+)", panel["description"])) <= known


def test_panels_have_places_and_numbers_of_their_own() -> None:
    assert {panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"} == TOPICS
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    for one, other in combinations([panel["gridPos"] for panel in DASHBOARD["panels"]], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in DASHBOARD["panels"])
