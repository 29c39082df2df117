"""One chart's arithmetic: limits, runs, memory, baseline. Compiled into the kernels of ``judge``.

Conventions (Montgomery, Introduction to Statistical Quality Control, chapter 7; Nelson 1984): u = c/n,
centre line = sum of c / sum of n, sigma of a sample = sqrt(centre / n), limits centre ± k sigma with the
lower one at least 0, strict comparison. Run rules are judged on z = (u - centre) / sigma with the centre
now in force; a tie breaks a run; the sample that completes or extends a pattern is flagged.

Why only rule 1 keeps a sample out of a moving baseline: a run rule flags the sample that completes a
pattern, not the pattern. Leaving out that one and not the eight before it would bias the centre line.
"""

from __future__ import annotations

import math
from typing import Any

from kernels.exact import carried_high, carried_low, rounded, units_high, units_low
from kernels.jit import device, signed

NO_CENTRE = -1.0

RULE_1 = 1
RULE_2 = 2
RULE_3 = 4
RULE_4 = 8

SIDE_RUN = (1 << 9) - 1  # rule 2: 9 samples on one side
TREND_RUN = (1 << 5) - 1  # rule 3: 6 samples, 5 steps, all up or all down
STEPS_OF_RULE_4 = (1 << 13) - 1  # rule 4: 14 samples, 13 steps
ALTERNATE = 0x1555  # every other of the 13 steps, the newest among them
ALTERNATE_REST = STEPS_OF_RULE_4 ^ ALTERNATE
LONGEST_RUN = 13  # samples before the newest that a rule can look at
REGISTER = 0xFFFF

FREEZE_ROUNDS = 10


@device
def standardised(u: float, units: float, centre: float) -> float:
    """z of a sample; where sigma is 0 (centre 0): 0 for a tie, infinite otherwise, never NaN."""
    sigma = math.sqrt(centre / units)
    if sigma > 0.0:
        return (u - centre) / sigma
    if u > centre:
        return math.inf
    if u < centre:
        return -math.inf
    return 0.0


@device
def upper_limit(centre: float, units: float, k: float) -> float:
    """UCL of u."""
    return centre + k * math.sqrt(centre / units)


@device
def lower_limit(centre: float, units: float, k: float) -> float:
    """LCL of u, at least 0."""
    return max(0.0, centre - k * math.sqrt(centre / units))


@device
def runs(above: int, below: int, rising: int, falling: int) -> int:
    """Flags of rules 2 to 4 at the newest sample, from run registers (bit 0 is the newest)."""
    flags = 0
    if above & SIDE_RUN == SIDE_RUN or below & SIDE_RUN == SIDE_RUN:
        flags |= RULE_2
    if rising & TREND_RUN == TREND_RUN or falling & TREND_RUN == TREND_RUN:
        flags |= RULE_3
    up = rising & STEPS_OF_RULE_4
    down = falling & STEPS_OF_RULE_4
    if (up == ALTERNATE and down == ALTERNATE_REST) or (up == ALTERNATE_REST and down == ALTERNATE):
        flags |= RULE_4
    return flags


@device
def forget(slot: Any) -> None:
    """Empty the slot's hot part; the sums are cleared when a moving baseline next needs them."""
    slot["centre"] = 0.0
    slot["last_z"] = 0.0
    slot["basis"] = 0
    slot["stage"] = 0
    slot["newest"] = 0
    slot["head"] = 0
    slot["length"] = 0
    slot["above"] = 0
    slot["below"] = 0
    slot["rising"] = 0
    slot["falling"] = 0
    slot["usable"] = 0
    slot["frozen"] = 0


@device
def clear_sums(total: Any) -> None:
    """Sums over no sample."""
    total["counts"] = 0
    total["units_high"] = 0
    total["units_low"] = 0


@device
def add(total: Any, count: float, units: float, sign: int) -> None:
    """Add (``sign`` 1) a sample to the sums or drop it (-1)."""
    high = signed(total["units_high"]) + sign * units_high(units)
    low = signed(total["units_low"]) + sign * units_low(units)
    total["counts"] = signed(total["counts"]) + sign * signed(count)
    total["units_high"] = carried_high(high, low)
    total["units_low"] = carried_low(low)


@device
def expire(slot: Any, total: Any, window: Any, s: int, since: int) -> None:
    """Drop remembered samples of reports before ``since`` from a moving baseline's memory."""
    width = window.shape[1]
    length = signed(slot["length"])
    usable = signed(slot["usable"])
    oldest = signed(slot["head"]) - length
    if oldest < 0:
        oldest += width
    while length > 0 and signed(window[s, oldest]["ordinal"]) < since:
        entry = window[s, oldest]
        if entry["usable"] == 1:
            add(total, entry["count"], entry["units"], -1)
            usable -= 1
        length -= 1
        oldest += 1
        if oldest == width:
            oldest = 0
    slot["length"] = length
    slot["usable"] = usable


@device
def moving_centre(slot: Any, total: Any, minimum: int) -> float:
    """Centre line over the usable remembered samples, or NO_CENTRE."""
    usable = signed(slot["usable"])
    if usable == 0 or usable < minimum:
        return NO_CENTRE
    units = rounded(signed(total["units_high"]), signed(total["units_low"]))
    return float(signed(total["counts"])) / units


@device
def remembered(slot: Any, window: Any, s: int, since: int) -> int:
    """How many of the newest 13 samples of the ring are of reports from ``since`` on."""
    width = window.shape[1]
    most = min(signed(slot["length"]), LONGEST_RUN)
    position = signed(slot["head"])
    found = 0
    while found < most:
        position -= 1
        if position < 0:
            position += width
        if signed(window[s, position]["ordinal"]) < since:
            break
        found += 1
    return found


