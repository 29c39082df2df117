"""The fleet as one pod sees it: claims, heartbeats, owners, ring, what operators said, who leads.

`FleetView` watches four buckets and holds what stands in them, decoded, with the time on this pod's own
monotonic clock at which it arrived: no clock of another machine decides anything. It writes nothing.

A value that cannot be read (written by hand, or by a newer version) never raises: it is left out and named
in `problems`, and logged once. Of the keys that steer the whole fleet the last good value stands: ``ring``
and ``tracks``; an unreadable ``frozen`` freezes, for that is what somebody wanted.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from runtime import log
from runtime.bucket import Bucket, Entry, Repair, View
from runtime.bus import Connection
from runtime.identity import Claim
from runtime.membership import Heartbeat, State
from runtime.ownership_record import Record
from runtime.records import (
    FORGET_PREFIX,
    FROZEN_KEY,
    RING_KEY,
    TRACKS_KEY,
    Frozen,
    Layout,
    RingRecord,
    Tracks,
)

if TYPE_CHECKING:
    from runtime.config import Settings

LEADER_KEY: Final = "leader"
WAITING: Final = (State.STARTING, State.STANDBY)
_PARTITION: Final = "partition."
_LOG = log.get("fleet_view")
T = TypeVar("T")

_claim: Final = msgspec.json.Decoder(Claim)
_beat: Final = msgspec.json.Decoder(Heartbeat)
_ring: Final = msgspec.json.Decoder(RingRecord)
_tracks: Final = msgspec.json.Decoder(Tracks)
_frozen: Final = msgspec.json.Decoder(Frozen)
_record: Final = msgspec.json.Decoder(Record)


class Seen(NamedTuple, Generic[T]):
    """A key's value as decoded, its revision, and when that revision arrived here (seconds, monotonic)."""

    value: T
    revision: int
    arrived_s: float


