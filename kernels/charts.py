"""Many charts at once, as a library: columns in, columns out, without NATS.

    charts = Charts(2000, [Spec()])
    judged = charts.update(chart, counts, units)         # samples as they come, any charts, any order
    judged = charts.replay(counts, units)                # a matrix: a chart a row, a sample a column
    charts.limits(units)                                 # (centre, lcl, ucl) that the next samples would meet
    charts.state                                         # the memory itself, see kernels.state

The charts are those that defenders run: the same kernels, the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels import judge as kernels
from kernels.state import (
    ALPHA,
    CARRIED,
    COUNT_MAX,
    COUNTS_MAX,
    COUNTS_MIN,
    DESIGN_MEANS,
    DETAIL,
    DIAGNOSE_EVERY,
    ENTRY,
    JOURNAL,
    KIND_MASK,
    NELSON,
    ORDINAL_MAX,
    RESET,
    SAMPLE,
    SLOT,
    SPEC,
    SUMS,
    UNITS_MAX,
    UNITS_MIN,
    WINDOW_MAX,
    Baseline,
    Limits,
    Phase,
    RuleCounts,
    spec_row,
)
from kernels.sweep import CLASSES, WORD, sweep

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[Any]

LINE_BYTES = 64
SETTLED = 14
"""Samples in a row after which every rule's pattern lies within what was just replayed."""


_POSITIVE = math.ulp(0.0)
_MOST = math.nextafter(math.inf, 0.0)
_RANGES = (
    ("k", _POSITIVE, _MOST),
    ("alpha", _POSITIVE, math.nextafter(0.5, 0.0)),
    ("centre", 0.0, COUNT_MAX / UNITS_MIN),
    ("phase_one", 1, WINDOW_MAX),
    ("minimum", 1, WINDOW_MAX),
    ("sigma_z", _POSITIVE, _MOST),
    ("sigma_z_floor", 0.0, _MOST),
    ("cusum_ratio", 1.0, _MOST),
    ("head_start", 0.0, 0.5),
    ("ewma_weight", 0.0, 1.0),
    ("arl0", math.nextafter(1.0, 2.0), 1e9),
)
"""What the numbers of a ``Spec`` may be."""


@dataclass(frozen=True)
class Spec:
    """How charts are judged; the meaning of each is in ``docs/charts.md``.

    ``baseline``: ``frozen`` (with ``phase_one`` usable samples), ``moving`` or ``given`` (with ``centre``, in
    nonconformities a unit). ``limits``: ``three_sigma`` (``k``), ``laney`` (``k``, ``sigma_z`` of a given
    centre, ``sigma_z_floor``, ``screen_ranges``), ``exact`` and ``auto`` (``alpha`` a side). ``rules``:
    numbers of Nelson's, with ``counts`` of points. ``predict``: limits for the first samples. ``cusum_ratio``
    above 1 and ``ewma_weight`` above 0 switch these on, at an in-control run length of ``arl0`` samples each.
    """

    baseline: str = "frozen"
    limits: str = "three_sigma"
    k: float = 3.0
    alpha: float = ALPHA
    rules: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    counts: RuleCounts = NELSON
    centre: float = 0.0
    phase_one: int = 25
    minimum: int = 10
    sigma_z: float = 1.0
    sigma_z_floor: float = 0.0
    screen_ranges: bool = False
    predict: bool = False
    p_values: bool = False
    cusum_ratio: float = 1.0
    head_start: float = 0.5
    ewma_weight: float = 0.0
    arl0: float = 370.0

    def __post_init__(self) -> None:
        """Raises ValueError that names the field, its value and what it may be."""
        for name, members in (("baseline", Baseline.__members__), ("limits", Limits.__members__)):
            if str(getattr(self, name)).upper() not in members:
                known = ", ".join(members).lower()
                raise ValueError(f"{name} is {getattr(self, name)!r}: it is one of {known}")
        for name, low, high in _RANGES:
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)!r}: it is {low:.4g} ... {high:.4g}")
        if not set(self.rules) <= set(range(1, 9)):
            raise ValueError(f"rules is {self.rules!r}: numbers of Nelson's rules, 1 ... 8")
        for name, points, low, high in zip(
            self.counts._fields, self.counts, COUNTS_MIN, COUNTS_MAX, strict=True
        ):
            if not low <= points <= high:
                raise ValueError(f"counts.{name} is {points!r}: it is {low} ... {high} points")

    @property
    def tracks(self) -> bool:
        """Whether a CUSUM or an EWMA is kept."""
        return self.cusum_ratio > 1.0 or self.ewma_weight > 0.0

    def row(self, design: int) -> tuple[Any, ...]:
        """The row for the kernels, with the number of its design (-1: none)."""
        rules = sum(1 << (rule - 1) for rule in set(self.rules))
        rules |= 0b0011 << 8 if self.cusum_ratio > 1.0 else 0
        rules |= 0b1100 << 8 if self.ewma_weight > 0.0 else 0
        return spec_row(
            Baseline[self.baseline.upper()],
            k=self.k,
            rules=rules,
            centre=self.centre,
            phase_one=self.phase_one,
            minimum=self.minimum,
            limits=Limits[self.limits.upper()],
            alpha=self.alpha,
            sigma_z=self.sigma_z,
            sigma_z_floor=self.sigma_z_floor,
            screens=self.screen_ranges,
            predicts=self.predict,
            tests=self.p_values,
            counts=self.counts,
            cusum_ratio=self.cusum_ratio,
            cusum_head_start=self.head_start,
            ewma_weight=self.ewma_weight,
            design=design,
        )


