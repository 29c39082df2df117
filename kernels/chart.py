"""One chart's memory and baseline: what is remembered, the centre line, sigma_z, phase I.

Conventions (Montgomery, Introduction to Statistical Quality Control, chapter 7): u = c/n, centre line = sum
of c / sum of n over the usable samples, sigma of a sample = sqrt(centre / n). sigma_z (Laney 2002, Quality
Engineering 14(4), 531-537) is the mean moving range of the samples' z over 1.128, as R qicharts2 has it.

Why only rule 1 keeps a sample out of a moving baseline: a run rule flags the sample that completes a
pattern, not the pattern. Leaving out that one and not the eight before it would bias the centre line.
"""

from __future__ import annotations

import math
from typing import Any

from kernels import poisson
from kernels.dispersion import RANGE_LIMIT, RANGE_PER_SIGMA, mark
from kernels.exact import carried_high, carried_low, rounded, units_high, units_low
from kernels.jit import rare, scalar, signed
from kernels.memory import entry_at
from kernels.runs import LONGEST_RUN, next_registers, standardised
from kernels.state import DIAGNOSE_MIN, EXACT_BELOW, Limits

NO_CENTRE = -1.0
UNMEASURED = -1.0

LANEY = int(Limits.LANEY)
EXACT = int(Limits.EXACT)
AUTO = int(Limits.AUTO)

FREEZE_ROUNDS = 10
"""Rounds of leaving samples out at the end of phase I."""
COUNT, EXCLUDE = 0.0, 1.0
"""What ``mark_beyond`` does; floats, for numba compiles a function anew for each literal integer or bool."""


@scalar
def is_exact(limits: int, expected: float) -> bool:
    """Whether a sample of this expected count has exact limits."""
    return limits == EXACT or (limits == AUTO and expected < EXACT_BELOW)


@scalar
def is_beyond(
    count: float, units: float, centre: float, sigma_z: float, limits: int, k: float, alpha: float
) -> bool:
    """Rule 1: strictly beyond the limits."""
    if is_exact(limits, centre * units):
        low, high = poisson.limits(centre * units, alpha)
        return count > high or count < low
    sigma = sigma_z * math.sqrt(centre / units)
    u = count / units
    return u > centre + k * sigma or u < max(0.0, centre - k * sigma)


@rare
def forget(slot: Any) -> None:
    """Empty the slot's hot part. The sums are cleared when a moving baseline next needs them; of what is
    carried nothing is in use."""
    slot["centre"] = 0.0
    slot["last_z"] = 0.0
    slot["basis"] = 0
    slot["stage"] = 0
    slot["newest"] = 0
    slot["head"] = 0
    slot["length"] = 0
    slot["near"] = 0
    slot["far"] = 0
    slot["usable"] = 0
    slot["quiet"] = 0
    slot["frozen"] = 0
    slot["mark"] = 0
    slot["alarmed"] = 0
    slot["tracks"] = 0
    slot["fixed"] = 0


@rare
def clear_sums(total: Any) -> None:
    """Sums over no sample."""
    total["counts"] = 0
    total["units_high"] = 0
    total["units_low"] = 0


@rare
def add(total: Any, count: float, units: float, sign: int) -> None:
    """Add (``sign`` 1) a sample to the sums or drop it (-1)."""
    high = signed(total["units_high"]) + sign * units_high(units)
    low = signed(total["units_low"]) + sign * units_low(units)
    total["counts"] = signed(total["counts"]) + sign * signed(count)
    total["units_high"] = carried_high(high, low)
    total["units_low"] = carried_low(low)


@rare
def expire(slot: Any, total: Any, row: Any, width: int, since: int) -> None:
    """Drop remembered samples of reports before ``since`` from a moving baseline's memory."""
    length = signed(slot["length"])
    usable = signed(slot["usable"])
    oldest = signed(slot["head"]) - length
    if oldest < 0:
        oldest += width
    while length > 0 and signed(entry_at(row, oldest)["ordinal"]) < since:
        entry = entry_at(row, oldest)
        if entry["usable"] == 1:
            add(total, entry["count"], entry["units"], -1)
            usable -= 1
        length -= 1
        oldest += 1
        if oldest == width:
            oldest = 0
    slot["length"] = length
    slot["usable"] = usable


