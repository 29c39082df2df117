"""The Poisson distribution itself: its tails and its quantiles.

Functions of numbers that kernels call (``lower_tail``, ``upper_tail``, ``limits``, ``judged``) and kernels
over arrays (``tails``, ``quantiles``). No SciPy, no allocation, no exception, every loop bounded, never NaN
for arguments that are none. Counts are whole numbers as float64.

Relative error of a tail above 1e-300, against exact sums: below 1e-12. Smaller ones may be 0. How, with
count c and mean m:

==========================================  ============================================================
m <= ``SUMMED_MEAN`` and c <= ``SUMMED``    the sum itself, from 0 to c; at most 256 terms
c and m within a factor 1.5 of each other   Temme's uniform expansion (DLMF 8.12), six polynomials
else                                        saddle point (Loader 2000) times the rest of the sum, whose
                                            terms shrink by 1.5 or more: at most ``REST`` of them
==========================================  ============================================================

Limits: low = min{x: P(X <= x) >= alpha}, high = min{x: P(X > x) <= alpha}, as R's qpois. Exact for means up
to ``EXACT_MEAN``; above it Cornish and Fisher's expansion (1938), off by at most 1e-9 sigma and what a
float64 cannot hold. An alpha of 0 or less has low 0 and high infinite, one of 1 or more
low infinite and high 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Final, TypeAlias, cast

import numba
import numpy as np
import numpy.typing as npt

from kernels.jit import kernel, scalar
from kernels.state import ALPHA, COUNT_MAX

F8: TypeAlias = npt.NDArray[np.float64]

SUMMED: Final = 160
"""Largest count whose probability is summed from 0."""
SUMMED_MEAN: Final = 48.0
"""Largest mean for that: above it the uniform expansion is no slower (``judged``: 150 ns)."""
TERMS: Final = 256
"""Terms of any one sum; at mean 48 the 256th is below 1e-80 of the largest."""
REST: Final = 120
"""Terms of a sum that shrink by 1.5 or more each: the last is below 1e-21 of the first."""
NEAR: Final = 0.2
"""Of |c - m| / (c + m): within it c and m differ by a factor of at most 1.5."""
EXACT_MEAN: Final = 2.0**50
"""Above it a limit might not be a whole number that a float64 can tell from its neighbours."""
USUAL_ALPHA: Final = 1e-6
"""From here up to 0.5, 1 - P(X <= x) is exact enough to be compared with alpha."""
TINY: Final = 1e-18
LOWER: Final = 0.0
UPPER: Final = 1.0
"""Which tail; numbers, for numba would compile a function anew for each of two literal truth values."""

_ORDER: Final = 14
_POLYNOMIALS: Final = 6


def _temme_coefficients() -> F8:
    """d[j, k] of c_k(eta) = sum over j of d[j, k] eta^j, exact rationals rounded once (DLMF 8.12.9-8.12.12).

    mu(eta) is lambda - 1; 1/mu - 1/eta is c_0, and c_k = c_{k-1}'/eta + (-1)^k g_k/mu with g_k of Stirling's
    series of the gamma function. c_k ends at j = 13 - 2k: what is left out is below 1e-13 of the tail
    for |eta| < 0.44 and counts from 32 on.
    """
    mu = [Fraction(0), Fraction(1)]
    for n in range(2, _ORDER + 2):
        mu.append((mu[n - 1] - sum(mu[i] * (n + 1 - i) * mu[n + 1 - i] for i in range(2, n))) / (n + 1))
    inverse = [Fraction(1)]  # of mu / eta
    for n in range(1, _ORDER + 1):
        inverse.append(-sum((mu[i + 1] * inverse[n - i] for i in range(1, n + 1)), Fraction(0)))
    log_gamma = {1: Fraction(1, 12), 3: Fraction(-1, 360), 5: Fraction(1, 1260), 7: Fraction(-1, 1680)}
    g = [Fraction(1)]
    for n in range(1, _POLYNOMIALS):
        g.append(sum((k * v * g[n - k] for k, v in log_gamma.items() if k <= n), Fraction(0)) / n)
    rows = [inverse[1:]]
    for k in range(1, _POLYNOMIALS):
        last, sign = rows[-1], (-1) ** k
        rows.append([(j + 2) * last[j + 2] + sign * g[k] * inverse[j + 1] for j in range(len(last) - 2)])
    padded = [[float(v) for v in row] + [0.0] * (_ORDER - len(row)) for row in rows]
    return np.ascontiguousarray(np.array(padded).T)


_TEMME: Final[F8] = _temme_coefficients()
_RECIPROCAL: Final[F8] = np.array([0.0] + [1.0 / k for k in range(1, TERMS + 1)])
floor_of = cast(Callable[[float], float], np.floor)
"""math.floor makes an int of it, which compiled code cannot above 2^63."""

# fmt: off
_STIRLING_ERROR: Final[F8] = np.array([
    0.0, 0.08106146679532726, 0.0413406959554093, 0.02767792568499834, 0.020790672103765093,
    0.016644691189821193, 0.013876128823070748, 0.01189670994589177, 0.010411265261972096,
    0.009255462182712733, 0.00833056343336287, 0.007573675487951841, 0.00694284010720953,
    0.006408994188004207, 0.0059513701128587475, 0.005554733551962801,
])
# fmt: on


@scalar
def stirling_error(count: float) -> float:
    """log(count!) less Stirling's formula, for a count of at least 1."""
    if count < 16.0:
        return float(_STIRLING_ERROR[int(count)])
    x = 1.0 / (count * count)
    series = 1 / 1260 - x * (1 / 1680 - x * (1 / 1188))
    return (1 / 12 - x * (1 / 360 - x * series)) / count


