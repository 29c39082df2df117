"""The fleet as it was seen at one time, and what that says of each partition. Pure.

A `Snapshot` is what a defender's view or a command's reading found; all that people and alarms are told
comes from it, so that `defender status`, the page ``/ring`` and the metrics never disagree:

    unowned       no pod whose heartbeats arrive has the partition's ownership record
    unserved      its owner lives, but its heartbeats do not list the partition among those it serves
    doubly owned  the heartbeats of two pods list it, and both are younger than the ownership record
    moving        its owner is not the pod that holds the ID that the ring names: a handoff

A heartbeat that is older than the last write of a record says nothing about that partition: a handoff would
look like two owners for the time between two heartbeats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Protocol, TypeVar

import msgspec
from msgspec import Struct

from runtime.identity import Claim
from runtime.membership import Heartbeat
from runtime.ownership_record import Record
from runtime.ownership_record import State as Ownership
from runtime.records import Frozen, Layout, RingRecord, Tracks

T_co = TypeVar("T_co", covariant=True)


class LeaderSeen(Struct, frozen=True):
    """The value of the leader's key, as far as people care."""

    pod_uid: str = ""
    pod_name: str = ""
    term: int = 0
    since: str = ""
    remarks: list[str] = []
    mass_loss: bool = False


class Backlog(Struct, frozen=True):
    """A partition's consumer: reports that wait in the stream, and those that are being judged."""

    waiting: int
    unacked: int

    @property
    def lag(self) -> int:
        return self.waiting + self.unacked


class Owned(Struct, frozen=True):
    """An ownership record with its epoch (the revision that the acquisition got) and its age."""

    record: Record
    epoch: int
    age_s: float = math.inf


@dataclass(frozen=True)
class Snapshot:
    """What was seen; claims by stable ID, heartbeats and their ages by pod UID, the rest by partition.

    *partitions* is the setting's; the ring's counts where there is one. Ages are seconds since the thing
    was written or arrived, on the reader's monotonic clock or on the server's.
    """

    now: datetime
    partitions: int
    claims: Mapping[str, Claim] = field(default_factory=dict)
    heartbeats: Mapping[str, Heartbeat] = field(default_factory=dict)
    ages_s: Mapping[str, float] = field(default_factory=dict)
    owned: Mapping[int, Owned] = field(default_factory=dict)
    backlogs: Mapping[tuple[int, int], Backlog] | None = None
    """By (partition, epoch); None where nobody asked the server for them."""
    layout: Layout | None = None
    ring_problem: str = ""
    tracks: Tracks = field(default_factory=Tracks)
    frozen: Frozen | None = None
    forget: frozenset[str] = frozenset()
    leader: LeaderSeen | None = None
    silence_s: float = 6.0

    # --- who is there ---------------------------------------------------------------------------

    @property
    def ring(self) -> RingRecord | None:
        return self.layout.record if self.layout else None

    def age_s(self, pod_uid: str) -> float:
        """Seconds since the pod's last heartbeat; infinite where there is none."""
        return self.ages_s.get(pod_uid, math.inf) if pod_uid in self.heartbeats else math.inf

    def lives(self, pod_uid: str) -> bool:
        """Whether the pod's heartbeats arrive."""
        return self.age_s(pod_uid) <= self.silence_s

    @cached_property
    def holders(self) -> frozenset[str]:
        """UIDs of the pods that hold an ID."""
        return frozenset(claim.pod_uid for claim in self.claims.values())

    @cached_property
    def vacancies(self) -> list[str]:
        """The IDs that are in the ring and that nobody holds."""
        members = self.layout.members if self.layout else {}
        return sorted((one for one in members if one not in self.claims), key=natural)

    @cached_property
    def silent(self) -> list[str]:
        """The IDs whose holders are silent."""
        gone = (one for one, claim in self.claims.items() if not self.lives(claim.pod_uid))
        return sorted(gone, key=natural)

    @cached_property
    def standbys(self) -> list[Heartbeat]:
        """The living pods without an ID, by name."""
        idle = (b for uid, b in self.heartbeats.items() if uid not in self.holders and self.lives(uid))
        return sorted(idle, key=lambda beat: beat.pod_name)

    # --- the partitions -------------------------------------------------------------------------

    @cached_property
    def owned_by(self) -> dict[str, list[int]]:
        """The partitions of each pod UID by the ownership records, whether it lives or not."""
        found: dict[str, list[int]] = {}
        for partition, owned in sorted(self.owned.items()):
            if owned.record.state is Ownership.OWNED:
                found.setdefault(owned.record.pod_uid, []).append(partition)
        return found

    def owner(self, partition: int) -> Record | None:
        """The ownership record, if a pod that lives has it."""
        owned = self.owned.get(partition)
        if owned is None or owned.record.state is not Ownership.OWNED or not self.lives(owned.record.pod_uid):
            return None
        return owned.record

    @cached_property
    def unowned(self) -> list[int]:
        return [p for p in range(self.partitions) if self.owner(p) is None]

    @cached_property
    def serving(self) -> dict[int, list[str]]:
        """UIDs of the pods that say that they serve a partition, and can know it."""
        pods: dict[int, list[str]] = {}
        for uid, beat in self.heartbeats.items():
            if self.lives(uid):
                for partition in beat.partitions:
                    if self._can_know(uid, partition):
                        pods.setdefault(partition, []).append(uid)
        return pods

    @cached_property
    def unserved(self) -> list[int]:
        return [
            partition
            for partition in range(self.partitions)
            if (record := self.owner(partition)) is not None
            and self._can_know(record.pod_uid, partition)
            and record.pod_uid not in self.serving.get(partition, ())
        ]

    @cached_property
    def doubly_owned(self) -> list[int]:
        return sorted(partition for partition, pods in self.serving.items() if len(pods) > 1)

    @cached_property
    def moving(self) -> list[int]:
        """Those on their way to another pod: to the ID that the ring names, or to that ID's new holder."""
        if self.layout is None:
            return []
        found = []
        for partition, target in enumerate(self.layout.owners):
            record = self.owner(partition)
            if record is not None and target is not None:
                claim = self.claims.get(target)
                same = record.owner == target and (claim is None or claim.pod_uid == record.pod_uid)
                if not same:
                    found.append(partition)
        return found

    def lag(self, partition: int) -> int:
        owned = self.owned.get(partition)
        backlog = (self.backlogs or {}).get((partition, owned.epoch)) if owned else None
        return backlog.lag if backlog else 0

    def _can_know(self, pod_uid: str, partition: int) -> bool:
        owned = self.owned.get(partition)
        return owned is None or self.age_s(pod_uid) < owned.age_s


