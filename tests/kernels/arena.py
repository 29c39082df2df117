"""A small arena for tests: batches of events in, verdicts out, beside one naive chart a slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernels import judge as kernels
from kernels.state import ENTRY, JOURNAL, RESET, SAMPLE, SLOT, SPEC, SUMS, Baseline, basis_of, spec_row
from tests.kernels.oracle import Chart, Spec, Verdict

KINDS = {"given": Baseline.GIVEN, "frozen": Baseline.FROZEN, "moving": Baseline.MOVING}


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
    """Fingerprint of a spec's settings."""
    return basis_of(KINDS[spec.baseline], centre=spec.centre, k=spec.k, phase_one=spec.phase_one)


def bits(verdict: Verdict) -> bytes:
    """Every bit of a verdict, any NaN alike."""
    floats = np.array([verdict.u, verdict.centre, verdict.lcl, verdict.ucl])
    floats[np.isnan(floats)] = np.nan
    return floats.tobytes() + bytes(f"{verdict.flags} {verdict.phase} {verdict.stage}", "ascii")


class Arena:
    """State, sums and window of ``slots`` charts."""

    def __init__(self, slots: int, window: int, depth: int, *, garbage: int = 0) -> None:
        self.depth = depth
        self.state = np.zeros(slots, SLOT)
        self.sums = np.zeros(slots, SUMS)
        self.window = np.zeros((slots, window), ENTRY)
        # What an earlier chart left behind in an empty slot must not matter.
        self.window.view(np.uint8)[...] = garbage
        self.sums.view(np.uint8)[...] = garbage
        self.journal = np.zeros(0, JOURNAL)

    def judge(self, events: Sequence[Event]) -> list[Verdict]:
        """One kernel call over all events."""
        n = len(events)
        rows: dict[tuple[object, ...], int] = {}
        spec_ids = np.zeros(n, np.int32)
        for i, event in enumerate(events):
            if event.spec is not None:
                s = event.spec
                row = spec_row(
                    KINDS[s.baseline],
                    k=s.k,
                    rules=sum(1 << (rule - 1) for rule in s.rules),
                    centre=s.centre,
                    phase_one=s.phase_one,
                    minimum=s.minimum,
                )
                spec_ids[i] = rows.setdefault(row, len(rows))
        specs = np.array(list(rows) or [spec_row(Baseline.GIVEN)], SPEC)
        self.journal = np.zeros(n, JOURNAL)
        u, centre, lcl, ucl = (np.full(n, 7.0) for _ in range(4))
        flags, phase, stage = np.full(n, 7, np.uint16), np.full(n, 7, np.uint8), np.full(n, 7, np.uint32)
        kernels.judge(
            np.array([SAMPLE if e.spec is not None else RESET for e in events], np.uint8),
            np.array([e.slot for e in events], np.int32),
            spec_ids,
            np.array([e.count for e in events], np.float64),
            np.array([e.units for e in events], np.float64),
            np.array([e.ordinal for e in events], np.uint32),
            specs,
            self.depth,
            self.state,
            self.sums,
            self.window,
            self.journal,
            u,
            centre,
            lcl,
            ucl,
            flags,
            phase,
            stage,
        )
        columns = (u, centre, lcl, ucl, flags, phase, stage)
        return [Verdict(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def undo(self, first: int, last: int, skip: Sequence[int] | None = None) -> None:
        """Undo events of the last batch."""
        mask = np.zeros(len(self.journal), np.uint8) if skip is None else np.array(skip, np.uint8)
        kernels.undo(self.journal, first, last, mask, self.state, self.sums, self.window)

    def restore(self, history: Sequence[Judged]) -> None:
        """Put judged events back."""
        events = [row.event for row in history]
        verdicts = [row.verdict for row in history]
        kernels.restore(
            np.array([SAMPLE if e.spec is not None else RESET for e in events], np.uint8),
            np.array([e.slot for e in events], np.int32),
            np.array([e.count for e in events], np.float64),
            np.array([e.units for e in events], np.float64),
            np.array([e.ordinal for e in events], np.uint32),
            np.array([v.flags for v in verdicts], np.uint16),
            np.array([v.phase for v in verdicts], np.uint8),
            np.array([v.centre for v in verdicts], np.float64),
            np.array([row.basis for row in history], np.uint32),
            np.array([v.stage for v in verdicts], np.uint32),
            self.state,
            self.sums,
            self.window,
        )

    def memory(self) -> bytes:
        """Every byte of the arena."""
        return self.state.tobytes() + self.sums.tobytes() + self.window.tobytes()


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


def record(events: Sequence[Event], verdicts: Sequence[Verdict]) -> list[Judged]:
    """The history's rows."""
    return [
        Judged(event, 0 if event.spec is None else basis(event.spec), verdict)
        for event, verdict in zip(events, verdicts, strict=True)
    ]
