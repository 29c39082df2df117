"""Metrics of a pod in Prometheus' text format, made from the board and the supervisor's state when asked.

Counts come from the workers' blocks of the `Board` and so survive a worker; what only the supervisor knows
comes from `PodState`; what the pod sees of the fleet is in `runtime.fleet_metrics`. One registry a `Metrics`,
nothing global.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from runtime import __version__
from runtime.counters import LATENCY_BOUNDS_MS, Board, Counter
from runtime.deletion_cost import DeletionCost, Outcome
from runtime.fleet_metrics import FleetCollector, HandoffCollector, Leading, LeadingCollector
from runtime.fleet_watch import FleetWatch
from runtime.tally import Tally

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


class Role(StrEnum):
    """What a defender is at the moment."""

    STARTING = "starting"
    STANDBY = "standby"
    HOLDER = "holder"
    DRAINING = "draining"


@dataclass(slots=True)
class PodState:
    """What the supervisor knows of itself; it writes, `Metrics` reads, both in one thread.

    ``lease_renewed_ns`` is the start of the request that renewed the lease last (CLOCK_MONOTONIC), 0 while
    none is held. ``rebuild_s`` is the time from the partitions' acquisition until all workers had rebuilt.
    ``tally`` counts what came and went; ``leader`` is the pod's candidate, None before it stands;
    ``deletion_cost`` keeps the pod's annotation.
    """

    pod: str
    track: str
    revision: str
    pod_uid: str = ""
    stable_id: str = ""
    role: Role = Role.STARTING
    lease_renewed_ns: int = 0
    rebuild_s: float = 0.0
    claims: int = 0
    renewals: int = 0
    epoch_changes: int = 0
    worker_restarts: dict[int, int] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    leader: Leading | None = None
    deletion_cost: DeletionCost | None = None

    def lease_age_s(self, now_ns: int) -> float | None:
        """Seconds since the lease was renewed, None while none is held."""
        return (now_ns - self.lease_renewed_ns) / 1e9 if self.lease_renewed_ns else None


_TOTALS: Final = (
    (Counter.REPORTS, "defender_reports", "Reports taken from the stream."),
    (Counter.SAMPLES, "defender_samples", "Samples judged."),
    (Counter.VERDICTS, "defender_verdicts", "Verdicts stored."),
    (Counter.ALARMS, "defender_alarms", "Alarms published."),
    (Counter.RESETS, "defender_resets", "Resets that began a new stage."),
    (Counter.BATCHES, "defender_batches", "Batches judged."),
    (Counter.SKIPPED, "defender_skipped", "Reports that had been published already."),
    (Counter.CACHE_HITS, "defender_cache_hits", "Charts found in the cache."),
    (Counter.CACHE_MISSES, "defender_cache_misses", "Charts not found in the cache."),
    (Counter.EVICTIONS, "defender_cache_evictions", "Charts that made room for others."),
    (Counter.HISTORY_READS, "defender_history_reads", "Reads of the history on a cache miss."),
    (Counter.HISTORY_ROWS, "defender_history_rows", "Reports stored in Cassandra."),
    (Counter.HISTORY_RETRIES, "defender_history_retries", "Requests to Cassandra that were sent again."),
    (
        Counter.HISTORY_REPAIRED,
        "defender_history_repaired",
        "Reports that Cassandra lacked and the stream of verdicts had.",
    ),
    (Counter.REBUILT_REPORTS, "defender_rebuilt_reports", "Reports read from the history to rebuild charts."),
    (Counter.TRANSFERRED, "defender_transferred_chambers", "Chambers copied from the memory of their owner."),
    (Counter.TRANSFERS_FAILED, "defender_transfers_failed", "Copies that the owner could not give."),
    (Counter.SESSIONS, "defender_nats_sessions", "NATS sessions that workers began."),
    (Counter.BYTES_IN, "defender_received_bytes", "Bytes of reports."),
    (Counter.BYTES_OUT, "defender_published_bytes", "Bytes of verdicts, alarms and rejections."),
    (Counter.KERNEL_MISSES, "defender_kernel_misses", "Kernels compiled for lack of a cached one."),
)
_WORKER_GAUGES: Final = (
    (Counter.CHAMBERS, "defender_worker_chambers", "Chambers that the worker knows."),
    (Counter.WAITING, "defender_worker_waiting", "Messages that wait for a read of the history."),
    (Counter.INBOX, "defender_worker_inbox", "Messages received and not yet judged."),
    (Counter.SPEC_REVISION, "defender_worker_spec_revision", "Revision of the chart specs in use."),
    (Counter.HISTORY_DOWN, "defender_history_down", "1 while the history takes nothing and reports wait."),
    (Counter.REBUILD_LEFT, "defender_rebuild_chambers_left", "Chambers still to be read from the history."),
)


class Metrics:
    """The metrics of one pod; `render` gives a scrape.

    *clock_ns* is CLOCK_MONOTONIC in ns, the clock of the lease and of the workers' progress. *refresh* brings
    *state* up to date, it is called before each scrape. Without *watch* nothing is told of the fleet.
    """

    content_type = CONTENT_TYPE

    def __init__(
        self,
        board: Board,
        state: PodState,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        refresh: Callable[[], None] = lambda: None,
        watch: FleetWatch | None = None,
    ) -> None:
        self._refresh = refresh
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_PodCollector(board, state, clock_ns))
        self._registry.register(HandoffCollector(lambda: state.tally))
        self._registry.register(LeadingCollector(lambda: state.leader))
        if watch is not None:
            self._registry.register(FleetCollector(watch))
        ProcessCollector(registry=self._registry)  # of the supervisor

    def render(self) -> bytes:
        self._refresh()
        return generate_latest(self._registry)


class _PodCollector(Collector):
    def __init__(self, board: Board, state: PodState, clock_ns: Callable[[], int]) -> None:
        self._board = board
        self._state = state
        self._clock_ns = clock_ns

    def collect(self) -> Iterable[Metric]:
        now_ns = self._clock_ns()
        yield from self._of_pod(now_ns)
        yield from self._totals()
        yield self._latency()
        yield self._appends()
        yield from self._of_partitions()
        yield from self._of_workers(now_ns)

    def _of_pod(self, now_ns: int) -> Iterator[Metric]:
        state = self._state
        labels = {
            "stable_id": state.stable_id,
            "pod": state.pod,
            "track": state.track,
            "revision": state.revision,
            "version": __version__,
        }
        yield InfoMetricFamily("defender", "Who this pod is.", labels)
        role = GaugeMetricFamily("defender_role", "1 for what the pod is at the moment.", labels=["role"])
        for each in Role:
            role.add_metric([each.value], float(each is state.role))
        yield role
        age_s = state.lease_age_s(now_ns)
        age = GaugeMetricFamily("defender_lease_age_seconds", "Time since the lease was renewed, if held.")
        left = GaugeMetricFamily(
            "defender_lease_left_seconds",
            "Time until the pod fences itself, if it holds an ID; 0 when fenced.",
        )
        if age_s is not None:
            age.add_metric([], age_s)
            left.add_metric([], max(0.0, (self._board.lease_deadline_ns - now_ns) / 1e9))
        yield age
        yield left
        yield _gauge("defender_rebuild_seconds", "Duration of the last rebuild of the pod.", state.rebuild_s)
        yield _total("defender_claims", "Stable IDs claimed.", state.claims)
        yield _total("defender_renewals", "Renewals of the lease.", state.renewals)
        yield _total(
            "defender_epoch_changes", "Partitions acquired, each by a new epoch.", state.epoch_changes
        )
        yield from self._of_annotation()

    def _of_annotation(self) -> Iterator[Metric]:
        kept = self._state.deletion_cost
        value = GaugeMetricFamily(
            "defender_pod_deletion_cost", "Of the pod's annotation; a scale-down takes the lowest first."
        )
        if kept is not None and kept.written is not None:
            value.add_metric([], kept.written)
        yield value
        requests = CounterMetricFamily(
            "defender_pod_deletion_cost_requests",
            "Requests to the API server to set the annotation.",
            labels=["outcome"],
        )
        for outcome in Outcome:
            requests.add_metric([outcome.value], kept.requests[outcome] if kept is not None else 0)
        yield requests

    def _totals(self) -> Iterator[Metric]:
        for counter, name, meaning in _TOTALS:
            yield _total(name, meaning, self._board.total(counter))
        rejected = CounterMetricFamily("defender_rejected", "Rejections by reason.", labels=["reason"])
        for reason, n in self._board.rejected().items():
            rejected.add_metric([reason.value], n)
        yield rejected
        told = CounterMetricFamily(
            "defender_chart_alarms",
            "Charts in alarms; the event is every where each signal is an alarm of its own.",
            labels=["event", "severity"],
        )
        for (event, severity), n in self._board.told().items():
            if event != "end" or severity == "info":
                told.add_metric([event or "every", severity], n)
        yield told

    def _latency(self) -> Metric:
        cumulative, sum_us = self._board.latency()
        bounds = [*(str(bound / 1000) for bound in LATENCY_BOUNDS_MS), "+Inf"]
        return HistogramMetricFamily(
            "defender_verdict_latency_seconds",
            "From a report's receipt by the server to its stored verdict.",
            buckets=list(zip(bounds, cumulative, strict=True)),
            sum_value=sum_us / 1e6,
        )

    def _appends(self) -> Metric:
        board = self._board
        return SummaryMetricFamily(
            "defender_history_append_seconds",
            "Duration of an append to the history: a batch's reports, between its verdicts and its acks.",
            count_value=board.total(Counter.HISTORY_APPENDS),
            sum_value=board.total(Counter.HISTORY_APPEND_US) / 1e6,
        )

    def _of_partitions(self) -> Iterator[Metric]:
        owned = self._board.partitions_owned()
        lag = GaugeMetricFamily("defender_partition_lag", "Messages not judged yet.", labels=["partition"])
        epoch = GaugeMetricFamily("defender_partition_epoch", "Epoch of an owned one.", labels=["partition"])
        for partition, (number, waiting) in owned.items():
            lag.add_metric([str(partition)], waiting)
            epoch.add_metric([str(partition)], number)
        yield lag
        yield epoch
        yield _gauge("defender_partitions_owned", "Partitions that the workers own.", len(owned))

    def _of_workers(self, now_ns: int) -> Iterator[Metric]:
        board = self._board
        total, used = board.total(Counter.SLOTS_TOTAL), board.total(Counter.SLOTS_USED)
        slots = GaugeMetricFamily("defender_cache_slots", "Slots of the chart cache.", labels=["state"])
        slots.add_metric(["used"], used)
        slots.add_metric(["free"], max(0, total - used))
        yield slots
        restarts = CounterMetricFamily("defender_worker_restarts", "Workers started anew.", labels=["worker"])
        for i in range(board.workers):
            restarts.add_metric([str(i)], self._state.worker_restarts.get(i, 0))
        yield restarts
        rebuild = GaugeMetricFamily(
            "defender_worker_rebuild_seconds", "Duration of the worker's last rebuild.", labels=["worker"]
        )
        idle = GaugeMetricFamily(
            "defender_worker_progress_age_seconds", "Time since the worker's loop turned.", labels=["worker"]
        )
        for i in range(board.workers):
            worker = board.worker(i)
            rebuild.add_metric([str(i)], worker.get(Counter.REBUILD_US) / 1e6)
            at_ns = worker.get(Counter.PROGRESS_AT_NS)
            if at_ns:
                idle.add_metric([str(i)], max(0.0, (now_ns - at_ns) / 1e9))
        yield rebuild
        yield idle
        for counter, name, meaning in _WORKER_GAUGES:
            gauge = GaugeMetricFamily(name, meaning, labels=["worker"])
            for i in range(board.workers):
                gauge.add_metric([str(i)], board.worker(i).get(counter))
            yield gauge


def _total(name: str, meaning: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, meaning, value=value)


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=value)
