"""Samples a second of the kernels, one core, over a 100 MB arena with a window of 256, all eight rules.

Promised for charts with a fixed centre: random slots 8 million samples/s, slots in order 20 million. The
baseline of the same run does the least that such an update must: read, change and write a 64-byte record of
a random slot, write one window entry, read three input columns, write seven output columns.

Inputs are drawn with SEED; the checksum is CRC-32 over the outputs of the last call (a quick round makes
fewer calls, and has another).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numba
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
    best_per_s,
    judged_per_s,
    poisson_samples,
    random_slots,
    slots_in_order,
)

from kernels import judge as kernels
from kernels.state import CARRIED, DETAIL, ENTRY, SLOT, SUMS

WINDOW = 256
ARENA_BYTES = 100_000_000
CHARTS = ARENA_BYTES // (SLOT.itemsize + SUMS.itemsize + CARRIED.itemsize + WINDOW * ENTRY.itemsize)
CALLS = 64

NO_DETAILS = np.zeros(0, DETAIL)
NO_IDS = np.zeros(0, np.int32)


def rig_of(spec: Row, order: Callable[[int, int], Any]) -> Rig:
    """The arena, with batches in that order."""
    return Rig(CHARTS, WINDOW, CALLS, order(CHARTS, CALLS * BATCH), spec)


@numba.njit(error_model="numpy")
def push_records(slots: Any, counts: Any, units: Any, ordinals: Any, heads: Any, window: Any) -> None:
    """Write one entry a sample, the window being one array of records."""
    width = window.shape[1]
    for i in range(slots.shape[0]):
        s = slots[i]
        head = np.int64(heads[s])
        entry = window[s, head]
        entry["count"] = counts[i]
        entry["units"] = units[i]
        entry["ordinal"] = ordinals[i]
        head += 1
        heads[s] = 0 if head == width else head


@numba.njit(error_model="numpy")
def push_columns(
    slots: Any,
    counts: Any,
    units: Any,
    ordinals: Any,
    heads: Any,
    column_c: Any,
    column_n: Any,
    column_t: Any,
) -> None:
    """Write one entry a sample, the window being a column a field."""
    width = column_c.shape[1]
    for i in range(slots.shape[0]):
        s = slots[i]
        head = np.int64(heads[s])
        column_c[s, head] = counts[i]
        column_n[s, head] = units[i]
        column_t[s, head] = ordinals[i]
        head += 1
        heads[s] = 0 if head == width else head


@pytest.mark.parametrize(
    ("name", "spec", "order", "gate_per_s"),
    [
        ("given, random slots", GIVEN, random_slots, 8e6),
        ("frozen, random slots", FROZEN, random_slots, 8e6),
        ("moving, random slots", MOVING, random_slots, 0.0),
        ("laney, random slots", LANEY, random_slots, 0.0),
        ("exact, random slots", EXACT, random_slots, 0.0),
        ("CUSUM, random slots", CUSUM, random_slots, 0.0),
        ("given, slots in order", GIVEN, slots_in_order, 20e6),
        ("frozen, slots in order", FROZEN, slots_in_order, 20e6),
        ("moving, slots in order", MOVING, slots_in_order, 0.0),
        ("laney, slots in order", LANEY, slots_in_order, 0.0),
        ("exact, slots in order", EXACT, slots_in_order, 0.0),
        ("CUSUM, slots in order", CUSUM, slots_in_order, 0.0),
    ],
)
def test_judge(
    benchmark: Any, name: str, spec: Row, order: Callable[[int, int], Any], gate_per_s: float
) -> None:
    """Steady state: every window is full. Laney, exact and CUSUM charts are frozen ones."""
    judged_per_s(benchmark, rig_of(spec, order), f"kernel: {name}", gate_per_s, 2 if QUICK else 20)


def test_restore(benchmark: Any) -> None:
    """A full arena put back from its history, report by report: chambers of 25 frozen charts."""
    charts, chambers = 25, CHARTS // 25
    reports = 64  # of each chamber a call
    n = charts * reports
    rng = np.random.default_rng(SEED)
    rig = rig_of(FROZEN, random_slots)
    columns = (
        *poisson_samples(rng, n),
        np.repeat(np.arange(reports, dtype=np.uint32), charts),
        np.zeros(n, np.uint16),
        np.full(n, 2, np.uint8),
        np.full(n, CENTRE),
        np.full(n, rig.specs["basis"][0], np.uint32),
        np.zeros(n, np.uint32),
    )
    ops = np.zeros(n, np.uint8)
    slots = [
        np.tile(np.arange(c * charts, (c + 1) * charts, dtype=np.int32), reports) for c in range(chambers)
    ]

    def run() -> None:
        for chamber in slots:
            for _ in range(WINDOW // reports):
                kernels.restore(
                    *(ops, chamber, *columns, NO_IDS, NO_DETAILS),
                    *(rig.state, rig.sums, rig.carried, rig.window),
                )

    benchmark.pedantic(run, rounds=1 if QUICK else 4, warmup_rounds=1)
    samples = chambers * charts * WINDOW
    per_s = samples / benchmark.stats.stats.min
    crc = zlib.crc32(rig.window.tobytes())
    benchmark.extra_info.update(checksum=f"{crc:08x}", seed=SEED)
    figure(
        f"kernel: restore (seed {SEED}, checksum {crc:08x})",
        f"{per_s / 1e6:.1f} M samples/s",
        baseline=f"a full arena, {samples / 1e6:.1f} M, in {benchmark.stats.stats.min * 1e3:.0f} ms",
    )


def test_window_layout(benchmark: Any) -> None:
    """Why the window is an array of records: one entry into a random slot, against a column a field."""
    rig = rig_of(GIVEN, random_slots)
    heads = rig.state["head"].copy()
    columns = [np.zeros(rig.window.shape, kind) for kind in (np.float64, np.float64, np.uint32)]
    calls = [
        (slots, rig.counts[first : first + BATCH], rig.units[first : first + BATCH], ordinals, heads)
        for slots, ordinals, first in rig.batches()
    ]
    for column in columns:
        column.fill(1)  # pages must be there

    def run() -> tuple[float, float]:
        records = best_per_s(push_records, [(*call, rig.window) for call in calls])
        return records, best_per_s(push_columns, [(*call, *columns) for call in calls])

    records, in_columns = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(ratio=records / in_columns, seed=SEED)
    figure(
        f"kernel: window of records, entries into random slots (seed {SEED})",
        f"{records / 1e6:.1f} M entries/s",
        baseline=f"{records / in_columns:.2f} of a column a field, {in_columns / 1e6:.1f} M",
        is_ratio=True,
    )
