"""How long charts run: average run lengths of Poisson CUSUM and EWMA charts, and designs by target ARL0.

A chart's statistic is a Markov chain that ends when the chart signals; its average run lengths L from each
state solve (I - Q) L = 1 (Brook & Evans 1972, Biometrika 59; for counts: Lucas 1985, Technometrics 27(2),
and Borror, Champ & Rigdon 1998, J. Quality Technology 30(4)).

- CUSUM: states are the multiples of a step d. A sum between two of them goes to either, with the
  probabilities that keep its mean. So the chain is exact where k is a multiple of d, and elsewhere the
  variance of a sample is too large by at most d^2/4, which makes the run length too short.
- EWMA: states are equal cells between the limits, and E is uniform within its cell. A count moves the
  cell as a whole and shrinks it; each cell that it then overlaps gets its part. This is what the R package
  spc calls "transfer", and with its 101 cells its figures come out.

A design is the smallest multiple of a small step for which the chart runs long enough. ``table``
takes 0.3 s and is not for the hot path.

Everything is in nonconformities a sample: ``mean`` is the expected count, ARLs are samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from kernels.state import ALPHA, DESIGN_DOWN, DESIGN_EWMA, DESIGN_MEANS, DESIGN_UP

Floats = NDArray[np.float64]
Side = Literal["upper", "lower"]

ARL0_MAX: Final = 1e9
"""Longest run length that is designed for."""
ARL_MAX: Final = 1e12
"""Above it float64 hardly tells 1 - Q from 0 any more, and a run length is given as infinite."""

CUSUM_EXACT_STATES: Final = 1000
DENOMINATOR_MAX: Final = 1000
CUSUM_STATES: Final = 500
"""States below h where k is no fraction that the exact ones have room for."""
DESIGN_STATES: Final = (20, 80)
"""States below h of a design, roughly and then finely: h is found to 1/80 of itself.

