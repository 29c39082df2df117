"""Verdicts to draw: reports of one chamber, judged as a worker judges them."""

from __future__ import annotations

import os
from random import Random

import msgspec
import numpy as np

from runtime.arena import WHOLE, Arena, Shape
from runtime.cache import Cache
from runtime.examine import Limits as Bounds
from runtime.flight import FlightLog
from runtime.judge import Judge, Sample
from runtime.names import Names
from runtime.specs import Baseline, ChartSpec, Cusum, Ewma, Limits, Specs, Start, designed
from runtime.wire import Verdict, decode_verdict

AT_NS = 1_740_816_000_000_000_000
HOUR_NS = 3_600_000_000_000
CHAMBER, CHART = "ETCH-07", "particles"


class Chamber:
    """One chamber whose every report is judged at once; *verdicts* are what was stored."""

    def __init__(self, spec: ChartSpec, *, revision: int = 3, seed: int = 1) -> None:
        shape = Shape(1, 20, 4, 256, flights=2, reports=8, samples=64)
        arena = Arena(os.memfd_create("drawn"), shape)
        arena.partitions[0] = WHOLE
        cache = Cache(arena, Names(partitions=1), designed(Specs(default=spec)), revision, 256)
        self._judge = Judge(cache, FlightLog(arena), Bounds(10_000, 1e9, 1e9), "defender-0")
        self._judge.epochs[0], self._judge.positions[0] = 1, 0
        cache.loaded([cache.add(CHAMBER, 0)])
        self.verdicts: list[Verdict] = []
        self.at_ns = AT_NS
        self.numpy = np.random.default_rng(seed)
        self.random = Random(seed)

    def report(self, **fields: object) -> Verdict:
        self.at_ns += HOUR_NS + self.random.randrange(HOUR_NS)
        seq = len(self.verdicts) + 1
        batch = self._judge.judge([Sample(CHAMBER, 0, seq, self.at_ns, msgspec.json.encode(fields))])
        assert batch.flight is not None
        self._judge.flights.confirm(batch.flight)
        self.verdicts.append(decode_verdict(batch.verdicts[0][2]))
        return self.verdicts[-1]

    def count(self, count: int, units: float) -> Verdict:
        return self.report(charts=[CHART], counts=[count], units=[units], run=f"LOT{len(self.verdicts)}")

    def poisson(self, reports: int, rate: float, units: tuple[int, int], *, scatter: float = 0.0) -> None:
        """So many reports with counts of *rate* a unit on units of a range, lots differing by *scatter*."""
        for _ in range(reports):
            n = float(self.numpy.integers(units[0], units[1] + 1))
            lot = self.numpy.gamma(1 / scatter, scatter) if scatter else 1.0
            self.count(int(self.numpy.poisson(rate * n * lot)), n)


def constant_units() -> Chamber:
    """Units that do not change, a given centre line, single outliers and a run on one side."""
    chamber = Chamber(ChartSpec(baseline=Baseline.GIVEN, centre=0.3), seed=4)
    chamber.poisson(30, 0.3, (50, 50))
    chamber.count(33, 50.0)
    chamber.poisson(20, 0.3, (50, 50))
    chamber.poisson(14, 0.4, (50, 50))
    chamber.poisson(15, 0.3, (50, 50))
    return chamber


def varying_units() -> Chamber:
    """Stepped limits, exact where few are expected; with p-values, CUSUM and EWMA."""
    spec = ChartSpec(
        phase_one=40, limits=Limits.AUTO, start=Start.PREDICT, cusum=Cusum(ratio=1.5), ewma=Ewma(weight=0.2)
    )
    chamber = Chamber(spec, seed=8)
    chamber.poisson(75, 0.25, (10, 90))
    chamber.poisson(25, 0.36, (10, 90))
    return chamber


def clustered() -> Chamber:
    """Counts that scatter more than Poisson's, with Laney's limits."""
    chamber = Chamber(ChartSpec(phase_one=30, limits=Limits.LANEY), seed=3)
    chamber.poisson(90, 0.05, (2000, 4000), scatter=0.08)
    return chamber


def two_phases() -> Chamber:
    """Phase I with samples left out, phase II with an alarm, a reset, and phase I anew."""
    chamber = Chamber(ChartSpec(phase_one=30, minimum=10), seed=11)
    for reports in (12, 9, 9):
        chamber.poisson(reports, 0.2, (80, 140), scatter=0.06)
        if reports != 12:
            chamber.count(60, 100.0)
    chamber.poisson(40, 0.2, (80, 140), scatter=0.06)
    chamber.poisson(6, 0.42, (80, 140))
    chamber.report(reset="wet clean, new liner (WO 48213)")
    chamber.poisson(45, 0.12, (80, 140))
    return chamber


def overdispersed() -> Chamber:
    """Lots that differ, with limits of the Poisson distribution: a mark, and alarm after alarm."""
    chamber = Chamber(ChartSpec(phase_one=60), seed=5)
    chamber.poisson(110, 0.5, (100, 160), scatter=0.05)
    return chamber


def full_history() -> Chamber:
    """As much as a history keeps."""
    chamber = Chamber(ChartSpec(phase_one=40, limits=Limits.AUTO), seed=21)
    chamber.poisson(120, 0.3, (20, 60))
    chamber.count(90, 40.0)
    chamber.report(reset="chamber clean")
    chamber.poisson(100, 0.3, (20, 60))
    chamber.poisson(34, 0.45, (20, 60))
    return chamber


SCENES = {
    made.__name__: made
    for made in (constant_units, varying_units, clustered, two_phases, overdispersed, full_history)
}