@rare
def units_total(total: Any) -> float:
    """Sum of the usable units, rounded once."""
    return rounded(signed(total["units_high"]), signed(total["units_low"]))


@rare
def moving_centre(slot: Any, total: Any, minimum: int) -> float:
    """Centre line over the usable remembered samples, or NO_CENTRE."""
    usable = signed(slot["usable"])
    if usable == 0 or usable < minimum:
        return NO_CENTRE
    return float(signed(total["counts"])) / units_total(total)


@rare
def mean_range(slot: Any, row: Any, width: int, since: int, centre: float, below: float) -> tuple[float, int]:
    """(mean, number) of the moving ranges of z over the usable samples remembered, oldest first.

    Of reports from ``since`` on; ranges of at least ``below`` are left out. The mean is UNMEASURED where
    there is no range.
    """
    length = signed(slot["length"])
    position = signed(slot["head"]) - length
    if position < 0:
        position += width
    total = 0.0
    ranges = 0
    last_z = math.nan
    for _ in range(length):
        entry = entry_at(row, position)
        if entry["usable"] == 1 and signed(entry["ordinal"]) >= since:
            z = standardised(entry["count"], entry["units"], centre, 1.0)
            moved = abs(z - last_z)
            if moved < below:  # not the first: NaN is below nothing
                total += moved
                ranges += 1
            last_z = z
        position += 1
        if position == width:
            position = 0
    mean = total / ranges if ranges > 0 else UNMEASURED
    return mean, ranges


@rare
def measured_sigma_z(slot: Any, row: Any, width: int, since: int, centre: float, spec: Any) -> float:
    """sigma_z over the usable samples remembered, screened and floored as the spec says."""
    sigma_z = 1.0
    if centre > 0.0:
        mean, _ = mean_range(slot, row, width, since, centre, math.inf)
        if mean != UNMEASURED:
            if spec["screens"] == 1:
                rest, _ = mean_range(slot, row, width, since, centre, RANGE_LIMIT * mean)
                mean = rest if rest != UNMEASURED else mean
            sigma_z = mean / RANGE_PER_SIGMA
    return max(sigma_z, float(spec["sigma_z_floor"]))


@rare
def typical(slot: Any, total: Any) -> float:
    """Mean units of a usable sample, of a baseline that moves and has one."""
    return units_total(total) / float(signed(slot["usable"]))


@rare
def diagnose(slot: Any, carried: Any, row: Any, width: int, since: int, centre: float, units: float) -> None:
    """Look at the scatter of the usable samples remembered, whose mean units are ``units``."""
    found = 0
    if centre > 0.0:
        mean, ranges = mean_range(slot, row, width, since, centre, math.inf)
        if ranges + 1 >= DIAGNOSE_MIN:
            sigma_z = mean / RANGE_PER_SIGMA
            found = mark(sigma_z, centre * units, ranges + 1)
            if found != 0:
                carried["sigma_z"] = sigma_z
    slot["mark"] = found


@rare
def mean_units(slot: Any, row: Any, width: int, since: int) -> float:
    """Mean units of the usable samples remembered of reports from ``since`` on; 0 of none."""
    position = signed(slot["head"])
    total = 0.0
    samples = 0
    for _ in range(signed(slot["length"])):
        position -= 1
        if position < 0:
            position += width
        entry = entry_at(row, position)
        if entry["usable"] == 1 and signed(entry["ordinal"]) >= since:
            total += entry["units"]
            samples += 1
    return total / samples if samples > 0 else 0.0


