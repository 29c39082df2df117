"""What people are told of a fleet: a row for each member and standby, what is wrong, and all in one report.

Pure; everything comes from one `Snapshot`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Final

import msgspec
from msgspec import Struct

from runtime.fleet_snapshot import LeaderSeen, Snapshot, natural
from runtime.identity import Claim
from runtime.membership import Heartbeat, Load, State
from runtime.records import Frozen, Tracks

SILENT: Final = "silent"
VACANT: Final = "vacant"
NAMED_MAX: Final = 8
"""Partitions or pods that one line names; more are counted."""


class FleetRow(Struct, frozen=True):
    """One member, vacancy or standby."""

    stable_id: str | None
    state: str
    pod: str
    pod_uid: str
    track: str
    revision: str
    heartbeat_age_s: float | None
    in_ring: bool = False
    weight: float = 1.0
    partitions: int = 0
    """That it owns, by the ownership records."""
    assigned: int = 0
    """That the ring gives to its ID."""
    lag: int = 0
    workers: int = 0
    samples: int = 0
    cache_used: float = 0.0
    warm: bool = False
    history_down: bool = False
    """Whether the history of one of its workers takes nothing."""
    rebuild_left: int = 0
    """Chambers that it serves, and whose charts are still to be read from the history."""
    remark: str = ""


class RingReport(Struct, frozen=True):
    """The whole fleet at one time, as the page ``/ring`` shows it. Partitions are named by number."""

    version: int
    algorithm: int
    partitions: int
    reason: str
    committed_at: datetime | None
    problem: str
    owners: list[str | None]
    """By partition, the stable ID that the ring names."""
    members: list[FleetRow]
    """Holders of IDs, and vacancies; in the order of the IDs."""
    standbys: list[FleetRow]
    vacancies: list[str]
    leader: LeaderSeen | None
    frozen: Frozen | None
    unowned: list[int]
    unserved: list[int]
    doubly_owned: list[int]
    moving: list[int]
    trouble: list[str]


# --- rows ---------------------------------------------------------------------------------------


def members(snapshot: Snapshot) -> list[FleetRow]:
    """Holders and vacancies, in the order of their IDs."""
    layout = snapshot.layout
    counts = Counter(layout.owners) if layout else Counter[str | None]()
    rows = []
    for stable_id in sorted(snapshot.claims.keys() | (layout.members.keys() if layout else ()), key=natural):
        claim = snapshot.claims.get(stable_id)
        member = layout.members.get(stable_id) if layout else None
        if claim is not None:
            row = _holder(snapshot, claim, in_ring=member is not None, assigned=counts[stable_id])
        else:
            assert member is not None
            row = FleetRow(
                stable_id,
                VACANT,
                pod="",
                pod_uid="",
                track=member.track,
                revision="",
                heartbeat_age_s=None,
                in_ring=True,
                weight=member.weight,
                assigned=counts[stable_id],
                remark="in the ring, and nobody holds it",
            )
        rows.append(row)
    return rows


def standbys(snapshot: Snapshot) -> list[FleetRow]:
    """The pods without an ID, and why they have none."""
    rows = []
    for beat in snapshot.standbys:
        why = beat.standby or ("its ID is not claimed any more" if beat.stable_id else "")
        cold = "" if beat.warm or beat.state is not State.STANDBY else "not warm yet"
        rows.append(_row(snapshot, None, beat, "; ".join(filter(None, (why, cold)))))
    return rows


def _holder(snapshot: Snapshot, claim: Claim, *, in_ring: bool, assigned: int) -> FleetRow:
    remark = ""
    if claim.pod_uid not in snapshot.heartbeats:
        remark = "no heartbeat: starting, or dead until its claim expires"
    elif not snapshot.lives(claim.pod_uid):
        remark = f"silent for longer than {snapshot.silence_s:g} s"
    elif not in_ring and snapshot.layout is not None:
        remark = outside(snapshot, claim)
    elif claim.stable_id in snapshot.forget:
        remark = "an operator had it forgotten"
    row = _row(snapshot, claim.stable_id, claim, remark)
    return msgspec.structs.replace(row, in_ring=in_ring, assigned=assigned, weight=claim.weight)


def outside(snapshot: Snapshot, claim: Claim) -> str:
    """Why a holder that lives is not in the ring."""
    beat = snapshot.heartbeats.get(claim.pod_uid)
    if beat is not None and beat.state is State.LEAVING:
        return "leaves the ring"
    if not admitted(snapshot.tracks, claim):
        ruled = claim.track in snapshot.tracks.in_ring
        return "outside the ring, by an operator's word" if ruled else "outside the ring: RING_JOIN=manual"
    return "joins with the next change of the ring"


def admitted(tracks: Tracks, claim: Claim) -> bool:
    """Whether a holder's track belongs into the ring."""
    return claim.track in tracks.chambers or tracks.in_ring.get(claim.track, claim.joins)


