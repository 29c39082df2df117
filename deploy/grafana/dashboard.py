"""Makes Grafana's dashboard of a fleet, defender.json; the JSON is never edited by hand.

    python deploy/grafana/dashboard.py > deploy/grafana/defender.json

A panel is a title, a unit, what it tells, and its queries. The filter is by namespace and job; what all pods
say alike (their view of the fleet) is asked of the one that sees most.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

SCHEMA: Final = 39
"""Of Grafana 10.4 and later."""
WIDTH: Final = 24
HEIGHT: Final = 7
OF: Final = 'namespace="$namespace",job="$job"'
RUNBOOK: Final = "docs/runbook.md"


class Panel(NamedTuple):
    title: str
    unit: str
    what: str
    queries: tuple[tuple[str, str], ...]
    """(PromQL, legend); <of> stands for the filter."""
    alarms: tuple[str, ...] = ()
    """Whose sections of the runbook say what to do."""
    kind: str = "timeseries"
    width: int = 8
    red_above: float | None = None


def rate(name: str, by: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({name}{{<of>}}[$__rate_interval]))"


def quantile(share: float, histogram: str) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate({histogram}_bucket{{<of>}}[$__rate_interval])))"


def latency(histogram: str) -> tuple[tuple[str, str], ...]:
    return tuple((quantile(share, histogram), f"p{share * 100:g}") for share in (0.5, 0.99))


ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Fleet": (
        Panel(
            "Pods", "none", "Pods that answer, by revision: an update shows as one giving way to the other.",
            (("count by (track, revision) (defender_info{<of>})", "{{track}} {{revision}}"),),
            ("DefenderNoneScraped",),
        ),
        Panel(
            "Holders of IDs", "none", "By state, as the fleet sees them.",
            (("max by (state) (defender_fleet_members{<of>})", "{{state}}"),),
            ("DefenderSilent", "DefenderVacancy"),
        ),
        Panel(
            "Standbys", "none", "Who takes over when one dies; warm ones at once.",
            (("max by (warm) (defender_fleet_standbys{<of>})", "warm: {{warm}}"),),
        ),
        Panel(
            "Leaders", "none", "One. None: joins and deaths wait, judging goes on.",
            (("sum(defender_leader{<of>})", "leaders"),), ("DefenderNoLeader", "DefenderTwoLeaders"),
            "stat", 4,
        ),
        Panel(
            "Ring's version", "none", "Each change of the ring, by whatever caused it, is one more.",
            (("max(defender_ring_version{<of>})", "version"),), (), "stat", 4,
        ),
        Panel(
            "Frozen", "none", "1: an operator said so, and the ring does not change.",
            (("max(defender_frozen{<of>})", "frozen"),), ("DefenderFrozen",), "stat", 4, 0.5,
        ),
        Panel(
            "Mass loss", "none", "1: so many are silent that nobody is declared dead.",
            (("max(defender_mass_loss{<of>})", "mass loss"),), ("DefenderMassLoss",), "stat", 4, 0.5,
        ),
        Panel(
            "Lease left", "s", "Of each pod's claim; a pod without any leaves with 76.",
            (("defender_lease_left_seconds{<of>}", "{{pod}}"),), (), "timeseries", 8,
        ),
    ),
    "Ring and handoffs": (
        Panel(
            "Partitions in trouble", "none", "Unowned, owned twice, or owned and not served.",
            (
                ("max(defender_partitions_unowned{<of>})", "unowned"),
                ("max(defender_partitions_doubly_owned{<of>})", "doubly owned"),
                ("max(defender_partitions_unserved{<of>})", "unserved"),
            ),
            ("DefenderPartitionsUnowned", "DefenderPartitionsDoublyOwned", "DefenderPartitionsUnserved"),
        ),
        Panel(
            "Partitions a pod", "none", "Shares of the ring.",
            (("defender_partitions_owned{<of>}", "{{pod}}"),),
        ),
        Panel(
            "Partitions on the move", "none", "Handed over at the moment.",
            (("max(defender_partitions_moving{<of>})", "moving"),),
        ),
        Panel("Handoffs", "ops", "By outcome.",
              ((rate("defender_handoffs_total", "outcome"), "{{outcome}}"),)),
        Panel("Handoff, from begin to end", "s", "Warm ones take what is left to copy.",
              latency("defender_handoff_seconds")),
        Panel("Unattended", "s", "Without anybody who judges, a handoff or a takeover.",
              latency("defender_unattended_seconds")),
    ),
    "Lag and latency": (
        Panel(
            "Reports that wait", "none", "In the stream, all partitions; and the partition with most.",
            (
                ("sum(defender_partition_lag{<of>})", "all"),
                ("max(defender_partition_lag{<of>})", "the longest"),
            ),
            ("DefenderLagGrows",),
        ),
        Panel("Receipt to verdict", "s", "From the server's receipt of a report to its stored verdict.",
              latency("defender_verdict_latency_seconds"), ("DefenderVerdictsSlow",)),
        Panel(
            "Throughput", "ops", "Reports in, verdicts out, samples judged.",
            (
                (rate("defender_reports_total"), "reports"),
                (rate("defender_verdicts_total"), "verdicts"),
                (rate("defender_samples_total"), "samples"),
            ),
        ),
    ),
    "Cache and history": (
        Panel(
            "Slots of the cache", "none", "Charts in memory, and room.",
            (("sum by (state) (defender_cache_slots{<of>})", "{{state}}"),),
        ),
        Panel(
            "Charts not in the cache", "ops", "Misses are read from the history; evictions make room.",
            (
                (rate("defender_cache_misses_total"), "misses"),
                (rate("defender_cache_evictions_total"), "evictions"),
            ),
        ),
        Panel(
            "Rebuild", "none", "Chambers whose history is still to be read.",
            (("sum(defender_rebuild_chambers_left{<of>})", "chambers left"),),
        ),
        Panel(
            "The history takes nothing", "none", "Workers that wait for it; reports wait in NATS.",
            (("sum(defender_history_down{<of>})", "workers"),), ("DefenderHistoryDown",), "stat", 8, 0.5,
        ),
        Panel("Append", "s", "A batch's, to the history.", (
                (
                    f"{rate('defender_history_append_seconds_sum')} / "
                    f"{rate('defender_history_append_seconds_count')}",
                    "mean",
                ),
            ),
              ("DefenderHistoryAppendsSlow",)),
        Panel("Retries", "ops", "Requests to the history that were sent again.",
              ((rate("defender_history_retries_total"), "retries"),), ("DefenderHistoryRetries",)),
    ),
    "Judging": (
        Panel("Alarms", "ops", "By event and severity.",
              ((rate("defender_chart_alarms_total", "event, severity"), "{{event}} {{severity}}"),), (),
              "timeseries", 12),
        Panel("Rejected", "ops", "By reason; each is in the stream REJECTED with its bytes.",
              ((rate("defender_rejected_total", "reason"), "{{reason}}"),), ("DefenderRejects",),
              "timeseries", 12),
    ),
    "Pods": (
        Panel("CPU", "none", "Cores, of the supervisor; its workers are the container's.",
              (("rate(process_cpu_seconds_total{<of>}[$__rate_interval]) and on (instance) defender_info",
                "{{instance}}"),)),
        Panel("Memory", "bytes", "Resident, of the supervisor.",
              (("process_resident_memory_bytes{<of>} and on (instance) defender_info", "{{instance}}"),)),
        Panel("Deaths of workers", "none", "In ten minutes.",
              (("sum by (pod) (increase(defender_worker_restarts_total{<of>}[10m]))", "{{pod}}"),),
              ("DefenderWorkersCrash",)),
    ),
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "uid": "defender-fleet",
        "title": "Defender: the fleet",
        "tags": ["defender"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": [_changes_of_the_ring()]},
        "templating": {"list": list(_variables())},
        "panels": list(_panels()),
    }


def _changes_of_the_ring() -> dict[str, Any]:
    return {
        "name": "the ring changes",
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "enable": True,
        "iconColor": "orange",
        "expr": f"changes(max(defender_ring_version{{{OF}}})[1m:10s]) > 0",
        "titleFormat": "ring",
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "data source"}
    filters = ""
    for name in ("namespace", "job"):
        yield {
            "name": name,
            "type": "query",
            "datasource": {"type": "prometheus", "uid": "$datasource"},
            "query": f"label_values(defender_info{{{filters}}}, {name})",
            "refresh": 2,
        }
        filters += f'{name}="${name}",'


def _panels() -> Iterator[dict[str, Any]]:
    y, number = 0, 1
    for row, panels in ROWS.items():
        yield {"id": number, "type": "row", "title": row, "gridPos": _at(0, y, WIDTH, 1), "panels": []}
        y, x, number = y + 1, 0, number + 1
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + HEIGHT
            yield _panel(panel, number, _at(x, y, panel.width, HEIGHT))
            x, number = x + panel.width, number + 1
        y += HEIGHT


def _at(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, number: int, at: dict[str, int]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red_above is not None:
        steps.append({"color": "red", "value": panel.red_above})
    told = [panel.what, *(f"Alarm {name}: {RUNBOOK}" for name in panel.alarms)]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": "\n\n".join(told),
        "gridPos": at,
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}}
        if panel.kind == "timeseries"
        else {"reduceOptions": {"calcs": ["lastNotNull"]}},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": query.replace("<of>", OF), "legendFormat": legend}
            for place, (query, legend) in enumerate(panel.queries)
        ],
    }


def text() -> str:
    """The file's."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(text(), end="")
