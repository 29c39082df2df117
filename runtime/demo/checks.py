"""What a subscriber can tell from the verdicts alone: the gap of a kill, the limits of a book. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from runtime.fab import PublishedSet
from runtime.wire import Verdict

BOOK_TOLERANCE: Final = 1e-12
_FROZEN: Final = 2
"""A verdict's phase II: limits of a frozen centre line."""


@dataclass
class Outage:
    """The time without the killed worker. Its partitions are those whose epoch rises after the kill.

    A verdict that the worker had sent before it died still carries the old epoch, and is none of recovery.
    """

    epochs: dict[int, int] = field(default_factory=dict)
    killed_ns: int = 0
    recovered_ns: int = 0
    taken_over: set[int] = field(default_factory=set)

    def kill(self, at_ns: int) -> None:
        self.killed_ns = at_ns

    def verdict(self, partition: int, epoch: int, seen_ns: int) -> None:
        before = self.epochs.setdefault(partition, epoch)
        if self.killed_ns and epoch > before:
            self.recovered_ns = self.recovered_ns or seen_ns
            self.taken_over.add(partition)
        elif not self.killed_ns:
            self.epochs[partition] = max(before, epoch)

    @property
    def recovery_ms(self) -> float | None:
        """From the kill to the first verdict of its successor, None before that."""
        return (self.recovered_ns - self.killed_ns) / 1e6 if self.recovered_ns else None


@dataclass
class BookCheck:
    """The verdicts of a published data set, compared with the limits that the book prints."""

    book: PublishedSet
    u: dict[int, float] = field(default_factory=dict)
    flagged: set[int] = field(default_factory=set)
    """Points of phase II beyond the limits, by index."""
    deviation: float = 0.0
    """The largest relative difference of centre line, LCL and UCL over the points of phase II."""

    def verdict(self, verdict: Verdict) -> None:
        """Takes a verdict; those of other chambers are none of it."""
        if verdict.chamber != self.book.chamber:
            return
        index = int(verdict.run.rpartition("-")[2]) - 1
        self.u[index] = verdict.u[0]
        if index < self.book.phase_one:
            return
        if verdict.flags[0] & 1:
            self.flagged.add(index)
        for found, printed in (
            (verdict.centre[0], self.book.centre),
            (verdict.lcl[0], self.book.lcl),
            (verdict.ucl[0], self.book.ucl),
        ):
            frozen = verdict.phase[0] == _FROZEN and found is not None
            difference = abs(found - printed) / printed if frozen and found is not None else math.inf
            self.deviation = max(self.deviation, difference)

    @property
    def complete(self) -> bool:
        return len(self.u) == len(self.book.counts)

    @property
    def agrees(self) -> bool:
        """Every point was judged, within the book's limits to 1e-12, with the book's signals."""
        same = self.flagged == set(self.book.signals)
        return self.complete and same and self.deviation <= BOOK_TOLERANCE
