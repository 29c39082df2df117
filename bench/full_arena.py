"""An arena of charts for the kernels, and the batches that go into it.

Inputs are drawn with SEED; a rig's checksum is CRC-32 over the outputs of its last call (a quick round makes
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
from figures import figure

from kernels import judge as kernels
from kernels.design import table
from kernels.state import (
    CARRIED,
    CUSUM_ABOVE,
    CUSUM_BELOW,
    DESIGN_MEANS,
    DETAIL,
    ENTRY,
    JOURNAL,
    SLOT,
    SPEC,
    SUMS,
    Baseline,
    Limits,
    spec_row,
)

SEED = 20240611
BATCH = 4096
LINE_BYTES = 64
CENTRE = 0.2
UNITS = (10.0, 50.0)

Row = tuple[Any, ...]

NELSON_RULES = 0xFF
CUSUM_RULES = 1 << (CUSUM_ABOVE - 1) | 1 << (CUSUM_BELOW - 1)
CUSUM_RATIO = 1.5

NO_DESIGNS = np.zeros((0, 3, len(DESIGN_MEANS)))

GIVEN = spec_row(Baseline.GIVEN, centre=CENTRE, rules=NELSON_RULES)
FROZEN = spec_row(Baseline.FROZEN, rules=NELSON_RULES, phase_one=25, minimum=5)
MOVING = spec_row(Baseline.MOVING, rules=NELSON_RULES, minimum=20)
LANEY = spec_row(Baseline.FROZEN, rules=NELSON_RULES, phase_one=25, minimum=5, limits=Limits.LANEY)
EXACT = spec_row(Baseline.FROZEN, rules=NELSON_RULES, phase_one=25, minimum=5, limits=Limits.EXACT)
CUSUM = spec_row(
    Baseline.FROZEN,
    rules=NELSON_RULES | CUSUM_RULES,
    phase_one=25,
    minimum=5,
    cusum_ratio=CUSUM_RATIO,
    design=0,
)


def designs_for(spec: Row) -> Any:
    """What a spec's ``design`` points into."""
    row = np.array([spec], SPEC)[0]
    if row["design"] < 0:
        return NO_DESIGNS
    return table(ratio=CUSUM_RATIO, head_start=0.5, ewma_weight=None, arl0=370.0)[None].copy()


def poisson_samples(rng: np.random.Generator, shape: Any) -> tuple[Any, Any]:
    """(counts, units) of charts in control: CENTRE a unit, units uniform over UNITS."""
    units = rng.uniform(*UNITS, shape)
    return rng.poisson(CENTRE * units).astype(np.float64), units


def aligned(shape: tuple[int, ...], kind: np.dtype[np.void]) -> Any:
    """Zeros from the start of a cache line on, as the sections of ``runtime.arena`` are.

    NumPy's own begin 16 bytes into one: each slot lies in two lines then, of which ``judge`` prefetches
    the first (random slots of 1 million charts: 6 million samples/s instead of 18).
    """
    size = int(np.prod(shape)) * kind.itemsize
    raw = np.zeros(size + LINE_BYTES, np.uint8)
    first = -raw.ctypes.data % LINE_BYTES
    return raw[first : first + size].view(kind).reshape(shape)


