"""A small arena for tests: batches of events in, verdicts out, beside one naive chart a slot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kernels import judge as kernels
from kernels.state import (
    CARRIED,
    DESIGN_MEANS,
    DETAIL,
    ENTRY,
    JOURNAL,
    PART_ALARM,
    PART_CUSUM,
    PART_EWMA,
    PART_FROZE,
    PART_MARK,
    PART_P,
    PART_SIGMA_Z,
    RESET,
    SAMPLE,
    SLOT,
    SPEC,
    SUMS,
    Baseline,
    Limits,
    RuleCounts,
    basis_of,
    spec_row,
)
from tests.kernels.oracle import Chart, Design, Detail, Spec, Verdict

KINDS = {"given": Baseline.GIVEN, "frozen": Baseline.FROZEN, "moving": Baseline.MOVING}
LIMITS = {
    "three_sigma": Limits.THREE_SIGMA,
    "laney": Limits.LANEY,
    "exact": Limits.EXACT,
    "auto": Limits.AUTO,
}

CARRIED_BY = {
    PART_SIGMA_Z: ("sigma_z",),
    PART_CUSUM: ("cusum_up", "cusum_down", "typical_units"),
    PART_EWMA: ("ewma", "ewma_variance", "typical_units"),
    PART_ALARM: ("episode", "alerted", "alerted_at"),
}
"""Fields of CARRIED that a part of a detail makes valid."""
FIELDS_BY = {
    PART_P: ("p",),
    PART_CUSUM: ("cusum_limit_up", "cusum_limit_down"),
    PART_EWMA: ("ewma_lcl", "ewma_ucl"),
    PART_MARK: ("mark",),
    PART_ALARM: ("event", "quiet"),
}
"""The same of DETAIL."""

EXACT_MEAN, HUGE_TOLERANCE = 2.0**50, 1e-5
"""Up to here a quantile is exact, and beyond it SciPy's p-values have few digits."""
P_TOLERANCE = 1e-9
P_TINY = 1e-290
"""p-values are compared to this, relatively, where they are not less than tiny."""


@dataclass(frozen=True)
class Event:
    """One sample, or with ``spec`` None a reset."""

    slot: int
    ordinal: int
    spec: Spec | None = None
    count: float = 0.0
    units: float = 1.0


@dataclass(frozen=True)
class Judged:
    """An event with what was recorded of it: a row of the history."""

    event: Event
    basis: int
    verdict: Verdict


def basis(spec: Spec) -> int:
    """Fingerprint of a spec's settings; a frozen chart learns its CUSUM's typical units at the freeze."""
    found = basis_of(
        KINDS[spec.baseline],
        centre=spec.centre,
        k=spec.k,
        phase_one=spec.phase_one,
        limits=LIMITS[spec.limits],
        alpha=spec.alpha,
        sigma_z_floor=spec.sigma_z_floor,
        screens=spec.screens,
    )
    return found ^ (4 if spec.baseline == "frozen" and tracks(spec) else 0)


def tracks(spec: Spec) -> bool:
    """Whether a chart has a CUSUM or an EWMA."""
    return spec.cusum_ratio > 1.0 or spec.ewma_weight > 0.0


def row_of(spec: Spec, design: int) -> tuple[Any, ...]:
    """The kernels' spec."""
    return spec_row(
        KINDS[spec.baseline],
        k=spec.k,
        rules=sum(1 << (rule - 1) for rule in spec.rules),
        centre=spec.centre,
        phase_one=spec.phase_one,
        minimum=spec.minimum,
        basis=basis(spec),
        limits=LIMITS[spec.limits],
        alpha=spec.alpha,
        sigma_z=spec.sigma_z,
        sigma_z_floor=spec.sigma_z_floor,
        screens=spec.screens,
        predicts=spec.predicts,
        tests=spec.tests,
        counts=RuleCounts(**vars(spec.counts)),
        cusum_ratio=spec.cusum_ratio,
        cusum_head_start=spec.cusum_head_start,
        ewma_weight=spec.ewma_weight,
        design=design,
        again_reports=spec.again_reports,
        again_ns=spec.again_ns,
        end_after=spec.end_after,
    )


def bits(verdict: Verdict) -> bytes:
    """Every bit of a verdict, any NaN alike."""
    floats = np.array([verdict.u, verdict.centre, verdict.lcl, verdict.ucl])
    floats[np.isnan(floats)] = np.nan
    rest = f"{verdict.flags} {verdict.phase} {verdict.stage} {verdict.detail}"
    return floats.tobytes() + bytes(rest, "ascii")


def without_p(verdict: Verdict) -> bytes:
    """Every bit of a verdict but those of its p-value."""
    return bits(replace(verdict, detail=replace(verdict.detail, p=None)))


