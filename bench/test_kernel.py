"""Samples a second of the kernels, one core, over a 100 MB arena with a window of 256.

Promised for charts with a fixed centre: random slots 8 million samples/s, slots in order 20 million. The
baseline of the same run does the least that such an update must: read, change and write a 64-byte record of
a random slot, write one window entry, read three input columns, write seven output columns.

Inputs are drawn with SEED; the checksum is CRC-32 over the outputs of the last call (a quick round makes
fewer calls, and has another).
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import pytest
from figures import QUICK, figure

from kernels import judge as kernels
from kernels.state import ENTRY, JOURNAL, SLOT, SPEC, SUMS, Baseline, spec_row

SEED = 20240611
WINDOW = 256
DEPTH = 256
ARENA_BYTES = 100_000_000
SLOTS = ARENA_BYTES // (SLOT.itemsize + SUMS.itemsize + WINDOW * ENTRY.itemsize)
BATCH = 4096
CALLS = 64


@dataclass
class Rig:
    """An arena and the columns of CALLS batches."""

    slots: Any
    spec: tuple[Any, ...]
    state: Any = field(default_factory=lambda: np.zeros(SLOTS, SLOT))
    sums: Any = field(default_factory=lambda: np.zeros(SLOTS, SUMS))
    window: Any = field(default_factory=lambda: np.zeros((SLOTS, WINDOW), ENTRY))

    def __post_init__(self) -> None:
        rng = np.random.default_rng(SEED)
        n = BATCH * CALLS
        self.ops = np.zeros(BATCH, np.uint8)
        self.spec_ids = np.zeros(BATCH, np.int32)
        self.units = rng.uniform(10.0, 50.0, n)
        self.counts = rng.poisson(0.2 * self.units).astype(np.float64)
        self.specs = np.array([self.spec], SPEC)
        self.journal = np.zeros(BATCH, JOURNAL)
        self.floats: Any = [np.zeros(BATCH) for _ in range(4)]
        self.flags = np.zeros(BATCH, np.uint16)
        self.phase = np.zeros(BATCH, np.uint8)
        self.stage = np.zeros(BATCH, np.uint32)
        self.next_ordinal = np.zeros(SLOTS, np.uint32)
        self.fill()

    def fill(self) -> None:
        """Every window full: WINDOW samples a chart."""
        every = np.arange(SLOTS, dtype=np.int32)
        for _ in range(WINDOW):
            for first in range(0, SLOTS, BATCH):
                slots = every[first : first + BATCH]
                self.judge(slots, self.next_ordinals(slots), 0, len(slots))

    def next_ordinals(self, slots: Any) -> Any:
        """Ordinal of each sample: its chart's next report, also where a batch has a chart twice."""
        order = np.argsort(slots, kind="stable")
        in_order = slots[order]
        starts = np.flatnonzero(np.concatenate(([True], in_order[1:] != in_order[:-1])))
        rank = np.arange(len(slots)) - np.repeat(starts, np.diff(np.append(starts, len(slots))))
        ordinals = np.empty(len(slots), np.uint32)
        ordinals[order] = self.next_ordinal[in_order] + rank
        np.add.at(self.next_ordinal, slots, 1)
        return ordinals

    def judge(self, slots: Any, ordinals: Any, first: int, n: int) -> None:
        """One kernel call."""
        u, centre, lcl, ucl = self.floats
        kernels.judge(
            self.ops[:n],
            slots,
            self.spec_ids,
            self.counts[first : first + n],
            self.units[first : first + n],
            ordinals,
            self.specs,
            DEPTH,
            self.state,
            self.sums,
            self.window,
            self.journal,
            u,
            centre,
            lcl,
            ucl,
            self.flags,
            self.phase,
            self.stage,
        )

    def batches(self) -> list[tuple[Any, Any, int]]:
        """Columns of all calls, made beforehand."""
        made = []
        for i in range(CALLS):
            slots = self.slots[i * BATCH : (i + 1) * BATCH]
            made.append((slots, self.next_ordinals(slots), i * BATCH))
        return made

    def checksum(self) -> str:
        """Of the last call's outputs."""
        crc = 0
        for column in (*self.floats, self.flags, self.phase, self.stage):
            crc = zlib.crc32(column.tobytes(), crc)
        return f"{crc:08x}"


def random_slots() -> Any:
    """Slots as they come from many chambers: uniformly random."""
    return np.random.default_rng(SEED).integers(0, SLOTS, BATCH * CALLS).astype(np.int32)


def slots_in_order() -> Any:
    """Slots as one chamber's many charts lie: side by side."""
    return (np.arange(BATCH * CALLS) % SLOTS).astype(np.int32)


GIVEN = spec_row(Baseline.GIVEN, centre=0.2, rules=15)
FROZEN = spec_row(Baseline.FROZEN, rules=15, phase_one=25, minimum=5)
MOVING = spec_row(Baseline.MOVING, rules=15, minimum=20)


