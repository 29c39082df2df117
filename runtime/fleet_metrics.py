"""Metrics of the fleet, as one pod sees it, and of what this pod did in it: handoffs, takeovers, leading.

Every pod tells what it sees of the fleet; an alarm takes the largest of what they say, so that one pod whose
view is behind hides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.fleet_report import SILENT
from runtime.fleet_snapshot import Snapshot
from runtime.fleet_watch import FleetWatch
from runtime.membership import State
from runtime.tally import Histogram, Tally

OUTCOMES: Final = ("warm", "cold", "handed", "released")
"""Of handoffs: partitions that came, after a copy or without; that went, asked for or released."""


class Leading(Protocol):
    """A pod's candidate for leading, such as `runtime.leader.Leader`; counts since its start."""

    @property
    def leading(self) -> bool: ...

    elections: int
    commits: int
    deposed: int


class FleetCollector(Collector):
    """What *watch* sees of the fleet."""

    def __init__(self, watch: FleetWatch) -> None:
        self._watch = watch

    def collect(self) -> Iterable[Metric]:
        snapshot = self._watch.look()
        yield from _of_members(snapshot)
        yield from self._of_ring(snapshot)
        yield from self._of_partitions(snapshot)

    def _of_ring(self, snapshot: Snapshot) -> Iterator[Metric]:
        ring = snapshot.ring
        yield _gauge("defender_ring_version", "Version of the ring.", ring.version if ring else 0)
        members = len(ring.members) if ring else 0
        yield _gauge("defender_ring_members", "Stable IDs in the ring.", members)
        broken = bool(snapshot.ring_problem)
        yield _gauge("defender_ring_unusable", "1 while the ring's record cannot be used.", broken)
        frozen = snapshot.frozen is not None
        yield _gauge("defender_frozen", "1 while an operator forbids changes of the ring.", frozen)
        own = GaugeMetricFamily(
            "defender_heartbeat_age_seconds", "Time since this pod's own heartbeat came back to it."
        )
        age_s = snapshot.age_s(self._watch.pod_uid)
        if age_s != float("inf"):
            own.add_metric([], age_s)
        yield own
        known = snapshot.leader is not None
        yield _gauge("defender_leader_known", "1 while this pod sees a leader.", known)
        mass_loss = snapshot.leader is not None and snapshot.leader.mass_loss
        yield _gauge(
            "defender_mass_loss", "1 while the leader waits, for too many are silent at once.", mass_loss
        )

    def _of_partitions(self, snapshot: Snapshot) -> Iterator[Metric]:
        longest = GaugeMetricFamily(
            "defender_partitions_trouble_seconds",
            "For how long the longest has been in this trouble; 0 without any.",
            labels=["trouble"],
        )
        troubles = ("unowned", "unserved", "doubly_owned")
        for trouble, longest_s in zip(troubles, self._watch.longest_s(), strict=True):
            longest.add_metric([trouble], longest_s)
        yield _gauge("defender_partitions_unowned", "Without a live owner.", len(snapshot.unowned))
        yield _gauge(
            "defender_partitions_unserved", "Owned, but not served by the owner.", len(snapshot.unserved)
        )
        yield _gauge("defender_partitions_doubly_owned", "Served by two pods.", len(snapshot.doubly_owned))
        yield _gauge("defender_partitions_moving", "On their way to another pod.", len(snapshot.moving))
        yield longest


class HandoffCollector(Collector):
    """What came to this pod and what went."""

    def __init__(self, tally: Callable[[], Tally]) -> None:
        self._tally = tally

    def collect(self) -> Iterable[Metric]:
        tally = self._tally()
        yield _total(
            "defender_reassignments", "Partitions that came from another stable ID.", tally.reassigned
        )
        yield _total(
            "defender_takeovers", "Partitions that came from another pod of our stable ID.", tally.taken_over
        )
        handoffs = CounterMetricFamily(
            "defender_handoffs", "Partitions handed over, by outcome.", labels=["outcome"]
        )
        for outcome in OUTCOMES:
            handoffs.add_metric([outcome], tally.handoffs[outcome])
        yield handoffs
        yield _total("defender_handoffs_refused", "Requests refused or unanswered.", tally.refused)
        yield _histogram(
            "defender_handoff_seconds", "From asking for a partition to serving it.", tally.handoff
        )
        yield _histogram(
            "defender_unattended_seconds",
            "From the former owner's stop to serving, of warm handoffs.",
            tally.unattended,
        )


class LeadingCollector(Collector):
    """What this pod did as the leader."""

    def __init__(self, leader: Callable[[], Leading | None]) -> None:
        self._leader = leader

    def collect(self) -> Iterable[Metric]:
        leader = self._leader()
        yield _gauge("defender_leader", "1 for the pod that leads.", leader is not None and leader.leading)
        yield _total("defender_elections", "Elections won.", leader.elections if leader else 0)
        yield _total("defender_commits", "Versions of the ring committed.", leader.commits if leader else 0)
        yield _total(
            "defender_fenced", "Silent holders whose claim was taken.", leader.deposed if leader else 0
        )


def _of_members(snapshot: Snapshot) -> Iterator[Metric]:
    states: Counter[str] = Counter()
    for claim in snapshot.claims.values():
        lives = snapshot.lives(claim.pod_uid)
        states[snapshot.heartbeats[claim.pod_uid].state.value if lives else SILENT] += 1
    members = GaugeMetricFamily("defender_fleet_members", "Pods that hold an ID.", labels=["state"])
    for state in (*(state.value for state in State), SILENT):
        members.add_metric([state], states[state])
    yield members
    standbys = GaugeMetricFamily("defender_fleet_standbys", "Pods that wait for an ID.", labels=["warm"])
    waiting = [beat for beat in snapshot.standbys if beat.state is State.STANDBY]
    for warm in (True, False):
        standbys.add_metric([str(warm).lower()], sum(beat.warm is warm for beat in waiting))
    yield standbys
    drained = sum(beat.state is State.DRAINED for beat in snapshot.standbys)
    yield _gauge("defender_fleet_drained", "Pods that an operator has idle.", drained)
    vacancies = len(snapshot.vacancies)
    yield _gauge("defender_fleet_vacancies", "Stable IDs in the ring that nobody holds.", vacancies)


def _histogram(name: str, meaning: str, counted: Histogram) -> Metric:
    bounds = [*map(str, counted.bounds_s), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(counted.counts)), strict=True))
    return HistogramMetricFamily(name, meaning, buckets=buckets, sum_value=counted.sum_s)


def _total(name: str, meaning: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, meaning, value=value)


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=value)
