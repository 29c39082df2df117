"""Many samples of one chart after another, against a fixed centre: 64 of them a machine word.

``judge`` keeps registers a chart, with a bit for each of its newest samples, and looks at them sample by
sample. Here a word has a bit for each of 64 samples in time order, and one operation looks at all of them:
"nine in a row above" is the AND of nine words, each shifted by one place more. Flags, limits and the chart
afterwards are, bit by bit, those that ``judge`` gives.

Only for charts whose centre is fixed, with limits of k sigma, without CUSUM, EWMA and prediction, and whose
newest 14 samples are remembered and of consecutive reports, as those of the sweep are. ``Charts.replay``
sees to that; what does not fit goes through ``judge``.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from kernels.chart import LANEY, push
from kernels.jit import kernel, rare, scalar, signed
from kernels.judge import F8, I4, U2, U4, Records
from kernels.memory import row_of
from kernels.runs import RULE_1, RULE_2, RULE_3, RULE_4, RULE_5, RULE_6, RULE_7, RULE_8, lane
from kernels.sample import GIVEN
from kernels.state import CARRIED, ENTRY, KIND_MASK, SLOT, SPEC, SUMS

WORD = 64
CLASSES = 8
ABOVE, BELOW, ABOVE_1, BELOW_1, ABOVE_2, BELOW_2, RISING, FALLING = range(CLASSES)
_NOTHING = np.uint64(0)
_ONE = np.uint64(1)

_i4 = numba.types.Array(numba.int32, 1, "C")
_u4 = numba.types.Array(numba.uint32, 1, "C")
_f8_2 = numba.types.Array(numba.float64, 2, "C")
_u2_2 = numba.types.Array(numba.uint16, 2, "C")
_specs = numba.types.Array(numba.from_dtype(SPEC), 1, "C")
_state = numba.types.Array(numba.from_dtype(SLOT), 1, "C")
_sums = numba.types.Array(numba.from_dtype(SUMS), 1, "C")
_carried = numba.types.Array(numba.from_dtype(CARRIED), 1, "C")
_window = numba.types.Array(numba.from_dtype(ENTRY), 2, "C")
_f8 = numba.types.Array(numba.float64, 1, "C")
_u8_2 = numba.types.Array(numba.uint64, 2, "C")


@scalar
def earlier(word: Any, before: Any, places: int) -> Any:
    """The word of the samples so many places earlier; *before* is the word before."""
    if places == 0:
        return word
    return (word << np.uint64(places)) | (before >> np.uint64(WORD - places))


@scalar
def in_a_row(word: Any, before: Any, points: int) -> Any:
    """Where the newest *points* are all set."""
    found = word
    for places in range(1, points):
        found &= earlier(word, before, places)
    return found


@scalar
def any_of(word: Any, before: Any, points: int) -> Any:
    """Where one of the newest *points* is set."""
    found = word
    for places in range(1, points):
        found |= earlier(word, before, places)
    return found


@scalar
def but_one(word: Any, before: Any, points: int) -> Any:
    """Where the newest is set and of the newest ``points + 1`` at most one is not."""
    all_set = word
    one_missing = _NOTHING
    for places in range(1, points + 1):
        is_set = earlier(word, before, places)
        one_missing = (one_missing & is_set) | (all_set & ~is_set)
        all_set &= is_set
    return all_set | one_missing


@scalar
def zigzag(rising: Any, rising_before: Any, falling: Any, falling_before: Any, steps: int) -> Any:
    """Where the newest *steps* go up and down in turn."""
    up = rising
    down = falling
    for places in range(1, steps):
        rises = earlier(rising, rising_before, places)
        falls = earlier(falling, falling_before, places)
        up &= falls if places % 2 == 1 else rises
        down &= rises if places % 2 == 1 else falls
    return up | down


@rare
def load(slot: Any, words: Any) -> None:
    """The registers of a slot as the words before: a register's bit 0 is the newest, a word's bit 63."""
    for place in range(16):
        at = np.uint64(WORD - 1 - place)
        for c in range(4):
            words[c] |= np.uint64(lane(slot["near"], c) >> place & 1) << at
            words[4 + c] |= np.uint64(lane(slot["far"], c) >> place & 1) << at


@scalar
def register(word: Any, before: Any, samples: int) -> int:
    """The register after the first *samples* (1 to 64) of a word."""
    bits = 0
    for place in range(16):
        at = samples - 1 - place
        source = word if at >= 0 else before
        bits |= signed((source >> np.uint64(at % WORD)) & _ONE) << place
    return bits


@rare
def _limit(
    counts: Any, units: Any, centre: float, sigma_z: float, times: float, z: Any, lcl: Any, ucl: Any
) -> Any:
    """Limits and z of a word's samples; returns the word of those beyond."""
    beyond = _NOTHING
    for j in range(counts.shape[0]):
        u = counts[j] / units[j]
        sigma = sigma_z * math.sqrt(centre / units[j])
        lcl[j] = max(0.0, centre - times * sigma)
        ucl[j] = centre + times * sigma
        away = u - centre
        z[j] = away / sigma if sigma > 0.0 else (math.inf * away if away != 0.0 else 0.0)
    for j in range(counts.shape[0]):
        u = counts[j] / units[j]
        beyond |= np.uint64((u > ucl[j]) | (u < lcl[j])) << np.uint64(j)
    return beyond


