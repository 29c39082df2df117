"""Tails and limits of the Poisson distribution are exact."""

from __future__ import annotations

import json
import math
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import special, stats

from kernels import poisson
from kernels.poisson import judged, limits, lower_tail, quantiles, tails, upper_tail
from kernels.state import ALPHA, COUNT_MAX
from tests.kernels.streams import EXAMPLES

FOLDER = Path(__file__).parent.parent / "reference"
SETS = {
    path.stem: content
    for path in sorted(FOLDER.glob("*.json"))
    if "p_upper" in (content := json.loads(path.read_text()))
}
SMALLEST = Decimal("1e-300")
ALPHAS = st.sampled_from([ALPHA, 0.025, 0.1, 0.4, 1e-4, 1e-6, 1e-7])


@cache
def log_factorial(count: int) -> Decimal:
    """To 40 digits: exact, or by Stirling's series where that is."""
    if count < 1000:
        return Decimal(math.factorial(count)).ln()
    x, pi = Decimal(count), Decimal("3.14159265358979323846264338327950288419716939937510582")
    terms = (Fraction(1, 12), Fraction(-1, 360), Fraction(1, 1260), Fraction(-1, 1680), Fraction(1, 1188))
    series = sum(Decimal(b.numerator) / b.denominator / x ** (2 * i + 1) for i, b in enumerate(terms))
    return (x + Decimal("0.5")) * x.ln() - x + (2 * pi).ln() / 2 + series


def exact_tails(count: int, mean: float) -> tuple[Decimal, Decimal]:
    """P(X <= count) and P(X >= count), the smaller one summed term by term."""
    with localcontext() as context:
        context.prec = 50
        m = Decimal(mean)
        at = (count * m.ln() - m - log_factorial(count)).exp()
        term, total, x = at, at, count
        while term > total * Decimal("1e-25") and x >= 0:
            x += 1 if count > mean else -1
            term = term * m / x if count > mean else term * (x + 1) / m
            total += term
        return (1 - total + at, total) if count > mean else (total, 1 - total + at)


def assert_close(value: float, exact: Decimal, tolerance: float) -> None:
    """Relative error, of probabilities above 1e-300."""
    assert 0.0 <= value <= 1.0
    if exact > SMALLEST:
        assert abs(Decimal(value) - exact) <= Decimal(tolerance) * exact, (value, exact)
    else:
        assert value < 2e-300


@st.composite
def counts_and_means(draw: st.DrawFn) -> tuple[int, float]:
    """Means from 1e-12 to 3000; counts near and far."""
    mean = 10.0 ** draw(st.floats(-12, 3.5))
    if draw(st.booleans()):
        return draw(st.integers(0, 400)), mean
    return max(0, round(mean + draw(st.floats(-38, 38)) * math.sqrt(mean))), mean


@settings(max_examples=5 * EXAMPLES, deadline=None)
@given(counts_and_means())
@example((160, 48.0))
@example((161, 48.0))
@example((160, math.nextafter(48.0, 49.0)))
@example((32, 48.00001))
@example((31, 48.00001))
@example((72, 48.00001))
@example((0, 690.0))
@example((15, 700.0))
@example((16, 700.0))
def test_both_tails_are_exact(pair: tuple[int, float]) -> None:
    """Relative error below 1e-12, deep tails included, where every method begins and ends."""
    count, mean = pair
    lower, upper = exact_tails(count, mean)
    assert_close(lower_tail(float(count), mean), lower, 1e-12)
    assert_close(upper_tail(float(count), mean), upper, 1e-12)


@pytest.mark.parametrize("mean", [1e5, 12345678.9])
@pytest.mark.parametrize("z", [-30.0, -3.0, -0.7, 0.0, 1.5, 3.0, 12.0, 35.0])
def test_both_tails_of_a_large_mean_are_exact(mean: float, z: float) -> None:
    """Term by term still, over 100,000 terms."""
    count = round(mean + z * math.sqrt(mean))
    lower, upper = exact_tails(count, mean)
    assert_close(lower_tail(float(count), mean), lower, 1e-12)
    assert_close(upper_tail(float(count), mean), upper, 1e-12)


