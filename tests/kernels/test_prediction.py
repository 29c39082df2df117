"""What the first samples of a chart predict of the next is exact."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from kernels.prediction import prediction
from kernels.state import ALPHA, COUNT_MAX, UNITS_MAX, UNITS_MIN
from tests.kernels.streams import EXAMPLES
from tests.kernels.test_poisson import assert_close, log_factorial


def exact_prediction(
    count: int, units: float, total_count: int, total_units: float
) -> tuple[Fraction, Fraction]:
    """Both tails of the binomial distribution, in rationals."""
    share = Fraction(units) / (Fraction(units) + Fraction(total_units))
    trials = count + total_count
    terms = [math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(count + 1)]
    return sum(terms, Fraction(0)), 1 - sum(terms[:-1], Fraction(0))


def as_decimal(value: Fraction) -> Decimal:
    """Rounded to 28 digits."""
    return Decimal(value.numerator) / Decimal(value.denominator)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(1, 64).map(lambda k: k / 8),
    st.integers(0, 60),
    st.integers(1, 512).map(lambda k: k / 8),
    st.sampled_from([ALPHA, 0.025, 1e-6]),
)
@example(0, 1.0, 0, 1.0, ALPHA)
@example(5, 1.0, 0, 1.0, ALPHA)
def test_predictions_are_exact(
    count: int, units: float, total_count: int, total_units: float, alpha: float
) -> None:
    """Both tails to 1e-11; the limits are the last counts that alpha does not rule out."""
    low, high, p_lower, p_upper = prediction(float(count), units, float(total_count), total_units, alpha)
    lower, upper = exact_prediction(count, units, total_count, total_units)
    assert_close(p_lower, as_decimal(lower), 1e-11)
    assert_close(p_upper, as_decimal(upper), 1e-11)

    def tail_at(c: float, side: int) -> Fraction:
        return exact_prediction(int(c), units, total_count, total_units)[side]

    assume(high < 400)
    assert tail_at(high, 1) > alpha
    assert tail_at(high + 1, 1) <= alpha
    assert tail_at(low, 0) > alpha
    assert low == 0 or tail_at(low - 1, 0) <= alpha


def summed_prediction(count: int, units: float, total_count: int, total_units: float) -> Decimal:
    """P(X <= count), summed downwards term by term with 50 digits."""
    with localcontext() as context:
        context.prec = 50
        odds = Decimal(units) / Decimal(total_units)
        trials = count + total_count
        chosen = log_factorial(trials) - log_factorial(count) - log_factorial(total_count)
        term = (chosen + count * odds.ln() - trials * (1 + odds).ln()).exp()
        total, x = term, count
        while x > 0 and term > total * Decimal("1e-25"):
            term = term * x / (trials - x + 1) / odds
            total += term
            x -= 1
        return total


MOST = COUNT_MAX - 1


@pytest.mark.parametrize(
    ("count", "units", "total_count", "total_units"),
    [
        (64_769, 8.0, MOST, 2.0**40),
        (8, 2.0**-20, 2**40, 2.0**40),
        (0, 1.1e12, 3, 1.0),
        (2, 2.0**40, 5, 2.0**-20),
        (900_000, 3.0, 1_000_000, 2.0),
        (1_003_000, 1.0, 1_000_000, 1.0),
        (9_000_000, 0.01, 900_500_000, 1.0),
    ],
)
def test_predictions_at_odd_ratios_are_exact(
    count: int, units: float, total_count: int, total_units: float
) -> None:
    """Units and counts that differ by up to 2^60: both tails to 1e-11, or 1e-8 from a million on."""
    _, _, p_lower, p_upper = prediction(float(count), units, float(total_count), total_units, ALPHA)
    tolerance = 1e-11 if min(count, total_count) < 1e6 else 1e-8
    assert_close(p_lower, summed_prediction(count, units, total_count, total_units), tolerance)
    # At least so many of the new is at most so many of the old.
    assert_close(p_upper, summed_prediction(total_count, total_units, count, units), tolerance)


def test_the_limits_after_the_largest_count_are_exact() -> None:
    """The sum of the counts has more digits than a float64 there."""
    low, high, _, _ = prediction(0.0, 8.0, float(MOST), 2.0**40, ALPHA)
    alpha = Decimal(ALPHA)
    assert summed_prediction(int(low) - 1, 8.0, MOST, 2.0**40) <= alpha
    assert summed_prediction(int(low), 8.0, MOST, 2.0**40) > alpha
    assert summed_prediction(MOST, 2.0**40, int(high), 8.0) > alpha
    assert summed_prediction(MOST, 2.0**40, int(high) + 1, 8.0) <= alpha


@pytest.mark.parametrize("odds", [1e-6, 0.01, 1.0, 7.0, 1e3, 1e6, 1e12])
@pytest.mark.parametrize("alpha", [ALPHA, 1e-6])
def test_predictions_after_no_count_at_all_are_powers_of_the_share(odds: float, alpha: float) -> None:
    """P(X >= c | c) = share^c, even where that takes the search far from its guess."""
    low, high, p_lower, p_upper = prediction(3.0, odds, 0.0, 1.0, alpha)
    log_share = -math.log1p(1 / odds)
    assert (low, p_lower) == (0.0, 1.0)
    assert p_upper == pytest.approx(math.exp(3 * log_share), rel=1e-11)
    assert high == pytest.approx(math.ceil(math.log(alpha) / log_share) - 1, rel=1e-11)


def test_predictions_from_large_totals_agree_with_scipy() -> None:
    """Sums of 1e4 to 1e9, by the continued fraction and by the expansion: tails to 1e-7."""
    rng = np.random.default_rng(4)
    for _ in range(2 * EXAMPLES):
        total_count = float(round(10 ** rng.uniform(4, 9)))
        units, total_units = 10 ** rng.uniform(-2, 0.5), 10 ** rng.uniform(0, 2)
        expected = total_count * units / total_units
        spread = math.sqrt(expected * (1 + units / total_units))
        count = float(max(0, round(expected + rng.uniform(-4, 4) * spread)))
        low, high, p_lower, p_upper = prediction(count, units, total_count, total_units, ALPHA)
        share = units / (units + total_units)
        assert p_lower == pytest.approx(stats.binom.cdf(count, count + total_count, share), rel=1e-7)
        assert p_upper == pytest.approx(stats.binom.sf(count - 1, count + total_count, share), rel=1e-7)
        assert stats.binom.sf(high - 1, high + total_count, share) > ALPHA * (1 - 1e-7)
        assert stats.binom.sf(high, high + 1 + total_count, share) <= ALPHA * (1 + 1e-7)
        assert stats.binom.cdf(low, low + total_count, share) > ALPHA * (1 - 1e-7)
        assert low == 0 or stats.binom.cdf(low - 1, low - 1 + total_count, share) <= ALPHA * (1 + 1e-7)


@settings(max_examples=3 * EXAMPLES, deadline=None)
@given(
    st.one_of(st.integers(0, 9), st.integers(0, COUNT_MAX)),
    st.one_of(st.floats(UNITS_MIN, UNITS_MAX), st.sampled_from([UNITS_MIN, 1.0, UNITS_MAX])),
    st.one_of(st.integers(0, 9), st.integers(0, 1023 * COUNT_MAX)),
    st.one_of(
        st.floats(UNITS_MIN, 1023 * UNITS_MAX), st.sampled_from([0.0, UNITS_MIN, 1.0, 1023 * UNITS_MAX])
    ),
    st.sampled_from([ALPHA, 0.025, 1e-6, 0.0, 1.0]),
)
@example(0, UNITS_MAX, 0, UNITS_MIN, ALPHA)
@example(COUNT_MAX, UNITS_MIN, 1023 * COUNT_MAX, 1023 * UNITS_MAX, ALPHA)
def test_a_prediction_is_never_nan(
    count: int, units: float, total_count: int, total_units: float, alpha: float
) -> None:
    """Whatever the counts and units, within the wire's bounds."""
    low, high, p_lower, p_upper = prediction(float(count), units, float(total_count), total_units, alpha)
    assert 0.0 <= low <= COUNT_MAX
    assert 0.0 <= high <= COUNT_MAX
    assert 0.0 <= p_lower <= 1.0
    assert 0.0 <= p_upper <= 1.0
    if 0.0 < alpha < 0.5 and total_units > 0.0:
        assert low <= high
