"""The fake NATS server: buckets with revisions, compare-and-set and expiry; samples, consumers, verdicts.

All operations are carried out at one instant; the links of the pods (`simulation.link`) delay and lose
requests and answers. Every write is in `log`, from which the pods' views take it with delays of their own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from runtime.membership import Heartbeat
from runtime.ownership_record import Record, State, partition_of_key
from simulation.heap import Heap, Violation

CONFLICT: Final = -1
DUPLICATE_WINDOW_S: Final = 24.0
"""Twice the lease, the least that the settings allow."""
CLAIMS, BEATS, ASSIGNMENTS, LEADER = "claims", "beats", "assignments", "leader"


class Stored(NamedTuple):
    """A key as it stands; *value* is None for a deleted or expired one, whose revision counts still."""

    value: Any
    revision: int
    at_s: float


class Change(NamedTuple):
    """One write, as watchers get it. *real*: not only the time of a renewal changed."""

    at_s: float
    bucket: str
    key: str
    value: Any
    revision: int
    generation: int
    real: bool


@dataclass(slots=True)
class Bucket:
    ttl_s: float | None = None
    markers: bool = False
    revision: int = 0
    generation: int = 0
    stored: dict[str, Stored] = field(default_factory=dict)
    expiring: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Consumer:
    floor: int
    start: int


class Told(NamedTuple):
    """What the stream tells of a partition."""

    last_seq: int
    floors: dict[int, int]
    position: int
    """Told by the newest verdict."""
    revision: int
    """Of the partition's record."""


