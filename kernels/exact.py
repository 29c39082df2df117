"""Sums that forget without a trace: adding a sample and dropping it again restores every bit.

Units are summed in fixed point, in two 64-bit words of a signed kind (numba turns a mix of signed and
unsigned into float64)::

    sum of units = (high * 2^62 + low) * 2^-72,   0 <= low < 2^62

A float64 of at least 2^-20 has no bit below 2^-72, so each is exact; 1023 of at most 2^40 keep
``high`` below 2^60. Reading the sum rounds once, to nearest and ties to even, as ``math.fsum`` does.
"""

from __future__ import annotations

from kernels.jit import device, signed

LOW_BITS = 62
LOW_MASK = (1 << LOW_BITS) - 1
HIGH_SCALE = 2.0**10
LOW_SCALE = 2.0**LOW_BITS
LAST_BIT = 2.0**-72


@device
def units_high(units: float) -> int:
    """High word of one sample's units."""
    return signed(units * HIGH_SCALE)


@device
def units_low(units: float) -> int:
    """Low word of one sample's units; exact, for the difference and the scaling round nothing."""
    scaled = units * HIGH_SCALE
    return signed((scaled - float(signed(scaled))) * LOW_SCALE)


@device
def carried_high(high: int, low: int) -> int:
    """High word after an addition or a subtraction left ``low`` outside [0, 2^62)."""
    return high + (low >> LOW_BITS)


@device
def carried_low(low: int) -> int:
    """Low word likewise."""
    return low & LOW_MASK


@device
def rounded(high: int, low: int) -> float:
    """The sum as a float64, rounded once.

    Three ranges, each of which leaves the sticky bit at least two places below the last kept one.
    """
    if high < 2:  # all in one word
        return float((high << LOW_BITS) | low) * LAST_BIT
    if high < (1 << 53):  # high is exact; the low word with a sticky bit has 53 bits; one rounding
        odd = low >> 9
        if low & 511:
            odd |= 1
        return (float(high) * 2.0**53 + float(odd)) * (LAST_BIT * 2.0**9)
    odd = (high << 2) | (low >> 60)
    if low & ((1 << 60) - 1):
        odd |= 1
    return float(odd) * (LAST_BIT * 2.0**60)
