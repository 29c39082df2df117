"""What the first samples of a chart predict of the next: its count, given the sum with the counts so far.

X ~ Binomial(count + total_count, units / (units + total_units)), whatever the centre line is (Przyborowski
and Wilenski 1940, Biometrika 31). Its tails are incomplete beta functions. Functions of numbers that
kernels call: no allocation, no exception, every loop bounded, never NaN for arguments that are none.
"""

from __future__ import annotations

import math
from typing import Final

from kernels.jit import scalar
from kernels.poisson import LOWER, UPPER, deviance_of, floor_of, normal_quantile, stirling_error
from kernels.state import COUNT_MAX

FRACTION: Final = 2000
"""Steps of the continued fraction of the incomplete beta function; 937 is the most seen up to UNIFORM."""
UNIFORM: Final = 1e6
"""From here on, in both counts, the incomplete beta function is the first term of a uniform expansion."""


@scalar
def _beta_fraction(a: float, b: float, x: float, y: float, less: float) -> float:
    """I_x(a, b) B(a, b) / (x^a y^b) for less = a - (a + b) x >= 0 (Didonato and Morris 1992, TOMS 708).

    The even part of the usual continued fraction, in x, y and ``less``, so that x may be near 1.
    """
    c = 1.0 + less
    first = 1.0 + 1.0 / a
    ratio = first / c
    before_top, before_bottom = 0.0, ratio
    top = ratio  # the newest denominator is kept at 1
    p = 1.0
    s = a + 1.0
    for n in range(1, FRACTION):
        t = n / a
        w = n * (b - n) * x
        e = a / s
        alpha = p * (p + b / a) * e * e * (w * x)
        e = (1.0 + t) / (first + t + t)
        beta = n + w / s + e * (c + n * (1.0 + y))
        p = 1.0 + t
        s += 2.0
        next_top = alpha * before_top + beta * top
        next_bottom = alpha * before_bottom + beta
        before_top, before_bottom = top / next_bottom, 1.0 / next_bottom
        top = next_top / next_bottom
        if abs(top - ratio) <= 3e-16 * top:
            break
        ratio = top
    return top


@scalar
def _distance(a: float, b: float, x: float, y: float) -> float:
    """(a + b) x - a = b - (a + b) y, by the smaller of x and y = 1 - x, which is the exact one."""
    return (a + b) * x - a if x < y else b - (a + b) * y


@scalar
def _binomial_deviance(a: float, b: float, x: float, y: float, distance: float) -> float:
    """Of a and b from what is expected of them: of a its part x of both, which is a + distance."""
    n = a + b
    return deviance_of(a, n * x, -distance) + deviance_of(b, n * y, distance)


@scalar
def _beta_uniform(a: float, b: float, x: float, y: float, distance: float) -> float:
    """I_x(a, b) for large a and b: Temme's uniform expansion, its first term (DLMF 8.18.9)."""
    n = a + b
    deviance = _binomial_deviance(a, b, x, y, distance)
    sigma = math.sqrt(a * (b / n))
    z = math.sqrt(2.0 * deviance)
    tail = 0.5 * math.erfc(math.sqrt(deviance))
    above = distance > 0.0
    if z < 0.05:
        correction = (b - a) / (3.0 * n * sigma)
    else:
        correction = (1.0 / z if above else -1.0 / z) - sigma / distance
    rest = correction * math.exp(-deviance) / math.sqrt(2.0 * math.pi)
    return 1.0 - tail + rest if above else tail + rest


@scalar
def _incomplete_beta(a: float, b: float, x: float, y: float) -> float:
    """I_x(a, b) with y = 1 - x, for whole a, b >= 1: relative error below 1e-11, from ``UNIFORM`` on 1e-8."""
    distance = _distance(a, b, x, y)
    if min(a, b) > UNIFORM:
        return min(1.0, max(0.0, _beta_uniform(a, b, x, y, distance)))
    complement = distance > 0.0
    if complement:
        a, b = b, a
        x, y = y, x
        distance = -distance
    n = a + b
    exponent = _binomial_deviance(a, b, x, y, distance)
    exponent += stirling_error(a) + stirling_error(b) - stirling_error(n)
    factor = math.exp(-exponent) * math.sqrt(a / (2.0 * math.pi) * (b / n))
    value = factor * _beta_fraction(a, b, x, y, -distance)
    return max(0.0, 1.0 - value) if complement else min(1.0, value)


@scalar
def _given_sum(count: float, total_count: float, share: float, rest: float, side: float) -> float:
    """UPPER: P(X >= count), LOWER: P(X <= count), X ~ Binomial(count + total_count, share = 1 - rest)."""
    if side == UPPER:
        return 1.0 if count <= 0.0 else _incomplete_beta(count, total_count + 1.0, share, rest)
    return 1.0 if total_count <= 0.0 else _incomplete_beta(total_count, count + 1.0, rest, share)


@scalar
def _first(total_count: float, share: float, rest: float, alpha: float, side: float, guess: float) -> float:
    """The first count from 0 whose P(X <= count) is above alpha; UPPER: whose P(X >= count) is not.

    From the guess by steps that grow fourfold, then by bisection: at most 28 and 56 of them. Above
    COUNT_MAX if there is none up to that.
    """
    low = -1.0
    high = 4.0 * COUNT_MAX
    step = 1.0
    at = guess
    for _ in range(84):
        if not low < at < high:
            at = floor_of(0.5 * (low + high))
        if high - low <= 1.0 or low >= COUNT_MAX:
            break
        if (_given_sum(at, total_count, share, rest, side) > alpha) == (side == UPPER):
            low = at
            at += step
        else:
            high = at
            at -= step
        step *= 4.0
    return high


@scalar
def prediction(
    count: float, units: float, total_count: float, total_units: float, alpha: float
) -> tuple[float, float, float, float]:
    """(low, high, P(X <= count), P(X >= count)) of the next count, from samples that sum to the totals.

    X ~ Binomial(count + total_count, units / (units + total_units)), exact for any centre line
    (Przyborowski and Wilenski 1940). low = the smallest c with P(X <= c | c + total_count) > alpha, high =
    the largest with P(X >= c | c + total_count) > alpha; both at most COUNT_MAX. Where count and
    total_count are both above ``UNIFORM`` the tails have a relative error below 1e-8, else below 1e-11.
    Without any units before: (0, COUNT_MAX, 1, 1).
    """
    if not total_units > 0.0:
        return 0.0, float(COUNT_MAX), 1.0, 1.0
    share = units / (units + total_units)
    rest = total_units / (units + total_units)
    odds = units / total_units
    z = normal_quantile(min(0.5, max(alpha, 1e-300)))
    skew = (1.0 + 2.0 * odds) * (z * z - 1.0) / 6.0
    centre = total_count * odds + skew  # of the negative binomial distribution that c follows
    reach = z * math.sqrt(total_count * odds * (1.0 + odds))
    most = 2.0 * COUNT_MAX
    low = _first(total_count, share, rest, alpha, LOWER, min(most, max(0.0, floor_of(centre - reach))))
    reach = z * math.sqrt((total_count + 1.0) * odds * (1.0 + odds))
    high = _first(total_count, share, rest, alpha, UPPER, min(most, floor_of(centre + reach) + 1.0))
    p_lower = _given_sum(count, total_count, share, rest, LOWER)
    p_upper = _given_sum(count, total_count, share, rest, UPPER)
    return min(low, float(COUNT_MAX)), min(max(0.0, high - 1.0), float(COUNT_MAX)), p_lower, p_upper