Less than 100, as the cells of an EWMA design are: OpenBLAS solves larger systems in threads if it has any,
and on two busy cores that took 100 times as long (16 ms a system of 100, 0.1 ms one of 99).
"""
DESIGN_STATES_MAX: Final = 300
H_MIN_SIGMA: Final = 0.1
"""An h below it is found to 1/80 of this, not of itself: there the size of h hardly matters."""
SEARCH_MAX: Final = 100
EWMA_STATES: Final = 401
EWMA_DESIGN_STATES: Final = 99
EWMA_LIMIT_STEP: Final = 1 / 2000
HEAD_START_MAX: Final = 0.5
"""Of a two-sided CUSUM: with more the two sides are not far enough apart for the formula that joins them."""
SHORT_MAX: Final = 0.03
"""Log of how much too short a run may be, by interpolation between two means of a table."""
LATTICE_SLACK: Final = 1e-9
"""Steps by which a value on the lattice may miss its point for rounding."""


# Poisson counts


@lru_cache(maxsize=16)
def _probabilities(mean: float) -> tuple[int, Floats]:
    """First count, and P(X = count) from there on; all but 1e-20 of the distribution.

    By ratios of neighbours from the mode outwards and normalised: relative error 1e-13 at a mean of 1000.
    """
    reach = 10 * math.sqrt(mean) + 25
    first, mode, last = max(0, math.floor(mean - reach)), math.floor(mean), math.ceil(mean + reach)
    upwards = np.cumsum(math.log(mean) - np.log(np.arange(mode + 1, last + 1)))
    downwards = np.cumsum(np.log(np.arange(mode, first, -1)) - math.log(mean))
    weights = np.exp(np.concatenate([downwards[::-1], [0.0], upwards]))
    return first, weights / math.fsum(weights)


def _sums(cells: NDArray[np.intp], weights: Floats, size: int) -> Floats:
    return np.bincount(cells, weights, size).astype(np.float64, copy=False)


def _check(what: str, number: float, *, above: float, at_most: float = math.inf) -> None:
    if not (above < number <= at_most and math.isfinite(number)):
        upto = "" if math.isinf(at_most) else f" and at most {at_most:g}"
        raise ValueError(f"{what} is {number}: it must be above {above:g}{upto}")


def _check_head_start(head_start: float, at_most: float = math.nextafter(1, 0)) -> None:
    if not 0 <= head_start <= at_most:
        raise ValueError(
            f"head_start is {head_start}: it is a part of h, at least 0 and at most {at_most:.3g}"
        )


def _smallest(excess: Callable[[int], float], guess: int) -> int:
    """Smallest n >= 1 with excess(n) >= 0, for an excess (of log ARL over its target) that grows with n.

    Where it does not quite grow: an n that is enough, with an n - 1 that is not.
    """
    low, high, n = 0, 0, guess
    below = above = 0.0
    reach = 1
    halves = False
    for _ in range(SEARCH_MAX):
        here = excess(n)
        if here >= 0:
            high, above = n, here
        else:
            low, below = n, here
        if high and high - low <= 1:
            return high
        if not high:
            n = low + max(reach, int(low * min(1.0, -below / 2)))
            reach *= 2
        elif not low:
            n = max(1, high - max(reach, int(high * min(0.5, above / 2))))
            reach *= 2
        elif halves:
            n = (low + high) // 2
        else:  # by the chord
            n = min(max(low + math.ceil((high - low) * below / (below - above)), low + 1), high - 1)
        halves = low > 0 and high > 0 and not halves
    raise ArithmeticError(f"no design after {SEARCH_MAX} steps from {guess}: {low} is too small")


# CUSUM


def _chain(mean: float, k: float, side: Side, step: float, states: int) -> Floats:
    """Q: from state i (a sum of i * step) to state j without a signal."""
    first, probabilities = _probabilities(mean)
    moves = (np.arange(first, first + len(probabilities)) - k) / step
    if side == "lower":
        moves = -moves
    near = np.rint(moves)
    moves = np.where(np.abs(moves - near) < LATTICE_SLACK, near, moves)
    moves = np.clip(moves, -states, states)
    floors = np.floor(moves)
    cells = floors.astype(np.intp) + states
    size = 2 * states + 2
    by_move = _sums(cells, probabilities * (1 - (moves - floors)), size)
    by_move += _sums(cells + 1, probabilities * (moves - floors), size)
    # by_move[states + m] = P(a move of m steps); row i of Q begins at a move of -i
    rows = np.array(sliding_window_view(by_move, states)[states:0:-1])
    rows[:, 0] = np.cumsum(by_move)[states:0:-1]  # at most to 0
    return rows


def _solution(chain: Floats) -> Floats | None:
    """Run lengths from each state; None where they are longer than float64 can tell."""
    matrix = -chain
    np.fill_diagonal(matrix, 1 - np.diagonal(chain))
    try:
        lengths = np.asarray(np.linalg.solve(matrix, np.ones(len(chain))), np.float64)
    except np.linalg.LinAlgError:
        return None
    return lengths if lengths.min() >= 1 - 1e-9 and lengths.max() < ARL_MAX else None


def _denominator(number: float) -> int:
    """Smallest denominator up to 1000 of a fraction that this is; 0 if there is none."""
    fraction = Fraction(number).limit_denominator(DENOMINATOR_MAX)
    return fraction.denominator if math.isclose(float(fraction), number, rel_tol=1e-13) else 0


def _cusum_step(k: float, h: float, start: float) -> float:
    """Step of a lattice on which k and the start lie, or of a fine one."""
    common = math.lcm(_denominator(k), _denominator(start))  # 0 if either is
    if 0 < common * h <= CUSUM_EXACT_STATES:
        return 1 / common
    return _fine_step(h, CUSUM_STATES)


def _fine_step(h: float, states: int) -> float:
    """About h / states; one over a whole number where it is below 1, so that counts lie on the lattice."""
    step = h / states
    return 1 / math.ceil(1 / step) if step < 1 else step


def _from(lengths: Floats, start: float) -> float:
    """Run length from a start in steps, between two states."""
    return float(np.interp(start, np.arange(len(lengths)), lengths))


def cusum_arl(
    mean: float,
    k: float,
    h: float,
    *,
    side: Side = "upper",
    head_start: float = 0.0,
    true_mean: float | None = None,
) -> float:
    """Average run length of a one-sided Poisson CUSUM, in samples (Lucas 1985).

    S = max(0, S + x - k) (``upper``) or max(0, S + k - x) (``lower``), from S = head_start * h; a signal when
    S >= h. Counts have ``true_mean`` (``mean`` if None). Exact (1e-9) where k and the start are fractions
    with a common denominator q and h q is at most 1000. Otherwise on a lattice of h / 500 or finer: within
    2 % for run lengths up to 10,000, and mostly too short. Infinite above 1e12 or so.

    Raises ValueError for a mean, k or h that is not positive, and a head start outside [0, 1).
    """
    actual = mean if true_mean is None else true_mean
    _check("mean", mean, above=0)
    _check("true_mean", actual, above=0)
    _check("k", k, above=0)
    _check("h", h, above=0)
    _check_head_start(head_start)
    start = head_start * h
    step = _cusum_step(k, h, start)
    states = max(1, math.ceil(h / step - LATTICE_SLACK))
    lengths = _solution(_chain(actual, k, side, step, states))
    if lengths is None:
        return math.inf
    return _from(lengths, start / step)


def cusum_reference(mean: float, ratio: float) -> float:
    """Reference value kappa, in counts, of the CUSUM that is best for a change of the mean to ratio * mean.

    (ratio - 1) * mean / log(ratio), from the likelihood ratio (Lucas 1985); it lies between the two means.
    Raises ValueError for a ratio that is 1 or not positive.
    """
    _check("mean", mean, above=0)
    _check("ratio", ratio, above=0)
    if ratio == 1:
        raise ValueError("ratio is 1: give the change of the mean to look for, above or below 1")
    return (ratio - 1) * mean / math.log(ratio)


def _guess(mean: float, k: float, arl0: float) -> float:
    """Roughly h: Siegmund (1985) for normal variables, arl = (exp(2 d b) - 2 d b - 1) / (2 d^2)."""
    sigma = math.sqrt(mean)
    drift = max(abs(k - mean) / sigma, 1e-3)
    target, low, high = 2 * drift * drift * arl0, 0.0, 50.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if math.expm1(middle) - middle > target else (middle, high)
    return max(high / (2 * drift) - 1.166, 0.2) * sigma


def _design_step(mean: float, h: float, states: int) -> float:
    """Step for about so many states below h, or for up to 300 where the variance would be 10 % too large.

    That is d^2/4 over the mean, or d where k is less than a step: then a move of k is a step now and then.
    """
    sigma = math.sqrt(mean)
    h = max(h, H_MIN_SIGMA * sigma)
    right = max(0.1, 0.6 * sigma, h / DESIGN_STATES_MAX)
    return _fine_step(h, max(states, math.ceil(h / right)))


def _cusum_excess(
    mean: float, ratio: float, step: float, states: int, arl0: float, head_start: float, sides: int
) -> float:
    """Log of the run length over the wanted one, for h = states * step.

    Of one side (``sides`` 1) the wanted one is ``arl0``. Of two, 2 L_s - L_0 = 2 arl0 is wanted,
    with L_s from the head start and L_0 from zero. Two charts of which it holds run for ``arl0`` together, by
    (L_s M_0 + L_0 M_s - L_0 M_0) / (L_0 + M_0) for two that do not meet (Lucas & Crosier 1982).
    """
    side: Side = "upper" if ratio > 1 else "lower"
    lengths = _solution(_chain(mean, cusum_reference(mean, ratio), side, step, states))
    if lengths is None:
        return math.log(ARL_MAX)
    length = sides * _from(lengths, head_start * states) - (sides - 1) * lengths[0]
    return math.log(max(1.0, length) / (sides * arl0))


def _cusum_search(
    mean: float, ratio: float, arl0: float, head_start: float, sides: int
) -> tuple[float, float]:
    """Smallest h with an excess of at least 0, and the step of its lattice."""
    h = _guess(mean, cusum_reference(mean, ratio), sides * arl0)
    step = h
    for aim in DESIGN_STATES:
        step = _design_step(mean, h, aim)

        def excess(states: int, step: float = step) -> float:
            return _cusum_excess(mean, ratio, step, states, arl0, head_start, sides)

        h = _smallest(excess, max(1, round(h / step))) * step
    return h, step


def cusum_design(mean: float, ratio: float, arl0: float, head_start: float = 0.0) -> float:
    """Smallest h, in counts, of a one-sided CUSUM whose in-control average run length is ``arl0`` samples.

    For a change to ratio * mean: the upper CUSUM for a ratio above 1, the lower one below, each with
    k = ``cusum_reference(mean, ratio)``. h is found on a lattice of about h / 80 (``cusum_design_step``), on
    the side of longer runs: by some 5 %, and 20 % at means of 0.02. Where k is so far from the mean that even
    h = 0 runs for longer, h is next to 0: any count beyond k signals.

    Raises ValueError for a mean that is not positive, a ratio that is 1 or not positive, an ``arl0`` outside
    (1, 1e9], and a head start outside [0, 1).
    """
    return cusum_design_step(mean, ratio, arl0, head_start)[0]


def cusum_design_step(mean: float, ratio: float, arl0: float, head_start: float = 0.0) -> tuple[float, float]:
    """h as ``cusum_design`` has it, and the step of the lattice that it is a multiple of."""
    _check("arl0", arl0, above=1, at_most=ARL0_MAX)
    _check_head_start(head_start)
    return _cusum_search(mean, ratio, arl0, head_start, sides=1)


# EWMA


def _ewma_limits(mean: float, weight: float, limit: float) -> tuple[float, float]:
    width = limit * math.sqrt(weight * mean / (2 - weight))
    return max(0.0, mean - width), mean + width


def ewma_arl(
    mean: float,
    weight: float,
    limit: float,
    *,
    true_mean: float | None = None,
    states: int = EWMA_STATES,
) -> float:
    """Average run length of a two-sided Poisson EWMA chart, in samples (Borror, Champ & Rigdon 1998).

    E = weight * x + (1 - weight) * E from E = ``mean``; a signal when E is beyond
    mean ± limit * sqrt(weight * mean / (2 - weight)), the lower limit at least 0. Counts have ``true_mean``
    (``mean`` if None). Computed with ``states`` cells between the limits, an odd number so that one has the
    mean in its middle: with 401 within 1e-3 of the limit for ever smaller cells. R's spc takes 101, which
    makes in-control run lengths near 370 too short by 0.1 % to 0.7 %. Infinite above 1e12 or so.

    Raises ValueError for a mean or limit that is not positive and a weight outside (0, 1].
    """
    actual = mean if true_mean is None else true_mean
    _check("mean", mean, above=0)
    _check("true_mean", actual, above=0)
    _check("weight", weight, above=0, at_most=1)
    _check("limit", limit, above=0)
    lower, upper = _ewma_limits(mean, weight, limit)
    cell = (upper - lower) / states
    first, probabilities = _probabilities(actual)
    reached = weight * np.arange(first, first + len(probabilities)) - lower
    start = (reached + (1 - weight) * (lower + cell * np.arange(states))[:, None]) / cell
    row, count = np.nonzero((start > -1) & (start < states))
    start = start[row, count]
    low = np.floor(start)
    # the moved cell is 1 - weight wide and begins in cell low; a hair wide where only the newest counts
    part = np.minimum((low + 1 - start) / max(1 - weight, LATTICE_SLACK), 1.0)
    # a column more at either end, for what is beyond the limits
    low_to = row * (states + 2) + 1 + low.astype(np.intp)
    size = states * (states + 2)
    chance = probabilities[count]
    chain = _sums(low_to, chance * part, size) + _sums(low_to + 1, chance * (1 - part), size)
    lengths = _solution(chain.reshape(states, states + 2)[:, 1:-1])
    if lengths is None:
        return math.inf
    return float(lengths[int((mean - lower) / cell)])


def ewma_design(mean: float, weight: float, arl0: float) -> float:
    """L of the EWMA chart that runs for ``arl0`` samples on average while the mean is ``mean``.

    The smallest, up to 5e-4, on the side of longer runs. Raises ValueError for a mean that is not positive, a
    weight outside (0, 1] and an ``arl0`` outside (1, 1e9].
    """
    _check("arl0", arl0, above=1, at_most=ARL0_MAX)
    return _ewma_search(mean, weight, arl0, guess=3.0)


def _ewma_excess(mean: float, weight: float, limit: float, arl0: float) -> float:
    length = ewma_arl(mean, weight, limit, states=EWMA_DESIGN_STATES)
    return math.log(min(length, ARL_MAX) / arl0)


def _ewma_search(mean: float, weight: float, arl0: float, guess: float) -> float:
    def excess(steps: int) -> float:
        return _ewma_excess(mean, weight, steps * EWMA_LIMIT_STEP, arl0)

    return _smallest(excess, round(guess / EWMA_LIMIT_STEP)) * EWMA_LIMIT_STEP


# Tables


def _row(design: Callable[[float], float], excess: Callable[[float, float], float]) -> list[float]:
    """Designs at DESIGN_MEANS, raised where interpolation between two of them would make runs too short.

    Run lengths have jumps at low means, and h falls to 0 in a bend where k is far from the mean. So three
    means between each two are tried, and where the interpolated design falls short by more than
    ``SHORT_MAX``, both neighbours are raised by the least (in squares) that mends it.
    """
    row = [design(mean) for mean in DESIGN_MEANS]
    for i in range(len(row) - 1):
        for part in (0.5, 0.25, 0.75):
            mean = DESIGN_MEANS[i] ** (1 - part) * DESIGN_MEANS[i + 1] ** part
            between = (1 - part) * row[i] + part * row[i + 1]
            if excess(mean, between) >= -SHORT_MAX:
                continue
            missing = max(0.0, design(mean) - between) / ((1 - part) ** 2 + part**2)
            row[i] += missing * (1 - part)
            row[i + 1] += missing * part
    return row


def _cusum_row(ratio: float, arl0: float, head_start: float) -> list[float]:
    scale = abs(math.log(ratio))

    def design(mean: float) -> float:
        return _cusum_search(mean, ratio, arl0, head_start, 2)[0] * scale

    def excess(mean: float, scaled: float) -> float:
        h = scaled / scale
        step = _design_step(mean, h, DESIGN_STATES[-1])
        return _cusum_excess(mean, ratio, step, max(1, round(h / step)), arl0, head_start, 2)

    return _row(design, excess)


def _ewma_row(weight: float, arl0: float) -> list[float]:
    def design(mean: float) -> float:
        return _ewma_search(mean, weight, arl0, 3.0)

    def excess(mean: float, limit: float) -> float:
        return _ewma_excess(mean, weight, limit, arl0)

    return _row(design, excess)


@lru_cache(maxsize=64)
def table(*, ratio: float | None, head_start: float, ewma_weight: float | None, arl0: float) -> Floats:
    """Designs at ``kernels.state.DESIGN_MEANS``: float64 (3, means), read-only; 64 settings are remembered.

    Rows DESIGN_UP and DESIGN_DOWN: h * log(ratio) of the two CUSUMs for a change of the mean by ``ratio``
    (above 1) up or down, such that both together run for ``arl0`` samples on average. DESIGN_EWMA: L of the
    EWMA chart that does. Zeros for what is None. Interpolated over log2 of the mean, run lengths are
    ``arl0`` - 5 % to + 25 % (by simulation), and longer where a single count more or less decides: + 70 % of
    an EWMA with a weight of 0.4 at a mean of 0.05, + 40 % of a CUSUM where k is three sigma from the mean.

    Raises ValueError for a ratio of at most 1, a head start outside [0, 0.5], a weight outside (0, 1] and an
    ``arl0`` outside (1, 1e9].
    """
    _check("arl0", arl0, above=1, at_most=ARL0_MAX)
    designs = np.zeros((3, len(DESIGN_MEANS)))
    if ratio is not None:
        _check("ratio", ratio, above=1)
        _check_head_start(head_start, HEAD_START_MAX)
        designs[DESIGN_UP] = _cusum_row(ratio, arl0, head_start)
        designs[DESIGN_DOWN] = _cusum_row(1 / ratio, arl0, head_start)
    if ewma_weight is not None:
        _check("ewma_weight", ewma_weight, above=0, at_most=1)
        designs[DESIGN_EWMA] = _ewma_row(ewma_weight, arl0)
    designs.flags.writeable = False
    return designs


# Rule 1


def u_chart_arl0(
    mean: float, limits: Literal["three_sigma", "exact"] = "three_sigma", alpha: float = ALPHA
) -> float:
    """In-control average run length of rule 1 of a u-chart, in samples: 1 / P(a count beyond the limits).

    ``mean`` is the expected count of a sample, all of one size; the centre line is known. ``three_sigma``:
    mean ± 3 sqrt(mean), strictly beyond. ``exact``: above the smallest count that is exceeded with a
    probability of at most ``alpha``, or below the smallest count that has at least ``alpha`` at or below it.
    Infinite where no count is beyond.

    Raises ValueError for a mean that is not positive and an ``alpha`` outside (0, 0.5).
    """
    _check("mean", mean, above=0)
    _check("alpha", alpha, above=0, at_most=math.nextafter(0.5, 0))
    first, probabilities = _probabilities(mean)
    counts = np.arange(first, first + len(probabilities))
    if limits == "three_sigma":
        width = 3 * math.sqrt(mean)
        beyond = (counts > mean + width) | (counts < max(0.0, mean - width))
    else:
        low = counts[np.argmax(np.cumsum(probabilities) >= alpha)]
        exceeded = np.append(np.cumsum(probabilities[:0:-1])[::-1], 0.0)
        high = counts[np.argmax(exceeded <= alpha)]
        beyond = (counts > high) | (counts < low)
    chance = math.fsum(probabilities[beyond])
    return 1 / chance if chance > 0 else math.inf