@dataclass(frozen=True)
class Judged:
    """Columns of what was judged, all of one shape: (n,) of an update, (charts, samples) of a replay.

    ``u`` = count / units; ``centre``, ``lcl``, ``ucl`` float64, NaN where a chart has none yet; ``flags``
    uint16, bit r-1: rule r; ``phase`` uint8 (``Phase``); ``stage`` uint32. ``details`` (``DETAIL``) of an
    update has p-values, CUSUM, EWMA and sigma_z where ``parts`` says so; a replay gives none.
    """

    u: Floats
    centre: Floats
    lcl: Floats
    ucl: Floats
    flags: Integers
    phase: Integers
    stage: Integers
    parts: Integers | None = None
    details: npt.NDArray[np.void] | None = None

    def signals(self, rule: int) -> Integers:
        """Where a rule signals: indices (of a replay: rows of chart, sample)."""
        found: Integers = np.argwhere((self.flags >> (rule - 1)) & 1)
        return found[:, 0] if self.flags.ndim == 1 else found


class _Rows:
    """What a replay asks of the spec of each chart."""

    def __init__(self, rows: npt.NDArray[np.void]) -> None:
        steady = (rows["plain"] == 1) | (rows["limits"] == int(Limits.LANEY)) & (rows["design"] < 0)
        self.are_steady = bool((steady & (rows["tests"] == 0)).all())
        """Whether all have limits of k sigma, and nothing else is asked for."""
        self.basis = rows["basis"].copy()
        self.some_given = bool((self.basis & KIND_MASK == int(Baseline.GIVEN)).any())