def agree(event: Event, ours: Verdict, theirs: Verdict) -> bool:
    """Bit by bit the same, p-values to 1e-9; less where counts are so large that both approximate."""
    p, q = ours.detail.p, theirs.detail.p
    if (p is None) != (q is None):
        return False
    tolerance = tolerance_of(event, theirs)
    p_tolerance = max(tolerance, P_TOLERANCE)
    if p is not None and q is not None and not math.isclose(p, q, rel_tol=p_tolerance, abs_tol=P_TINY):
        return False
    if tolerance > 0.0 and p is not None:
        if not math.isclose(ours.lcl, theirs.lcl, rel_tol=tolerance):
            return False
        if not math.isclose(ours.ucl, theirs.ucl, rel_tol=tolerance):
            return False
        ours = replace(ours, lcl=theirs.lcl, ucl=theirs.ucl)
    return without_p(ours) == without_p(theirs)


def tolerance_of(event: Event, verdict: Verdict) -> float:
    """Relative tolerance of p-values, and of limits that are quantiles: 0 for ordinary counts."""
    return HUGE_TOLERANCE if max(event.count, verdict.centre * event.units) > EXACT_MEAN else 0.0


def detail_of(record: Any, parts: int) -> Detail:
    """What a record says, as far as its parts are valid."""
    found: dict[str, Any] = {"froze": bool(parts & PART_FROZE)}
    for part, names in CARRIED_BY.items():
        found |= {name: record["carried"][name].item() for name in names if parts & part}
    for part, names in FIELDS_BY.items():
        found |= {name: record[name].item() for name in names if parts & part}
    return Detail(**found)


def record_of(detail: Detail, garbage: int) -> Any:
    """The record of a detail; what is not valid of it is garbage."""
    record = np.full(DETAIL.itemsize, garbage, np.uint8).view(DETAIL)[0]
    parts = PART_FROZE if detail.froze else 0
    for part, present in (
        (PART_P, detail.p is not None),
        (PART_SIGMA_Z, detail.sigma_z is not None),
        (PART_CUSUM, detail.cusum_up is not None),
        (PART_EWMA, detail.ewma is not None),
        (PART_MARK, detail.mark != 0),
        (PART_ALARM, detail.quiet is not None),
    ):
        if present:
            parts |= part
            for name in CARRIED_BY.get(part, ()):
                record["carried"][name] = getattr(detail, name)
            for name in FIELDS_BY.get(part, ()):
                record[name] = getattr(detail, name)
    record["parts"] = parts
    return record


