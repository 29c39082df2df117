"""What happens to a fleet's partitions, seen from outside: who owned what when, how long reports waited.

`Observer` follows the ownership records and the rings as they are written. `figures` then holds what it saw
against what the streams hold at the end. Times are the server's (nanoseconds since 1970); the arrival of a
record is told by this machine's clock, which is the server's too.

- *reassigned*: a partition's stable ID changed. *taken over*: its pod changed, its stable ID did not.
- *gap* of a partition: the longest time that a report of it waited, from its storage to its verdict's.
- *handoff gap*: the same of the reports that came around one change of a partition's pod.
- *unowned*: the time between a record that says released and the next that says owned.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table

from runtime.bucket import Bucket, Entry, View
from runtime.bus import Connection
from runtime.config import Settings
from runtime.records import RING_KEY, Layout, RingRecord
from tests.oracle import Stored, Streams

AROUND_NS: Final = 500_000_000
"""A handoff's reports: from this long before the partition was released to this long after it was owned."""
T = TypeVar("T")
BOUNDS_MS: Final = (5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000)


class Owned(msgspec.Struct, frozen=True):
    """An ownership record as an auditor reads it; the wire, not the code that writes it."""

    state: str = "vacant"
    owner: str = ""
    pod_uid: str = ""
    epoch: int = 0


class Held(msgspec.Struct, frozen=True):
    """A claim as an auditor reads it."""

    pod_uid: str
    track: str = ""


class Seen(NamedTuple):
    """A partition's record, and when it arrived."""

    at_ns: int
    record: Owned


class Change(NamedTuple):
    """A partition went to another owner; *free_ns* is when its former record stopped saying owned."""

    partition: int
    free_ns: int
    at_ns: int
    before: Owned
    after: Owned

    @property
    def is_reassignment(self) -> bool:
        return self.before.owner != self.after.owner

    @property
    def is_takeover(self) -> bool:
        return not self.is_reassignment and self.before.pod_uid != self.after.pod_uid


@dataclass
class Event:
    """What is done to a fleet from *begin_ns* to *end_ns*; *remarks* are shown with its figures."""

    what: str
    begin_ns: int
    end_ns: int = 0
    remarks: list[str] = field(default_factory=list)


class Observer:
    """Follows the records of one fleet on a connection of its own."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.settings = settings
        self.history: dict[int, list[Seen]] = defaultdict(list)
        self.rings: list[tuple[int, RingRecord]] = []
        self.claims: dict[str, Held] = {}
        self.events: list[Event] = []
        self._connection = connection
        self._views: list[View] = []

    async def start(self) -> Self:
        """Complete, and live, when this returns."""
        settings = self.settings
        hearers = {
            settings.nats_kv_assignments: self._on_assignment,
            settings.nats_kv_stable_ids: self._on_claim,
        }
        for name, hear in hearers.items():
            self._views.append(await Bucket(self._connection, name, random=random.Random()).watch(hear))
        return self

    async def stop(self) -> None:
        for view in self._views:
            await view.stop()

    @asynccontextmanager
    async def event(self, what: str) -> AsyncIterator[Event]:
        """Marks a block's time as one event; the reports around its last handoffs are waited for."""
        event = Event(what, time.time_ns())
        self.events.append(event)
        yield event
        event.end_ns = time.time_ns()
        await asyncio.sleep(AROUND_NS / 1e9)

    @property
    def ring(self) -> RingRecord | None:
        return self.rings[-1][1] if self.rings else None

    def record(self, partition: int) -> Owned:
        """The partition's record of the moment."""
        seen = self.history.get(partition)
        return seen[-1].record if seen else Owned()

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

    def _on_assignment(self, entry: Entry) -> None:
        head, _, number = entry.key.partition(".")
        if head == "partition" and number.isdecimal():
            record = _read(entry.value, Owned) or Owned("vacant" if entry.value is None else "unreadable")
            self.history[int(number)].append(Seen(time.time_ns(), record))
        elif entry.key == RING_KEY and (ring := _read(entry.value, RingRecord)) is not None:
            self.rings.append((time.time_ns(), ring))

    def _on_claim(self, entry: Entry) -> None:
        claim = _read(entry.value, Held)
        if claim is None:
            self.claims.pop(entry.key, None)
        else:
            self.claims[entry.key] = claim

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

    def rings_of(self, event: Event) -> list[RingRecord]:
        """The ring as it stood at the event's begin, then each that was committed in it."""
        before = [ring for at_ns, ring in self.rings if at_ns < event.begin_ns]
        return before[-1:] + [ring for at_ns, ring in self.rings if event.begin_ns <= at_ns <= event.end_ns]


def _read(value: bytes | None, kind: type[T]) -> T | None:
    """The value; None without one, or when it cannot be read: tests write such values, too."""
    try:
        return msgspec.json.decode(value, type=kind) if value is not None else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


@dataclass
class Figures:
    """What an event cost. Gaps are milliseconds: of each partition, and around each change of pod."""

    event: Event
    reports: int
    changes: list[Change]
    must_move: list[int]
    rings: int
    lost: int
    doubled: int
    stale: int
    """Verdicts of an epoch that were stored after one of a newer epoch: two owners at a time."""
    gaps_ms: dict[int, float]
    handoff_gaps_ms: list[float]
    unowned_ms: list[float]

    @property
    def reassigned(self) -> list[int]:
        """Partitions, one for each time that its stable ID changed."""
        return sorted(change.partition for change in self.changes if change.is_reassignment)

    @property
    def taken_over(self) -> list[int]:
        """Partitions, one for each time that its pod changed and its stable ID did not."""
        return sorted(change.partition for change in self.changes if change.is_takeover)

    @property
    def duration_s(self) -> float:
        return (self.event.end_ns - self.event.begin_ns) / 1e9


