"""From what was seen of a run to its result."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from bench.lab import gaps
from bench.lab.audit import Audited
from bench.lab.load import Produced
from bench.lab.result import PodUse, Result, Second
from bench.lab.tally import Waits
from bench.lab.usage import UseSample, machine
from runtime.records import Layout

if TYPE_CHECKING:
    from bench.lab.stage import Stage

AROUND_NS: Final = 500_000_000
"""A handoff's reports: from this long before the partition was free to this long after it was owned."""
PRODUCER_LATE_MS_MAX: Final = 100.0
OBSERVER_CORES_MAX: Final = 0.5
PROBLEMS_MAX: Final = 50
SECOND_NS: Final = 1_000_000_000


class Ended(NamedTuple):
    """When the parts of a run took place, and how it ended."""

    begun_ns: int
    load_begun_ns: int
    load_ended_ns: int
    rate_sustained: float
    is_whole: bool


def result_of(stage: Stage, ended: Ended, *, produced: Produced, waits: Waits, audited: Audited) -> Result:
    """Everything about one run."""
    begin_ns, end_ns = ended.load_begun_ns, ended.load_ended_ns
    scenario, observer = stage.scenario, stage.observer
    steps = [mark for mark in stage.marks if mark.begun_ns >= begin_ns]
    changes = observer.changes(begin_ns, end_ns)
    gaps_ms = gaps.handoff_gaps_ms(changes, waits, AROUND_NS)
    doubles = observer.doubles()
    latency_p50, latency_p99 = waits.latency.quantiles_ms((0.5, 0.99))
    steps_end_ns = max((mark.ended_ns or end_ns for mark in steps), default=begin_ns)
    steps_begin_ns = min((mark.begun_ns for mark in steps), default=begin_ns)
    return Result(
        scenario=scenario.name,
        identity=stage.identity.value,
        defenders=scenario.fleet.defenders,
        workers=stage.settings.workers,
        partitions=stage.settings.partitions,
        seconds=(end_ns - begin_ns) / 1e9,
        reports=audited.reports,
        verdicts=audited.verdicts,
        samples=audited.samples,
        rejected=audited.rejected,
        lost=audited.lost,
        doubled=audited.doubled,
        wrong=audited.wrong,
        out_of_order=audited.out_of_order,
        stale=audited.stale,
        alarms_lost=audited.alarms_lost,
        alarms_doubled=audited.alarms_doubled,
        unknown=audited.unknown,
        partitions_reassigned=sum(change.is_reassignment for change in changes),
        partitions_must_move=_must_move(stage, begin_ns, end_ns),
        partitions_taken_over=sum(change.is_takeover for change in changes),
        gap_ms_p50=_quantile(gaps_ms, 0.5),
        gap_ms_p99=_quantile(gaps_ms, 0.99),
        gap_ms_max=max(gaps_ms, default=0.0),
        latency_ms_p50=latency_p50,
        latency_ms_p99=latency_p99,
        latency_ms_max=float(waits.wait_ms.max(initial=0.0)),
        unowned_max_ms=max(observer.unowned_ms(begin_ns, end_ns, stage.lives).values(), default=0.0),
        doubly_owned=len(doubles) + audited.stale,
        identity_recovery_s_max=_slowest_identity(stage, begin_ns),
        duration_s=max(0.0, (steps_end_ns - steps_begin_ns) / 1e9),
        pods_restarted=sum(pod.restarts for pod in stage.pods),
        producer_reports_per_s=scenario.load.reports_per_s,
        producer_late_ms_max=produced.late_ms_max,
        observer_cores=waits.cores,
        rate_sustained=ended.rate_sustained,
        marks=stage.marks,
        owned=observer.owned(end_ns, stage.names),
        timeline=_timeline(waits, stage.usage.samples, begin_ns, end_ns),
        pods=_pods(stage),
        gaps_ms=[round(float(gap), 2) for gap in gaps_ms],
        notes=[*stage.notes, *waits.notes, *_limits(produced, waits), *_simulated(stage)],
        problems=[*audited.problems, *doubles][:PROBLEMS_MAX],
        machine=machine(),
        begun_ns=ended.begun_ns,
        ended_ns=end_ns,
        broken=stage.broken,
        is_whole=ended.is_whole,
    )


