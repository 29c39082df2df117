"""What each event cost a fleet: `figures` holds what the lab's observer saw against what the streams hold.

- *gap* of a partition: the longest time that a report of it waited, from its storage to its verdict's.
- *handoff gap*: the same of the reports that came around one change of a partition's pod.
- *unowned*: the time between a record that says released and the next that says owned.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

from bench.lab import observer as lab
from bench.lab.observer import Change
from runtime.bus import Connection
from runtime.config import Settings
from runtime.records import Layout, RingRecord
from tests.oracle import Stored, Streams

__all__ = ["Change", "Event", "Figures", "Observer", "Waits", "figures", "print_table", "quantile"]
AROUND_NS: Final = 500_000_000
"""A handoff's reports: from this long before the partition was released to this long after it was owned."""
BOUNDS_MS: Final = (5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000)


@dataclass
class Event:
    """What is done to a fleet from *begin_ns* to *end_ns*; *remarks* are shown with its figures."""

    what: str
    begin_ns: int
    end_ns: int = 0
    remarks: list[str] = field(default_factory=list)


class Observer(lab.Observer):
    """The lab's observer, with the events of a test."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        super().__init__(connection, settings)
        self.events: list[Event] = []

    @asynccontextmanager
    async def event(self, what: str) -> AsyncIterator[Event]:
        """Marks a block's time as one event; the reports around its last handoffs are waited for."""
        event = Event(what, time.time_ns())
        self.events.append(event)
        yield event
        event.end_ns = time.time_ns()
        await asyncio.sleep(AROUND_NS / 1e9)

    def rings_of(self, event: Event) -> list[RingRecord]:
        """The ring as it stood at the event's begin, then each that was committed in it."""
        before = [ring for at_ns, ring in self.rings if at_ns < event.begin_ns]
        return before[-1:] + [ring for at_ns, ring in self.rings if event.begin_ns <= at_ns <= event.end_ns]


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
