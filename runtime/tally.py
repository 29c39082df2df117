"""What a supervisor counts of its partitions' comings and goings, for the metrics. Plain and light."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

GAP_BOUNDS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass
class Histogram:
    """Counts by upper bound (the last one is without), and the sum. Seconds."""

    bounds_s: tuple[float, ...] = GAP_BOUNDS_S
    counts: list[int] = field(default_factory=list)
    sum_s: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds_s) + 1)

    def observe(self, value_s: float) -> None:
        self.counts[bisect_left(self.bounds_s, value_s)] += 1
        self.sum_s += value_s


@dataclass
class Tally:
    """Counts since the start of the process."""

    acquired: int = 0
    """Partitions acquired, each by a new epoch."""
    reassigned: int = 0
    """Partitions that came to us from another stable ID."""
    taken_over: int = 0
    """Partitions that came to us from another pod with our stable ID."""
    handoffs: Counter[str] = field(default_factory=Counter)
    """By outcome: warm and cold (ways to come), handed (asked for), released (without a successor)."""
    refused: int = 0
    """Requests for a partition that its owner refused, or that nobody answered."""
    handoff: Histogram = field(default_factory=Histogram)
    """From asking for a partition to serving it."""
    unattended: Histogram = field(default_factory=Histogram)
    """From the former owner's stop to serving, of warm handoffs."""