class Arena:
    """State, sums, carried and window of ``slots`` charts."""

    def __init__(self, slots: int, window: int, depth: int, *, garbage: int = 0) -> None:
        self.depth = depth
        self.garbage = garbage
        self.state = np.zeros(slots, SLOT)
        self.sums = np.zeros(slots, SUMS)
        self.carried = np.zeros(slots, CARRIED)
        self.window = np.zeros((slots, window), ENTRY)
        # What an earlier chart left behind in an empty slot must not matter.
        for array in (self.window, self.sums, self.carried):
            array.view(np.uint8)[...] = garbage
        self.journal = np.zeros(0, JOURNAL)
        self._batch: tuple[Any, ...] = ()
        self._verdicts: list[Verdict] = []

    def judge(self, events: Sequence[Event], *, keeps_journal: bool = True) -> list[Verdict]:
        """One kernel call over all events."""
        n = len(events)
        ops, slots, counts, units, ordinals = columns(events)
        spec_ids, specs, designs = tables(events)
        self.journal = np.zeros(n if keeps_journal else 1, JOURNAL)
        u, centre, lcl, ucl = (np.full(n, 7.0) for _ in range(4))
        flags, phase, stage = np.full(n, 7, np.uint16), np.full(n, 7, np.uint8), np.full(n, 7, np.uint32)
        parts = np.full(n, 7, np.uint8)
        details = np.full(n * DETAIL.itemsize, self.garbage, np.uint8).view(DETAIL)
        kernels.judge(
            ops,
            slots,
            spec_ids,
            counts,
            units,
            ordinals,
            specs,
            designs,
            self.depth,
            self.state,
            self.sums,
            self.carried,
            self.window,
            self.journal,
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
        self._batch = (ops, slots, spec_ids, ordinals, specs, parts, details)
        rows = zip(*(column.tolist() for column in (u, centre, lcl, ucl, flags, phase, stage)), strict=True)
        self._verdicts = [Verdict(*row, detail_of(details[i], int(parts[i]))) for i, row in enumerate(rows)]
        return self._verdicts

    def alert(self, signals: Sequence[bool], at: int) -> list[Verdict]:
        """Alarms of the batch just judged: its verdicts with what they say of them."""
        ops, slots, spec_ids, ordinals, specs, parts, details = self._batch
        kernels.alert(
            ops,
            np.array(signals, np.uint8),
            slots,
            spec_ids,
            ordinals,
            np.full(len(ops), at, np.int64),
            specs,
            self.state,
            self.carried,
            self.journal,
            parts,
            details,
        )
        return [
            replace(verdict, detail=detail_of(details[i], int(parts[i])))
            for i, verdict in enumerate(self._verdicts)
        ]

    def report(self, events: Sequence[Event], at: int) -> list[Verdict]:
        """Judge a batch that has a slot at most once, with its alarms."""
        return self.alert([verdict.flags != 0 for verdict in self.judge(events)], at)

    def undo(self, first: int, last: int, skip: Sequence[int] | None = None) -> None:
        """Undo events of the last batch."""
        mask = np.zeros(len(self.journal), np.uint8) if skip is None else np.array(skip, np.uint8)
        kernels.undo(self.journal, first, last, mask, self.state, self.sums, self.carried, self.window)

    def restore(self, history: Sequence[Judged]) -> None:
        """Put judged events back."""
        ops, slots, counts, units, ordinals = columns([row.event for row in history])
        verdicts = [row.verdict for row in history]
        details = np.zeros(len(history), DETAIL)
        for i, verdict in enumerate(verdicts):
            details[i] = record_of(verdict.detail, self.garbage)
        told = np.flatnonzero(details["parts"])
        detail_ids = np.full(len(history) if len(told) else 0, -1, np.int32)
        detail_ids[told] = np.arange(len(told))
        kernels.restore(
            ops,
            slots,
            counts,
            units,
            ordinals,
            np.array([v.flags for v in verdicts], np.uint16),
            np.array([v.phase for v in verdicts], np.uint8),
            np.array([v.centre for v in verdicts], np.float64),
            np.array([row.basis for row in history], np.uint32),
            np.array([v.stage for v in verdicts], np.uint32),
            detail_ids,
            details[told],
            self.state,
            self.sums,
            self.carried,
            self.window,
        )

    def memory(self) -> bytes:
        """Every byte of the arena."""
        return b"".join(a.tobytes() for a in (self.state, self.sums, self.carried, self.window))


def columns(events: Sequence[Event]) -> tuple[Any, ...]:
    """Operations, slots, counts, units and ordinals of events."""
    return (
        np.array([SAMPLE if e.spec is not None else RESET for e in events], np.uint8),
        np.array([e.slot for e in events], np.int32),
        np.array([e.count for e in events], np.float64),
        np.array([e.units for e in events], np.float64),
        np.array([e.ordinal for e in events], np.uint32),
    )


def tables(events: Sequence[Event]) -> tuple[Any, Any, Any]:
    """Number of each event's spec, the specs and their designs."""
    rows: dict[tuple[Any, ...], int] = {}
    designs: dict[Design, int] = {}
    spec_ids = np.zeros(len(events), np.int32)
    for i, event in enumerate(events):
        if event.spec is not None:
            design = event.spec.design
            number = -1 if design is None else designs.setdefault(design, len(designs))
            spec_ids[i] = rows.setdefault(row_of(event.spec, number), len(rows))
    specs = np.array(list(rows) or [spec_row(Baseline.GIVEN)], SPEC)
    return spec_ids, specs, np.array(list(designs), np.float64).reshape(-1, 3, len(DESIGN_MEANS))


class NaiveArena:
    """The same with one naive chart a slot."""

    def __init__(self, slots: int, window: int, depth: int) -> None:
        self.charts = [Chart(depth, window) for _ in range(slots)]

    def judge(self, events: Sequence[Event]) -> list[Verdict]:
        """Verdicts of the events, in order."""
        nan = float("nan")
        verdicts = []
        for event in events:
            chart = self.charts[event.slot]
            if event.spec is None:
                chart.reset()
                verdicts.append(Verdict(nan, nan, nan, nan, 0, 0, 0))
            else:
                verdicts.append(chart.judge(event.spec, event.count, event.units, event.ordinal))
        return verdicts

    def report(self, events: Sequence[Event], at: int) -> list[Verdict]:
        """The same with alarms; a slot at most once."""
        verdicts = []
        for event, verdict in zip(events, self.judge(events), strict=True):
            chart = self.charts[event.slot]
            alarm = chart.alert(event.spec, verdict.flags != 0, event.ordinal, at)
            known = {k: v for k, v in vars(alarm).items() if v is not None and k in ALARM_FIELDS}
            verdicts.append(replace(verdict, detail=replace(verdict.detail, **known)))
        return verdicts


ALARM_FIELDS = {"event", "quiet", "episode", "alerted", "alerted_at"}


def record(events: Sequence[Event], verdicts: Sequence[Verdict]) -> list[Judged]:
    """The history's rows."""
    return [
        Judged(event, 0 if event.spec is None else basis(event.spec), verdict)
        for event, verdict in zip(events, verdicts, strict=True)
    ]