class _Verdict(msgspec.Struct):
    seq: int
    epoch: int


class Waits:
    """Every report's wait for its verdict, from what the streams hold."""

    def __init__(self, streams: Streams) -> None:
        stream_of = {message.partition: message.stream for message in streams.samples}
        verdicts: dict[tuple[str, int], list[int]] = defaultdict(list)
        newest: Counter[int] = Counter()
        self.stale: list[int] = []
        """Times of the verdicts whose epoch was not the newest any more."""
        decode = msgspec.msgpack.Decoder(_Verdict).decode
        for message in streams.verdicts:
            verdict, partition = decode(message.payload), message.partition
            verdicts[stream_of.get(partition, ""), verdict.seq].append(message.time_ns)
            if verdict.epoch < newest[partition]:
                self.stale.append(message.time_ns)
            newest[partition] = max(newest[partition], verdict.epoch)
        rejected = {(int(m.headers["Tfdc-Partition"]), int(m.headers["Tfdc-Seq"])) for m in streams.rejected}
        self.lost: list[int] = []
        """Times of the reports that have neither verdict nor rejection."""
        self.doubled: list[int] = []
        self.of: dict[int, list[tuple[int, float]]] = defaultdict(list)
        """(time of storage, wait in ms) of a partition's reports, in their order."""
        for report in streams.samples:
            times = verdicts.get((report.stream, report.seq), [])
            if times:
                self.of[report.partition].append((report.time_ns, (times[0] - report.time_ns) / 1e6))
            elif (report.partition, report.seq) not in rejected:
                self.lost.append(report.time_ns)
            self.doubled += [report.time_ns] * (len(times) > 1)

    def longest_ms(self, partition: int, begin_ns: int, end_ns: int) -> float | None:
        """The longest wait of the reports that were stored within the window; None without any."""
        return max((wait for at, wait in self.of[partition] if begin_ns <= at <= end_ns), default=None)


def figures(observer: Observer, streams: Streams) -> list[Figures]:
    """What each event cost."""
    waits = Waits(streams)
    return [_figures(observer, event, waits, streams.samples) for event in observer.events]


def _figures(observer: Observer, event: Event, waits: Waits, samples: Sequence[Stored]) -> Figures:
    begin, end = event.begin_ns, event.end_ns
    changes, rings = observer.changes(begin, end), observer.rings_of(event)
    moved = Layout(rings[0]).moved(Layout(rings[-1])) if rings else []
    gaps = {p: waits.longest_ms(p, begin, end) for p in range(observer.settings.partitions)}
    around = (waits.longest_ms(c.partition, c.free_ns - AROUND_NS, c.at_ns + AROUND_NS) for c in changes)

    def within(times: Iterable[int]) -> int:
        return sum(begin <= at <= end for at in times)

    return Figures(
        event,
        reports=within(message.time_ns for message in samples),
        changes=changes,
        must_move=moved,
        rings=max(0, len(rings) - 1),
        lost=within(waits.lost),
        doubled=within(waits.doubled),
        stale=within(waits.stale),
        gaps_ms={partition: gap for partition, gap in gaps.items() if gap is not None},
        handoff_gaps_ms=[gap for gap in around if gap is not None],
        unowned_ms=[(change.at_ns - change.free_ns) / 1e6 for change in changes],
    )


def quantile(values: Iterable[float], share: float) -> float:
    """The value that *share* of all do not exceed (0 of none)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def print_table(found: Sequence[Figures]) -> None:
    """One line an event, then the handoff gaps of those that had some as a histogram."""
    table = Table(title="What each event cost", title_justify="left")
    columns = ("event", "s", "reports/s", "rings", "must move", "reassigned", "taken over", "lost", "doubled")
    for column in (*columns, "stale", "gap p50", "p99", "max ms", "handoff p50", "p99", "max ms"):
        table.add_column(column, justify="left" if column == "event" else "right")
    for one in found:
        counts = (one.rings, len(one.must_move), len(one.reassigned), len(one.taken_over))
        gaps = [*_spread(one.gaps_ms.values()), *_spread(one.handoff_gaps_ms)]
        table.add_row(
            one.event.what,
            f"{one.duration_s:.1f}",
            f"{one.reports / max(one.duration_s, 0.001):.0f}",
            *(str(count) for count in (*counts, one.lost, one.doubled, one.stale)),
            *gaps,
        )
    console = Console(width=170)
    console.print(table)
    for one in found:
        for remark in one.event.remarks:
            console.print(f"{one.event.what}: {remark}", highlight=False)
        if one.handoff_gaps_ms:
            unowned = " / ".join(_spread(one.unowned_ms))
            console.print(f"{one.event.what}: unowned by the records p50/p99/max {unowned} ms; handoff gaps:")
            console.print(histogram(one.handoff_gaps_ms), highlight=False)


def _spread(values: Iterable[float]) -> list[str]:
    shares = (0.5, 0.99, 1.0)
    ordered = sorted(values)
    return [f"{quantile(ordered, share):.0f}" if ordered else "" for share in shares]


def histogram(gaps_ms: Iterable[float]) -> str:
    """A line for each bound that some gap keeps and no smaller one does."""
    counts = Counter(next((b for b in BOUNDS_MS if gap <= b), None) for gap in gaps_ms)
    lines = []
    for bound in (*BOUNDS_MS, None):
        if counts[bound]:
            label = f"≤ {bound:,} ms" if bound else f"> {BOUNDS_MS[-1]:,} ms"
            lines.append(f"  {label:>11} {counts[bound]:4} {'█' * min(counts[bound], 64)}")
    return "\n".join(lines)