@scalar
def deviance_of(count: float, mean: float, difference: float) -> float:
    """count log(count/mean) - difference without cancellation, count above 0; difference = count - mean.

    At most 26 terms.
    """
    v = difference / (count + mean)
    if abs(v) > 0.5:
        return count * math.log(count / mean) - difference if mean > 0.0 else math.inf
    w = v * v
    total = 0.0
    for j in range(11 if w < NEAR * NEAR else 26, 0, -1):
        total = w * (total + _RECIPROCAL[2 * j + 1])
    return difference * v + 2.0 * count * v * total


@scalar
def _summed(count: float, mean: float) -> tuple[float, float, float]:
    """As ``_split``, for count <= SUMMED and mean <= SUMMED_MEAN."""
    last = int(count)
    at = math.exp(-mean)
    below = 0.0
    for x in range(1, last + 1):
        below += at
        at *= mean * _RECIPROCAL[x]
    return below, at, _upper_of(last, mean, below, at)


@scalar
def _upper_of(count: int, mean: float, below: float, at: float) -> float:
    """P(X >= count): the complement of ``below`` while that is exact enough, else summed upwards."""
    if below < 0.99:
        return 1.0 - below
    term = at
    upper = at
    for x in range(count + 1, TERMS):
        term *= mean * _RECIPROCAL[x]
        upper += term
        if term <= upper * TINY:
            break
    return upper


@scalar
def _temme(count: float, mean: float) -> tuple[float, float, float]:
    """As ``_split``, for count >= 32 and a mean within a factor of 1.5 of it."""
    deviance = deviance_of(count, mean, count - mean)
    eta = math.sqrt(2.0 * deviance / count)
    tail = 0.5 * math.erfc(math.sqrt(deviance))
    if mean < count:
        eta = -eta
    c0 = c1 = c2 = c3 = c4 = c5 = 0.0
    for j in range(_ORDER - 1, -1, -1):
        c0 = c0 * eta + _TEMME[j, 0]
        c1 = c1 * eta + _TEMME[j, 1]
        c2 = c2 * eta + _TEMME[j, 2]
        c3 = c3 * eta + _TEMME[j, 3]
        c4 = c4 * eta + _TEMME[j, 4]
        c5 = c5 * eta + _TEMME[j, 5]
    x = 1.0 / count
    series = c0 + x * (c1 + x * (c2 + x * (c3 + x * (c4 + x * c5))))
    weight = math.exp(-deviance) / math.sqrt(2.0 * math.pi * count)
    error = stirling_error(count)
    at = weight * (1.0 - error * (1.0 - error * (1 / 2 - error * (1 / 6 - error * (1 / 24)))))
    if mean < count:
        upper = tail - weight * series
        return 1.0 - upper, at, upper
    below = tail + weight * series
    return below, at, 1.0 - below