class Server:
    """*on_change* hears of every write that is more than a renewal."""

    def __init__(self, heap: Heap, lease_ttl_s: float, beat_ttl_s: float, leader_ttl_s: float) -> None:
        self._heap = heap
        self.log: list[Change] = []
        self.on_change: Callable[[Change], None] = lambda _: None
        self.buckets = {
            CLAIMS: Bucket(lease_ttl_s, markers=True),
            BEATS: Bucket(beat_ttl_s),
            ASSIGNMENTS: Bucket(),
            LEADER: Bucket(leader_ttl_s, markers=True),
        }
        self.down_until_s = 0.0
        self.writes_refused_until_s = 0.0
        self.samples: list[list[float]] = []
        self.consumers: list[dict[int, Consumer]] = []
        self.verdicts: list[dict[int, tuple[int, float]]] = []
        """Epoch and time of storing by sequence, by partition."""
        self.last_verdict: list[int] = []
        self.position: list[int] = []
        self.publisher: dict[tuple[int, int, int], str] = {}
        self.renewed_s: dict[str, float] = {}
        """When a pod's claim was last written, by its UID."""
        self.last_epoch: list[tuple[int, int]] = []
        self.first_beat: dict[str, int] = {}
        self.zombie_publishes = 0
        self.zombie_stored = 0
        self.on_deleted: Callable[[int, int], None] = lambda partition, epoch: None

    # --- buckets --------------------------------------------------------------------------------

    def up(self) -> bool:
        return self._heap.now_s >= self.down_until_s

    def takes(self, operation: Callable[..., Any]) -> bool:
        """Whether it answers: it is up, and the bucket that is written has its leader."""
        now_s = self._heap.now_s
        refuses = now_s < self.writes_refused_until_s and operation.__name__.startswith("write")
        return now_s >= self.down_until_s and not refuses

    def write(self, bucket: str, key: str, value: Any, expected: int | None) -> int:
        """The new revision, or CONFLICT when the key is not at *expected* (None: whatever is there)."""
        kept = self.buckets[bucket]
        old = kept.stored.get(key)
        if expected is not None and (old.revision if old is not None else 0) != expected:
            return CONFLICT
        kept.revision += 1
        now_s = self._heap.now_s
        kept.stored[key] = Stored(value, kept.revision, now_s)
        if kept.ttl_s is not None and key not in kept.expiring:
            kept.expiring.add(key)
            self._heap.after(kept.ttl_s, self._expire, bucket, key, kept.generation)
        if bucket == CLAIMS and value is not None:
            self.renewed_s[value.pod_uid] = now_s
        elif bucket == BEATS:
            self.first_beat.setdefault(key, kept.revision)
        real = old is None or _is_news(old.value, value)
        change = Change(now_s, bucket, key, value, kept.revision, kept.generation, real)
        self.log.append(change)
        if real:
            self.on_change(change)
        return kept.revision

    def write_owner(self, partition: int, record: Record, expected: int) -> tuple[int, int] | None:
        """Revision and generation of an acquisition; None when another wrote before."""
        generation = self.buckets[ASSIGNMENTS].generation
        revision = self.write(ASSIGNMENTS, f"partition.{partition}", record, expected)
        return (revision, generation) if revision != CONFLICT else None

    def write_record(self, partition: int, record: Record, expected: int) -> int | None:
        """The revision of a record that is given back or mended, also when the very same value was written
        before and its answer got lost; None when another wrote before."""
        key = f"partition.{partition}"
        revision = self.write(ASSIGNMENTS, key, record, expected)
        if revision != CONFLICT:
            return revision
        stored = self.get(ASSIGNMENTS, key)
        return stored.revision if stored is not None and stored.value == record else None

    def get(self, bucket: str, key: str) -> Stored | None:
        return self.buckets[bucket].stored.get(key)

    def lose(self, bucket: str) -> None:
        """The bucket is deleted and made anew: empty, its revisions begin again; those of the assignments at
        the time in milliseconds, as `resources.made_at` has it."""
        kept = self.buckets[bucket]
        first = int(self._heap.now_s * 1e3) if bucket == ASSIGNMENTS else 0
        self.buckets[bucket] = Bucket(kept.ttl_s, kept.markers, first, kept.generation + 1)

    def _expire(self, bucket: str, key: str, generation: int) -> None:
        kept = self.buckets[bucket]
        stored = kept.stored.get(key)
        if kept.generation != generation or stored is None or kept.ttl_s is None:
            return
        due_s = max(stored.at_s + kept.ttl_s, self.down_until_s)
        if due_s > self._heap.now_s:
            self._heap.at(due_s, self._expire, bucket, key, generation)
            return
        kept.expiring.discard(key)
        if stored.value is None or not kept.markers:
            del kept.stored[key]
        else:
            self.write(bucket, key, None, None)

    # --- streams --------------------------------------------------------------------------------

    def begin_streams(self, samples: list[list[float]]) -> None:
        """*samples*: times of arrival by partition, ascending; the sequences are 1, 2, ..."""
        self.samples = samples
        self.consumers = [{} for _ in samples]
        self.verdicts = [{} for _ in samples]
        self.last_verdict = [0] * len(samples)
        self.position = [0] * len(samples)
        self.last_epoch = [(0, 0)] * len(samples)

    def last_seq(self, partition: int) -> int:
        return bisect_right(self.samples[partition], self._heap.now_s)

    def told(self, partition: int) -> Told:
        floors = {epoch: consumer.floor for epoch, consumer in self.consumers[partition].items()}
        stored = self.get(ASSIGNMENTS, f"partition.{partition}")
        revision = stored.revision if stored is not None else 0
        return Told(self.last_seq(partition), floors, self.position[partition], revision)

    def newest_verdict(self, partition: int) -> int:
        return self.last_verdict[partition]

    def create_consumer(self, partition: int, epoch: int, position: int) -> int:
        there = self.consumers[partition].get(epoch)
        if there is not None:
            return 0 if there.start == position + 1 else CONFLICT  # as the real one: the same again is fine
        self.consumers[partition][epoch] = Consumer(position, position + 1)
        return 0

    def delete_consumers(self, partition: int, epochs: list[int]) -> int:
        for epoch in epochs:
            self.delete_consumer(partition, epoch)
        return 0

    def delete_consumer(self, partition: int, epoch: int) -> int:
        if self.consumers[partition].pop(epoch, None) is not None:
            self.on_deleted(partition, epoch)
        return 0

    def lose_consumers(self) -> None:
        for partition, consumers in enumerate(self.consumers):
            for epoch in list(consumers):
                self.delete_consumer(partition, epoch)

    def ack(self, partition: int, epoch: int, seq: int) -> int:
        consumer = self.consumers[partition].get(epoch)
        if consumer is None:
            return CONFLICT
        consumer.floor = max(consumer.floor, seq)
        return 0

    def owner(self, partition: int) -> tuple[Record, int] | None:
        """The partition's record and its epoch."""
        stored = self.buckets[ASSIGNMENTS].stored.get(f"partition.{partition}")
        if stored is None or stored.value is None:
            return None
        return stored.value, stored.value.epoch or stored.revision

    def publish(
        self, partition: int, seqs: range, epoch: int, generation: int, who: tuple[str, str], position: int
    ) -> int:
        """Store verdicts of *who* (pod UID, session); how many of them were new. Raises Violation."""
        pod_uid, session = who
        now_s = self._heap.now_s
        owner = self.owner(partition)
        if owner is not None and owner[0].state is State.OWNED and owner[1] == epoch:
            current = generation == self.buckets[ASSIGNMENTS].generation
            if current and owner[0].pod_uid != pod_uid:
                raise Violation(
                    f"partition {partition}: {pod_uid} publishes with epoch {epoch}, which is "
                    f"{owner[0].pod_uid}'s"
                )
        first = self.publisher.setdefault((partition, generation, epoch), session)
        if first != session:
            raise Violation(f"partition {partition}: {first} and {session} publish with epoch {epoch}")
        zombie = (generation, epoch) < self.last_epoch[partition]
        self.last_epoch[partition] = max(self.last_epoch[partition], (generation, epoch))
        stored = self.verdicts[partition]
        new = 0
        for seq in seqs:
            if seq in stored:
                if now_s - stored[seq][1] > DUPLICATE_WINDOW_S:
                    raise Violation(
                        f"partition {partition}: verdict {seq} is stored twice, again by {session}"
                    )
                continue  # the message ID is known: dropped
            if seq > 1 and seq - 1 not in stored:
                raise Violation(
                    f"partition {partition}: verdict {seq} of epoch {epoch} by {pod_uid} is stored "
                    f"before {seq - 1}; {self.last_verdict[partition]} was the last"
                )
            stored[seq] = epoch, now_s
            self.last_verdict[partition] = seq
            self.position[partition] = position
            new += 1
        self.zombie_publishes += zombie
        self.zombie_stored += zombie and new > 0
        return new


def _is_news(before: Any, after: Any) -> bool:
    """Whether a write is more than a renewal. The ring's version in a heartbeat wakes nobody here: a leader
    looks at it when it goes round."""
    if isinstance(before, Heartbeat) and isinstance(after, Heartbeat):
        told = (after.state, after.stable_id, after.session)
        return (before.state, before.stable_id, before.session) != told
    return before is not after


def record_key(change: Change) -> int | None:
    """The partition of a written ownership record."""
    return partition_of_key(change.key) if change.bucket == ASSIGNMENTS else None