@rare
def _classify(z: Any, last_z: float, samples: int, now: Any) -> float:
    """Words of what each sample is; returns the newest z."""
    for c in range(CLASSES):
        now[c] = _NOTHING
    above = below = above_1 = below_1 = above_2 = below_2 = rising = falling = _NOTHING
    earlier_z = last_z
    for j in range(samples):
        z_j = z[j]
        at = np.uint64(j)
        above |= np.uint64(z_j > 0.0) << at
        below |= np.uint64(z_j < 0.0) << at
        above_1 |= np.uint64(z_j > 1.0) << at
        below_1 |= np.uint64(z_j < -1.0) << at
        above_2 |= np.uint64(z_j > 2.0) << at
        below_2 |= np.uint64(z_j < -2.0) << at
        rising |= np.uint64(z_j > earlier_z) << at
        falling |= np.uint64(z_j < earlier_z) << at
        earlier_z = z_j
    now[ABOVE] = above
    now[BELOW] = below
    now[ABOVE_1] = above_1
    now[BELOW_1] = below_1
    now[ABOVE_2] = above_2
    now[BELOW_2] = below_2
    now[RISING] = rising
    now[FALLING] = falling
    return earlier_z


@rare
def _flag(found: Any, beyond: Any, now: Any, past: Any, spec: Any) -> Any:
    """Words of where each rule in force signals; returns where any does."""
    rules = signed(spec["rules"])
    for r in range(8):
        found[r] = _NOTHING
    if rules & RULE_1:
        found[0] = beyond
    if rules & RULE_2:
        points = signed(spec["side"])
        found[1] = in_a_row(now[ABOVE], past[ABOVE], points) | in_a_row(now[BELOW], past[BELOW], points)
    if rules & RULE_3:
        steps = signed(spec["trend"]) - 1
        found[2] = in_a_row(now[RISING], past[RISING], steps) | in_a_row(now[FALLING], past[FALLING], steps)
    if rules & RULE_4:
        steps = signed(spec["alternating"]) - 1
        found[3] = zigzag(now[RISING], past[RISING], now[FALLING], past[FALLING], steps)
    if rules & RULE_5:
        points = signed(spec["beyond_2"])
        found[4] = but_one(now[ABOVE_2], past[ABOVE_2], points) | but_one(now[BELOW_2], past[BELOW_2], points)
    if rules & RULE_6:
        points = signed(spec["beyond_1"])
        found[5] = but_one(now[ABOVE_1], past[ABOVE_1], points) | but_one(now[BELOW_1], past[BELOW_1], points)
    outside = now[ABOVE_1] | now[BELOW_1]
    outside_before = past[ABOVE_1] | past[BELOW_1]
    if rules & RULE_7:
        found[6] = in_a_row(~outside, ~outside_before, signed(spec["inside"]))
    if rules & RULE_8:
        points = signed(spec["outside"])
        found[7] = (
            in_a_row(outside, outside_before, points)
            & any_of(now[ABOVE_1], past[ABOVE_1], points)
            & any_of(now[BELOW_1], past[BELOW_1], points)
        )
    return (found[0] | found[1] | found[2] | found[3]) | (found[4] | found[5] | found[6] | found[7])


