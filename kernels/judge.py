"""The kernels: judge a batch, open and close alarms, undo a part of it, put judged samples back from history.

All work in place on the caller's arrays, allocate nothing and raise nothing; all arrays are
C-contiguous, aligned and writable (``np.frombuffer`` over ``bytes`` is not), in the machine's byte
order. What the caller guarantees, for nothing is checked here: slots, spec and design numbers in range;
counts whole, 0 to ``COUNT_MAX``; units ``UNITS_MIN`` to ``UNITS_MAX``; a chart's ordinals rise
by at least 1; 1 <= W <= ``WINDOW_MAX``, W <= depth, phase_one <= W.

A chart *remembers* its stage's samples of the last ``depth`` reports (ordinal >= t - depth when t is
judged), of these at most the newest W. Its verdicts depend on nothing else but its spec, on the frozen
centre and on ``CARRIED``, all of which its verdicts carry. That is why ``restore`` works.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numba
import numpy as np
import numpy.typing as npt

from kernels.chart import clear_sums, forget, freeze, push
from kernels.jit import device, kernel, rare, signed
from kernels.memory import entry_at, numbers_of, prefetch, row_of
from kernels.runs import RULE_1, fixed_runs, next_registers, standardised
from kernels.sample import FROZEN, GIVEN, LEARNING, PHASE_TWO, judged
from kernels.state import (
    CARRIED,
    DETAIL,
    DIAGNOSE_EVERY,
    DOWN_SIGNALLED,
    ENTRY,
    FROZE,
    HOLDS_CARRIED,
    HOLDS_ENTRY,
    HOLDS_SUMS,
    JOURNAL,
    KIND_MASK,
    LOST,
    PART_ALARM,
    PART_CUSUM,
    PART_EWMA,
    PART_MARK,
    PART_SIGMA_Z,
    RESET,
    SLOT,
    SPEC,
    SUMS,
    UP_SIGNALLED,
    Event,
)

U1: TypeAlias = npt.NDArray[np.uint8]
U2: TypeAlias = npt.NDArray[np.uint16]
U4: TypeAlias = npt.NDArray[np.uint32]
I4: TypeAlias = npt.NDArray[np.int32]
I8: TypeAlias = npt.NDArray[np.int64]
F8: TypeAlias = npt.NDArray[np.float64]
Records: TypeAlias = npt.NDArray[np.void]

BEGIN = int(Event.BEGIN)
AGAIN = int(Event.AGAIN)
END = int(Event.END)

QUIET_MAX = 0xFFFF
TRACKED = PART_CUSUM | PART_EWMA

SLOT_AHEAD = 16  # samples between the prefetch of a slot and its use
ENTRY_AHEAD = 8  # likewise for its ring position, which the slot tells

_u1 = numba.types.Array(numba.uint8, 1, "C")
_u2 = numba.types.Array(numba.uint16, 1, "C")
_u4 = numba.types.Array(numba.uint32, 1, "C")
_i4 = numba.types.Array(numba.int32, 1, "C")
_i8 = numba.types.Array(numba.int64, 1, "C")
_f8 = numba.types.Array(numba.float64, 1, "C")
_specs = numba.types.Array(numba.from_dtype(SPEC), 1, "C")
_designs = numba.types.Array(numba.float64, 3, "C")
_state = numba.types.Array(numba.from_dtype(SLOT), 1, "C")
_sums = numba.types.Array(numba.from_dtype(SUMS), 1, "C")
_carried = numba.types.Array(numba.from_dtype(CARRIED), 1, "C")
_window = numba.types.Array(numba.from_dtype(ENTRY), 2, "C")
_journal = numba.types.Array(numba.from_dtype(JOURNAL), 1, "C")
_details = numba.types.Array(numba.from_dtype(DETAIL), 1, "C")
_void = numba.void


@device
def _hint(i: int, n: int, slots: I4, state: Records, window: Records) -> None:
    if i + SLOT_AHEAD < n:
        prefetch(state[signed(slots[i + SLOT_AHEAD])])
    if i + ENTRY_AHEAD < n:
        later = signed(slots[i + ENTRY_AHEAD])
        prefetch(window[later, signed(state[later]["head"])])


@device
def _hint_all(
    i: int, n: int, slots: I4, spec_ids: I4, specs: Records, state: Records, carried: Records, window: Records
) -> None:
    _hint(i, n, slots, state, window)
    later = i + SLOT_AHEAD
    if later < n and specs[signed(spec_ids[later])]["plain"] == 0:
        prefetch(carried[signed(slots[later])])


@device
def _is_plain(slot: Any, spec: Any, ordinal: int, depth: int) -> bool:
    """Whether a sample needs nothing but the slot: its stage goes on, its centre is fixed, its limits are k
    sigma, and nothing else is asked for."""
    plain: bool = (
        (slot["basis"] == spec["basis"])
        & (slot["length"] > 0)
        & (signed(slot["newest"]) >= ordinal - depth)
        & (slot["fixed"] == 1)
        & (spec["plain"] == 1)
        & (signed(slot["mark"]) | signed(slot["tracks"]) == 0)
        & ((slot["frozen"] == 1) | (ordinal % DIAGNOSE_EVERY != 0))
    )
    return plain


@device
def _remember_fixed(
    slot: Any, row: Any, width: int, past: Any, count: float, units: float, ordinal: int, usable: int
) -> None:
    """Push a sample of a fixed centre; the entry that it overwrites goes to the journal."""
    head = signed(slot["head"])
    length = signed(slot["length"])
    entry = entry_at(row, head)
    past["entry"] = entry
    past["position"] = head
    entry["count"] = count
    entry["units"] = units
    entry["ordinal"] = ordinal
    entry["usable"] = usable
    slot["newest"] = ordinal
    slot["head"] = 0 if head + 1 == width else head + 1
    slot["length"] = min(length + 1, width)


@rare
def _reset(slot: Any, past: Any, since: int) -> None:
    """Empty the slot; the journal tells whether its chart was absent for too long before that."""
    past["holds"] = LOST if slot["length"] > 0 and signed(slot["newest"]) < since else 0
    forget(slot)


@kernel(
    _void(
        *(_u1, _i4, _i4, _f8, _f8, _u4, _specs, _designs, numba.int64),
        *(_state, _sums, _carried, _window, _journal),
        *(_f8, _f8, _f8, _f8, _u2, _u1, _u4, _u1, _details),
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
    designs: F8,
    depth: int,
    state: Records,
    sums: Records,
    carried: Records,
    window: Records,
    journal: Records,
    out_u: F8,
    out_centre: F8,
    out_lcl: F8,
    out_ucl: F8,
    out_flags: U2,
    out_phase: U1,
    out_stage: U4,
    out_parts: U1,
    out_details: Records,
) -> None:
    """Judge ``n = len(ops)`` samples in order; the other columns have at least n items.

    ``ops``: SAMPLE or RESET (the slot forgets all; of the inputs only ``slots`` and ``ordinals`` are read).
    ``designs``: (D, 3, len(DESIGN_MEANS)), see ``kernels.design``. ``journal[i]`` holds what undoes sample i;
    a journal of one record serves where nothing is ever undone. Outputs: u = c/n, centre line and limits (NaN
    while there are none, and for a reset), flags (bit r-1: rule r, of the rules in force), phase
    (``Phase``), stage (ordinal of the first sample of the sample's stage; 0 for a reset), and where parts
    is not 0, a detail (which tells its parts as well).
    """
    n, width, tables = ops.shape[0], window.shape[1], numbers_of(designs)
    last_journal, journals = journal.shape[0] - 1, journal.shape[0] >= n
    for i in range(n):
        _hint_all(i, n, slots, spec_ids, specs, state, carried, window)
        s = signed(slots[i])
        slot, past = state[s], journal[min(i, last_journal)]
        if journals:
            past["slot"], past["index"] = slot, s
        u = centre = lower = upper = math.nan
        flags, phase, stage, parts = 0, LEARNING, 0, 0
        if ops[i] == RESET:
            _reset(slot, past, signed(ordinals[i]) - depth)
        else:
            spec, row = specs[signed(spec_ids[i])], row_of(window, s)
            count, n_i, ordinal = counts[i], units[i], signed(ordinals[i])
            u = count / n_i
            if _is_plain(slot, spec, ordinal, depth):
                past["holds"] = HOLDS_ENTRY
                centre = float(slot["centre"])
                sigma = math.sqrt(centre / n_i)
                lower = max(0.0, centre - spec["k"] * sigma)
                upper = centre + spec["k"] * sigma
                flags = RULE_1 if u > upper or u < lower else 0
                next_registers(slot, standardised(count, n_i, centre, 1.0))
                flags = signed(spec["rules"]) & (flags | fixed_runs(slot, row, width, ordinal - depth, spec))
                phase = PHASE_TWO
                _remember_fixed(slot, row, width, past, count, n_i, ordinal, 1 - (flags & RULE_1))
            else:
                centre, lower, upper, flags, phase, parts = judged(
                    *(slot, sums[s], carried[s], past, out_details[i], row, width, spec, tables),
                    *(count, n_i, ordinal, depth),
                )
                out_details[i]["parts"] = parts
            stage = signed(slot["stage"])
        out_u[i], out_centre[i], out_lcl[i], out_ucl[i] = u, centre, lower, upper
        out_flags[i], out_phase[i], out_stage[i], out_parts[i] = flags, phase, stage, parts


@kernel(
    _void(*(_u1, _u1, _i4, _i4, _u4, _i8, _specs, _state, _carried, _journal, _u1, _details)),
)
def alert(
    ops: U1,
    signals: U1,
    slots: I4,
    spec_ids: I4,
    ordinals: U4,
    at_ns: I8,
    specs: Records,
    state: Records,
    carried: Records,
    journal: Records,
    out_parts: U1,
    out_details: Records,
) -> None:
    """Open, repeat and close the alarms of the batch that ``judge`` has judged; a slot is in it at most once.

    ``signals[i]``: 1 where sample i signals; ``at_ns``: its time, ns since 1970. ``journal`` is the batch's,
    and takes what undoes this as well. Adds PART_ALARM, the event and the carried times to the details of
    every sample whose chart has an open alarm, its last one included. An alarm that was open when a reset
    or a new stage emptied the chart ends with that sample, unless it signals; that of a chart that was
    absent for too long is forgotten, as a history would have forgotten it.
    """
    for i in range(ops.shape[0]):
        slot, carry, past = state[signed(slots[i])], carried[signed(slots[i])], journal[i]
        was_open = past["slot"]["alarmed"] == 1 and signed(past["holds"]) & LOST == 0
        if signals[i] == 0 and not was_open:
            continue
        if signed(past["holds"]) & HOLDS_CARRIED == 0:
            past["carried"] = carry
            past["holds"] = signed(past["holds"]) | HOLDS_CARRIED
        event = quiet = 0
        if signals[i] == 0:
            quiet = min(signed(slot["quiet"]) + 1, QUIET_MAX)
            slot["quiet"] = quiet
            if slot["alarmed"] == 0:
                quiet = signed(past["slot"]["quiet"])
            if slot["alarmed"] == 0 or quiet >= signed(specs[signed(spec_ids[i])]["end_after"]):
                event = END
                slot["alarmed"] = 0
                slot["quiet"] = 0
        else:
            spec = specs[signed(spec_ids[i])]
            slot["quiet"] = 0
            if slot["alarmed"] == 0:
                event = BEGIN
                slot["alarmed"] = 1
                carry["episode"] = ordinals[i]
            else:
                reports, elapsed_ns = signed(spec["again_reports"]), signed(spec["again_ns"])
                if (reports > 0 and signed(ordinals[i]) - signed(carry["alerted"]) >= reports) or (
                    elapsed_ns > 0 and at_ns[i] - carry["alerted_at"] >= elapsed_ns
                ):
                    event = AGAIN
            if event != 0:
                carry["alerted"] = ordinals[i]
                carry["alerted_at"] = at_ns[i]
        detail = out_details[i]
        detail["event"] = event
        detail["quiet"] = quiet
        detail["carried"]["episode"] = carry["episode"]
        detail["carried"]["alerted"] = carry["alerted"]
        detail["carried"]["alerted_at"] = carry["alerted_at"]
        out_parts[i] = signed(out_parts[i]) | PART_ALARM
        detail["parts"] = out_parts[i]


@kernel(_void(_journal, numba.int64, numba.int64, _u1, _state, _sums, _carried, _window))
def undo(
    journal: Records,
    first: int,
    last: int,
    skip: U1,
    state: Records,
    sums: Records,
    carried: Records,
    window: Records,
) -> None:
    """Undo the samples first ... last-1 of the batch that filled ``journal``, newest first.

    Samples with ``skip[i]`` 1 stay. Of each slot either the newest samples are undone or none: one that
    stays after one that is undone would leave a chart that never was. Afterwards state, sums, carried and
    window are, bit by bit, what they were before the undone samples.
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
        if holds & HOLDS_CARRIED:
            carried[s] = past["carried"]
        if holds & HOLDS_ENTRY:
            window[s, signed(past["position"])] = past["entry"]
        if holds & FROZE:  # in phase I every remembered sample was usable
            position = signed(state[s]["head"])
            for _ in range(signed(state[s]["length"])):
                position -= 1
                if position < 0:
                    position += width
                window[s, position]["usable"] = 1


@kernel(
    _void(
        *(_u1, _i4, _f8, _f8, _u4, _u2, _u1, _f8, _u4, _u4),
        *(_i4, _details, _state, _sums, _carried, _window),
    )
)
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
    detail_ids: I4,
    details: Records,
    state: Records,
    sums: Records,
    carried: Records,
    window: Records,
) -> None:
    """Put samples back that were judged before, oldest first, without judging them anew.

    The columns are what ``judge`` was given and gave for each (``bases``: of the spec it was judged with);
    ``detail_ids`` tells which of ``details`` is a sample's, -1 for none; empty where no sample has one. Given
    all samples and resets of a chart's reports with ordinal > T - depth, T being its chamber's last report,
    into an empty slot, the chart's next verdicts are, bit by bit, those of a chart that never left memory.
    More of them do no harm. Resets between two samples may be missing.

    A frozen centre comes from the verdicts of phase II. Which of phase I's samples were left out is not
    put back, and is not needed: nothing reads the marks once the centre is fixed.
    """
    n, width = ops.shape[0], window.shape[1]
    for i in range(n):
        _hint(i, n, slots, state, window)
        s = signed(slots[i])
        slot, total, row = state[s], sums[s], row_of(window, s)
        if ops[i] == RESET:
            forget(slot)
            continue
        kind = signed(bases[i]) & KIND_MASK
        if slot["length"] == 0 or slot["stage"] != stages[i]:
            forget(slot)
            slot["basis"], slot["stage"] = bases[i], stages[i]
            clear_sums(total)
        told = signed(detail_ids[i]) if detail_ids.shape[0] > 0 else -1
        parts = signed(details[told]["parts"]) if told >= 0 else 0
        sigma_z = 1.0
        mark = alarmed = quiet = tracks = 0
        if parts & (PART_SIGMA_Z | PART_ALARM | TRACKED):
            detail = details[told]
            carried[s] = detail["carried"]
            if parts & PART_MARK:
                mark = signed(detail["mark"])
            elif parts & PART_SIGMA_Z:
                sigma_z = float(detail["carried"]["sigma_z"])
            if parts & PART_ALARM and detail["event"] != END:
                alarmed, quiet = 1, signed(detail["quiet"])
            tracks = parts & TRACKED
            if parts & PART_CUSUM and detail["carried"]["cusum_up"] >= detail["cusum_limit_up"]:
                tracks |= UP_SIGNALLED
            if parts & PART_CUSUM and detail["carried"]["cusum_down"] >= detail["cusum_limit_down"]:
                tracks |= DOWN_SIGNALLED
        slot["tracks"], slot["mark"], slot["alarmed"], slot["quiet"] = tracks, mark, alarmed, quiet
        fixed = kind == GIVEN or (kind == FROZEN and phases[i] == PHASE_TWO)
        if fixed:
            if kind == FROZEN and slot["frozen"] == 0:
                freeze(slot, row, width, centres[i], sigma_z)
            slot["fixed"] = 1
            slot["centre"] = centres[i]
            next_registers(slot, standardised(counts[i], units[i], centres[i], sigma_z))
        usable = 1 if flags[i] & RULE_1 == 0 or (kind == FROZEN and not fixed) else 0
        push(slot, total, row, width, counts[i], units[i], signed(ordinals[i]), usable, not fixed)
