"""Small lasting shifts: Poisson CUSUM and EWMA of one chart, sample by sample.

CUSUM (Lucas 1985, Technometrics 27(2), 129-144), with the reference value that the sequential test for a
change of the rate by the factor R has, so that it holds for any number of units n of a sample::

    kappa_up = centre (R - 1) / log R        up   = max(0, up + c - n kappa_up)        signals at h_up
    kappa_down = centre (1 - 1/R) / log R    down = max(0, down + n kappa_down - c)    signals at h_down

It starts at a part of h (fast initial response, Lucas and Crosier 1982), and there again after its signal.

EWMA (Borror, Champ and Rigdon 1998, Journal of Quality Technology 30(4), 352-361) of u, with the variance of
the samples' own units::

    E = w u + (1 - w) E,   V = w^2 / n + (1 - w)^2 V,   limits centre -+ L sqrt(centre V), at least 0

h and L come from a table of designs over the expected count (``kernels.design``).
"""

from __future__ import annotations

import math
from typing import Any

from kernels.jit import rare, scalar, signed
from kernels.memory import number_at
from kernels.state import (
    CUSUM_ABOVE,
    CUSUM_BELOW,
    DESIGN_DOWN,
    DESIGN_EWMA,
    DESIGN_MEANS,
    DESIGN_UP,
    DOWN_SIGNALLED,
    EWMA_ABOVE,
    EWMA_BELOW,
    PART_CUSUM,
    PART_EWMA,
    UP_SIGNALLED,
)

RULE_CUSUM_ABOVE = 1 << (CUSUM_ABOVE - 1)
RULE_CUSUM_BELOW = 1 << (CUSUM_BELOW - 1)
RULE_EWMA_ABOVE = 1 << (EWMA_ABOVE - 1)
RULE_EWMA_BELOW = 1 << (EWMA_BELOW - 1)

FIRST_MEAN_LOG2 = math.log2(DESIGN_MEANS[0])
STEPS_PER_OCTAVE = 2.0
LAST_MEAN = len(DESIGN_MEANS) - 1


@scalar
def design_place(mean: float) -> float:
    """Where an expected count lies in DESIGN_MEANS, 0 to its last index; beyond the ends at the ends."""
    if mean <= DESIGN_MEANS[0]:
        return 0.0
    return min((math.log2(mean) - FIRST_MEAN_LOG2) * STEPS_PER_OCTAVE, float(LAST_MEAN))


@rare
def designed(designs: Any, design: int, row: int, place: float) -> float:
    """A design's value at a place between two tabled means; ``designs`` is what ``numbers_of`` gives."""
    at = min(signed(place), LAST_MEAN - 1)
    part = place - at
    there = (design * 3 + row) * len(DESIGN_MEANS) + at
    return number_at(designs, there) * (1.0 - part) + number_at(designs, there + 1) * part


@rare
def cusum(
    carried: Any,
    detail: Any,
    spec: Any,
    designs: Any,
    count: float,
    units: float,
    centre: float,
    tracks: int,
) -> int:
    """Both sums with one sample more; flags of those that signal."""
    log_ratio = spec["cusum_log_ratio"]
    ratio = math.exp(log_ratio)
    design = signed(spec["design"])
    place = design_place(centre * carried["typical_units"])
    limit_up = designed(designs, design, signed(DESIGN_UP), place) / log_ratio
    limit_down = designed(designs, design, signed(DESIGN_DOWN), place) / log_ratio
    up = carried["cusum_up"]
    down = carried["cusum_down"]
    if tracks & PART_CUSUM == 0 or tracks & UP_SIGNALLED:
        up = spec["cusum_head_start"] * limit_up
    if tracks & PART_CUSUM == 0 or tracks & DOWN_SIGNALLED:
        down = spec["cusum_head_start"] * limit_down
    up = max(0.0, up + count - units * (centre * (ratio - 1.0) / log_ratio))
    down = max(0.0, down + units * (centre * (1.0 - 1.0 / ratio) / log_ratio) - count)
    carried["cusum_up"] = up
    carried["cusum_down"] = down
    detail["cusum_limit_up"] = limit_up
    detail["cusum_limit_down"] = limit_down
    flags = RULE_CUSUM_ABOVE if up >= limit_up else 0
    if down >= limit_down:
        flags |= RULE_CUSUM_BELOW
    return flags


@rare
def ewma(
    carried: Any,
    detail: Any,
    spec: Any,
    designs: Any,
    count: float,
    units: float,
    centre: float,
    starts: bool,
) -> int:
    """The average with one sample more; a flag when it is beyond its limits."""
    weight = spec["ewma_weight"]
    rest = 1.0 - weight
    place = design_place(centre * carried["typical_units"])
    width = designed(designs, signed(spec["design"]), signed(DESIGN_EWMA), place)
    average = carried["ewma"]
    variance = carried["ewma_variance"]
    if starts:
        average = centre
        variance = weight / (2.0 - weight) / carried["typical_units"]
    average = weight * (count / units) + rest * average
    variance = weight * weight / units + rest * rest * variance
    carried["ewma"] = average
    carried["ewma_variance"] = variance
    distance = width * math.sqrt(centre * variance)
    upper = centre + distance
    lower = max(0.0, centre - distance)
    detail["ewma_lcl"] = lower
    detail["ewma_ucl"] = upper
    flags = RULE_EWMA_ABOVE if average > upper else 0
    if average < lower:
        flags |= RULE_EWMA_BELOW
    return flags


@rare
def shifts(
    slot: Any,
    carried: Any,
    detail: Any,
    spec: Any,
    designs: Any,
    count: float,
    units: float,
    centre: float,
    typical_units: float,
) -> int:
    """CUSUM and EWMA as far as the spec has them. Sets the slot's ``tracks``.

    ``typical_units``: of the baseline, where that tells them with this sample; otherwise 0, and what
    was in use stays, or else the sample's own are taken.
    """
    flags = 0
    tracks = signed(slot["tracks"])
    if typical_units > 0.0:
        carried["typical_units"] = typical_units
    elif tracks == 0:
        carried["typical_units"] = units
    now = 0
    if spec["cusum_log_ratio"] > 0.0:
        flags |= cusum(carried, detail, spec, designs, count, units, centre, tracks)
        now |= PART_CUSUM
        now |= UP_SIGNALLED if flags & RULE_CUSUM_ABOVE else 0
        now |= DOWN_SIGNALLED if flags & RULE_CUSUM_BELOW else 0
    if spec["ewma_weight"] > 0.0:
        flags |= ewma(carried, detail, spec, designs, count, units, centre, tracks & PART_EWMA == 0)
        now |= PART_EWMA
    slot["tracks"] = now
    return flags
