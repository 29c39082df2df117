"""Charts by the million, and whole matrices of points: all eight rules, one core.

``update``, 1 million charts that remember 32 samples each, batches of 4,096. Promised: random charts
10 million samples/s, charts in order 40 million; with Laney's limits, exact limits or a CUSUM 4 million each.
The baseline of the same run is the least that an update must touch (``full_arena.least``).

``replay``, 2,000 charts x 256 points against a given centre. Promised: 40 million points/s, and 5 times a
plain NumPy oracle, whole matrices in windows that slide. Beside it, without a promise: NumPy at its best,
where runs double; and what a sum over a large array reads a second. All find the same flags and limits.

Inputs are drawn with SEED; checksums are CRC-32 over outputs.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from figures import QUICK, figure
from full_arena import (
    BATCH,
    CENTRE,
    CUSUM,
    EXACT,
    FROZEN,
    GIVEN,
    LANEY,
    MOVING,
    SEED,
    Rig,
    Row,
    judged_per_s,
    poisson_samples,
    random_slots,
    slots_in_order,
)
from numpy.lib.stride_tricks import sliding_window_view

from kernels import Charts
from kernels.charts import Judged, Spec

CHARTS = 100_000 if QUICK else 1_000_000
WINDOW = 32
CALLS = CHARTS // BATCH
ROWS, POINTS = 2_000, 256
ROUNDS = 3 if QUICK else 30
READ_BYTES = 1 << (27 if QUICK else 29)

Floats = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@pytest.mark.parametrize(
    ("name", "spec", "order", "gate_per_s"),
    [
        ("given, random", GIVEN, random_slots, 10e6),
        ("frozen, random", FROZEN, random_slots, 10e6),
        ("given, in order", GIVEN, slots_in_order, 40e6),
        ("frozen, in order", FROZEN, slots_in_order, 40e6),
        ("moving, random", MOVING, random_slots, 0.0),
        ("laney, random", LANEY, random_slots, 4e6),
        ("exact, random", EXACT, random_slots, 4e6),
        ("CUSUM, random", CUSUM, random_slots, 4e6),
        ("laney, in order", LANEY, slots_in_order, 4e6),
        ("exact, in order", EXACT, slots_in_order, 4e6),
        ("CUSUM, in order", CUSUM, slots_in_order, 4e6),
    ],
)
def test_update(
    benchmark: Any, name: str, spec: Row, order: Callable[[int, int], Any], gate_per_s: float
) -> None:
    """The kernel as ``Charts`` calls it, every window full. Laney, exact and CUSUM charts are frozen ones."""
    rig = Rig(CHARTS, WINDOW, CALLS, order(CHARTS, CALLS * BATCH), spec, undoable=1)
    what = f"update, {CHARTS / 1e6:g} M charts: {name}"
    judged_per_s(benchmark, rig, what, gate_per_s, rounds=2 if QUICK else 8)


@pytest.mark.parametrize(("name", "order"), [("random", random_slots), ("in order", slots_in_order)])
def test_update_of_charts(benchmark: Any, name: str, order: Callable[[int, int], Any]) -> None:
    """The same through ``Charts``, which checks its inputs, numbers the samples and makes the outputs."""
    charts = Charts(CHARTS, [Spec(baseline="given", centre=CENTRE)], window=WINDOW)
    samples = CHARTS
    counts, units = poisson_samples(np.random.default_rng(SEED), samples)
    chart = order(CHARTS, samples)
    crc = 0

    def run() -> None:
        nonlocal crc
        for first in range(0, samples, 16 * BATCH):
            batch = slice(first, first + 16 * BATCH)
            judged = charts.update(chart[batch], counts[batch], units[batch])
            crc = zlib.crc32(judged.flags.tobytes(), crc)

    benchmark.pedantic(run, rounds=2 if QUICK else 5, warmup_rounds=1)
    per_s = samples / benchmark.stats.stats.min
    benchmark.extra_info.update(checksum=f"{crc:08x}", seed=SEED)
    figure(
        f"Charts.update, {CHARTS / 1e6:g} M charts: {name}, 65,536 a call (seed {SEED}, checksum {crc:08x})",
        f"{per_s / 1e6:.1f} M samples/s",
    )


def shifted(mask: Mask, places: int) -> Mask:
    """What held so many points earlier; nothing before the first."""
    earlier = np.zeros_like(mask)
    earlier[:, places:] = mask[:, : mask.shape[1] - places]
    return earlier


def in_a_row(mask: Mask, points: int) -> Mask:
    """Where the newest *points* all hold: rows of 1, 2, 4, ... points, put together."""
    found, known = mask, 1
    while known < points:
        step = min(known, points - known)
        found = found & shifted(found, step)
        known += step
    return found


def all_but_one(mask: Mask, points: int) -> Mask:
    """Where the newest holds and at least *points* of the newest ``points + 1`` do."""
    held = np.cumsum(mask, axis=1, dtype=np.int16)
    held[:, points + 1 :] -= held[:, : held.shape[1] - points - 1].copy()
    found = mask & (held >= points)
    found[:, :points] = False
    return found


def doubling(counts: Floats, units: Floats, centre: float) -> tuple[Any, Floats, Floats, Floats]:
    """(flags, u, lcl, ucl) of Nelson's eight rules, vectorised over charts and points."""
    u = counts / units
    sigma = np.sqrt(centre / units)
    lcl, ucl = np.maximum(0.0, centre - 3.0 * sigma), centre + 3.0 * sigma
    z = (u - centre) / sigma
    rising, falling = np.zeros(z.shape, bool), np.zeros(z.shape, bool)
    np.greater(z[:, 1:], z[:, :-1], out=rising[:, 1:])
    np.less(z[:, 1:], z[:, :-1], out=falling[:, 1:])
    above_1, below_1 = z > 1.0, z < -1.0
    beyond_1 = above_1 | below_1
    odd = np.arange(z.shape[1]) % 2 == 1
    up_at_odd, up_at_even = (rising & odd) | (falling & ~odd), (rising & ~odd) | (falling & odd)
    outside = in_a_row(beyond_1, 8)
    one_side = in_a_row(above_1, 8) | in_a_row(below_1, 8)
    found = (
        (u > ucl) | (u < lcl),
        in_a_row(z > 0.0, 9) | in_a_row(z < 0.0, 9),
        in_a_row(rising, 5) | in_a_row(falling, 5),
        in_a_row(up_at_odd, 13) | in_a_row(up_at_even, 13),
        all_but_one(z > 2.0, 2) | all_but_one(z < -2.0, 2),
        all_but_one(above_1, 4) | all_but_one(below_1, 4),
        in_a_row(~beyond_1, 15),
        outside & ~one_side,
    )
    flags = np.zeros(z.shape, np.uint16)
    for bit, mask in enumerate(found):
        flags |= mask.astype(np.uint16) << np.uint16(bit)
    return flags, u, lcl, ucl