@pytest.mark.parametrize("mean", [2.0**40, 2.0**50, 2.0**52])
@pytest.mark.parametrize("z", [-8.0, -3.0, 0.0, 0.5, 3.0, 8.0])
def test_the_tails_of_a_huge_mean_are_those_of_the_normal_distribution(mean: float, z: float) -> None:
    """With Edgeworth's first correction, which is all that is left of the difference."""
    count = round(mean + z * math.sqrt(mean))
    x = (count - mean) / math.sqrt(mean)
    density = stats.norm.pdf(x) / math.sqrt(mean)
    below = stats.norm.cdf(x) - density * (x * x - 1) / 6  # at the count itself: half of it is below
    above = stats.norm.sf(x) + density * (x * x - 1) / 6
    assert lower_tail(float(count), mean) == pytest.approx(below + density / 2, rel=1e-8)
    assert upper_tail(float(count), mean) == pytest.approx(above + density / 2, rel=1e-8)


def random_means(seed: int, low: float, high: float, n: int) -> npt.NDArray[np.float64]:
    """Evenly spread over the logarithm."""
    return 10.0 ** np.random.default_rng(seed).uniform(low, high, n)


def test_tails_over_arrays_agree_with_scipy() -> None:
    """Means from 1e-6 to 10,000, where SciPy is right itself."""
    n = 200 * EXAMPLES
    means = random_means(1, -6, 4, n)
    z = np.random.default_rng(2).uniform(-20, 20, n)
    counts = np.maximum(0.0, np.round(means + z * np.sqrt(means)))
    lower, upper = np.empty(n), np.empty(n)
    tails(counts, means, lower, upper)
    assert lower == pytest.approx(special.gammaincc(counts + 1, means), rel=1e-9, abs=1e-300)
    expected = np.where(counts > 0, special.gammainc(np.maximum(counts, 1), means), 1.0)
    assert upper == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("alpha", [ALPHA, 0.025, 0.2, 1e-4, 1e-6])
def test_limits_are_the_quantiles_of_scipy(alpha: float) -> None:
    """Means from 0.01 to 10,000: ppf(alpha) and isf(alpha), exactly."""
    n = 20 * EXAMPLES
    means = random_means(3, -2, 4, n)
    low, high = np.empty(n), np.empty(n)
    quantiles(means, alpha, low, high)
    assert low.tolist() == stats.poisson.ppf(alpha, means).tolist()
    assert high.tolist() == stats.poisson.isf(alpha, means).tolist()


@settings(max_examples=5 * EXAMPLES, deadline=None)
@given(st.floats(-12, math.log10(poisson.EXACT_MEAN)), ALPHAS)
def test_limits_are_where_the_tails_pass_alpha(exponent: float, alpha: float) -> None:
    """P(X < low) < alpha <= P(X <= low), P(X > high) <= alpha < P(X >= high), at every mean."""
    mean = 10.0**exponent
    low, high = limits(mean, alpha)
    assert low == int(low)
    assert high == int(high)
    slack = 1e-12 * alpha + 4e-15  # a tie may go either way
    assert lower_tail(low - 1.0, mean) <= alpha + slack
    assert lower_tail(low, mean) >= alpha - slack
    assert upper_tail(high + 1.0, mean) <= alpha + slack
    assert upper_tail(high, mean) >= alpha - slack


@pytest.mark.parametrize("alpha", [ALPHA, 1e-6, 0.3])
def test_limits_are_not_in_doubt_where_they_are_not_checked(alpha: float) -> None:
    """At means that put a quantile's crossing within ``_doubt`` of a whole number, and just outside of it."""
    for x in [40.0, 49.0, 60.0, 100.0, 1000.0, 1e5, 1e7]:
        for crossing in (special.gammainccinv(x + 1, alpha), special.gammaincinv(x + 1, alpha)):
            if crossing <= poisson.SUMMED_MEAN:
                continue
            for part in (-1.1, -1.0, -0.5, -1e-3, 1e-3, 0.5, 1.0, 1.1):
                mean = crossing + part * poisson._doubt(crossing)
                low, high = limits(mean, alpha)
                assert lower_tail(low - 1.0, mean) < alpha <= lower_tail(low, mean)
                assert upper_tail(high + 1.0, mean) <= alpha < upper_tail(high, mean)


