"""The alarms: sound PromQL over metrics that exist, each with a section of the runbook."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sights import NOW, ViewOfFleet, beat, view_of

from runtime.cli.app import app
from runtime.config import Settings
from runtime.counters import Board, Counter
from runtime.fleet_watch import FleetWatch
from runtime.membership import State
from runtime.metrics import Metrics, PodState

ROOT = Path(__file__).parents[2]
SEVERITIES: Final = {"critical", "warning", "info"}
DURATION: Final = r"\d+(?:ms|[smhdw])"
WORDS: Final = {
    *("absent", "and", "by", "changes", "deriv", "histogram_quantile", "increase", "max", "min", "on"),
    *("or", "quantile", "rate", "sum", "unless"),
}
"""Of PromQL, what the rules use."""
OF_THE_SCRAPE: Final = {"namespace", "job", "instance", "pod", "le", "worker"}


def rules() -> list[dict[str, Any]]:
    tree = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    return [rule for group in tree["groups"] for rule in group["rules"]]


RULES = rules()
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])


class Pod:
    """What a view belongs to."""

    settings = Settings(partitions=4, pod_uid="uid-a")

    def __init__(self) -> None:
        self.view: ViewOfFleet | None = view_of(now_s=100.0)


@cache
def exposed() -> dict[str, list[dict[str, str]]]:
    """The labels of each sample by its name, of a pod that has something to tell of everything."""
    pod = Pod()
    assert pod.view is not None
    pod.view.see_beat(beat("c", None, State.STANDBY, warm=True), age_s=0.0, now_s=100.0)
    board = Board.create(1, 4)
    board.worker(0).set_epoch(0, 5)
    board.worker(0).set(Counter.PROGRESS_AT_NS, 1)
    state = PodState("pod-a", "stable", "r1", lease_renewed_ns=1)
    watch = FleetWatch(pod, clock=lambda: 100.0, now=lambda: NOW)
    text = Metrics(board, state, lambda: 100 * 10**9, watch=watch).render().decode()
    board.close()
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


@every_rule
def test_an_alarm_watches_metrics_that_a_pod_has_by_labels_that_they_have(rule: dict[str, Any]) -> None:
    expression = rule["expr"]
    selectors = re.findall(r"\b((?:defender|process)_\w+)(?:\{([^}]*)\})?", expression)
    assert selectors, "it watches nothing"
    for name, matchers in selectors:
        assert name in exposed(), f"no pod has {name}"
        wanted = dict(re.findall(r'(\w+)="([^"]*)"', matchers))
        assert any(wanted.items() <= labels.items() for labels in exposed()[name]), f"{name} {wanted}"
    rest = re.sub(
        rf"\{{[^}}]*\}}|\[{DURATION}\]|offset {DURATION}|\b(?:defender|process)_\w+", " ", expression
    )
    words = set(re.findall(r"[a-zA-Z_]\w*", rest))
    assert words <= WORDS | OF_THE_SCRAPE, words - WORDS - OF_THE_SCRAPE


@every_rule
def test_an_alarm_is_balanced_has_a_severity_a_summary_and_a_section_of_the_runbook(
    rule: dict[str, Any],
) -> None:
    expression = rule["expr"]
    depth = 0
    for character in expression:
        depth += {"(": 1, ")": -1}.get(character, 0)
        assert depth >= 0, expression
    assert depth == 0, expression
    assert rule["labels"]["severity"] in SEVERITIES
    assert re.fullmatch(DURATION, rule.get("for", "0s"))
    summary = rule["annotations"]["summary"]
    assert summary.count("{{") == summary.count("}}")
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert page == "docs/runbook.md"
    assert anchor in anchors()


@every_rule
def test_an_alarm_is_parsed_by_prometheus_own_grammar(rule: dict[str, Any]) -> None:
    if importlib.util.find_spec("promql_parser") is None:
        pytest.skip("promql-parser is not installed")
    importlib.import_module("promql_parser").parse(rule["expr"])


@cache
def anchors() -> list[str]:
    """Of the runbook's headings, as a browser of the repository makes them."""
    text = (ROOT / "docs/runbook.md").read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_every_section_of_the_runbook_on_an_alarm_has_its_alarm() -> None:
    text = (ROOT / "docs/runbook.md").read_text()
    told = re.findall(r"^### (Defender\w+)$", text, re.MULTILINE)
    assert sorted(told) == sorted(rule["alert"] for rule in RULES)
    assert len(told) == len(set(told))


def test_what_stops_the_judging_and_hides_is_alarmed_within_a_minute() -> None:
    hidden = {"DefenderPartitionsUnowned", "DefenderPartitionsDoublyOwned", "DefenderHistoryDown"}
    found = {rule["alert"]: (rule["for"], rule["labels"]["severity"]) for rule in RULES if "for" in rule}
    assert {found[name] for name in hidden} == {("1m", "critical")}


def options_of(command: Any) -> set[str]:
    """Those of a command, or of all commands of a group."""
    found = {option for one in command.params for option in one.opts}
    for one in getattr(command, "commands", {}).values():
        found |= options_of(one)
    return found


def test_the_runbook_has_a_section_for_each_command_of_operators_and_names_only_options_that_exist() -> None:
    text = (ROOT / "docs/runbook.md").read_text()
    told = set(re.findall(r"^### defender (\w+)$", text, re.MULTILINE))
    commands = typer.main.get_group(app).commands
    assert told == commands.keys() - {
        "run",
        "demo",
        "chart",
        "publish",
        "verdicts",
        "alarms",
        "rejected",
        "specs",
        "config",
        "schema",
        "warm",
    }
    declared = {option for name in told for option in options_of(commands[name])}
    of_defender = re.sub(r"`kubectl [^`]*`|^kubectl .*$", "", text, flags=re.MULTILINE)
    named = set(re.findall(r"--[a-z][a-z-]*", of_defender))
    assert named <= declared, named - declared