@rare
def _spread(found: Any, signals: Any, out_flags: Any) -> None:
    """The words of all rules as flags, a sample each."""
    for j in range(out_flags.shape[0]):
        out_flags[j] = 0
    if signals != _NOTHING:
        for j in range(out_flags.shape[0]):
            if (signals >> np.uint64(j)) & _ONE:
                flags = 0
                for r in range(CLASSES):
                    flags |= signed((found[r] >> np.uint64(j)) & _ONE) << r
                out_flags[j] = flags


@rare
def _close(slot: Any, now: Any, past: Any, samples: int, last_z: float) -> None:
    """The registers as ``judge`` would have left them."""
    near = far = _NOTHING
    for c in range(4):
        place = np.uint64(16 * c)
        near |= np.uint64(register(now[c], past[c], samples)) << place
        far |= np.uint64(register(now[4 + c], past[4 + c], samples)) << place
    slot["near"] = near
    slot["far"] = far
    slot["last_z"] = last_z


@kernel(
    numba.void(
        *(_i4, _f8_2, _f8_2, numba.int64, numba.int64, _i4, _i4, _u4, _specs),
        *(_state, _sums, _carried, _window, _u2_2, _f8_2, _f8_2, _f8, _u8_2),
    )
)
def sweep(
    rows: I4,
    counts: F8,
    units: F8,
    first: int,
    last: int,
    slots: I4,
    spec_ids: I4,
    ordinals: U4,
    specs: Records,
    state: Records,
    sums: Records,
    carried: Records,
    window: Records,
    out_flags: U2,
    out_lcl: F8,
    out_ucl: F8,
    scratch: F8,
    words: Any,
) -> None:
    """Judge the columns ``first`` ... ``last - 1`` of each of ``rows``, a chart a row.

    ``counts``, ``units`` and the outputs: (R, T). ``slots``, ``spec_ids`` and ``ordinals`` (of column
    ``first``; one more a column) belong to ``rows``, item by item. ``scratch``: 64 numbers;
    ``words``: (3, 8).
    """
    width = window.shape[1]
    now, past, found = words[0], words[1], words[2]
    for k in range(rows.shape[0]):
        row, s = signed(rows[k]), signed(slots[k])
        spec, slot = specs[signed(spec_ids[k])], state[s]
        given = signed(spec["basis"]) & KIND_MASK == GIVEN
        centre = float(spec["centre"]) if given else float(slot["centre"])
        sigma_z = 1.0
        if spec["limits"] == LANEY:
            given_z = max(float(spec["sigma_z"]), float(spec["sigma_z_floor"]))
            sigma_z = given_z if given else float(carried[s]["sigma_z"])
        for c in range(CLASSES):
            past[c] = now[c] = _NOTHING
        load(slot, now)
        last_z = float(slot["last_z"])
        samples = signed(WORD)
        for begin in range(first, last, WORD):
            samples = min(WORD, last - begin)
            for c in range(CLASSES):
                past[c] = now[c]
            end = begin + samples
            c_now, n_now = counts[row, begin:end], units[row, begin:end]
            lcl, ucl = out_lcl[row, begin:end], out_ucl[row, begin:end]
            beyond = _limit(c_now, n_now, centre, sigma_z, float(spec["k"]), scratch, lcl, ucl)
            last_z = _classify(scratch, last_z, samples, now)
            signals = _flag(found, beyond, now, past, spec)
            _spread(found, signals, out_flags[row, begin:end])
        _close(slot, now, past, samples, last_z)
        skipped = max(0, last - first - width)
        slot["head"] = (signed(slot["head"]) + skipped) % width
        for column in range(first + skipped, last):
            count, n = counts[row, column], units[row, column]
            usable = 0 if signed(out_flags[row, column]) & RULE_1 else 1
            ordinal = signed(ordinals[k]) + column - first
            push(slot, sums[s], row_of(window, s), width, count, n, ordinal, usable, False)