@scalar
def _saddle_point(count: float, mean: float) -> tuple[float, float, float]:
    """As ``_split``, where the terms beyond the count shrink by 1.5 or more."""
    at = math.exp(-mean)
    if count > 0.0:
        exponent = deviance_of(count, mean, count - mean) + stirling_error(count)
        at = math.exp(-exponent) / math.sqrt(2.0 * math.pi * count)
    term = 1.0
    rest = 0.0
    x = count
    if count > mean:
        for _ in range(REST):
            x += 1.0
            term *= mean / x
            rest += term
            if term <= TINY:
                break
        upper = at + at * rest
        return 1.0 - upper, at, upper
    for _ in range(REST):
        term *= x / mean
        x -= 1.0
        rest += term
        if term <= TINY:
            break
    below = at * rest
    return below, at, 1.0 - below


@scalar
def _split(count: float, mean: float) -> tuple[float, float, float]:
    """P(X < count), P(X = count), P(X >= count)."""
    if count < 0.0:
        return 0.0, 0.0, 1.0
    if not mean > 0.0:
        return (0.0, 1.0, 1.0) if count == 0.0 else (1.0, 0.0, 0.0)
    if mean <= SUMMED_MEAN and count <= SUMMED:
        return _summed(count, mean)
    if abs(count - mean) <= NEAR * (count + mean):
        return _temme(count, mean)
    return _saddle_point(count, mean)


@scalar
def lower_tail(count: float, mean: float) -> float:
    """P(X <= count) for X of the Poisson distribution with this mean (0 or less: X is 0)."""
    below, at, _ = _split(count, mean)
    return min(1.0, below + at)


@scalar
def upper_tail(count: float, mean: float) -> float:
    """P(X >= count)."""
    return min(1.0, _split(count, mean)[2])


@scalar
def normal_quantile(alpha: float) -> float:
    """z with 1 - Phi(z) = alpha, for 0 < alpha < 1; to 1e-9 (alpha below 1e-300 as 1e-300).

    Abramowitz and Stegun 26.2.23 (4.5e-4), then one step of Halley's method on log(1 - Phi).
    """
    if alpha == ALPHA:
        return 3.0
    tail = max(1e-300, min(alpha, 1.0 - alpha))
    t = math.sqrt(-2.0 * math.log(tail))
    z = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (
        1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308))
    )
    upper = 0.5 * math.erfc(z * math.sqrt(0.5))
    hazard = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi) / upper
    newton = math.log(upper / tail) / hazard
    z += newton / (1.0 + 0.5 * newton * (hazard - z))
    return z if alpha < 0.5 else -z


@scalar
def _approximate(mean: float, z: float) -> float:
    """x + 1/2 where P(X <= x) = Phi(z), as a continuous function of the mean: Cornish and Fisher, to 1/mean.

    With the variance mean - 1/12 (Sheppard). Off by at most ``_doubt``, for a mean of at least
    SUMMED_MEAN and a usual alpha.
    """
    sigma = math.sqrt(mean)
    square = z * z
    fourth = (square * (3.0 * square + 7.0) - 16.0) / (810.0 * mean)
    return mean + z * sigma + (square - 1.0) / 6.0 - z * (square + 2.0) / (72.0 * sigma) + fourth


@scalar
def _doubt(mean: float) -> float:
    """How near to a whole number ``_approximate`` must come for its rounding up to be in doubt.

    Seen over alpha from 1e-6 to 0.5: at most 9 / mean^1.5, and what z and the float64 lack.
    """
    sigma = math.sqrt(mean)
    return 20.0 / (mean * sigma) + 1e-8 * sigma + 1e-15 * mean