class FleetView:
    """What stands in the fleet's buckets. Read the attributes; the view alone changes them.

    *session* is this process's own: a heartbeat of our UID from another session, after one of ours, is
    logged as an error, for then two processes run under one POD_UID. *repair* makes a missing bucket anew.
    """

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        *,
        random: Random,
        clock: Callable[[], float] = time.monotonic,
        session: str = "",
        repair: Repair | None = None,
    ) -> None:
        self.claims: dict[str, Seen[Claim]] = {}
        """Living claims by stable ID."""
        self.claim_entries: dict[str, Entry] = {}
        """Every key of the claims' bucket as it stands, deleted and unreadable ones too."""
        self.held: dict[str, list[str]] = {}
        """The stable IDs that a pod holds, by its UID."""
        self.beats: dict[str, Seen[Heartbeat]] = {}
        """Living heartbeats by pod UID."""
        self.departed: set[str] = set()
        """Pods whose heartbeat is gone although they hold a claim."""
        self.records: dict[int, Seen[Record]] = {}
        """Ownership by partition; *revision* is the key's, the epoch is ``value.epoch or revision``."""
        self.record_revisions: dict[int, int] = {}
        """Revision of each partition's key as stored, deleted and unreadable ones too."""
        self.ring: Seen[RingRecord] | None = None
        """The last one that could be read; if its revision is not `ring_revision`, it is not what stands."""
        self.ring_revision = 0
        """Revision of the key as stored, of a deletion too: to compare and set against. 0: never written."""
        self.ring_problem = ""
        """Why the stored ring cannot be used; "" if it can, or if there never was one."""
        self.layout: Layout | None = None
        """Of `ring`; None when this version cannot compute it: an unknown algorithm, other PARTITIONS."""
        self.tracks = Tracks()
        self.frozen: Frozen | None = None
        self.lost: dict[str, bytes] = {}
        """What operators wrote and the bucket has lost without a trace; the leader writes it again."""
        self.forget: frozenset[str] = frozenset()
        self.leader: Seen[bytes] | None = None
        self.problems: dict[str, str] = {}
        """Values that cannot be read, by ``<bucket>/<key>``."""
        self._connection = connection
        self._settings = settings
        self._random = random
        self._clock = clock
        self._session = session
        self._started_s = clock()
        self._words: dict[str, bytes] = {}
        self._repair = repair
        self._usable: tuple[Seen[RingRecord] | None, Layout | None] = None, None
        """The last ring that this version could compute."""
        self._own_seen = False
        self._doubled = ""
        self._heard_s: dict[str, float] = {}
        self._views: dict[str, View] = {}
        self._callbacks: list[Callable[[str], None]] = []

    async def start(self) -> None:
        """Read everything; the view is complete when this returns. Raises the TRANSIENT errors, ApiError."""
        settings = self._settings
        watched: dict[str, Callable[[Entry], None]] = {
            settings.nats_kv_stable_ids: self._on_claim,
            settings.nats_kv_heartbeats: self._on_beat,
            settings.nats_kv_assignments: self._on_assignment,
            settings.nats_kv_leader: self._on_leader,
        }
        outcomes = await asyncio.gather(
            *(
                self._bucket(name).watch(on_change, repair=self._repair)
                for name, on_change in watched.items()
            ),
            return_exceptions=True,
        )
        self._views = {
            name: view for name, view in zip(watched, outcomes, strict=True) if isinstance(view, View)
        }
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                await self.stop()
                raise outcome

    async def stop(self) -> None:
        """Nothing changes after this."""
        views, self._views = list(self._views.values()), {}
        await asyncio.gather(*(view.stop() for view in views))

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call *callback* at each change with its kind; what this returns ends that.

        Kinds: claims, beats, records, ring, tracks, frozen, forget, leader. What only says that somebody
        lives still is no change: a renewed claim, a heartbeat with nothing new but its time and load.
        *callback* runs in the reader of the connection: it must be short and must not raise.
        """
        self._callbacks.append(callback)

        def cancel() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return cancel

    async def reread_ring(self) -> None:
        """Read the ring now, for a request that names a newer version. Raises the TRANSIENT errors."""
        await self._refresh(self._settings.nats_kv_assignments, RING_KEY)

    async def reread_claim(self, stable_id: str) -> None:
        """Read one claim now: a compare-and-set told that it is newer. Raises the TRANSIENT errors."""
        await self._refresh(self._settings.nats_kv_stable_ids, stable_id)

    async def reread(self) -> None:
        """Read everything now. Raises the TRANSIENT errors, ApiError."""
        await asyncio.gather(*(view.reread() for view in self._views.values()))

    def standing(self, partition: int) -> tuple[Record, int]:
        """A partition's record and the revision to compare and set against; a vacant one if unreadable."""
        seen = self.records.get(partition)
        return seen.value if seen is not None else Record(), self.record_revisions.get(partition, 0)

    # --- who lives ------------------------------------------------------------------------------

    @property
    def watched_s(self) -> float:
        """For how long this view has noted who is heard."""
        return self._clock() - self._started_s

    def has_draining(self, track: str) -> bool:
        """Whether a holder of *track* is on its way out and looks for a successor."""
        return any(
            seen.value.state is State.DRAINING and seen.value.track == track and uid in self.held
            for uid, seen in self.beats.items()
        )

    def silent_s(self, pod_uid: str) -> float:
        """Seconds since a heartbeat or the renewal of a claim of the pod arrived; inf if none ever did."""
        heard_s = self._heard_s.get(pod_uid)
        return math.inf if heard_s is None else self._clock() - heard_s

    def is_gone(self, pod_uid: str, *, silence_s: float | None = None) -> bool:
        """Whether the pod holds no claim, and has no living heartbeat or is silent (SILENCE_S by default)."""
        if pod_uid in self.held:
            return False
        longest_s = self._settings.silence_s if silence_s is None else silence_s
        return pod_uid not in self.beats or self.silent_s(pod_uid) > longest_s

    def kept(self) -> set[str]:
        """IDs without a claim that an active pod says it holds: their bucket was lost, they will be back."""
        return {
            seen.value.stable_id
            for uid, seen in self.beats.items()
            if seen.value.stable_id is not None
            and seen.value.state is State.ACTIVE
            and seen.value.stable_id not in self.claims
            and self.silent_s(uid) <= self._settings.silence_s
        }

    def waiting(self, track: str) -> list[str]:
        """UIDs of the pods of *track* that wait for an ID, in the order of their first heartbeats.

        Every pod sees the same order: it does not change with later heartbeats. Silent pods are left out.
        """
        queue = [
            (seen.value.joined or seen.revision, uid)
            for uid, seen in self.beats.items()
            if seen.value.track == track
            and seen.value.state in WAITING
            and seen.value.stable_id is None
            and uid not in self.held
            and self.silent_s(uid) <= self._settings.silence_s
        ]
        return [uid for _, uid in sorted(queue)]

    # --- what arrives ---------------------------------------------------------------------------

    def _on_claim(self, entry: Entry) -> None:
        key, before, seen = entry.key, self.claim_entries.get(entry.key), self.claims.get(entry.key)
        if entry.revision:
            self.claim_entries[key] = entry
        else:
            self.claim_entries.pop(key, None)
        if seen is not None and before is not None and before.value == entry.value:
            # A renewal repeats the bytes: 2 of 3 events of a fleet at rest.
            self._seen_claim(key, seen.value, entry.revision)
            return
        claim = self._decode(self._settings.nats_kv_stable_ids, entry, _claim, _claim_problem)
        if seen is not None:
            del self.claims[key]
            held = self.held[seen.value.pod_uid]
            held.remove(key)
            if not held:
                del self.held[seen.value.pod_uid]
        if claim is not None:
            self._seen_claim(key, claim, entry.revision)
            self.held.setdefault(claim.pod_uid, []).append(key)
        if seen is not None or claim is not None:
            self._tell("claims")

    def _seen_claim(self, key: str, claim: Claim, revision: int) -> None:
        now_s = self._clock()
        self.claims[key] = Seen(claim, revision, now_s)
        self._heard_s[claim.pod_uid] = now_s

    def _on_beat(self, entry: Entry) -> None:
        uid, before = entry.key, self.beats.get(entry.key)
        beat = self._decode(self._settings.nats_kv_heartbeats, entry, _beat, _beat_problem)
        if beat is None:
            if entry.value is None and uid not in self.held:
                self._heard_s.pop(uid, None)
            if uid in self.held:
                self.departed.add(uid)
            if self.beats.pop(uid, None) is not None:
                self._tell("beats")
            return
        now_s = self._clock()
        self.departed.discard(uid)
        self.beats[uid] = Seen(beat, entry.revision, now_s)
        self._heard_s[uid] = now_s
        if uid == self._settings.pod_uid:
            self._check_session(beat)
        if before is None or _lasting(before.value) != _lasting(beat):
            self._tell("beats")

    def _check_session(self, beat: Heartbeat) -> None:
        if beat.session == self._session:
            self._own_seen = True
        elif self._session and self._own_seen and beat.session and beat.session != self._doubled:
            self._doubled = beat.session
            _LOG.error(
                "another process beats under our POD_UID, and each fences the other: give every pod its own "
                "(metadata.uid by the downward API)",
                pod_uid=beat.pod_uid,
                pod_name=self._settings.pod_name,
                other_pod_name=beat.pod_name,
            )

    def _on_assignment(self, entry: Entry) -> None:
        key = entry.key
        if key in (TRACKS_KEY, FROZEN_KEY):
            if entry.revision == 0 and key in self._words:
                # No marker of a deletion: the bucket was made anew. What was said stands.
                self.lost[key] = self._words[key]
                return
            self.lost.pop(key, None)
            if entry.value is None:
                self._words.pop(key, None)
            else:
                self._words[key] = entry.value
        if key.startswith(_PARTITION):
            self._on_record(entry)
        elif key == RING_KEY:
            self._on_ring(entry)
        elif key == TRACKS_KEY:
            tracks = self._decode(self._settings.nats_kv_assignments, entry, _tracks)
            if tracks is not None or entry.value is None:
                self.tracks = tracks or Tracks()
                self._tell("tracks")
        elif key == FROZEN_KEY:
            frozen = self._decode(self._settings.nats_kv_assignments, entry, _frozen)
            if frozen is None and entry.value is not None:
                unreadable = "the key holds no readable value; defender unfreeze deletes it"
                frozen = Frozen("unknown", datetime.fromtimestamp(0, UTC), unreadable)
            self.frozen = frozen
            self._tell("frozen")
        elif key.startswith(FORGET_PREFIX):
            stable_id = frozenset({key.removeprefix(FORGET_PREFIX)})
            self.forget = self.forget - stable_id if entry.value is None else self.forget | stable_id
            self._tell("forget")

    def _on_record(self, entry: Entry) -> None:
        number = entry.key.removeprefix(_PARTITION)
        if not number.isdecimal() or str(int(number)) != number:
            if entry.value is not None:
                self._note(self._settings.nats_kv_assignments, entry.key, "is the key of no partition")
            return
        self.record_revisions[int(number)] = entry.revision
        record = self._decode(self._settings.nats_kv_assignments, entry, _record)
        if record is not None:
            self.records[int(number)] = Seen(record, entry.revision, self._clock())
        else:
            self.records.pop(int(number), None)
        self._tell("records")

    def _on_ring(self, entry: Entry) -> None:
        bucket = self._settings.nats_kv_assignments
        self.ring_revision = entry.revision
        record = self._decode(bucket, entry, _ring, _ring_problem)
        if record is not None:
            self.ring = Seen(record, entry.revision, self._clock())
            self.layout, self.ring_problem = self._laid_out(record)
            if self.ring_problem:
                self._note(bucket, RING_KEY, self.ring_problem)
            else:
                self._usable = self.ring, self.layout
        elif entry.value is not None:
            self.ring_problem = self.problems[f"{bucket}/{RING_KEY}"]
        elif self.ring is not None:
            if self.layout is None:
                # What nobody could use was deleted, by a person: the one before it stands, if there was one.
                self.ring, self.layout = self._usable
            gone = "the record was deleted; the last one stands until the leader writes it again"
            self.ring_problem = gone if self.ring is not None else ""
        if record is None and self.ring is not None:
            # A bucket made anew counts from 1 again: no revision of it is that of our ring.
            self.ring = self.ring._replace(revision=-1)
        self._tell("ring")

    def _laid_out(self, record: RingRecord) -> tuple[Layout | None, str]:
        if record.partitions != self._settings.partitions:
            problem = f"has {record.partitions} partitions, PARTITIONS is {self._settings.partitions} here"
            return None, f"{problem}: set it to what the fleet has"
        try:
            return Layout(record), ""
        except ValueError as error:
            return None, str(error)

    def _on_leader(self, entry: Entry) -> None:
        if entry.key != LEADER_KEY:
            return
        before = self.leader.value if self.leader is not None else None
        value = entry.value
        self.leader = Seen(value, entry.revision, self._clock()) if value is not None else None
        if before != value:
            self._tell("leader")

    # --- small change ---------------------------------------------------------------------------

    def _decode(
        self,
        bucket: str,
        entry: Entry,
        decoder: msgspec.json.Decoder[T],
        problem_of: Callable[[str, Any], str] = lambda _key, _value: "",
    ) -> T | None:
        """The value; None without one, or when it cannot be read, which is noted."""
        if entry.value is None:
            self.problems.pop(f"{bucket}/{entry.key}", None)
            return None
        try:
            value = decoder.decode(entry.value)
            problem = problem_of(entry.key, value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            problem = str(error)
        if problem:
            self._note(bucket, entry.key, problem)
            return None
        self.problems.pop(f"{bucket}/{entry.key}", None)
        return value

    def _note(self, bucket: str, key: str, problem: str) -> None:
        if self.problems.get(f"{bucket}/{key}") != problem:
            self.problems[f"{bucket}/{key}"] = problem
            _LOG.error("a key's value cannot be used", bucket=bucket, key=key, problem=problem)

    def _tell(self, kind: str) -> None:
        for callback in tuple(self._callbacks):
            callback(kind)

    async def _refresh(self, bucket: str, key: str) -> None:
        view = self._views.get(bucket)
        if view is not None:
            await view.refresh(key)

    def _bucket(self, name: str) -> Bucket:
        return Bucket(self._connection, name, random=self._random, timeout_s=self._settings.request_timeout_s)


def _claim_problem(key: str, claim: Claim) -> str:
    return "" if claim.stable_id == key else f"is a claim of {claim.stable_id}"


def _beat_problem(key: str, beat: Heartbeat) -> str:
    return "" if beat.pod_uid == key else f"is a heartbeat of the pod {beat.pod_uid}"


def _ring_problem(_: str, record: RingRecord) -> str:
    wrong = [p for pins in record.pins.values() for p in pins if not 0 <= p < record.partitions]
    return f"pins partitions that do not exist: {wrong[:3]}" if wrong else ""


def _lasting(beat: Heartbeat) -> tuple[Any, ...]:
    """What of a heartbeat is news when it changes."""
    return (
        beat.state,
        beat.stable_id,
        beat.warm,
        beat.session,
        beat.ring_version,
        beat.partitions,
        beat.standby,
        beat.track,
        beat.revision,
        beat.pod_name,
    )
