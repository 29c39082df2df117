"""The fleet as one simulated pod sees it: what `runtime.fleet_view.FleetView` holds, from the server's log.

Changes arrive in order, each after a delay of its own; what a pod could not hear (it was frozen, cut off)
comes when it can again, and what its watch lost comes by the next re-read of everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple

from runtime.handoff import VACANT, Standing
from runtime.identity import Claim
from runtime.membership import Heartbeat, State
from runtime.ownership_record import Record
from runtime.records import FORGET_PREFIX, Frozen, Layout, Member, RingRecord, Tracks
from simulation.server import ASSIGNMENTS, BEATS, CLAIMS, LEADER, Change, Server, Stored

WAITING = (State.STARTING, State.STANDBY)


class Seen(NamedTuple):
    value: Any
    revision: int
    arrived_s: float


@lru_cache(maxsize=4096)
def _layout_of(members: tuple[tuple[str, str, float], ...], partitions: int) -> Layout:
    return Layout(RingRecord(1, partitions, {name: Member(track, weight) for name, track, weight in members}))


def owners_of(record: RingRecord) -> list[str | None]:
    """Owners of the partitions by the real ring, which takes 10 ms a change: computed once for each."""
    members = tuple(sorted((name, member.track, member.weight) for name, member in record.members.items()))
    return _layout_of(members, record.partitions).owners if not record.pins else Layout(record).owners


class CachedLayout(Layout):
    """The real Layout, whose owners are looked up by its members."""

    def __init__(self, record: RingRecord) -> None:
        self.record = record
        self.owners = owners_of(record)

    def owner(self, partition: int) -> str | None:
        return self.owners[partition]


class View:
    """*clock* is the pod's own monotonic one."""

    def __init__(self, server: Server, clock: Callable[[], float], silence_s: float, random: Random) -> None:
        self.claims: dict[str, Seen] = {}
        self.claim_revisions: dict[str, int] = {}
        self.held: dict[str, list[str]] = {}
        self.beats: dict[str, Seen] = {}
        self.departed: set[str] = set()
        self.records: dict[int, Standing] = {}
        self.ring: Seen | None = None
        self.ring_revision = 0
        self.ring_problem = ""
        self.layout: CachedLayout | None = None
        self.tracks = Tracks()
        self.lost_tracks = False
        self.frozen: Frozen | None = None
        self.forget: frozenset[str] = frozenset()
        self.leader: Seen | None = None
        self.leader_revision = 0
        self.changes = 0
        """Rises with each change that is more than a renewal."""
        self.heard_s: dict[str, float] = {}
        self._server = server
        self._clock = clock
        self._started_s = clock()
        self._silence_s = silence_s
        self._random = random
        self._cursor = 0
        self._generations: dict[str, int] = {}
        self._missed: list[Change] = []

    # --- the protocol that handoff.plan reads ---------------------------------------------------

    def standing(self, partition: int) -> Standing:
        return self.records.get(partition, VACANT)

    def holder(self, stable_id: str) -> str | None:
        seen = self.claims.get(stable_id)
        return seen.value.pod_uid if seen is not None else None

    def is_gone(self, pod_uid: str) -> bool:
        if pod_uid in self.held:
            return False
        return pod_uid not in self.beats or self.silent_s(pod_uid) > self._silence_s

    def holds_claim(self, pod_uid: str) -> bool:
        return pod_uid in self.held

    @property
    def watched_s(self) -> float:
        return self._clock() - self._started_s

    def has_draining(self, track: str) -> bool:
        return any(
            seen.value.state is State.DRAINING and seen.value.track == track and uid in self.held
            for uid, seen in self.beats.items()
        )

    def silent_s(self, pod_uid: str) -> float:
        heard_s = self.heard_s.get(pod_uid)
        return math.inf if heard_s is None else self._clock() - heard_s

    def waiting(self, track: str) -> list[str]:
        first = self._server.first_beat
        queue = [
            (first.get(uid, 0), uid)
            for uid, seen in self.beats.items()
            if seen.value.track == track
            and seen.value.state in WAITING
            and seen.value.stable_id is None
            and uid not in self.held
            and self.silent_s(uid) <= self._silence_s
        ]
        return [uid for _, uid in sorted(queue)]

    def kept(self) -> set[str]:
        return {
            seen.value.stable_id
            for uid, seen in self.beats.items()
            if seen.value.stable_id is not None
            and seen.value.state is State.ACTIVE
            and seen.value.stable_id not in self.claims
            and self.silent_s(uid) <= self._silence_s
        }

    def gone(self) -> frozenset[str]:
        """All that are gone by now: it changes by time alone."""
        owners = {standing.record.pod_uid for standing in self.records.values()}
        return frozenset(uid for uid in owners if self.is_gone(uid))

    # --- what arrives ---------------------------------------------------------------------------

    def catch_up(self, now_s: float, offset_s: float, awake_s: float, lag_s: float, deaf: bool) -> None:
        """Take what was written long enough ago; nothing arrives before *awake_s*. Times are the world's."""
        log, random = self._server.log, self._random.random
        cursor = self._cursor
        while cursor < len(log):
            change = log[cursor]
            arrived_s = change.at_s + lag_s * (0.5 + random() if change.real else 1.0)
            if arrived_s > now_s:
                break
            cursor += 1
            if deaf and change.real and random() < 0.5:
                continue
            if change.generation == self._generations.get(change.bucket, 0):
                stored = Stored(change.value, change.revision, change.at_s)
                self._take(change.bucket, change.key, stored, max(arrived_s, awake_s) + offset_s, change.real)
        self._cursor = cursor

    def reread(self) -> None:
        """Everything as it stands, at once; keys that are gone without a trace too."""
        now_s = self._clock()
        for name, bucket in self._server.buckets.items():
            anew = bucket.generation != self._generations.get(name, 0)
            self._generations[name] = bucket.generation
            known = self._known(name)
            for key, stored in bucket.stored.items():
                if anew or known.get(key, 0) != stored.revision:
                    self._take(name, key, stored, now_s, True)
            for key in known.keys() - bucket.stored.keys():
                self._take(name, key, Stored(None, 0, now_s), now_s, True)
        self._cursor = len(self._server.log)

    def reread_ring(self) -> None:
        stored = self._server.get(ASSIGNMENTS, "ring")
        if stored is not None and self._generations.get(ASSIGNMENTS, 0) == (
            self._server.buckets[ASSIGNMENTS].generation
        ):
            self._take(ASSIGNMENTS, "ring", stored, self._clock(), True)

    def _known(self, bucket: str) -> Mapping[str, int]:
        if bucket == CLAIMS:
            return dict(self.claim_revisions)
        if bucket == BEATS:
            return {uid: seen.revision for uid, seen in self.beats.items()}
        if bucket == LEADER:
            return {"leader": self.leader_revision} if self.leader_revision else {}
        known = {f"partition.{p}": standing.revision for p, standing in self.records.items()}
        if self.ring_revision:
            known["ring"] = self.ring_revision
        if self.frozen is not None:
            known["frozen"] = -1
        known |= {FORGET_PREFIX + stable_id: -1 for stable_id in self.forget}
        known["tracks"] = -1
        return known

    def _take(self, bucket: str, key: str, stored: Stored, arrived_s: float, real: bool) -> None:
        value = stored.value
        if bucket == BEATS:
            self._take_beat(key, value, stored.revision, arrived_s)
        elif bucket == CLAIMS:
            self._take_claim(key, value, stored.revision, arrived_s)
        elif bucket == LEADER:
            self.leader = Seen(value, stored.revision, arrived_s) if value is not None else None
            self.leader_revision = stored.revision
        else:
            self._take_assignment(key, value, stored.revision, arrived_s)
        if real:
            self.changes += 1

    def _take_beat(self, key: str, value: Heartbeat | None, revision: int, arrived_s: float) -> None:
        if value is None:
            if key in self.held:
                self.departed.add(key)
            else:
                self.heard_s.pop(key, None)
            self.beats.pop(key, None)
            return
        self.departed.discard(key)
        self.beats[key] = Seen(value, revision, arrived_s)
        self.heard_s[key] = arrived_s

    def _take_claim(self, key: str, value: Claim | None, revision: int, arrived_s: float) -> None:
        self.claim_revisions[key] = revision
        if not revision:
            del self.claim_revisions[key]
        before = self.claims.get(key)
        if value is None:
            if before is None:
                return
            del self.claims[key]
        else:
            self.claims[key] = Seen(value, revision, arrived_s)
            self.heard_s[value.pod_uid] = arrived_s
            if before is not None and before.value is value:
                return
        self.held = {}
        for stable_id, one in self.claims.items():
            self.held.setdefault(one.value.pod_uid, []).append(stable_id)

    def _take_assignment(self, key: str, value: Any, revision: int, arrived_s: float) -> None:
        if key.startswith("partition."):
            partition = int(key[10:])
            if revision:
                self.records[partition] = Standing(value or Record(), revision)
            else:
                self.records.pop(partition, None)
        elif key == "ring":
            self.ring_revision = revision
            if value is not None:
                self.ring = Seen(value, revision, arrived_s)
                self.layout = CachedLayout(value)
                self.ring_problem = ""
            elif self.ring is not None:
                self.ring = self.ring._replace(revision=-1)
                self.ring_problem = "deleted"
        elif key == "tracks":
            if revision == 0 and self.tracks != Tracks():
                self.lost_tracks = True  # no marker: the bucket was made anew, and what was said stands
            else:
                self.tracks, self.lost_tracks = value or Tracks(), False
        elif key == "frozen":
            self.frozen = value
        elif key.startswith(FORGET_PREFIX):
            stable_id = frozenset({key.removeprefix(FORGET_PREFIX)})
            self.forget = self.forget - stable_id if value is None else self.forget | stable_id