def _row(snapshot: Snapshot, stable_id: str | None, pod: Claim | Heartbeat, remark: str) -> FleetRow:
    beat = snapshot.heartbeats.get(pod.pod_uid)
    age_s, load = snapshot.age_s(pod.pod_uid), beat.load if beat else None
    owns = snapshot.owned_by.get(pod.pod_uid, [])
    told = load.lag if load else 0
    now = load if load is not None and snapshot.lives(pod.pod_uid) else Load()
    return FleetRow(
        stable_id=stable_id,
        state=beat.state.value if beat and snapshot.lives(pod.pod_uid) else SILENT,
        pod=pod.pod_name,
        pod_uid=pod.pod_uid,
        track=pod.track,
        revision=pod.revision,
        heartbeat_age_s=age_s if math.isfinite(age_s) else None,
        partitions=len(owns),
        lag=told if snapshot.backlogs is None else sum(snapshot.lag(p) for p in owns),
        workers=load.workers if load else 0,
        samples=load.samples if load else 0,
        cache_used=load.slots_used / load.slots_total if load and load.slots_total else 0.0,
        warm=beat.warm if beat else False,
        history_down=now.history_down,
        rebuild_left=now.rebuild_left,
        remark="; ".join(filter(None, (remark, *_of_history(now)))),
    )


def _of_history(load: Load) -> list[str]:
    """What keeps the reports of a living pod waiting, or some of them."""
    remarks = ["history is down"] if load.history_down else []
    if load.rebuild_left:
        chambers = "chamber" if load.rebuild_left == 1 else "chambers"
        remarks.append(f"rebuilding: {load.rebuild_left:,} {chambers} left")
    return remarks


# --- the whole ----------------------------------------------------------------------------------


def report(snapshot: Snapshot) -> RingReport:
    """The snapshot as the page shows it."""
    ring = snapshot.ring
    return RingReport(
        version=ring.version if ring else 0,
        algorithm=ring.algorithm if ring else 0,
        partitions=snapshot.partitions,
        reason=ring.reason if ring else "",
        committed_at=ring.committed_at if ring else None,
        problem=snapshot.ring_problem,
        owners=list(snapshot.layout.owners) if snapshot.layout else [None] * snapshot.partitions,
        members=members(snapshot),
        standbys=standbys(snapshot),
        vacancies=snapshot.vacancies,
        leader=snapshot.leader,
        frozen=snapshot.frozen,
        unowned=snapshot.unowned,
        unserved=snapshot.unserved,
        doubly_owned=snapshot.doubly_owned,
        moving=snapshot.moving,
        trouble=trouble(snapshot),
    )


def trouble(snapshot: Snapshot) -> list[str]:
    """What a person should know first; empty when all is well. A frozen ring is no trouble by itself."""
    problems = []
    if not snapshot.claims:
        problems.append("no defender holds an ID: nothing is judged")
    if snapshot.unowned:
        count = f"{len(snapshot.unowned)} of {snapshot.partitions} partitions have"
        problems.append(f"{count} no live owner: {numbers(snapshot.unowned)}")
    for partition in snapshot.doubly_owned[:NAMED_MAX]:
        pods = " and ".join(snapshot.heartbeats[uid].pod_name for uid in snapshot.serving[partition])
        problems.append(f"partition {partition} is served by {pods}")
    if snapshot.unserved:
        problems.append(f"owned, but not served by their owners: {numbers(snapshot.unserved)}")
    if down := _history_down(snapshot):
        problems.append(f"the history is down, reports wait: {named(down)}")
    if snapshot.silent:
        problems.append(f"holders that are silent: {named(snapshot.silent)}")
    if snapshot.vacancies:
        problems.append(f"in the ring, and held by nobody: {named(snapshot.vacancies)}")
    if snapshot.ring_problem:
        problems.append(f"the ring's record cannot be used: {snapshot.ring_problem}")
    elif snapshot.layout is None:
        problems.append("no ring is committed yet")
    if snapshot.leader is None:
        problems.append("nobody leads: the ring does not change")
    elif snapshot.leader.mass_loss:
        problems.append("the leader changes nothing: too many holders are silent at once")
    return problems


def _history_down(snapshot: Snapshot) -> list[str]:
    """The living pods whose history takes nothing, by stable ID where they have one."""
    beats = (beat for uid, beat in snapshot.heartbeats.items() if snapshot.lives(uid))
    return sorted((beat.stable_id or beat.pod_name for beat in beats if beat.load.history_down), key=natural)


def numbers(partitions: Iterable[int], most: int = 12) -> str:
    """``0-3, 7, 9-10``; after *most* runs, how many more there are."""
    runs: list[list[int]] = []
    for partition in sorted(partitions):
        if runs and partition == runs[-1][1] + 1:
            runs[-1][1] = partition
        else:
            runs.append([partition, partition])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:most]]
    left = sum(b - a + 1 for a, b in runs[most:])
    return ", ".join(shown) + (f" and {left} more" if left else "")


def named(names: Iterable[str], most: int = NAMED_MAX) -> str:
    """The first of the names, and how many more there are."""
    every = list(names)
    left = len(every) - most
    return ", ".join(every[:most]) + (f" and {left} more" if left > 0 else "")
