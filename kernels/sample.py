"""One sample of one chart, whatever its baseline, limits and tracks are: what ``judge`` calls for all but the
plainest. Functions of numbers and records only, so that calls of them cost nothing but the call.
"""

from __future__ import annotations

import math
from typing import Any

from kernels import poisson
from kernels.chart import (
    AUTO,
    LANEY,
    NO_CENTRE,
    clear_sums,
    diagnose,
    end_phase_one,
    expire,
    forget,
    is_exact,
    mean_units,
    measured_sigma_z,
    moving_centre,
    push,
    typical,
    units_total,
)
from kernels.jit import rare, signed
from kernels.memory import entry_at
from kernels.prediction import prediction
from kernels.runs import RULE_1, fixed_runs, moving_runs, next_registers, standardised
from kernels.shifts import shifts
from kernels.state import (
    DIAGNOSE_EVERY,
    FROZE,
    HOLDS_CARRIED,
    HOLDS_ENTRY,
    HOLDS_SUMS,
    KIND_MASK,
    LOST,
    PART_CUSUM,
    PART_EWMA,
    PART_FROZE,
    PART_MARK,
    PART_P,
    PART_SIGMA_Z,
    Baseline,
    Phase,
)

GIVEN = int(Baseline.GIVEN)
FROZEN = int(Baseline.FROZEN)
LEARNING = int(Phase.LEARNING)
PHASE_ONE = int(Phase.PHASE_ONE)
PHASE_TWO = int(Phase.PHASE_TWO)
SELF_STARTING = int(Phase.SELF_STARTING)

Judged = tuple[float, float, float, int, int, int]
"""Centre, lower and upper limit, flags, phase, parts."""


@rare
def baseline_moves(
    slot: Any,
    total: Any,
    carry: Any,
    row: Any,
    width: int,
    spec: Any,
    ordinal: int,
    since: int,
    past: Any,
) -> bool:
    """Open a stage, forget, freeze: what comes before judging. True while the centre is not fixed."""
    kind = signed(spec["basis"]) & KIND_MASK
    fresh = slot["length"] == 0 or slot["basis"] != spec["basis"] or signed(slot["newest"]) < since
    moves = kind != GIVEN and (fresh or slot["frozen"] == 0)
    holds = HOLDS_ENTRY
    if slot["length"] > 0 and signed(slot["newest"]) < since:
        holds |= LOST
    tracks = spec["cusum_log_ratio"] > 0.0 or spec["ewma_weight"] > 0.0
    if tracks or moves or ordinal % DIAGNOSE_EVERY == 0:
        past["carried"] = carry
        holds |= HOLDS_CARRIED
    if moves:
        past["sums"] = total
        holds |= HOLDS_SUMS
    if fresh:
        forget(slot)
        slot["basis"] = spec["basis"]
        slot["stage"] = ordinal
        if moves:
            clear_sums(total)
        else:
            slot["fixed"] = 1
            slot["centre"] = spec["centre"]
    elif moves:
        expire(slot, total, row, width, since)
        if kind == FROZEN and slot["usable"] >= spec["phase_one"]:
            end_phase_one(slot, total, carry, row, width, since, spec)
            holds |= FROZE
            moves = False
    past["holds"] = holds
    return moves


@rare
def centre_in_force(slot: Any, total: Any, spec: Any, moves: bool) -> float:
    """The centre line that the next sample is judged by, or NO_CENTRE."""
    if moves:
        return moving_centre(slot, total, signed(spec["minimum"]))
    return float(slot["centre"])


@rare
def sigma_z_in_force(
    slot: Any, carry: Any, row: Any, width: int, since: int, spec: Any, centre: float, moves: bool
) -> float:
    """What the sigma of a LANEY chart's sample is multiplied by."""
    if moves:
        return measured_sigma_z(slot, row, width, since, centre, spec)
    if signed(spec["basis"]) & KIND_MASK == GIVEN:
        return max(float(spec["sigma_z"]), float(spec["sigma_z_floor"]))
    return float(carry["sigma_z"])


@rare
def look_at_scatter(
    slot: Any,
    total: Any,
    carry: Any,
    row: Any,
    width: int,
    since: int,
    spec: Any,
    centre: float,
    moves: bool,
) -> None:
    """A frozen centre's scatter was looked at when it froze; the other kinds' is, now and then."""
    if signed(spec["basis"]) & KIND_MASK != FROZEN:
        units = typical(slot, total) if moves else mean_units(slot, row, width, since)
        diagnose(slot, carry, row, width, since, centre, units)


@rare
def remember(
    slot: Any,
    total: Any,
    row: Any,
    width: int,
    past: Any,
    count: float,
    units: float,
    ordinal: int,
    usable: int,
    moves: bool,
) -> None:
    """Push a sample; the entry that it overwrites goes to the journal."""
    head = signed(slot["head"])
    past["entry"] = entry_at(row, head)
    past["position"] = head
    push(slot, total, row, width, count, units, ordinal, usable, moves)


@rare
def two_sided(lower: float, upper: float) -> float:
    return min(1.0, 2.0 * min(lower, upper))