def _quantile(values: Iterable[float], share: float) -> float:
    found = np.asarray(values, np.float64)
    return float(np.quantile(found, share, method="higher")) if len(found) else 0.0


def _must_move(stage: Stage, begin_ns: int, end_ns: int) -> int:
    """What the rings that were committed moved, one after the other."""
    before = [ring for at_ns, ring in stage.observer.rings if at_ns < begin_ns][-1:]
    rings = [*before, *(ring for at_ns, ring in stage.observer.rings if begin_ns <= at_ns <= end_ns)]
    layouts = [Layout(ring) for ring in rings]
    return sum(len(one.moved(other)) for one, other in pairwise(layouts))


def _slowest_identity(stage: Stage, begin_ns: int) -> float:
    """The longest that a pod which was started under load was without an ID, and that ID without a living
    holder, s: a standby that waits is not slow."""
    holders = {uid: (stable_id, at_ns) for uid, (stable_id, at_ns) in stage.observer.identities.items()}
    longest_s = 0.0
    for uid, (stable_id, claimed_ns) in holders.items():
        pod = stage.of_uid.get(uid)
        if pod is None or pod.lives[0].begun_ns < begin_ns:
            continue
        ends = [
            stage.of_uid[other].lives[-1].ended_ns or claimed_ns
            for other, (theirs, at_ns) in holders.items()
            if theirs == stable_id and at_ns < claimed_ns and other in stage.of_uid
        ]
        since_ns = max(pod.lives[0].begun_ns, *ends, 0)
        longest_s = max(longest_s, (claimed_ns - since_ns) / 1e9)
    return longest_s


def _timeline(waits: Waits, uses: list[UseSample], begin_ns: int, end_ns: int) -> list[Second]:
    """A row a second; the use is that of the sample nearest to the second's end."""
    found = []
    at_use = 0
    for at_ns, reports, verdicts, p50, p99, most in gaps.timeline(waits, begin_ns, end_ns):
        while at_use + 1 < len(uses) and uses[at_use + 1].at_ns <= at_ns + SECOND_NS:
            at_use += 1
        use = uses[at_use] if uses else UseSample(at_ns, {}, 0, 0)
        cores = use.cores
        found.append(
            Second(
                *(at_ns, reports, verdicts, p50, p99, most, use.pods, use.ready),
                *(cores.get("pods", 0.0), cores.get("lab", 0.0), cores.get("server", 0.0)),
            )
        )
    return found


def _pods(stage: Stage) -> list[PodUse]:
    found = []
    for pod in stage.pods:
        uid, lives, use = pod.settings.pod_uid, pod.lives, pod.use()
        stable_id, _ = stage.observer.identities.get(uid, ("", 0))
        found.append(
            PodUse(
                pod=pod.settings.pod_name,
                stable_id=stable_id,
                begun_ns=lives[0].begun_ns,
                ended_ns=lives[-1].ended_ns,
                exit_code=lives[-1].exit_code,
                restarts=pod.restarts,
                cpu_s=use.cpu_s,
                pss_mb=use.pss_mb,
            )
        )
    return found


def _limits(produced: Produced, waits: Waits) -> list[str]:
    """Where the lab was the limit, and not the fleet."""
    found = []
    if produced.late_ms_max > PRODUCER_LATE_MS_MAX:
        found.append(
            f"the producers fell behind their schedule by up to {produced.late_ms_max:,.0f} ms: latencies "
            "count from when a report was due, so some of that is the lab's"
        )
    if waits.cores > OBSERVER_CORES_MAX:
        found.append(f"the observer took {waits.cores:.2f} cores, which the fleet lacked")
    return found


def _simulated(stage: Stage) -> list[str]:
    """What was not as it is in a cluster."""
    start = (
        "each an interpreter started from scratch"
        if stage.is_cold
        else "forked from a warm image: the CPU of an interpreter's start, 1.1 s a pod, is left out, and "
        "memory that nobody writes is shared"
    )
    return [
        f"pods are real `defender run` processes, {start}; there are no containers, and controllers and "
        "kubelet are stand-ins that follow Kubernetes' rules",
        f"everything shares one machine: {len(stage.pods)} pods in all, nats-server, producers and observer; "
        "starting pods compete with those that judge, which on nodes of their own they would not",
    ]
