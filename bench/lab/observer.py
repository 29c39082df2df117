"""Who owned what when, seen from outside: an observer follows the records of one fleet as they are written.

Times are this machine's clock as a record arrives, which is the server's, too (nanoseconds since 1970).

- *reassigned*: a partition's stable ID changed. *taken over*: its pod changed, its stable ID did not.
- *unowned*: a partition whose record says nobody has it, or says a pod that does not live.
- *doubled*: two pods that serve one partition or hold one ID at a time, see `bench.lab.doubles`.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple, Self, TypeVar

import msgspec

from bench.lab.doubles import Beat, Doubles, Held
from bench.lab.result import Owned
from runtime.bucket import Bucket, Entry, View
from runtime.bus import Connection
from runtime.config import Settings
from runtime.ownership_record import partition_of_key
from runtime.records import RING_KEY, Layout, RingRecord

LOOK_NS: Final = 50_000_000
"""A pod is looked at so often when its life is told; a shorter death is not seen."""
EXACT_NS: Final = 1_000_000
T = TypeVar("T")
Living = Callable[[str, int], bool]
"""Whether the pod of a UID lived at a time."""


class Ownership(msgspec.Struct, frozen=True):
    """An ownership record as an auditor reads it; the wire, not the code that writes it."""

    state: str = "vacant"
    owner: str = ""
    pod_uid: str = ""
    epoch: int = 0


class Seen(NamedTuple):
    """A partition's record, and when it arrived."""

    at_ns: int
    record: Ownership


class Change(NamedTuple):
    """A partition went to another owner; *free_ns* is when its former record stopped saying owned."""

    partition: int
    free_ns: int
    at_ns: int
    before: Ownership
    after: Ownership

    @property
    def is_reassignment(self) -> bool:
        return self.before.owner != self.after.owner

    @property
    def is_takeover(self) -> bool:
        return not self.is_reassignment and self.before.pod_uid != self.after.pod_uid


class Stretch(NamedTuple):
    """A time within which one pod had a partition under one ID, by the records."""

    partition: int
    owner: str
    pod_uid: str
    begun_ns: int
    ended_ns: int