class Charts:
    """``count`` charts in memory, ``window`` samples each (24 bytes a sample)."""

    def __init__(
        self, count: int, specs: Sequence[Spec] = (Spec(),), *, window: int = 256, depth: int | None = None
    ) -> None:
        """*depth*: a chart forgets samples that are so many of its own samples old; the window's by default.

        Raises ValueError for a count below 1, a window outside 1 ... 1023, a depth below the window, no
        spec, or one whose phase I does not fit the window.
        """
        if count < 1 or not 1 <= window <= WINDOW_MAX:
            raise ValueError(f"count {count} must be at least 1, window {window} in 1 ... {WINDOW_MAX}")
        if not specs:
            raise ValueError("specs is empty: give one Spec at least")
        self.depth = window if depth is None else depth
        if self.depth < window:
            raise ValueError(f"depth {depth} is below the window {window}")
        for i, spec in enumerate(specs):
            if spec.baseline == "frozen" and spec.phase_one > window:
                raise ValueError(f"specs[{i}]: phase_one {spec.phase_one} is above the window {window}")
        self.specs = tuple(specs)
        self._rows, self._designs = _compiled(self.specs)
        self.state = _aligned(count, SLOT)
        self.sums = _aligned(count, SUMS)
        self.carried = _aligned(count, CARRIED)
        self.window = _aligned(count * window, ENTRY).reshape(count, window)
        self.spec_of = np.zeros(count, np.int32)
        """Which of ``specs`` each chart is judged by; may be changed between calls."""
        self._next = np.ones(count, np.uint32)
        self._journal = np.zeros(1, JOURNAL)

    def __len__(self) -> int:
        return len(self.state)

    def update(self, chart: npt.ArrayLike, counts: npt.ArrayLike, units: npt.ArrayLike) -> Judged:
        """Judges samples in order: ``counts[i]`` nonconformities on ``units[i]`` units of chart ``chart[i]``.

        A chart may come several times. Raises ValueError, naming the index, for what no chart can judge; then
        nothing was judged.
        """
        slots = self._charts(chart)
        counts_f, units_f = _samples(counts, units, slots.shape)
        return self._judge(slots, counts_f, units_f, np.full(len(slots), SAMPLE, np.uint8))

    def reset(self, chart: npt.ArrayLike) -> None:
        """Each of these charts begins a new stage."""
        slots = self._charts(chart)
        self._judge(slots, np.zeros(len(slots)), np.ones(len(slots)), np.full(len(slots), RESET, np.uint8))

    def replay(self, counts: npt.ArrayLike, units: npt.ArrayLike) -> Judged:
        """Judges a matrix (charts, samples), row i for chart i, as ``update`` would column by column.

        Where all charts have a fixed centre and limits of k sigma it takes 64 samples of a chart at once.
        """
        counts_f, units_f = _samples(counts, units, None)
        if counts_f.ndim != 2 or len(counts_f) != len(self):
            raise ValueError(f"counts has shape {counts_f.shape}; there are {len(self)} charts, a row each")
        shape = counts_f.shape
        found = Judged(
            counts_f / units_f,
            np.empty(shape),
            np.empty(shape),
            np.empty(shape),
            np.empty(shape, np.uint16),
            np.empty(shape, np.uint8),
            np.empty(shape, np.uint32),
        )
        column, rows = 0, _Rows(self._rows[self.spec_of])
        while column < shape[1]:
            column = self._sweep(found, counts_f, units_f, column, rows) or self._step(
                found, counts_f, units_f, column
            )
        return found

    def limits(self, units: npt.ArrayLike = 1.0) -> tuple[Floats, Floats, Floats]:
        """(centre, lcl, ucl) that a sample of *units* of each chart would meet now; NaN where there are none.

        Limits of k sigma and Laney's; exact ones by the Poisson distribution.
        """
        charts = len(self)
        every, none = np.arange(charts, dtype=np.int32), np.zeros(charts, np.uint8)
        counts, n = _samples(np.zeros(charts), units, (charts,))
        journal, self._journal = self._journal, np.zeros(charts, JOURNAL)
        judged = self._judge(every, counts, n, none)
        kernels.undo(self._journal, 0, charts, none, self.state, self.sums, self.carried, self.window)
        self._journal = journal
        self._next -= np.uint32(1)
        return judged.centre, judged.lcl, judged.ucl

    def _charts(self, chart: npt.ArrayLike) -> npt.NDArray[np.int32]:
        slots = np.atleast_1d(np.asarray(chart))
        if slots.ndim != 1 or slots.dtype.kind not in "iu":
            raise ValueError("chart is one whole number a sample: the index of its chart")
        bad = np.flatnonzero((slots < 0) | (slots >= len(self)))
        if len(bad):
            raise ValueError(f"chart[{bad[0]}] is {slots[bad[0]]}; charts are 0 ... {len(self) - 1}")
        return np.ascontiguousarray(slots, np.int32)

    def _judge(self, slots: Integers, counts: Floats, units: Floats, ops: Integers) -> Judged:
        n = len(slots)
        u, centre, lcl, ucl = np.empty((4, n))
        flags, phase, stage = np.empty(n, np.uint16), np.empty(n, np.uint8), np.empty(n, np.uint32)
        parts, details = np.zeros(n, np.uint8), np.zeros(n, DETAIL)
        kernels.judge(
            ops,
            slots,
            np.ascontiguousarray(self.spec_of[slots]),
            counts,
            units,
            self._ordinals(slots),
            self._rows,
            self._designs,
            self.depth,
            self.state,
            self.sums,
            self.carried,
            self.window,
            self._journal,
            u,
            centre,
            lcl,
            ucl,
            flags,
            phase,
            stage,
            parts,
            details,
        )
        return Judged(u, centre, lcl, ucl, flags, phase, stage, parts, details)

    def _ordinals(self, slots: Integers) -> npt.NDArray[np.uint32]:
        """Each chart counts its own samples."""
        n = len(slots)
        if n and int(self._next.max()) + n > ORDINAL_MAX:
            raise ValueError("a chart has had more than four billion samples: reset it in new Charts")
        ordinals = self._next[slots]
        if n > 1 and not (slots[1:] > slots[:-1]).all():
            order = np.argsort(slots, kind="stable")
            in_order = slots[order]
            starts = np.flatnonzero(np.concatenate(([True], in_order[1:] != in_order[:-1])))
            rank = np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))
            ordinals[order] += rank.astype(np.uint32)
            np.add.at(self._next, slots, np.uint32(1))
        else:
            self._next[slots] += np.uint32(1)
        return ordinals

    def _step(self, found: Judged, counts: Floats, units: Floats, column: int) -> int:
        """One column through ``judge``; the next column."""
        every = np.arange(len(self), dtype=np.int32)
        c, n = np.ascontiguousarray(counts[:, column]), np.ascontiguousarray(units[:, column])
        judged = self._judge(every, c, n, np.zeros(len(every), np.uint8))
        for name in ("centre", "lcl", "ucl", "flags", "phase", "stage"):
            getattr(found, name)[:, column] = getattr(judged, name)
        return column + 1

    def _sweep(self, found: Judged, counts: Floats, units: Floats, column: int, rows: _Rows) -> int:
        """As many columns as can be swept, or 0: the next column."""
        state = self.state
        if not rows.are_steady or self.window.shape[1] < SETTLED:
            return 0
        plain = (state["fixed"] == 1) & (state["mark"] == 0) & (state["tracks"] == 0)
        plain &= (state["basis"] == rows.basis) & (self._next - state["stage"] >= SETTLED)
        if not plain.all() or not (self._next == self._next[0]).all():
            return 0
        ordinal, last = int(self._next[0]), counts.shape[1]
        if rows.some_given:  # their scatter is looked at now and then
            last = min(last, column + -ordinal % DIAGNOSE_EVERY)
        if last == column:
            return 0
        every = np.arange(len(self), dtype=np.int32)
        sweep(
            *(every, counts, units, column, last, every, self.spec_of, self._next, self._rows),
            *(state, self.sums, self.carried, self.window, found.flags, found.lcl, found.ucl),
            *(np.zeros(WORD), np.zeros((3, CLASSES), np.uint64)),
        )
        found.centre[:, column:last] = state["centre"][:, None]
        found.phase[:, column:last] = int(Phase.PHASE_TWO)
        found.stage[:, column:last] = state["stage"][:, None]
        self._next += np.uint32(last - column)
        return int(last)


