"""Rules 2 to 8 at the newest sample, from registers of what each of the newest samples was.

A register has a bit a sample, the newest in bit 0. Where the centre is fixed a slot keeps its registers from
sample to sample, so that a rule costs a mask and a comparison; where it moves, every sample's z changes with
it and the registers are made anew from the window.

Nelson (1984), Journal of Quality Technology 16(4), 237-239; Western Electric (1956), Statistical Quality
Control Handbook. A tie breaks a pattern; the sample that completes or extends one is flagged; a pattern needs
all its points. Of rules 5 and 6 the newest sample is one of those beyond.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.jit import device, rare, signed
from kernels.memory import entry_at

RULE_1 = 1
RULE_2 = 2
RULE_3 = 4
RULE_4 = 8
RULE_5 = 16
RULE_6 = 32
RULE_7 = 64
RULE_8 = 128

LONGEST_RUN = 15
"""Samples that a rule can look at, the newest among them."""
REGISTER = 0xFFFF
ONE = np.uint64(1)
LANE_1, LANE_2, LANE_3 = np.uint64(16), np.uint64(32), np.uint64(48)
BUT_LOWEST = np.uint64(0xFFFE_FFFE_FFFE_FFFE)
BUT_HIGH = np.uint64(0xFFFF_FFFF)
EVERY_OTHER = 0x5555


@device
def standardised(count: float, units: float, centre: float, sigma_z: float) -> float:
    """z of a sample; where sigma is 0: 0 for a tie, infinite otherwise, never NaN. Without overdispersion
    ``sigma_z`` is 1."""
    u = count / units
    sigma = sigma_z * math.sqrt(centre / units)
    if sigma > 0.0:
        return (u - centre) / sigma
    if u > centre:
        return math.inf
    if u < centre:
        return -math.inf
    return 0.0


@device
def same_side(above: int, below: int, points: int) -> bool:
    """All the newest *points* on one side."""
    mask = (1 << points) - 1
    return (above & mask == mask) | (below & mask == mask)


@device
def alternates(rising: int, falling: int, steps: int) -> bool:
    """The newest *steps* go up and down in turn."""
    mask = (1 << steps) - 1
    odd = EVERY_OTHER & mask
    even = mask ^ odd
    up = rising & mask
    down = falling & mask
    return ((up == odd) & (down == even)) | ((up == even) & (down == odd))


@device
def all_but_one(beyond: int, points: int) -> bool:
    """The newest and at least *points* of the newest ``points + 1`` are beyond."""
    mask = (2 << points) - 1
    missing = mask & ~beyond
    return (beyond & 1 == 1) & (missing & (missing - 1) == 0)


@rare
def patterns(
    above: int,
    below: int,
    above_1: int,
    below_1: int,
    above_2: int,
    below_2: int,
    rising: int,
    falling: int,
    known: int,
    spec: Any,
) -> int:
    """Flags of rules 2 to 8 from registers of which the newest *known* bits mean something.

    Bits (of steps: the newest ``known - 1``) beyond that must be 0. Rules that are not in force are flagged
    as well.
    """
    flags = 0
    if same_side(above, below, signed(spec["side"])):
        flags |= RULE_2
    steps = signed(spec["trend"]) - 1
    if same_side(rising, falling, steps):
        flags |= RULE_3
    if alternates(rising, falling, signed(spec["alternating"]) - 1):
        flags |= RULE_4
    points = signed(spec["beyond_2"])
    if all_but_one(above_2, points) or all_but_one(below_2, points):
        flags |= RULE_5 if points < known else 0
    points = signed(spec["beyond_1"])
    if all_but_one(above_1, points) or all_but_one(below_1, points):
        flags |= RULE_6 if points < known else 0
    beyond_1 = above_1 | below_1
    points = signed(spec["inside"])
    if beyond_1 & ((1 << points) - 1) == 0 and points <= known:
        flags |= RULE_7
    mask = (1 << signed(spec["outside"])) - 1
    if beyond_1 & mask == mask and above_1 & mask != 0 and below_1 & mask != 0:
        flags |= RULE_8
    return flags


@device
def lane(registers: Any, place: int) -> int:
    """One of four 16-bit registers."""
    return signed(registers >> np.uint64(16 * place)) & REGISTER


@device
def next_registers(slot: Any, z: float) -> None:
    """Shift a sample into the registers of a fixed centre, four of them a word at once.

    The step of a stage's first sample means nothing; ``fixed_runs`` masks it.
    """
    last_z = slot["last_z"]
    # No branches on z: the CPU would guess every other of them wrong.
    near = np.uint64(z > 0.0) | np.uint64(z < 0.0) << LANE_1
    near |= np.uint64(z > 1.0) << LANE_2 | np.uint64(z < -1.0) << LANE_3
    far = np.uint64(z > 2.0) | np.uint64(z < -2.0) << LANE_1
    far |= np.uint64(z > last_z) << LANE_2 | np.uint64(z < last_z) << LANE_3
    slot["near"] = ((slot["near"] << ONE) & BUT_LOWEST) | near
    slot["far"] = ((slot["far"] << ONE) & BUT_LOWEST) | far
    slot["last_z"] = z


@device
def may_signal(near: Any, far: Any, quick: Any) -> bool:
    """Whether some rule of 2 to 8 in force signals, were all the registers' samples remembered.

    Of the registers of two sides only that of the newest sample's side can be full, and for rules 5 and 6
    it must have the newest bit. ``quick``: see ``kernels.state.quick_masks``.
    """
    low = signed(near & BUT_HIGH)
    sides = signed(near >> LANE_2)
    steps = signed(far >> LANE_2)
    far_low = signed(far & BUT_HIGH)
    is_below = (low >> 16) & 1
    run = (low >> (16 * is_below)) & REGISTER
    beyond_1 = (sides >> (16 * is_below)) & REGISTER
    beyond_2 = (far_low >> (16 * is_below)) & REGISTER
    trend = (steps >> (16 * ((steps >> 16) & 1))) & REGISTER
    mask_2, mask_3, mask_5 = signed(quick[0]), signed(quick[1]), signed(quick[4])
    mask_6, mask_7, mask_8 = signed(quick[5]), signed(quick[6]), signed(quick[7])
    zigzag, zagzig = signed(quick[2]), signed(quick[3])
    both = zigzag | zagzig
    missing_2 = mask_5 & ~beyond_2
    missing_1 = mask_6 & ~beyond_1
    any_side = (sides | sides >> 16) & REGISTER
    return (
        (run & mask_2 == mask_2)
        | (trend & mask_3 == mask_3)
        | ((steps & both == zigzag) | (steps & both == zagzig))
        | ((missing_2 & (missing_2 - 1) == 0) & (beyond_2 & 1 == 1))
        | ((missing_1 & (missing_1 - 1) == 0) & (beyond_1 & 1 == 1))
        | ((mask_7 != 0) & (sides & mask_7 == 0))
        | (any_side & mask_8 == mask_8)
    )


@rare
def remembered(slot: Any, row: Any, width: int, since: int) -> int:
    """How many of the newest 14 samples of the ring are of reports from ``since`` on."""
    most = min(signed(slot["length"]), LONGEST_RUN - 1)
    position = signed(slot["head"])
    found = 0
    while found < most:
        position -= 1
        if position < 0:
            position += width
        if signed(entry_at(row, position)["ordinal"]) < since:
            break
        found += 1
    return found


@rare
def confirmed(slot: Any, row: Any, width: int, since: int, spec: Any) -> int:
    """Flags of rules 2 to 8 from those bits of the registers that stand for remembered samples."""
    before = remembered(slot, row, width, since)
    points = (2 << before) - 1
    steps = (1 << before) - 1
    return patterns(
        lane(slot["near"], 0) & points,
        lane(slot["near"], 1) & points,
        lane(slot["near"], 2) & points,
        lane(slot["near"], 3) & points,
        lane(slot["far"], 0) & points,
        lane(slot["far"], 1) & points,
        lane(slot["far"], 2) & steps,
        lane(slot["far"], 3) & steps,
        before + 1,
        spec,
    )


@device
def fixed_runs(slot: Any, row: Any, width: int, since: int, spec: Any) -> int:
    """Flags of rules 2 to 8 that are in force, from the registers, which hold the sample judged already.

    The registers may reach back to before what is remembered. That is looked up only when a
    rule would signal: so a fixed centre needs no expiry, and a quiet sample touches no old entry.
    """
    flags = 0
    if may_signal(slot["near"], slot["far"], spec["quick"]):
        flags = signed(spec["rules"]) & confirmed(slot, row, width, since, spec)
    return flags


@rare
def moving_runs(
    slot: Any, row: Any, width: int, newest_z: float, centre: float, sigma_z: float, spec: Any
) -> int:
    """Flags of rules 2 to 8 by looking back from the sample that is judged, at most 14 samples.

    Expired samples are gone already. Stops once no pattern can be extended.
    """
    most = min(signed(slot["length"]), LONGEST_RUN - 1)
    few = max(signed(spec["beyond_2"]), signed(spec["beyond_1"]))
    position = signed(slot["head"])
    above = signed(newest_z > 0.0)
    below = signed(newest_z < 0.0)
    above_1 = signed(newest_z > 1.0)
    below_1 = signed(newest_z < -1.0)
    above_2 = signed(newest_z > 2.0)
    below_2 = signed(newest_z < -2.0)
    rising = falling = 0
    later_z = newest_z
    known = 1
    for j in range(most):
        position -= 1
        if position < 0:
            position += width
        entry = entry_at(row, position)
        z = standardised(entry["count"], entry["units"], centre, sigma_z)
        above |= signed(z > 0.0) << (j + 1)
        below |= signed(z < 0.0) << (j + 1)
        above_1 |= signed(z > 1.0) << (j + 1)
        below_1 |= signed(z < -1.0) << (j + 1)
        above_2 |= signed(z > 2.0) << (j + 1)
        below_2 |= signed(z < -2.0) << (j + 1)
        rising |= signed(later_z > z) << j
        falling |= signed(later_z < z) << j
        later_z = z
        known += 1
        beyond_1 = above_1 | below_1
        one_sided = same_side(above, below, j + 2) | same_side(rising, falling, j + 1)
        even = (beyond_1 == 0) | (beyond_1 == (4 << j) - 1)
        if known > few and not (one_sided | even | alternates(rising, falling, j + 1)):
            break
    return signed(spec["rules"]) & patterns(
        above, below, above_1, below_1, above_2, below_2, rising, falling, known, spec
    )