@rare
def freeze(slot: Any, row: Any, width: int, centre: float, sigma_z: float) -> None:
    """Fix the centre and standardise the newest remembered samples anew with it."""
    slot["frozen"] = 1
    slot["fixed"] = 1
    slot["centre"] = centre
    newest = min(signed(slot["length"]), LONGEST_RUN)
    position = signed(slot["head"]) - newest
    if position < 0:
        position += width
    for _ in range(newest):
        entry = entry_at(row, position)
        next_registers(slot, standardised(entry["count"], entry["units"], centre, sigma_z))
        position += 1
        if position == width:
            position = 0


@rare
def end_phase_one(slot: Any, total: Any, carried: Any, row: Any, width: int, since: int, spec: Any) -> None:
    """Phase I is complete: leave out what is beyond its limits, then fix centre and sigma_z."""
    centre = screened_centre(slot, total, row, width, since, spec)
    sigma_z = 1.0
    if spec["limits"] == LANEY:
        sigma_z = measured_sigma_z(slot, row, width, since, centre, spec)
        carried["sigma_z"] = sigma_z
    else:
        diagnose(slot, carried, row, width, since, centre, typical(slot, total))
    carried["typical_units"] = typical(slot, total)
    freeze(slot, row, width, centre, sigma_z)


@rare
def screened_centre(slot: Any, total: Any, row: Any, width: int, since: int, spec: Any) -> float:
    """Centre of phase I after leaving out, round by round, the samples beyond its limits.

    At most 10 rounds, and never more than a third of the samples: past that the limits, not the samples,
    are in doubt, and the last centre stands. Marks the excluded samples as not usable. ``total`` ends
    as the sums over the included ones.
    """
    phase_one = signed(slot["usable"])
    excluded = 0
    centre = moving_centre(slot, total, signed(1))
    for _ in range(FREEZE_ROUNDS):
        sigma_z = 1.0
        if spec["limits"] == LANEY:
            sigma_z = measured_sigma_z(slot, row, width, since, centre, spec)
        beyond = mark_beyond(slot, total, row, width, centre, sigma_z, spec, COUNT)
        if beyond == 0 or 3 * (excluded + beyond) > phase_one:
            break
        mark_beyond(slot, total, row, width, centre, sigma_z, spec, EXCLUDE)
        excluded += beyond
        slot["usable"] = phase_one - excluded
        centre = moving_centre(slot, total, signed(1))
    return centre


@rare
def mark_beyond(
    slot: Any, total: Any, row: Any, width: int, centre: float, sigma_z: float, spec: Any, exclude: float
) -> int:
    """Count the usable remembered samples beyond the limits of ``centre``, or leave them out as well."""
    limits = signed(spec["limits"])
    position = signed(slot["head"])
    beyond = 0
    for _ in range(signed(slot["length"])):
        position -= 1
        if position < 0:
            position += width
        entry = entry_at(row, position)
        if entry["usable"] == 1 and is_beyond(
            entry["count"], entry["units"], centre, sigma_z, limits, spec["k"], spec["alpha"]
        ):
            beyond += 1
            if exclude == EXCLUDE:
                entry["usable"] = 0
                add(total, entry["count"], entry["units"], -1)
    return beyond


@rare
def push(
    slot: Any,
    total: Any,
    row: Any,
    width: int,
    count: float,
    units: float,
    ordinal: int,
    usable: int,
    moves: bool,
) -> None:
    """Remember a sample; of a full ring the oldest leaves. ``moves``: the baseline's sums follow."""
    head = signed(slot["head"])
    length = signed(slot["length"])
    entry = entry_at(row, head)
    if moves:
        in_baseline = signed(slot["usable"]) + usable
        if length == width and entry["usable"] == 1:
            add(total, entry["count"], entry["units"], -1)
            in_baseline -= 1
        if usable == 1:
            add(total, count, units, 1)
        slot["usable"] = in_baseline
    entry["count"] = count
    entry["units"] = units
    entry["ordinal"] = ordinal
    entry["usable"] = usable
    slot["newest"] = ordinal
    head += 1
    slot["head"] = 0 if head == width else head
    if length < width:
        slot["length"] = length + 1