def _aligned(count: int, dtype: np.dtype[Any]) -> npt.NDArray[np.void]:
    """Zeros that begin with a cache line: a slot is one, and would else lie in two."""
    raw = np.zeros(count * dtype.itemsize + LINE_BYTES, np.uint8)
    first = -raw.ctypes.data % LINE_BYTES
    return raw[first : first + count * dtype.itemsize].view(dtype)


def _compiled(specs: Sequence[Spec]) -> tuple[npt.NDArray[np.void], Floats]:
    """(rows, designs) for the kernels."""
    designs: list[Floats] = []
    rows = []
    for spec in specs:
        design = -1
        if spec.tracks:
            from kernels.design import table  # numbers of a second; only where they are asked for

            design = len(designs)
            designs.append(
                table(
                    ratio=spec.cusum_ratio if spec.cusum_ratio > 1.0 else None,
                    head_start=spec.head_start,
                    ewma_weight=spec.ewma_weight or None,
                    arl0=spec.arl0,
                )
            )
        rows.append(spec.row(design))
    return np.array(rows, SPEC), np.array(designs).reshape(-1, 3, len(DESIGN_MEANS))


def _samples(
    counts: npt.ArrayLike, units: npt.ArrayLike, shape: tuple[int, ...] | None
) -> tuple[Floats, Floats]:
    """Counts and units as float64, C-contiguous. Raises ValueError with the first index that cannot be."""
    c = np.require(np.atleast_1d(counts), np.float64, ["C", "A", "W"])
    if np.ndim(units) != 0 and np.shape(units) != c.shape:
        raise ValueError(f"units has shape {np.shape(units)}, counts {c.shape}: one each, or one for all")
    n = np.require(np.broadcast_to(np.asarray(units, np.float64), c.shape), None, ["C", "A", "W"])
    if shape is not None and c.shape != shape:
        raise ValueError(f"counts has shape {c.shape}, chart {shape}")
    good = (c >= 0.0) & (c < COUNT_MAX) & (c == np.floor(c))
    if not good.all():
        at = tuple(np.argwhere(~good)[0].tolist())
        raise ValueError(f"counts{list(at)} is {float(c[at])!r}: a count is a whole number, 0 ... 2^53 - 1")
    good = (n >= UNITS_MIN) & (n <= UNITS_MAX)
    if not good.all():
        at = tuple(np.argwhere(~good)[0].tolist())
        raise ValueError(f"units{list(at)} is {float(n[at])!r}: units are 2^-20 ... 2^40")
    return c, n