class Observer:
    """Follows the records of one fleet on a connection that others may use, too."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.settings = settings
        self.history: dict[int, list[Seen]] = defaultdict(list)
        """Every record of a partition, as they came."""
        self.rings: list[tuple[int, RingRecord]] = []
        """Every ring, with the time at which it came."""
        self.claims: dict[str, Held] = {}
        """Who holds which ID at the moment."""
        self.identities: dict[str, tuple[str, int]] = {}
        """The first ID that a pod got, and when, by its UID."""
        self._doubles = Doubles(settings.renew_s)
        self._connection = connection
        self._views: list[View] = []

    async def start(self) -> Self:
        """Complete, and live, when this returns. Raises the TRANSIENT errors."""
        settings = self.settings
        hearers = {
            settings.nats_kv_assignments: self._on_assignment,
            settings.nats_kv_stable_ids: self._on_claim,
            settings.nats_kv_heartbeats: self._on_beat,
        }
        for name, hear in hearers.items():
            self._views.append(await Bucket(self._connection, name, random=random.Random()).watch(hear))
        return self

    async def stop(self) -> None:
        for view in self._views:
            await view.stop()

    @property
    def ring(self) -> RingRecord | None:
        """The ring of the moment; None before the first."""
        return self.rings[-1][1] if self.rings else None

    def record(self, partition: int) -> Ownership:
        """The partition's record of the moment."""
        seen = self.history.get(partition)
        return seen[-1].record if seen else Ownership()

    def unsettled(self, living: set[str]) -> list[str]:
        """What is not as it should be: the ring's members, then each partition's owner; *living* are UIDs."""
        ring, wrong = self.ring, list[str]()
        owners = Layout(ring).owners if ring else [None] * self.settings.partitions
        if ring:
            vacant = [one for one in ring.members if one not in self.claims]
            wrong += [f"nobody holds {one}, which is in the ring" for one in sorted(vacant)]
        for partition, wanted in enumerate(owners):
            record = self.record(partition)
            if record.state != "owned":
                wrong.append(f"partition {partition} is {record.state}")
            elif record.pod_uid not in living:
                wrong.append(f"partition {partition} is owned by {record.pod_uid}, which is gone")
            elif wanted is not None and record.owner != wanted:
                wrong.append(f"partition {partition} is {record.owner}'s, the ring says {wanted}")
        return wrong

    # --- what comes -------------------------------------------------------------------------------

    def _on_assignment(self, entry: Entry) -> None:
        partition = partition_of_key(entry.key)
        if partition is not None:
            vacant = Ownership("vacant" if entry.value is None else "unreadable")
            record = _read(entry.value, Ownership) or vacant
            self.history[partition].append(Seen(time.time_ns(), record))
        elif entry.key == RING_KEY and (ring := _read(entry.value, RingRecord)) is not None:
            self.rings.append((time.time_ns(), ring))

    def _on_claim(self, entry: Entry) -> None:
        claim, now_ns = _read(entry.value, Held), time.time_ns()
        self._doubles.claimed(entry.key, claim, now_ns)
        if claim is None:
            self.claims.pop(entry.key, None)
            return
        self.claims[entry.key] = claim
        self.identities.setdefault(claim.pod_uid, (entry.key, now_ns))

    def _on_beat(self, entry: Entry) -> None:
        beat = _read(entry.value, Beat)
        if beat is not None:
            self._doubles.beaten(beat)

    # --- what it saw ------------------------------------------------------------------------------

    def changes(self, begin_ns: int, end_ns: int) -> list[Change]:
        """Each time in the window that a partition came to another stable ID or another pod."""
        found = []
        for partition, history in sorted(self.history.items()):
            before: Seen | None = None
            free_ns = 0
            for seen in history:
                if seen.record.state != "owned":
                    free_ns = free_ns or seen.at_ns
                    continue
                if before is not None and begin_ns <= seen.at_ns <= end_ns:
                    change = Change(partition, free_ns or seen.at_ns, seen.at_ns, before.record, seen.record)
                    if change.is_reassignment or change.is_takeover:
                        found.append(change)
                before, free_ns = seen, 0
        return found

    def owned(self, end_ns: int, names: Mapping[str, str]) -> list[Owned]:
        """Each stretch of a partition's ownership until the end; *names* are the pods' by UID."""
        return [
            Owned(one.partition, one.owner, names.get(one.pod_uid, one.pod_uid), one.begun_ns, one.ended_ns)
            for partition in sorted(self.history)
            for one in self._stretches(partition, end_ns)
        ]

    def unowned_ms(self, begin_ns: int, end_ns: int, living: Living) -> dict[int, float]:
        """By partition, the longest time within the window without a living owner by the records, in ms."""
        found = {}
        lives: dict[str, list[tuple[int, int]]] = {}
        for partition in range(self.settings.partitions):
            longest_ns, since_ns = 0, begin_ns
            for one in self._stretches(partition, end_ns):
                if one.pod_uid not in lives:
                    lives[one.pod_uid] = _lives(one.pod_uid, begin_ns, end_ns, living)
                for born_ns, died_ns in lives[one.pod_uid]:
                    first_ns, last_ns = max(born_ns, one.begun_ns), min(died_ns, one.ended_ns)
                    if first_ns < last_ns:
                        longest_ns = max(longest_ns, first_ns - since_ns)
                        since_ns = max(since_ns, last_ns)
            found[partition] = max(longest_ns, end_ns - since_ns) / 1e6
        return found

    def doubles(self) -> list[str]:
        """In words, each time that two pods served one partition, two held one ID, or one held two."""
        return self._doubles.found()

    def _stretches(self, partition: int, end_ns: int) -> Iterator[Stretch]:
        begun: Seen | None = None
        for seen in self.history.get(partition, []):
            if seen.at_ns >= end_ns:
                break
            if begun is not None:
                was, record = begun.record, seen.record
                if (record.state, record.owner, record.pod_uid) == ("owned", was.owner, was.pod_uid):
                    continue
                yield Stretch(partition, was.owner, was.pod_uid, begun.at_ns, seen.at_ns)
            begun = seen if seen.record.state == "owned" else None
        if begun is not None:
            yield Stretch(partition, begun.record.owner, begun.record.pod_uid, begun.at_ns, end_ns)


def _lives(pod_uid: str, begin_ns: int, end_ns: int, living: Living) -> list[tuple[int, int]]:
    """The times within the window in which a pod lived, their ends exact to `EXACT_NS`."""
    found = []
    before_ns, was = begin_ns, living(pod_uid, begin_ns)
    born_ns = begin_ns
    while before_ns < end_ns:
        at_ns = min(end_ns, before_ns + LOOK_NS)
        lives = living(pod_uid, at_ns)
        if lives != was:
            low_ns, high_ns = before_ns, at_ns
            while high_ns - low_ns > EXACT_NS:
                middle_ns = (low_ns + high_ns) // 2
                if living(pod_uid, middle_ns) == was:
                    low_ns = middle_ns
                else:
                    high_ns = middle_ns
            if was:
                found.append((born_ns, low_ns))
            born_ns = high_ns
        before_ns, was = at_ns, lives
    return [*found, (born_ns, end_ns)] if was else found


def _read(value: bytes | None, kind: type[T]) -> T | None:
    """The value; None without one, or when it cannot be read: tests write such values, too."""
    try:
        return msgspec.json.decode(value, type=kind) if value is not None else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
