"""u-charts beside the other Python packages that draw them, on the same data in the same run.

Promised: in batch (2,000 charts x 256 points) 50 times their points/s, in append (one sample after another
into one chart) 1,000 times their samples/s. Each is used in the fastest way that it documents:

- *shewhart* 0.1.1: ``u_chart`` with rules="nelson", which of these are 1 to 4, against a baseline fitted
  before. Append: it keeps no state, so each sample is judged with the 14 before it, all that rules look at.
- *pycontrolcharts* 0.1: ``calc_u`` over lists, its five tests (1, 2, 3, 5, 6), all charts in one call as
  phases of one, for it fits each anew; a baseline it cannot be given. Append: as above, with the centre line
  of those points.

Ours judges by all eight rules: in batch ``Charts.replay``; in append ``Charts.update`` of a column of samples
that are all of one chart, each judged by what was there before it. What one sample a call costs from Python
is noted beside it. The bench checks that rules that mean the same find the same.

Inputs are drawn with SEED; checksums are CRC-32 over our flags.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pycontrolcharts
import pytest
import shewhart
from figures import QUICK, figure
from full_arena import CENTRE, SEED, poisson_samples

from kernels import Charts
from kernels.charts import Judged, Spec

ROWS, POINTS = 2_000, 256
THEIR_ROWS = 20 if QUICK else 200
THEIR_APPENDS = 50 if QUICK else 1_000
APPENDS = 200_000
LONGEST = 15
ROUNDS = 2 if QUICK else 5
SPEC = Spec(baseline="given", centre=CENTRE)

Floats = np.ndarray[Any, np.dtype[np.float64]]


def best_s(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of ROUNDS calls."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


def of_shewhart(counts: Floats, units: Floats) -> list[Any]:
    """A result a chart."""
    baseline = {"u_center": CENTRE}
    return [
        shewhart.u_chart(c, size=n, rules="nelson", limits=baseline)
        for c, n in zip(counts, units, strict=True)
    ]


def of_pycontrolcharts(counts: Floats, units: Floats) -> Any:
    """One table of all points, a phase a chart."""
    rows, points = counts.shape
    phases = [str(row) for row in range(rows) for _ in range(points)]
    return pycontrolcharts.calc_u(counts.ravel().tolist(), area=units.ravel().tolist(), phase=phases)


def shewhart_agrees(counts: Floats, units: Floats, judged: Judged) -> None:
    """Rules 1 and 2; 3 and 4 it applies to u, not to z. It gives whole runs, we the points that end one."""
    for row, result in enumerate(of_shewhart(counts, units)):
        for rule, points in ((1, 1), (2, 9)):
            runs = [signal.points for signal in result.signals if signal.rule == f"nelson_{rule}"]
            theirs = sorted(point for run in runs for point in run[points - 1 :])
            assert theirs == np.flatnonzero(judged.flags[row] >> (rule - 1) & 1).tolist()


def pycontrolcharts_agrees(counts: Floats, units: Floats) -> None:
    """Rule 1, against the centre line of the points themselves."""
    table = of_pycontrolcharts(counts, units)
    centre = counts.sum(axis=1, keepdims=True) / units.sum(axis=1, keepdims=True)
    sigma, u = np.sqrt(centre / units), counts / units
    beyond = (u > centre + 3.0 * sigma) | (u < np.maximum(0.0, centre - 3.0 * sigma))
    theirs = [any(violation["type"] in (1, 2) for violation in found) for found in table["violations"]]
    assert np.array_equal(np.array(theirs).reshape(u.shape), beyond)


@pytest.mark.parametrize(
    ("name", "theirs"), [("shewhart", of_shewhart), ("pycontrolcharts", of_pycontrolcharts)]
)
def test_batch(benchmark: Any, name: str, theirs: Callable[[Floats, Floats], Any]) -> None:
    """Points/s of whole charts."""
    counts, units = poisson_samples(np.random.default_rng(SEED), (ROWS, POINTS))
    found: list[Judged] = []

    def run() -> None:
        found[:] = [Charts(ROWS, [SPEC], window=POINTS).replay(counts, units)]

    benchmark.pedantic(run, rounds=4 * ROUNDS, warmup_rounds=1)
    per_s = ROWS * POINTS / benchmark.stats.stats.min
    few = counts[:THEIR_ROWS], units[:THEIR_ROWS]
    if theirs is of_shewhart:
        shewhart_agrees(*few, found[0])
    else:
        pycontrolcharts_agrees(*few)
    their_per_s = THEIR_ROWS * POINTS / best_s(lambda: theirs(*few))
    ratio = per_s / their_per_s
    crc = zlib.crc32(found[0].flags.tobytes())
    benchmark.extra_info.update(ratio=ratio, checksum=f"{crc:08x}", seed=SEED)
    figure(
        f"batch of {ROWS:,} x {POINTS} beside {name} (seed {SEED}, checksum {crc:08x})",
        f"{ratio:,.0f} x",
        target="50 x",
        baseline=f"{per_s / 1e6:.1f} M points/s to {their_per_s / 1e6:.3f} M",
        met=ratio >= 50.0,
        is_ratio=True,
    )


def append_shewhart(counts: Floats, units: Floats) -> None:
    baseline = shewhart.Baseline("u_chart", {"u_center": CENTRE}, 0, "", "")
    for newest in range(LONGEST, THEIR_APPENDS + LONGEST):
        seen = slice(newest - LONGEST, newest)
        shewhart.u_chart(counts[seen], size=units[seen], rules="nelson", limits=baseline)


def append_pycontrolcharts(counts: Floats, units: Floats) -> None:
    c, n = counts.tolist(), units.tolist()
    for newest in range(LONGEST, THEIR_APPENDS + LONGEST):
        pycontrolcharts.calc_u(c[newest - LONGEST : newest], area=n[newest - LONGEST : newest])


@pytest.mark.parametrize(
    ("name", "theirs"), [("shewhart", append_shewhart), ("pycontrolcharts", append_pycontrolcharts)]
)
def test_append(benchmark: Any, name: str, theirs: Callable[[Floats, Floats], None]) -> None:
    """Samples/s into one chart, one after another."""
    counts, units = poisson_samples(np.random.default_rng(SEED), APPENDS)
    one = np.zeros(APPENDS, np.int32)
    found: list[Judged] = []

    def run() -> None:
        found[:] = [Charts(1, [SPEC]).update(one, counts, units)]

    benchmark.pedantic(run, rounds=4 * ROUNDS, warmup_rounds=1)
    per_s = APPENDS / benchmark.stats.stats.min
    their_per_s = THEIR_APPENDS / best_s(lambda: theirs(counts, units))
    ratio = per_s / their_per_s
    crc = zlib.crc32(found[0].flags.tobytes())
    benchmark.extra_info.update(ratio=ratio, checksum=f"{crc:08x}", seed=SEED)
    figure(
        f"append to one chart, a column of samples, beside {name} (seed {SEED}, checksum {crc:08x})",
        f"{ratio:,.0f} x",
        target="1,000 x",
        baseline=f"{per_s / 1e6:.1f} M samples/s to {their_per_s:,.0f}",
        met=ratio >= 1000.0,
        is_ratio=True,
    )


def test_append_by_calls(benchmark: Any) -> None:
    """The same, a call a sample: what calling from Python costs."""
    counts, units = poisson_samples(np.random.default_rng(SEED), APPENDS)
    calls = 200 if QUICK else 5_000
    charts = Charts(1, [SPEC])
    samples = [(counts[i : i + 1], units[i : i + 1]) for i in range(calls)]
    chart = np.zeros(1, np.int32)

    def run() -> None:
        for c, n in samples:
            charts.update(chart, c, n)

    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=1)
    per_s = calls / benchmark.stats.stats.min
    their_per_s = THEIR_APPENDS / best_s(lambda: append_shewhart(counts, units))
    benchmark.extra_info.update(ratio=per_s / their_per_s, seed=SEED)
    figure(
        f"append to one chart, a call a sample (seed {SEED})",
        f"{per_s:,.0f} samples/s",
        baseline=f"{per_s / their_per_s:.0f} x shewhart, {their_per_s:,.0f}",
    )
