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
from typing import Any, TypeAlias

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
from kernels.state import (
    ENTRY,
    FROZE,
    HOLDS_ENTRY,
    HOLDS_SUMS,
    JOURNAL,
    KIND_MASK,
    RESET,
    SLOT,
    SPEC,
    SUMS,
    Baseline,
    Phase,
)

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


@device
def _baseline_moves(
    slot: Any, total: Any, window: Records, s: int, spec: Any, ordinal: int, since: int, past: Any
) -> bool:
    """Open a stage, forget, freeze: what comes before judging. True while the centre is not fixed."""
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
    past["holds"] = holds
    return moves


@device
def _centre_in_force(slot: Any, total: Any, spec: Any, moves: bool) -> float:
    """The centre line that the next sample is judged by, or NO_CENTRE."""
    if moves:
        return moving_centre(slot, total, signed(spec["minimum"]))
    if signed(spec["basis"]) & KIND_MASK == GIVEN:
        return float(spec["centre"])
    return float(slot["centre"])


@device
def _run_signals(slot: Any, window: Records, s: int, since: int, z: float, centre: float, moves: bool) -> int:
    """Flags of rules 2 to 4."""
    if moves:
        return moving_runs(slot, window, s, z, centre)
    next_registers(slot, z)
    return fixed_runs(slot, window, s, since)


@device
def _remember(
    slot: Any,
    total: Any,
    window: Records,
    s: int,
    past: Any,
    count: float,
    units: float,
    ordinal: int,
    usable: int,
    moves: bool,
) -> None:
    """Push a sample; the entry that it overwrites goes to the journal."""
    head = signed(slot["head"])
    past["entry"] = window[s, head]
    past["position"] = head
    push(slot, total, window, s, count, units, ordinal, usable, moves)


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

    ``ops``: SAMPLE or RESET (the slot forgets all; of the inputs only ``slots`` is read).
    ``journal[i]`` holds what undoes sample i. Outputs: u = c/n, centre line and limits (NaN while
    there are none, and for a reset), flags (bit r-1: rule r, of the rules in force), phase (``Phase``),
    stage (ordinal of the first sample of the sample's stage; 0 for a reset).
    """
    for i in range(ops.shape[0]):
        _hint(i, ops.shape[0], slots, state, window)
        s = signed(slots[i])
        slot, total, past = state[s], sums[s], journal[i]
        past["slot"] = slot
        past["index"] = s
        u = centre = lower = upper = math.nan
        flags, phase, stage = 0, LEARNING, 0
        if ops[i] == RESET:
            past["holds"] = 0
            forget(slot)
        else:
            spec = specs[signed(spec_ids[i])]
            ordinal = signed(ordinals[i])
            since = ordinal - depth
            moves = _baseline_moves(slot, total, window, s, spec, ordinal, since, past)
            in_phase_one = moves and signed(spec["basis"]) & KIND_MASK == FROZEN
            u = counts[i] / units[i]
            stage = signed(slot["stage"])
            in_force = _centre_in_force(slot, total, spec, moves)
            if in_force != NO_CENTRE:
                centre = in_force
                lower = lower_limit(centre, units[i], spec["k"])
                upper = upper_limit(centre, units[i], spec["k"])
                z = standardised(u, units[i], centre)
                flags = RULE_1 if u > upper or u < lower else 0
                flags |= _run_signals(slot, window, s, since, z, centre, moves)
                flags &= signed(spec["rules"])
                phase = PHASE_ONE if in_phase_one else PHASE_TWO
            usable = 1 if in_phase_one or flags & RULE_1 == 0 else 0
            _remember(slot, total, window, s, past, counts[i], units[i], ordinal, usable, moves)
        out_u[i] = u
        out_centre[i] = centre
        out_lcl[i] = lower
        out_ucl[i] = upper
        out_flags[i] = flags
        out_phase[i] = phase
        out_stage[i] = stage


@kernel(_void(_journal, numba.int64, numba.int64, _u1, _state, _sums, _window))
def undo(
    journal: Records, first: int, last: int, skip: U1, state: Records, sums: Records, window: Records
) -> None:
    """Undo the samples first ... last-1 of the batch that filled ``journal``, newest first.

    Samples with ``skip[i]`` 1 stay. Of each slot either the newest samples are undone or none: one that
    stays after one that is undone would leave a chart that never was. Afterwards state, sums and window
    are, bit by bit, what they were before the undone samples.
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