@scalar
def _search(mean: float, alpha: float, side: float, guess: float) -> float:
    """LOWER: min{x: P(X <= x) >= alpha}, UPPER: min{x: P(X > x) <= alpha}; mean at most EXACT_MEAN.

    From the guess by steps that grow fourfold, then by bisection: at most 28 and 56 of them.
    """
    low = -1.0
    high = 4.0 * COUNT_MAX
    step = 1.0
    x = guess
    for _ in range(84):
        if not low < x < high:
            x = floor_of(0.5 * (low + high))
        if high - low <= 1.0:
            break
        below, at, above = _split(x + side, mean)
        if above <= alpha if side == UPPER else below + at >= alpha:
            high = x
            x -= step
        else:
            low = x
            x += step
        step *= 4.0
    return high


@scalar
def _swept(count: float, mean: float, alpha: float) -> tuple[float, float, float, float]:
    """``judged`` by one sum from 0, for 0 < mean <= SUMMED_MEAN, 0 <= count <= SUMMED and a usual alpha."""
    last = int(count)
    enough = 1.0 - alpha
    term = math.exp(-mean)
    total = 0.0
    below = 0.0
    at = 0.0
    low = 0
    high = 0
    for x in range(TERMS):
        if x == last:
            below = total
            at = term
        if total < alpha:
            low = x
        total += term
        if total >= enough:
            high = x
            break
        term *= mean * _RECIPROCAL[x + 1]
    for x in range(high + 1, last + 1):
        below = total
        term *= mean * _RECIPROCAL[x]
        at = term
        total += term
    return float(low), float(high), min(1.0, below + at), min(1.0, _upper_of(last, mean, below, at))


@scalar
def limits(mean: float, alpha: float) -> tuple[float, float]:
    """(low, high): P(X < low) < alpha <= P(X <= low) and P(X > high) <= alpha < P(X >= high).

    ``alpha`` is the probability beyond each. A mean of 0 or less: (0, 0).
    """
    if alpha <= 0.0:
        return 0.0, math.inf
    if alpha >= 1.0:
        return math.inf, 0.0
    if not mean > 0.0:
        return 0.0, 0.0
    usual = USUAL_ALPHA <= alpha < 0.5
    if mean <= SUMMED_MEAN and usual:
        low, high, _, _ = _swept(0.0, mean, alpha)
        return low, high
    low_at = high_at = mean
    doubt = 1.0  # always
    if mean > SUMMED_MEAN:
        z = normal_quantile(alpha)
        low_at = _approximate(mean, -z) - 0.5
        high_at = _approximate(mean, z) - 0.5
        if usual:
            doubt = _doubt(mean)
    low = max(0.0, -floor_of(-low_at))
    high = max(0.0, -floor_of(-high_at))
    if mean > EXACT_MEAN:
        return low, high
    if min(low - low_at, 1.0 - (low - low_at)) < doubt:
        low = _search(mean, alpha, LOWER, low)
    if min(high - high_at, 1.0 - (high - high_at)) < doubt:
        high = _search(mean, alpha, UPPER, high)
    return low, high


@scalar
def judged(count: float, mean: float, alpha: float) -> tuple[float, float, float, float]:
    """(low, high, P(X <= count), P(X >= count)): ``limits`` and both tails at once, at the price of one."""
    if mean > 0.0 and mean <= SUMMED_MEAN and count <= SUMMED and USUAL_ALPHA <= alpha < 0.5:
        return _swept(count, mean, alpha)
    low, high = limits(mean, alpha)
    below, at, upper = _split(count, mean)
    return low, high, min(1.0, below + at), min(1.0, upper)


_f8 = numba.types.Array(numba.float64, 1, "C")


@kernel(numba.void(_f8, _f8, _f8, _f8))
def tails(counts: F8, means: F8, out_lower: F8, out_upper: F8) -> None:
    """P(X <= counts[i]) and P(X >= counts[i]) for X of the Poisson distribution with mean means[i]."""
    for i in range(counts.shape[0]):
        below, at, upper = _split(counts[i], means[i])
        out_lower[i] = min(1.0, below + at)
        out_upper[i] = min(1.0, upper)


@kernel(numba.void(_f8, numba.float64, _f8, _f8))
def quantiles(means: F8, alpha: float, out_low: F8, out_high: F8) -> None:
    """``limits`` of every mean."""
    for i in range(means.shape[0]):
        out_low[i], out_high[i] = limits(means[i], alpha)