@dataclass
class Rig:
    """``charts`` charts of ``width`` samples each, all windows full, and the columns of ``calls`` batches.

    ``slots``: the chart of each sample of those batches. ``undoable``: BATCH where a batch can be undone, as
    a worker must; 1 where not, as in ``Charts``.
    """

    charts: int
    width: int
    calls: int
    slots: Any
    spec: Row
    undoable: int = BATCH
    rng: Any = field(default_factory=lambda: np.random.default_rng(SEED))

    def __post_init__(self) -> None:
        self.state = aligned((self.charts,), SLOT)
        self.sums = aligned((self.charts,), SUMS)
        self.carried = aligned((self.charts,), CARRIED)
        self.window = aligned((self.charts, self.width), ENTRY)
        self.ops = np.zeros(BATCH, np.uint8)
        self.spec_ids = np.zeros(BATCH, np.int32)
        self.counts, self.units = poisson_samples(self.rng, BATCH * self.calls)
        self.specs = np.array([self.spec], SPEC)
        self.designs = designs_for(self.spec)
        self.journal = np.zeros(self.undoable, JOURNAL)
        self.floats: Any = [np.zeros(BATCH) for _ in range(4)]
        self.flags = np.zeros(BATCH, np.uint16)
        self.phase = np.zeros(BATCH, np.uint8)
        self.stage = np.zeros(BATCH, np.uint32)
        self.parts = np.zeros(BATCH, np.uint8)
        self.details = np.zeros(BATCH, DETAIL)
        self.next_ordinal = np.full(self.charts, self.width, np.uint32)
        self.fill()

    def fill(self) -> None:
        """Every window full: ``width`` samples a chart; of a large arena every chart is like one of a few."""
        few = min(self.charts, 4 * BATCH)
        every = np.arange(few, dtype=np.int32)
        ordinals = np.zeros(BATCH, np.uint32)
        for ordinal in range(self.width):
            ordinals[:] = ordinal
            for first in range(0, few, BATCH):
                slots = every[first : first + BATCH]
                start = int(self.rng.integers(0, BATCH * (self.calls - 1)))
                self.judge(slots, ordinals, start, len(slots))
        for array in (self.state, self.sums, self.carried, self.window):
            for first in range(few, self.charts, few):
                array[first : first + few] = array[: min(few, self.charts - first)]

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
        """One kernel call: ``n`` samples of the columns from ``first`` on."""
        kernels.judge(
            *(self.ops[:n], slots, self.spec_ids),
            *(self.counts[first : first + n], self.units[first : first + n], ordinals),
            *(self.specs, self.designs, self.width),
            *(self.state, self.sums, self.carried, self.window, self.journal),
            *(*self.floats, self.flags, self.phase, self.stage, self.parts, self.details),
        )

    def batches(self) -> list[tuple[Any, Any, int]]:
        """(slots, ordinals, first) of all calls, made beforehand."""
        made = []
        for first in range(0, BATCH * self.calls, BATCH):
            slots = self.slots[first : first + BATCH]
            made.append((slots, self.next_ordinals(slots), first))
        return made

    def checksum(self) -> str:
        """Of the last call's outputs, details where there are any."""
        crc = 0
        for column in (*self.floats, self.flags, self.phase, self.stage, self.parts):
            crc = zlib.crc32(column.tobytes(), crc)
        return f"{crc:08x}"


def random_slots(charts: int, samples: int) -> Any:
    """Charts as they come from many chambers: uniformly random."""
    return np.random.default_rng(SEED).integers(0, charts, samples).astype(np.int32)


def slots_in_order(charts: int, samples: int) -> Any:
    """Charts as those of one chamber lie: side by side."""
    return (np.arange(samples) % charts).astype(np.int32)


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
        slot["near"] = slot["near"] << np.uint64(1)
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
        flags[i] = slot["near"]
        phase[i] = 2
        stage[i] = slot["stage"]


def best_per_s(run: Callable[..., None], calls: list[tuple[Any, ...]]) -> float:
    """Samples/s over all calls of a batch each, best of 5 after one to compile."""
    best = 0.0
    for _ in range(6):
        started = time.perf_counter()
        for arguments in calls:
            run(*arguments)
        best = max(best, BATCH * len(calls) / (time.perf_counter() - started))
    return best


def least_per_s(rig: Rig) -> float:
    """Samples/s of ``least`` over the rig's slots. Spoils the charts."""
    outputs = (
        *(np.zeros((4, BATCH)), np.zeros(BATCH, np.uint16)),
        *(np.zeros(BATCH, np.uint8), np.zeros(BATCH, np.uint32)),
    )
    calls = [
        (
            *(slots, rig.counts[first : first + BATCH], rig.units[first : first + BATCH], ordinals),
            *(rig.state, rig.window, *outputs),
        )
        for slots, ordinals, first in rig.batches()
    ]
    return best_per_s(least, calls)


def judged_per_s(benchmark: Any, rig: Rig, what: str, gate_per_s: float, rounds: int) -> None:
    """Times all batches of a rig, ``rounds`` times, and notes the best beside the least update."""

    def batches() -> tuple[tuple[Any], dict[str, Any]]:
        return (rig.batches(),), {}

    def run(made: list[tuple[Any, Any, int]]) -> None:
        for slots, ordinals, first in made:
            rig.judge(slots, ordinals, first, BATCH)

    benchmark.pedantic(run, setup=batches, rounds=rounds, warmup_rounds=1)
    per_s = BATCH * rig.calls / benchmark.stats.stats.min
    checksum = rig.checksum()
    baseline_per_s = least_per_s(rig)
    benchmark.extra_info.update(ratio=per_s / baseline_per_s, checksum=checksum, seed=SEED)
    figure(
        f"{what} (seed {SEED}, checksum {checksum})",
        f"{per_s / 1e6:.1f} M samples/s",
        target=f"{gate_per_s / 1e6:.0f} M" if gate_per_s else "",
        baseline=f"{per_s / baseline_per_s:.2f} of the least update, {baseline_per_s / 1e6:.1f} M",
        met=per_s >= gate_per_s if gate_per_s else None,
    )
