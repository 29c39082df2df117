"""Sums of units are exact, read with one rounding, and forget without a trace."""

from __future__ import annotations

import math
from fractions import Fraction

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.exact import carried_high, carried_low, rounded, units_high, units_low
from kernels.state import UNITS_MAX, UNITS_MIN

units = st.floats(UNITS_MIN, UNITS_MAX)


@settings(max_examples=500, deadline=None)
@given(st.lists(units, max_size=40))
@example([UNITS_MAX] * 1023)
@example([UNITS_MAX * (1 - 2**-53)] * 1023 + [])
@example([1.0, UNITS_MIN])
@example([1.0, 2**-20 * (1 + 2**-52)])
@example([2.0**-9, 2.0**-9, UNITS_MIN * (1 + 2**-52)])
def test_a_sum_is_fsum_and_goes_back_to_zero(values: list[float]) -> None:
    """Added up it is math.fsum; with each dropped again, in any order, both words are zero."""
    high = low = 0
    exact = Fraction(0)
    for value in values:
        total = low + int(units_low(value))
        high, low = int(carried_high(high + int(units_high(value)), total)), int(carried_low(total))
        exact += Fraction(value)
        assert 0 <= low < 2**62
        assert Fraction(high * 2**62 + low, 2**72) == exact
    assert rounded(high, low) == math.fsum(values)
    for value in sorted(values):
        total = low - int(units_low(value))
        high, low = int(carried_high(high - int(units_high(value)), total)), int(carried_low(total))
    assert (high, low) == (0, 0)


@st.composite
def words(draw: st.DrawFn) -> tuple[int, int]:
    """Both words, of every magnitude, with long runs of ones and zeros where rounding is decided."""
    high = draw(st.integers(0, 2**60 - 1)) >> draw(st.integers(0, 60))
    low = draw(st.one_of(st.integers(0, 2**62 - 1), st.sampled_from([0, 1, 2**61, 2**61 - 1, 2**62 - 1])))
    return high, (low >> (shift := draw(st.integers(0, 61)))) << shift


@settings(max_examples=3000, deadline=None)
@given(words())
@example((2, 2**9))
@example((2, 2**10 + 1))
@example((3, 2**9 + 1))
@example((1, 2**62 - 1))
@example((2**53 - 1, 2**61))
@example((2**53, 2**61))
@example((2**53, 2**61 + 1))
@example((2**53 + 1, 1))
@example((2**53 + 1, 2**59))
def test_reading_rounds_once_to_nearest_even(pair: tuple[int, int]) -> None:
    """The float64 is the one that Python's exact division gives."""
    high, low = pair
    assert rounded(high, low) == (high * 2**62 + low) / 2**72
