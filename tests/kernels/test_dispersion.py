"""A chart is marked where its counts scatter otherwise than Poisson's, and hardly ever where they do not."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import special, stats

from kernels.dispersion import (
    NONE,
    OVERDISPERSED,
    RANGE_PER_SIGMA,
    UNDERDISPERSED,
    expected_sigma_z,
    mark,
    scatter,
)
from tests.kernels.streams import EXAMPLES

LOOKS = 30 * EXAMPLES
MEANS = [0.05, 0.25, 1.0, 5.0, 30.0, 1000.0]


def sigma_z_and_mean(
    counts: npt.NDArray[np.float64], units: npt.NDArray[np.float64], centre: float | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """sigma_z and mean count of each row, with its own centre line or the one given."""
    centres = np.full(len(counts), centre) if centre else counts.sum(axis=1) / units.sum(axis=1)
    sigma = np.sqrt(np.maximum(centres, 1e-9)[:, None] / units)
    z = (counts / units - centres[:, None]) / sigma
    return np.abs(np.diff(z, axis=1)).mean(axis=1) / RANGE_PER_SIGMA, centres * units.mean(axis=1)


def marks(
    rng: np.random.Generator, mean: float, samples: int, spread: float, given: bool, ratio: float = 1.0
) -> list[int]:
    """Marks of LOOKS charts; ``ratio``: variance of the counts over Poisson's (negative binomial)."""
    units = 1 + spread * rng.uniform(-1, 1, (LOOKS, samples))
    rates = mean * units if ratio == 1.0 else rng.gamma(mean * units / (ratio - 1), ratio - 1)
    counts = rng.poisson(rates).astype(np.float64)
    sigma_z, means = sigma_z_and_mean(counts, units, mean if given else None)
    return [mark(float(s), float(m), samples) for s, m in zip(sigma_z, means, strict=True)]


@pytest.mark.parametrize("mean", [1e-9, 0.01, 0.05, 0.25, 1.0, 3.0, 7.99, 8.01, 20.0, 1e3, 1e6])
def test_the_expected_sigma_z_is_skellams_mean_deviation(mean: float) -> None:
    """By SciPy's Bessel functions."""
    exact = 2 * math.sqrt(mean) * (special.ive(0, 2 * mean) + special.ive(1, 2 * mean)) / 1.128
    assert expected_sigma_z(mean) == pytest.approx(exact, rel=1e-11)


def test_the_expected_sigma_z_has_the_right_ends() -> None:
    """0 where nothing is counted, 2 / sqrt(pi) / 1.128 for large means."""
    assert expected_sigma_z(0.0) == 0.0
    assert expected_sigma_z(1e-300) == pytest.approx(2e-150 / 1.128)
    for mean in (1e14, 1e16, 2.0**113):
        assert expected_sigma_z(mean) == pytest.approx(2 / math.sqrt(math.pi) / 1.128, rel=1e-12)


@pytest.mark.parametrize("mean", [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 20.0, 1000.0])
def test_the_standard_error_is_the_exact_one_to_a_percent(mean: float) -> None:
    """(Var|X - Y| + 2 Cov(|X - Y|, |Y - Z|)) / E|X - Y|^2, summed over the distribution."""
    y = np.arange(int(mean + 15 * math.sqrt(mean) + 30))
    probability = stats.poisson.pmf(y, mean)
    from_y = mean - y + 2 * (y * stats.poisson.cdf(y, mean) - mean * stats.poisson.cdf(y - 1, mean))
    expected = float(probability @ from_y)
    exact = (2 * mean - expected**2 + 2 * (probability @ from_y**2 - expected**2)) / expected**2
    assert scatter(mean) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize("samples", [20, 100])
def test_poisson_counts_are_marked_once_in_a_thousand_looks(samples: int, spread: float, given: bool) -> None:
    """At most 1.1 per 1000 at each mean (see the table), with 4 sigma of the binomial distribution on top."""
    rng = np.random.default_rng(samples)
    for mean in MEANS:
        marked = sum(m != NONE for m in marks(rng, mean, samples, spread, given))
        expected = 0.0011 * LOOKS
        assert marked <= expected + 4 * math.sqrt(expected) + 1, (mean, marked)


def test_overdispersed_counts_are_marked() -> None:
    """Three times Poisson's variance at 100 samples, twice at 200: in more than 95 of 100 looks."""
    rng = np.random.default_rng(5)
    for samples, ratio in ((100, 3.0), (200, 2.0), (500, 2.0)):
        found = marks(rng, 10.0, samples, 0.5, False, ratio)
        assert found.count(OVERDISPERSED) > 0.95 * LOOKS, (samples, ratio)
        assert found.count(UNDERDISPERSED) == 0


def test_underdispersed_counts_are_marked() -> None:
    """Binomial counts with a quarter of Poisson's variance, mean 10, 100 samples."""
    rng = np.random.default_rng(6)
    counts = rng.binomial(13, 0.75, (LOOKS, 100)).astype(np.float64)
    sigma_z, means = sigma_z_and_mean(counts, np.ones_like(counts))
    found = [mark(float(s), float(m), 100) for s, m in zip(sigma_z, means, strict=True)]
    assert found.count(UNDERDISPERSED) > 0.95 * LOOKS


@pytest.mark.parametrize("samples", [20, 200, 1023])
def test_zeros_are_not_marked(samples: int) -> None:
    """All counts 0: with a centre line of 0, and with a given one, units equal or not."""
    rng = np.random.default_rng(7)
    assert mark(1.0, 0.0, samples) == NONE
    for mean in (0.01, 0.2, 0.9, 5.0):
        assert mark(0.0, mean, samples) == NONE
    for mean in (0.01, 0.2, 0.9):
        units = 1 + rng.uniform(-0.5, 0.5, (1, samples))
        sigma_z, means = sigma_z_and_mean(np.zeros((1, samples)), units, mean)
        assert mark(float(sigma_z[0]), min(0.99, float(means[0])), samples) == NONE


def test_fewer_than_twenty_samples_are_not_marked() -> None:
    """However they scatter."""
    assert mark(100.0, 10.0, 19) == NONE
    assert mark(100.0, 10.0, 20) == OVERDISPERSED


@settings(max_examples=3 * EXAMPLES, deadline=None)
@given(st.floats(0, 1e300), st.floats(0, 2.0**113), st.integers(0, 1023))
@example(1.0, 5e-324, 1023)
@example(math.inf, 1e-300, 20)
def test_a_mark_is_always_one_of_three(sigma_z: float, mean: float, samples: int) -> None:
    """Whatever the arguments."""
    assert mark(sigma_z, mean, samples) in (NONE, OVERDISPERSED, UNDERDISPERSED)
    assert 0.0 <= expected_sigma_z(mean) < 1.001
