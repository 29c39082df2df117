"""A small fleet as a snapshot has it, for tests of what people are told: two holders, four partitions."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from runtime.fleet_snapshot import LeaderSeen, Owned, Snapshot
from runtime.identity import Claim
from runtime.membership import Heartbeat, Load, State
from runtime.ownership_record import Record
from runtime.ownership_record import State as Ownership
from runtime.records import Frozen, Layout, Member, RingRecord, Tracks

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


def claim(number: int, pod: str, track: str = "stable", **more: Any) -> Claim:
    return Claim(f"defender-{number}", f"uid-{pod}", pod, track, "r1", NOW, "s", **more)


def beat(
    pod: str,
    number: int | None = None,
    state: State = State.ACTIVE,
    *,
    track: str = "stable",
    **more: Any,
) -> Heartbeat:
    stable_id = None if number is None else f"defender-{number}"
    load = Load(workers=2, samples=1000, lag=5, slots_used=50, slots_total=200)
    return Heartbeat(f"uid-{pod}", pod, track, "r1", state, NOW, stable_id, load=load, **more)


def owned(
    number: int, pod: str, epoch: int, state: Ownership = Ownership.OWNED, age_s: float = 60.0
) -> Owned:
    return Owned(Record(state, f"defender-{number}", f"uid-{pod}", epoch, position=77), epoch, age_s)


def layout(members: int, partitions: int = 4, track: str = "stable", first: int = 0) -> Layout:
    names = {f"defender-{first + n}": Member(track) for n in range(members)}
    return Layout(RingRecord(7, partitions, names, reason="defender-1 in", committed_at=NOW))


def snapshot(**changes: Any) -> Snapshot:
    """Pods a and b hold defender-0 and defender-1, and own what the ring gives them; a leads."""
    ring = layout(2)
    pods = {"defender-0": (0, "a"), "defender-1": (1, "b")}
    usual: dict[str, Any] = {
        "now": NOW,
        "partitions": 4,
        "claims": {"defender-0": claim(0, "a"), "defender-1": claim(1, "b")},
        "heartbeats": {
            f"uid-{pod}": beat(pod, number, partitions=ring.partitions_of(stable_id))
            for stable_id, (number, pod) in pods.items()
        },
        "ages_s": {"uid-a": 1.5, "uid-b": 0.5},
        "owned": {p: owned(*pods[owner or ""], epoch=10 + p) for p, owner in enumerate(ring.owners)},
        "layout": ring,
        "leader": LeaderSeen("uid-a", "a", 5),
    }
    return Snapshot(**{**usual, **changes})


class Sight(NamedTuple):
    """As `runtime.fleet_view.Seen`."""

    value: Any
    revision: int
    arrived_s: float


@dataclass
class ViewOfFleet:
    """A view as a defender keeps it."""

    claims: dict[str, Sight] = field(default_factory=dict)
    beats: dict[str, Sight] = field(default_factory=dict)
    records: dict[int, Sight] = field(default_factory=dict)
    layout: Layout | None = None
    ring_problem: str = ""
    tracks: Tracks = field(default_factory=Tracks)
    frozen: Frozen | None = None
    forget: frozenset[str] = frozenset()
    leader: Sight | None = None

    def see_beat(self, one: Heartbeat, *, age_s: float, now_s: float) -> None:
        self.beats[one.pod_uid] = Sight(one, 1, now_s - age_s)


def view_of(now_s: float) -> ViewOfFleet:
    """The view of the small fleet at *now_s*."""
    fleet = snapshot()
    return ViewOfFleet(
        claims={name: Sight(one, 1, 0.0) for name, one in fleet.claims.items()},
        beats={uid: Sight(one, 1, now_s - fleet.ages_s[uid]) for uid, one in fleet.heartbeats.items()},
        records={p: Sight(one.record, one.epoch, now_s - one.age_s) for p, one in fleet.owned.items()},
        layout=fleet.layout,
        leader=Sight(msgspec.json.encode(fleet.leader), 5, now_s),
    )