@numba.njit(error_model="numpy")
def least(
    slots: Any,
    counts: Any,
    units: Any,
    ordinals: Any,
    state: Any,
    window: Any,
    floats: Any,
    flags: Any,
    phase: Any,
    stage: Any,
) -> None:
    """The least that an update must touch."""
    width = window.shape[1]
    for i in range(slots.shape[0]):
        s = slots[i]
        slot = state[s]
        head = np.int64(slot["head"])
        slot["last_z"] += counts[i]
        slot["newest"] = ordinals[i]
        slot["above"] = slot["above"] << 1
        entry = window[s, head]
        entry["count"] = counts[i]
        entry["units"] = units[i]
        entry["ordinal"] = ordinals[i]
        head += 1
        slot["head"] = 0 if head == width else head
        floats[0, i] = slot["last_z"]
        floats[1, i] = counts[i]
        floats[2, i] = units[i]
        floats[3, i] = slot["centre"]
        flags[i] = slot["above"]
        phase[i] = 2
        stage[i] = slot["stage"]


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


def best_per_s(run: Callable[..., None], calls: list[tuple[Any, ...]]) -> float:
    """Samples/s over all calls, best of 5 after one to compile."""
    best = 0.0
    for _ in range(6):
        started = time.perf_counter()
        for arguments in calls:
            run(*arguments)
        best = max(best, BATCH * len(calls) / (time.perf_counter() - started))
    return best


def least_per_s(rig: Rig) -> float:
    """Samples/s of ``least`` over the rig's slots."""
    floats, flags, phase = np.zeros((4, BATCH)), np.zeros(BATCH, np.uint16), np.zeros(BATCH, np.uint8)
    stage = np.zeros(BATCH, np.uint32)
    calls = [
        (
            slots,
            rig.counts[first : first + BATCH],
            rig.units[first : first + BATCH],
            ordinals,
            rig.state,
            rig.window,
            floats,
            flags,
            phase,
            stage,
        )
        for slots, ordinals, first in rig.batches()
    ]
    return best_per_s(least, calls)


@pytest.mark.parametrize(
    ("name", "spec", "order", "gate_per_s"),
    [
        ("given, random slots", GIVEN, random_slots, 8e6),
        ("frozen, random slots", FROZEN, random_slots, 8e6),
        ("moving, random slots", MOVING, random_slots, 0.0),
        ("given, slots in order", GIVEN, slots_in_order, 20e6),
        ("frozen, slots in order", FROZEN, slots_in_order, 20e6),
        ("moving, slots in order", MOVING, slots_in_order, 0.0),
    ],
)
def test_judge(
    benchmark: Any, name: str, spec: tuple[Any, ...], order: Callable[[], Any], gate_per_s: float
) -> None:
    """Steady state: every window is full."""
    rig = Rig(order(), spec)

    def batches() -> tuple[tuple[Any], dict[str, Any]]:
        return (rig.batches(),), {}

    def run(made: list[tuple[Any, Any, int]]) -> None:
        for slots, ordinals, first in made:
            rig.judge(slots, ordinals, first, BATCH)

    benchmark.pedantic(run, setup=batches, rounds=2 if QUICK else 40, warmup_rounds=1)
    per_s = BATCH * CALLS / benchmark.stats.stats.min
    checksum = rig.checksum()
    baseline_per_s = least_per_s(rig)
    benchmark.extra_info.update(ratio=per_s / baseline_per_s, checksum=checksum, seed=SEED)
    figure(
        f"kernel: {name} (seed {SEED}, checksum {checksum})",
        f"{per_s / 1e6:.1f} M samples/s",
        target=f"{gate_per_s / 1e6:.0f} M" if gate_per_s else "",
        baseline=f"{per_s / baseline_per_s:.2f} of the least update, {baseline_per_s / 1e6:.1f} M",
        met=per_s >= gate_per_s if gate_per_s else None,
    )


def test_restore(benchmark: Any) -> None:
    """A full arena put back from its history, report by report: chambers of 25 frozen charts."""
    charts, chambers = 25, SLOTS // 25
    reports = 64  # of each chamber a call
    n = charts * reports
    rng = np.random.default_rng(SEED)
    rig = Rig(random_slots(), FROZEN)
    units = rng.uniform(10.0, 50.0, n)
    columns = (
        rng.poisson(0.2 * units).astype(np.float64),
        units,
        np.repeat(np.arange(reports, dtype=np.uint32), charts),
        np.zeros(n, np.uint16),
        np.full(n, 2, np.uint8),
        np.full(n, 0.2),
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
                kernels.restore(ops, chamber, *columns, rig.state, rig.sums, rig.window)

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
    rig = Rig(random_slots(), GIVEN)
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