@device
def moving_runs(slot: Any, window: Any, s: int, newest_z: float, centre: float) -> int:
    """Flags of rules 2 to 4 by looking back from the sample that is judged, at most 13 samples.

    Expired samples are gone already. Stops once no pattern can be extended: 4 samples on the average.
    """
    width = window.shape[1]
    most = min(signed(slot["length"]), LONGEST_RUN)
    position = signed(slot["head"])
    above = signed(newest_z > 0.0)
    below = signed(newest_z < 0.0)
    rising = falling = 0
    later_z = newest_z
    for j in range(most):
        position -= 1
        if position < 0:
            position += width
        entry = window[s, position]
        z = standardised(entry["count"] / entry["units"], entry["units"], centre)
        above |= signed(z > 0.0) << (j + 1)
        below |= signed(z < 0.0) << (j + 1)
        rising |= signed(later_z > z) << j
        falling |= signed(later_z < z) << j
        later_z = z
        steps = (2 << j) - 1
        sides = 2 * steps + 1
        odd = ALTERNATE & steps
        even = ALTERNATE_REST & steps
        one_sided = (above == sides) | (below == sides)
        trending = (rising == steps) | (falling == steps)
        alternating = ((rising == odd) & (falling == even)) | ((rising == even) & (falling == odd))
        if not (one_sided | trending | alternating):
            break
    return runs(above, below, rising, falling)


@device
def next_registers(slot: Any, z: float) -> None:
    """Shift a sample into the run registers of a fixed centre.

    The step of a stage's first sample means nothing; ``fixed_runs`` masks it.
    """
    last_z = slot["last_z"]
    # No branches on z: the CPU would guess every other of them wrong.
    slot["above"] = ((signed(slot["above"]) << 1) | signed(z > 0.0)) & REGISTER
    slot["below"] = ((signed(slot["below"]) << 1) | signed(z < 0.0)) & REGISTER
    slot["rising"] = ((signed(slot["rising"]) << 1) | signed(z > last_z)) & REGISTER
    slot["falling"] = ((signed(slot["falling"]) << 1) | signed(z < last_z)) & REGISTER
    slot["last_z"] = z


@device
def fixed_runs(slot: Any, window: Any, s: int, since: int) -> int:
    """Flags of rules 2 to 4 from the registers, which hold the sample that is judged already.

    The registers may reach back to before what is remembered. That is looked up only when a
    rule would signal: so a fixed centre needs no expiry, and a quiet sample touches no old entry.
    """
    above = signed(slot["above"])
    below = signed(slot["below"])
    rising = signed(slot["rising"])
    falling = signed(slot["falling"])
    flags = runs(above, below, rising, falling)
    if flags != 0:
        before = remembered(slot, window, s, since)
        sides = (2 << before) - 1
        steps = (1 << before) - 1
        flags = runs(above & sides, below & sides, rising & steps, falling & steps)
    return flags


@device
def freeze(slot: Any, window: Any, s: int, centre: float) -> None:
    """Fix the centre and standardise the newest remembered samples anew with it."""
    width = window.shape[1]
    length = signed(slot["length"])
    slot["frozen"] = 1
    slot["centre"] = centre
    newest = min(length, LONGEST_RUN)
    position = signed(slot["head"]) - newest
    if position < 0:
        position += width
    for _ in range(newest):
        entry = window[s, position]
        next_registers(slot, standardised(entry["count"] / entry["units"], entry["units"], centre))
        position += 1
        if position == width:
            position = 0


@device
def screened_centre(slot: Any, total: Any, window: Any, s: int, k: float) -> float:
    """Centre of phase I after leaving out, round by round, the samples beyond its limits.

    At most 10 rounds, and never more than a third of the samples: past that the limits, not the samples,
    are in doubt, and the last centre stands. Marks the excluded samples as not usable. ``total`` ends
    as the sums over the included ones.
    """
    phase_one = signed(slot["usable"])
    excluded = 0
    centre = moving_centre(slot, total, 1)
    for _ in range(FREEZE_ROUNDS):
        beyond = mark_beyond(slot, total, window, s, centre, k, False)
        if beyond == 0 or 3 * (excluded + beyond) > phase_one:
            break
        mark_beyond(slot, total, window, s, centre, k, True)
        excluded += beyond
        slot["usable"] = phase_one - excluded
        centre = moving_centre(slot, total, 1)
    return centre


@device
def mark_beyond(slot: Any, total: Any, window: Any, s: int, centre: float, k: float, exclude: bool) -> int:
    """Count the usable remembered samples beyond the limits of ``centre``; leave them out if told."""
    width = window.shape[1]
    length = signed(slot["length"])
    position = signed(slot["head"])
    beyond = 0
    for _ in range(length):
        position -= 1
        if position < 0:
            position += width
        entry = window[s, position]
        if entry["usable"] == 1:
            units = entry["units"]
            u = entry["count"] / units
            if u > upper_limit(centre, units, k) or u < lower_limit(centre, units, k):
                beyond += 1
                if exclude:
                    entry["usable"] = 0
                    add(total, entry["count"], units, -1)
    return beyond


@device
def push(
    slot: Any,
    total: Any,
    window: Any,
    s: int,
    count: float,
    units: float,
    ordinal: int,
    usable: int,
    moves: bool,
) -> None:
    """Remember a sample; of a full ring the oldest leaves. ``moves``: the baseline's sums follow."""
    width = window.shape[1]
    head = signed(slot["head"])
    length = signed(slot["length"])
    entry = window[s, head]
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
