"""The reports of a batch on their way through the kernels: their samples as columns, in order of judging."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kernels.state import RESET, SAMPLE
from runtime import wire
from runtime.cache import Chamber, ChartList
from runtime.examine import Examined
from runtime.wire import Incoming

if TYPE_CHECKING:
    from runtime.judge import Sample


class Report(Struct, gc=False):
    """A decoded report on its way through the batch; its samples are ``[first, first + len(charts))``."""

    sample: Sample
    chamber: Chamber
    charts: ChartList
    at_ns: int
    run: str
    reset: str | None


class Work:
    """The samples of a batch as columns, in the order of judging."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.lengths: list[int] = []
        """Samples of each report."""
        self.slots: array[int] = array("i")
        self.spec_ids: array[int] = array("i")
        self.counts: array[float] = array("d")
        self.units: array[float] = array("d")
        self._resets: list[tuple[int, int]] = []
        self.chambers: list[Chamber] = []
        """The chambers of the batch, each once, and pinned."""
        self._singles = True
        """Every report has exactly one sample."""

    def add(self, sample: Sample, chamber: Chamber, charts: ChartList, incoming: Incoming) -> None:
        self.slots.extend(charts.slots)
        self.spec_ids.extend(charts.spec_ids)
        self.counts.fromlist(incoming.counts)
        self.units.fromlist(incoming.units)
        at_ns = sample.received_ns if incoming.at is None else wire.time_ns(incoming.at, 0)
        self.reports.append(Report(sample, chamber, charts, at_ns, incoming.run, None))
        self.lengths.append(len(charts.slots))
        if len(charts.slots) != 1:
            self._singles = False

    def add_examined(self, sample: Sample, chamber: Chamber, charts: ChartList, known: Examined) -> None:
        first, n = len(self.counts), len(charts.slots)
        self.slots.extend(charts.slots)
        self.spec_ids.extend(charts.spec_ids)
        if known.reset is None:
            self.counts.fromlist(known.counts)
            self.units.fromlist(known.units)
        else:
            self.counts.fromlist([0.0] * n)
            self.units.fromlist([1.0] * n)
            self._resets.append((first, first + n))
        self._singles = self._singles and n == 1
        self.reports.append(Report(sample, chamber, charts, known.at_ns, known.run, known.reset))
        self.lengths.append(n)

    def unpin(self) -> None:
        for chamber in self.chambers:
            chamber.pins -= 1
        self.chambers.clear()

    def columns(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8]]:
        """(counts, units, ops) of every sample."""
        n = len(self.counts)
        ops = np.full(n, SAMPLE, dtype=np.uint8)
        for first, last in self._resets:
            ops[first:last] = RESET
        if not n:
            return np.empty(0), np.empty(0), ops
        return np.frombuffer(self.counts), np.frombuffer(self.units), ops

    def suspects(self) -> list[Report]:
        """Reports with a sample that no chart can judge, found in one pass over the columns."""
        if not self.counts:
            return []
        counts, units, _ = self.columns()
        good = (counts >= 0.0) & (counts <= wire.COUNT_MAX) & (counts == np.floor(counts))
        good &= (units >= wire.UNITS_MIN) & (units <= wire.UNITS_MAX)
        if good.all():
            return []
        return [self.reports[i] for i in self.reports_of(np.flatnonzero(~good))]

    def reports_of(self, samples: NDArray[np.int64]) -> list[int]:
        """The indices of the reports that these samples (by index) belong to."""
        if not len(samples):
            return []
        ends = np.cumsum(self.lengths)
        found: list[int] = np.unique(np.searchsorted(ends, samples, side="right")).tolist()
        return found

    def by_report(self, column: list[Any]) -> Iterable[Sequence[Any]]:
        """A column over all samples, cut into the reports' parts; a reset has none."""
        if len(column) == len(self.reports) and not self._resets and self._singles:
            return zip(column, strict=True)  # tuples of one, at a fifth of the time that slices take
        parts: list[list[Any]] = []
        first = 0
        for report in self.reports:
            last = first + len(report.charts.slots)
            parts.append(column[first:last] if report.reset is None else [])
            first = last
        return parts

    def counts_as_integers(self) -> list[int]:
        counts: list[int] = self.columns()[0].astype(np.int64).tolist()
        return counts