@rare
def predict(total: Any, detail: Any, spec: Any, count: float, units: float) -> Judged:
    """A sample of a chart that learns, by what its samples so far predict of it."""
    counts_before, units_before = float(signed(total["counts"])), units_total(total)
    low, high, p_lower, p_upper = prediction(count, units, counts_before, units_before, spec["alpha"])
    flags = signed(spec["rules"]) & RULE_1 if count > high or count < low else 0
    detail["p"] = two_sided(p_lower, p_upper)
    return counts_before / units_before, low / units, high / units, flags, SELF_STARTING, PART_P


@rare
def beyond_limits(
    detail: Any, spec: Any, centre: float, sigma_z: float, count: float, units: float
) -> tuple[float, float, int, int]:
    """(lower and upper limit, RULE_1 or 0, PART_P or 0)."""
    limits = signed(spec["limits"])
    mean = centre * units
    flags = parts = 0
    if is_exact(limits, mean):
        low, high, p_lower, p_upper = poisson.judged(count, mean, spec["alpha"])
        lower = low / units
        upper = high / units
        if count > high or count < low:
            flags = RULE_1
        detail["p"] = two_sided(p_lower, p_upper)
        parts = PART_P
    else:
        sigma = sigma_z * math.sqrt(centre / units)
        lower = max(0.0, centre - spec["k"] * sigma)
        upper = centre + spec["k"] * sigma
        u = count / units
        if u > upper or u < lower:
            flags = RULE_1
        if spec["tests"] == 1 or limits == AUTO:
            detail["p"] = two_sided(poisson.lower_tail(count, mean), poisson.upper_tail(count, mean))
            parts = PART_P
    return lower, upper, flags, parts


@rare
def against(
    slot: Any,
    total: Any,
    carry: Any,
    past: Any,
    detail: Any,
    row: Any,
    width: int,
    spec: Any,
    designs: Any,
    centre: float,
    count: float,
    units: float,
    ordinal: int,
    since: int,
    moves: bool,
) -> Judged:
    """A sample against a centre line that is in force."""
    phase = PHASE_ONE if moves and signed(spec["basis"]) & KIND_MASK == FROZEN else PHASE_TWO
    sigma_z = 1.0
    parts = 0
    if spec["limits"] == LANEY:
        sigma_z = sigma_z_in_force(slot, carry, row, width, since, spec, centre, moves)
        parts = PART_SIGMA_Z
        slot["mark"] = 0
    elif ordinal % DIAGNOSE_EVERY == 0:
        look_at_scatter(slot, total, carry, row, width, since, spec, centre, moves)
    lower, upper, flags, tested = beyond_limits(detail, spec, centre, sigma_z, count, units)
    parts |= tested
    z = standardised(count, units, centre, sigma_z)
    if moves:
        flags |= moving_runs(slot, row, width, z, centre, sigma_z, spec)
    else:
        next_registers(slot, z)
        flags |= fixed_runs(slot, row, width, since, spec)
    if phase == PHASE_TWO and (spec["cusum_log_ratio"] > 0.0 or spec["ewma_weight"] > 0.0):
        baseline_units = 0.0
        if moves:
            baseline_units = typical(slot, total)
        elif signed(past["holds"]) & FROZE:
            baseline_units = float(carry["typical_units"])
        flags |= shifts(slot, carry, detail, spec, designs, count, units, centre, baseline_units)
        detail["carried"] = carry
        parts |= signed(slot["tracks"]) & (PART_CUSUM | PART_EWMA)
    else:
        slot["tracks"] = 0
    if slot["mark"] != 0:
        detail["mark"] = slot["mark"]
        sigma_z = float(carry["sigma_z"])
        parts |= PART_MARK | PART_SIGMA_Z
    if parts & PART_SIGMA_Z:
        detail["carried"]["sigma_z"] = sigma_z
    if signed(past["holds"]) & FROZE:
        parts |= PART_FROZE
    return centre, lower, upper, flags & signed(spec["rules"]), phase, parts


@rare
def judged(
    slot: Any,
    total: Any,
    carry: Any,
    past: Any,
    detail: Any,
    row: Any,
    width: int,
    spec: Any,
    designs: Any,
    count: float,
    units: float,
    ordinal: int,
    depth: int,
) -> Judged:
    """Judge and remember one sample; what undoes it goes to the journal's record ``past``."""
    since = ordinal - depth
    moves = baseline_moves(slot, total, carry, row, width, spec, ordinal, since, past)
    centre = centre_in_force(slot, total, spec, moves)
    if centre != NO_CENTRE:
        found = against(
            *(slot, total, carry, past, detail, row, width, spec, designs),
            *(centre, count, units, ordinal, since, moves),
        )
    else:
        slot["tracks"] = 0
        slot["mark"] = 0
        if spec["predicts"] == 1 and slot["usable"] > 0:
            found = predict(total, detail, spec, count, units)
        else:
            found = (math.nan, math.nan, math.nan, 0, LEARNING, 0)
    in_phase_one = moves and signed(spec["basis"]) & KIND_MASK == FROZEN
    usable = 1 if in_phase_one or found[3] & RULE_1 == 0 else 0
    remember(slot, total, row, width, past, count, units, ordinal, usable, moves)
    return found