def best_s(run: Callable[[], Any], rounds: int) -> float:
    """Seconds of the fastest of so many calls."""
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


def read_bytes_per_s() -> float:
    """Of a sum over an array that no cache holds."""
    array = np.ones(READ_BYTES // 8)
    return array.nbytes / best_s(array.sum, 3)


def within(mask: Mask, points: int, *, at_least: int) -> Mask:
    """Where at least so many of the newest *points* hold, counted in windows that slide."""
    found = np.zeros_like(mask)
    held = sliding_window_view(mask, points, axis=1)
    found[:, points - 1 :] = held.all(axis=-1) if at_least == points else held.sum(axis=-1) >= at_least
    return found


def sliding_flags(counts: Floats, units: Floats, centre: float) -> Any:
    """The flags once more, as one writes them down without a thought to speed."""
    u, sigma = counts / units, np.sqrt(centre / units)
    z = (u - centre) / sigma
    step = np.diff(z, axis=1, prepend=z[:, :1])
    turns = np.zeros(z.shape, bool)
    turns[:, 2:] = step[:, 2:] * step[:, 1:-1] < 0.0
    far = np.abs(z) > 1.0
    all_8 = [within(mask, 8, at_least=8) for mask in (far, z > 1.0, z < -1.0)]
    found = (
        (u > centre + 3.0 * sigma) | (u < np.maximum(0.0, centre - 3.0 * sigma)),
        within(z > 0.0, 9, at_least=9) | within(z < 0.0, 9, at_least=9),
        within(step > 0.0, 5, at_least=5) | within(step < 0.0, 5, at_least=5),
        within(turns, 12, at_least=12),
        (z > 2.0) & within(z > 2.0, 3, at_least=2) | (z < -2.0) & within(z < -2.0, 3, at_least=2),
        (z > 1.0) & within(z > 1.0, 5, at_least=4) | (z < -1.0) & within(z < -1.0, 5, at_least=4),
        within(~far, 15, at_least=15),
        all_8[0] & ~all_8[1] & ~all_8[2],
    )
    flags = np.zeros(z.shape, np.uint16)
    for bit, mask in enumerate(found):
        flags |= mask.astype(np.uint16) << np.uint16(bit)
    return flags


def new_charts() -> Charts:
    charts = Charts(ROWS, [Spec(baseline="given", centre=CENTRE)], window=POINTS)
    charts.window["count"] = 0.0  # its pages must be there
    return charts


def replayed(benchmark: Any, counts: Floats, units: Floats) -> tuple[float, Judged]:
    """(points/s, verdicts) of ``Charts.replay``, new charts every time."""
    found: list[Judged] = []

    def run(charts: Charts) -> None:
        found[:] = [charts.replay(counts, units)]

    benchmark.pedantic(run, setup=lambda: ((new_charts(),), {}), rounds=ROUNDS, warmup_rounds=1)
    return counts.size / benchmark.stats.stats.min, found[0]


def test_replay(benchmark: Any) -> None:
    """Beside what memory can be read at: a point is 16 bytes of counts and units."""
    counts, units = poisson_samples(np.random.default_rng(SEED), (ROWS, POINTS))
    per_s, judged = replayed(benchmark, counts, units)
    read_per_s = read_bytes_per_s()
    crc = zlib.crc32(judged.flags.tobytes())
    benchmark.extra_info.update(checksum=f"{crc:08x}", seed=SEED)
    figure(
        f"replay {ROWS:,} x {POINTS} (seed {SEED}, checksum {crc:08x})",
        f"{per_s / 1e6:.1f} M points/s",
        target="40 M",
        baseline=f"{16 * per_s / read_per_s:.3f} of the reading of memory, {read_per_s / 1e9:.1f} GB/s",
        met=per_s >= 40e6,
    )


@pytest.mark.parametrize(
    ("name", "in_numpy", "gate"),
    [("in windows that slide", sliding_flags, 5.0), ("in runs that double", doubling, 0.0)],
)
def test_replay_beside_numpy(benchmark: Any, name: str, in_numpy: Callable[..., Any], gate: float) -> None:
    """NumPy judges from the first point on, remembers nothing and gives nothing but flags and limits."""
    counts, units = poisson_samples(np.random.default_rng(SEED), (ROWS, POINTS))
    per_s, judged = replayed(benchmark, counts, units)
    baseline_per_s = counts.size / best_s(lambda: in_numpy(counts, units, CENTRE), ROUNDS)
    flags, u, lcl, ucl = doubling(counts, units, CENTRE)
    assert np.array_equal(judged.flags, flags)
    assert np.array_equal(judged.flags, sliding_flags(counts, units, CENTRE))
    assert np.array_equal(judged.u, u)
    assert np.array_equal(judged.lcl, lcl)
    assert np.array_equal(judged.ucl, ucl)
    ratio = per_s / baseline_per_s
    benchmark.extra_info.update(ratio=ratio, seed=SEED)
    figure(
        f"replay {ROWS:,} x {POINTS} beside NumPy {name} (seed {SEED})",
        f"{ratio:.1f} x",
        target=f"{gate:.0f} x" if gate else "",
        baseline=f"NumPy {baseline_per_s / 1e6:.1f} M points/s, the same flags",
        met=ratio >= gate if gate else None,
        is_ratio=True,
    )