@settings(max_examples=5 * EXAMPLES, deadline=None)
@given(counts_and_means(), ALPHAS)
def test_judged_is_limits_and_tails_at_once(pair: tuple[int, float], alpha: float) -> None:
    """The fast path gives what the slow one gives."""
    count, mean = float(pair[0]), pair[1]
    low, high, p_lower, p_upper = judged(count, mean, alpha)
    assert (low, high) == limits(mean, alpha)
    assert p_lower == lower_tail(count, mean)
    assert p_upper == upper_tail(count, mean)


@pytest.mark.parametrize("name", SETS)
def test_published_data_sets_have_the_published_probabilities_and_limits(name: str) -> None:
    """p-values to 1e-9, qcc's probability limits exactly."""
    published: dict[str, Any] = SETS[name]
    conf = published["poisson_limits"]["conf"]
    for i, (count, units) in enumerate(zip(published["counts"], published["sizes"], strict=True)):
        mean = published["ubar"] * units
        low, high, p_lower, p_upper = judged(count, mean, (1 - conf) / 2)
        assert p_lower == pytest.approx(published["p_lower"][i], rel=1e-9)
        assert p_upper == pytest.approx(published["p_upper"][i], rel=1e-9)
        assert low / units == pytest.approx(published["poisson_limits"]["lcl"][i], rel=1e-13)
        assert high / units == pytest.approx(published["poisson_limits"]["ucl"][i], rel=1e-13)


def test_fourteen_data_sets_have_probabilities() -> None:
    """All of them are compared."""
    assert len(SETS) == 14


@settings(max_examples=20 * EXAMPLES, deadline=None)
@given(
    st.one_of(
        st.sampled_from([-1.0, 0.0, 1.0, 160.0, 161.0, float(COUNT_MAX)]), st.floats(0, COUNT_MAX).map(round)
    ),
    st.floats(0.0, 2.0**113),
    st.one_of(ALPHAS, st.floats(0.0, 1.0), st.sampled_from([1e-320, 1 - 2**-53])),
)
@example(float(COUNT_MAX), float(COUNT_MAX), ALPHA)
@example(0.0, 5e-324, 5e-324)
@example(3.0, 2.0**113, 0.0)
def test_nothing_is_ever_nan(count: float, mean: float, alpha: float) -> None:
    """Whatever the count, the mean and alpha."""
    low, high, p_lower, p_upper = judged(float(count), mean, alpha)
    assert low >= 0.0
    assert high >= 0.0
    assert 0.0 <= p_lower <= 1.0
    assert 0.0 <= p_upper <= 1.0
    assert p_lower + p_upper >= 1.0 - 1e-12
    if alpha < 0.5:
        assert low <= high


def test_a_mean_of_zero_has_no_other_count_than_zero() -> None:
    """P(X = 0) = 1; both limits are 0."""
    assert judged(0.0, 0.0, ALPHA) == (0.0, 0.0, 1.0, 1.0)
    assert judged(2.0, 0.0, ALPHA) == (0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize("alpha", [ALPHA, 1e-6, 0.3])
def test_limits_of_small_means_change_where_a_tail_passes_alpha(alpha: float) -> None:
    """A billionth below and above the mean at which that happens, by SciPy's inverse of the tails."""
    for x in range(1, 60):
        at_low, at_high = special.gammainccinv(x, alpha), special.gammaincinv(x + 1, alpha)
        assert limits(at_low * (1 - 1e-9), alpha)[0] == x - 1
        assert limits(at_low * (1 + 1e-9), alpha)[0] == x
        assert limits(at_high * (1 - 1e-9), alpha)[1] == x
        assert limits(at_high * (1 + 1e-9), alpha)[1] == x + 1


@pytest.mark.parametrize("alpha", [0.4999, 0.25, ALPHA, 1e-6, 1e-50, 1e-299])
def test_the_normal_quantile_is_right_to_1e_9(alpha: float) -> None:
    """SciPy's, on both sides."""
    assert poisson.normal_quantile(alpha) == pytest.approx(stats.norm.isf(alpha), abs=1e-9)
    other = max(1e-6, alpha)
    assert poisson.normal_quantile(1 - other) == pytest.approx(stats.norm.isf(1 - other), abs=1e-9)
