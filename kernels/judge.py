"""The kernels: judge a batch, undo a part of it, put judged samples back from history.

All work in place on the caller's arrays, allocate nothing and raise nothing; all arrays are
C-contiguous, aligned and writable (``np.frombuffer`` over ``bytes`` is not), in the machine's byte
order. What the caller guarantees, for nothing is checked here: slots and spec numbers in range;
counts whole, 0 to ``COUNT_MAX``; units ``UNITS_MIN`` to ``UNITS_MAX``; a chart's ordinals rise
by at least 1; 1 <= W <= ``WINDOW_MAX``, W <= depth, phase_one <= W.

A chart *remembers* its stage's samples of the last ``depth`` reports (ordinal >= t - depth when t is
judged), of these at most the newest W. Its verdicts depend on nothing else but its spec and, once
FROZEN, on the frozen centre, which every later verdict carries. That is why ``restore`` works.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numba
import numpy as np
import numpy.typing as npt

from kernels.chart import (
    NO_CENTRE,
    RULE_1,
    clear_sums,
    expire,
    fixed_runs,
    forget,
    freeze,
    lower_limit,
    moving_centre,
    moving_runs,
    next_registers,
    push,
    screened_centre,
    standardised,
    upper_limit,
)
from kernels.jit import device, kernel, signed
from kernels.prefetch import prefetch
from kernels.state import ENTRY, FROZE, HOLDS_ENTRY, HOLDS_SUMS, JOURNAL, KIND_MASK, RESET, SLOT, SPEC, SUMS, Baseline, Phase

U1: TypeAlias = npt.NDArray[np.uint8]
U2: TypeAlias = npt.NDArray[np.uint16]
U4: TypeAlias = npt.NDArray[np.uint32]
I4: TypeAlias = npt.NDArray[np.int32]
F8: TypeAlias = npt.NDArray[np.float64]
Records: TypeAlias = npt.NDArray[np.void]

GIVEN = int(Baseline.GIVEN)
FROZEN = int(Baseline.FROZEN)
LEARNING = int(Phase.LEARNING)
PHASE_ONE = int(Phase.PHASE_ONE)
PHASE_TWO = int(Phase.PHASE_TWO)

SLOT_AHEAD = 16  # samples between the prefetch of a slot and its use
ENTRY_AHEAD = 8  # likewise for its ring position, which the slot tells

_u1 = numba.types.Array(numba.uint8, 1, "C")
_u2 = numba.types.Array(numba.uint16, 1, "C")
_u4 = numba.types.Array(numba.uint32, 1, "C")
_i4 = numba.types.Array(numba.int32, 1, "C")
_f8 = numba.types.Array(numba.float64, 1, "C")
_specs = numba.types.Array(numba.from_dtype(SPEC), 1, "C")
_state = numba.types.Array(numba.from_dtype(SLOT), 1, "C")
_sums = numba.types.Array(numba.from_dtype(SUMS), 1, "C")
_window = numba.types.Array(numba.from_dtype(ENTRY), 2, "C")
_journal = numba.types.Array(numba.from_dtype(JOURNAL), 1, "C")
_void = numba.void


@device
def _hint(i: int, n: int, slots: I4, state: Records, window: Records) -> None:
    if i + SLOT_AHEAD < n:
        prefetch(state[signed(slots[i + SLOT_AHEAD])])
    if i + ENTRY_AHEAD < n:
        later = signed(slots[i + ENTRY_AHEAD])
        prefetch(window[later, signed(state[later]["head"])])


@kernel(
    _void(
        *(_u1, _i4, _i4, _f8, _f8, _u4, _specs, numba.int64, _state, _sums, _window, _journal),
        *(_f8, _f8, _f8, _f8, _u2, _u1, _u4),
    )
)
def judge(
    ops: U1,
    slots: I4,
    spec_ids: I4,
    counts: F8,
    units: F8,
    ordinals: U4,
    specs: Records,
    depth: int,
    state: Records,
    sums: Records,
    window: Records,
    journal: Records,
    out_u: F8,
    out_centre: F8,
    out_lcl: F8,
    out_ucl: F8,
    out_flags: U2,
    out_phase: U1,
    out_stage: U4,
) -> None:
    """Judge ``n = len(ops)`` samples in order; the other columns have at least n items.

    ``ops``: SAMPLE or RESET (the slot forgets all; its other inputs are not read but ``slots``).
    ``journal[i]`` holds what undoes sample i. Outputs: u = c/n, centre line and limits (NaN while
    there are none, and for a reset), flags (bit r-1: rule r, of the rules in force), phase (``Phase``),
    stage (ordinal of the first sample of the sample's stage; 0 for a reset).
    """
    n = ops.shape[0]
    for i in range(n):
        _hint(i, n, slots, state, window)
        s = signed(slots[i])
        slot = state[s]
        total = sums[s]
        past = journal[i]
        past["slot"] = slot
        past["index"] = s
        if ops[i] == RESET:
            past["holds"] = 0
            forget(slot)
            out_u[i] = math.nan
            out_centre[i] = math.nan
            out_lcl[i] = math.nan
            out_ucl[i] = math.nan
            out_flags[i] = 0
            out_phase[i] = LEARNING
            out_stage[i] = 0
            continue
        spec = specs[signed(spec_ids[i])]
        ordinal = signed(ordinals[i])
        since = ordinal - depth
        kind = signed(spec["basis"]) & KIND_MASK
        fresh = slot["length"] == 0 or slot["basis"] != spec["basis"] or signed(slot["newest"]) < since
        moves = kind != GIVEN and (fresh or slot["frozen"] == 0)
        holds = HOLDS_ENTRY
        if moves:
            past["sums"] = total
            holds |= HOLDS_SUMS
        if fresh:
            forget(slot)
            slot["basis"] = spec["basis"]
            slot["stage"] = ordinal
            if moves:
                clear_sums(total)
        elif moves:
            expire(slot, total, window, s, since)
            if kind == FROZEN and slot["usable"] >= spec["phase_one"]:
                freeze(slot, window, s, screened_centre(slot, total, window, s, spec["k"]))
                holds |= FROZE
                moves = False
        c = counts[i]
        size = units[i]
        u = c / size
        if moves:
            centre = moving_centre(slot, total, signed(spec["minimum"]))
        elif kind == GIVEN:
            centre = spec["centre"]
        else:
            centre = slot["centre"]
        flags = 0
        phase = LEARNING
        lower = upper = math.nan
        if centre == NO_CENTRE:
            centre = math.nan
        else:
            lower = lower_limit(centre, size, spec["k"])
            upper = upper_limit(centre, size, spec["k"])
            z = standardised(u, size, centre)
            if u > upper or u < lower:
                flags = RULE_1
            if moves:
                flags |= moving_runs(slot, window, s, z, centre)
            else:
                next_registers(slot, z)
                flags |= fixed_runs(slot, window, s, since)
            flags &= signed(spec["rules"])
            phase = PHASE_ONE if moves and kind == FROZEN else PHASE_TWO
        out_u[i] = u
        out_centre[i] = centre
        out_lcl[i] = lower
        out_ucl[i] = upper
        out_flags[i] = flags
        out_phase[i] = phase
        out_stage[i] = slot["stage"]
        usable = 1 if flags & RULE_1 == 0 or (moves and kind == FROZEN) else 0
        head = signed(slot["head"])
        past["entry"] = window[s, head]
        past["position"] = head
        past["holds"] = holds
        push(slot, total, window, s, c, size, ordinal, usable, moves)


@kernel(_void(_journal, numba.int64, numba.int64, _u1, _state, _sums, _window))
def undo(
    journal: Records, first: int, last: int, skip: U1, state: Records, sums: Records, window: Records
) -> None:
    """Undo the samples first ... last-1 of the batch that filled ``journal``, newest first.

    Samples with ``skip[i]`` 1 stay; no later sample of such a sample's slot may be undone without being
    skipped too... that is: of each slot either a tail of its samples is undone, or none. Afterwards
    state, sums and window are, bit by bit, what they were.
    """
    width = window.shape[1]
    for i in range(last - 1, first - 1, -1):
        if skip[i] == 1:
            continue
        past = journal[i]
        s = signed(past["index"])
        state[s] = past["slot"]
        holds = signed(past["holds"])
        if holds & HOLDS_SUMS:
            sums[s] = past["sums"]
        if holds & HOLDS_ENTRY:
            window[s, signed(past["position"])] = past["entry"]
        if holds & FROZE:  # in phase I every remembered sample was usable
            position = signed(state[s]["head"])
            for _ in range(signed(state[s]["length"])):
                position -= 1
                if position < 0:
                    position += width
                window[s, position]["usable"] = 1


@kernel(_void(_u1, _i4, _f8, _f8, _u4, _u2, _u1, _f8, _u4, _u4, _state, _sums, _window))
def restore(
    ops: U1,
    slots: I4,
    counts: F8,
    units: F8,
    ordinals: U4,
    flags: U2,
    phases: U1,
    centres: F8,
    bases: U4,
    stages: U4,
    state: Records,
    sums: Records,
    window: Records,
) -> None:
    """Put samples back that were judged before, oldest first, without judging them anew.

    The columns are what ``judge`` was given and gave for each (``bases``: of the spec it was judged
    with). Given all samples and resets of a chart's reports with ordinal > T - depth, T being its
    chamber's last report, into an empty slot, the chart's next verdicts are, bit by bit, those of a
    chart that never left memory. More of them do no harm. Resets between two samples may be missing.

    A frozen centre comes from the verdicts of phase II. Which of phase I's samples were left out is not
    put back, and is not needed: nothing reads the marks once the centre is fixed.
    """
    n = ops.shape[0]
    for i in range(n):
        _hint(i, n, slots, state, window)
        s = signed(slots[i])
        slot = state[s]
        total = sums[s]
        if ops[i] == RESET:
            forget(slot)
            continue
        kind = signed(bases[i]) & KIND_MASK
        if slot["length"] == 0 or slot["stage"] != stages[i]:
            forget(slot)
            slot["basis"] = bases[i]
            slot["stage"] = stages[i]
            clear_sums(total)
        fixed = kind == GIVEN or (kind == FROZEN and phases[i] == PHASE_TWO)
        if fixed:
            if kind == FROZEN and slot["frozen"] == 0:
                freeze(slot, window, s, centres[i])
            next_registers(slot, standardised(counts[i] / units[i], units[i], centres[i]))
        usable = 1 if flags[i] & RULE_1 == 0 or (kind == FROZEN and not fixed) else 0
        push(slot, total, window, s, counts[i], units[i], signed(ordinals[i]), usable, not fixed)
