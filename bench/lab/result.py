"""What a run of the lab saw: one object, from which the terminal, the page and the JSON are made. Pure.

Times are nanoseconds since 1970 by this machine's clock, which is the server's, too.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Machine(Struct, frozen=True):
    """Where a run took place."""

    cores: int
    memory_gb: float
    cpu: str
    kernel: str
    python: str
    nats_server: str
    defender: str


class Mark(Struct, frozen=True):
    """Something done to the fleet: a step of the scenario, or a moment within one (``ended_ns`` 0)."""

    what: str
    begun_ns: int
    ended_ns: int = 0


class Owned(Struct, frozen=True):
    """One stretch of a partition's ownership, by the records: who had it from when to when."""

    partition: int
    stable_id: str
    pod: str
    begun_ns: int
    ended_ns: int
    """The end of the run, where it went on."""


class Second(Struct, frozen=True):
    """One second of the run."""

    at_ns: int
    reports: int
    """Stored in it."""
    verdicts: int
    latency_ms_p50: float
    """Of the reports stored in it, as the other two; 0 without any."""
    latency_ms_p99: float
    latency_ms_max: float
    pods: int
    """Whose process runs."""
    ready: int
    cpu_cores: float
    """Of all pods together."""
    lab_cores: float
    """Of the producers, the observer and the lab itself."""
    server_cores: float
    """Of nats-server, and of Cassandra where it runs."""


class PodUse(Struct, frozen=True):
    """What one pod took, over its life."""

    pod: str
    stable_id: str
    begun_ns: int
    ended_ns: int
    """0 while it runs."""
    exit_code: int | None
    restarts: int
    cpu_s: float
    pss_mb: float
    """At its most."""


class Promise(Struct, frozen=True):
    """One line of the budget, held against the run."""

    name: str
    limit: float
    seen: float
    met: bool


class Result(Struct, frozen=True, kw_only=True):
    """A run. The fields from ``scenario`` to ``promises`` are what ``--json`` prints."""

    scenario: str
    identity: str
    defenders: int
    workers: int
    partitions: int
    seconds: float
    """Of load."""
    reports: int
    verdicts: int
    samples: int
    rejected: int
    lost: int
    """Reports without verdict or rejection when all had settled."""
    doubled: int
    """Verdicts of a report beyond its first."""
    wrong: int
    """Verdicts that differ from those of one process that judged all."""
    out_of_order: int
    """Verdicts of a chamber that were stored after one of a later report."""
    stale: int
    """Verdicts of an epoch that were stored after one of a newer epoch of the partition."""
    alarms_lost: int = 0
    alarms_doubled: int = 0
    unknown: int = 0
    """Reports and verdicts of which nothing can be said, for their streams' limits dropped what it takes."""
    partitions_reassigned: int
    """Times that a partition's stable ID changed."""
    partitions_must_move: int
    """Of these, what the ring's change asked for."""
    partitions_taken_over: int
    """Times that a partition's pod changed and its stable ID did not."""
    gap_ms_p50: float
    """The longest wait of a report around a change of a partition's pod, over these changes."""
    gap_ms_p99: float
    gap_ms_max: float
    latency_ms_p50: float
    """From the time that a report was due to its verdict's storage."""
    latency_ms_p99: float
    latency_ms_max: float
    unowned_max_ms: float
    """The longest that a partition had no live owner by the records."""
    doubly_owned: int
    """Times that two pods held or served one partition or one ID."""
    identity_recovery_s_max: float
    """The longest that a pod which was started under load was without an ID and that ID without a holder."""
    duration_s: float
    """Of the steps, from the first one's begin to the last one's end."""
    pods_restarted: int
    producer_reports_per_s: float
    """Wanted."""
    producer_late_ms_max: float
    """By how much the producers fell behind their own schedule: the lab's fault, not the fleet's."""
    observer_cores: float
    rate_sustained: float = 0.0
    """``ramp``: the highest rate at which the lag did not grow, reports/s; 0 in other scenarios."""
    promises: list[Promise] = []
    marks: list[Mark] = []
    owned: list[Owned] = []
    timeline: list[Second] = []
    pods: list[PodUse] = []
    gaps_ms: list[float] = []
    notes: list[str] = []
    """What the reader must know: what was simulated, where the lab was the limit, what broke off."""
    problems: list[str] = []
    """The first differences, in words."""
    machine: Machine | None = None
    begun_ns: int = 0
    ended_ns: int = 0
    broken: str = ""
    """Which fault was put into the defenders on purpose; "" for none."""
    is_whole: bool = True
    """False when the run broke off; what was seen until then is here."""


_LONG = ("marks", "owned", "timeline", "pods", "gaps_ms", "notes", "problems", "machine")


def summary(result: Result) -> dict[str, object]:
    """What ``--json`` prints: all but the long lists."""
    found: dict[str, object] = msgspec.to_builtins(result)
    return {name: value for name, value in found.items() if name not in _LONG}