class Sight(Protocol[T_co]):
    """A decoded value, the revision of its key, and when that arrived here (monotonic seconds)."""

    @property
    def value(self) -> T_co: ...

    @property
    def revision(self) -> int: ...

    @property
    def arrived_s(self) -> float: ...


class View(Protocol):
    """What of a defender's live view of the fleet is needed here."""

    @property
    def claims(self) -> Mapping[str, Sight[Claim]]: ...

    @property
    def beats(self) -> Mapping[str, Sight[Heartbeat]]: ...

    @property
    def records(self) -> Mapping[int, Sight[Record]]: ...

    @property
    def layout(self) -> Layout | None: ...

    @property
    def ring_problem(self) -> str: ...

    @property
    def tracks(self) -> Tracks: ...

    @property
    def frozen(self) -> Frozen | None: ...

    @property
    def forget(self) -> frozenset[str]: ...

    @property
    def leader(self) -> Sight[bytes] | None: ...


def of_view(view: View, *, partitions: int, silence_s: float, now: datetime, now_s: float) -> Snapshot:
    """The snapshot of a view; *now_s* is on the clock of its arrivals."""
    return Snapshot(
        now=now,
        partitions=view.layout.partitions if view.layout else partitions,
        claims={stable_id: seen.value for stable_id, seen in view.claims.items()},
        heartbeats={uid: seen.value for uid, seen in view.beats.items()},
        ages_s={uid: now_s - seen.arrived_s for uid, seen in view.beats.items()},
        owned={
            partition: Owned(seen.value, seen.value.epoch or seen.revision, now_s - seen.arrived_s)
            for partition, seen in view.records.items()
        },
        layout=view.layout,
        ring_problem=view.ring_problem,
        tracks=view.tracks,
        frozen=view.frozen,
        forget=view.forget,
        leader=leader_seen(view.leader.value) if view.leader else None,
        silence_s=silence_s,
    )


def leader_seen(value: bytes | None) -> LeaderSeen | None:
    """The leader by its key's value. One that cannot be read leads all the same, without a name."""
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=LeaderSeen)
    except msgspec.MsgspecError:
        return LeaderSeen(remarks=["its record cannot be read"])


class Since:
    """For how long each partition has been in some trouble; times are monotonic seconds."""

    def __init__(self) -> None:
        self._begun: dict[int, float] = {}

    def note(self, partitions: Iterable[int], now_s: float) -> None:
        """The partitions that are in trouble now; those that are not any more begin anew next time."""
        self._begun = {partition: self._begun.get(partition, now_s) for partition in partitions}

    def longest_s(self, now_s: float) -> float:
        """Of those that are in trouble; 0 without any."""
        return max((now_s - begun for begun in self._begun.values()), default=0.0)


def natural(stable_id: str) -> tuple[str, int]:
    """defender-10 after defender-9."""
    name, _, number = stable_id.rpartition("-")
    return (name, int(number)) if number.isdecimal() else (stable_id, -1)
