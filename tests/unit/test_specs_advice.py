"""Which limits a chart's history advises, and the entry that would put them into force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from runtime.cli.advise import entries
from runtime.specs import Baseline, ChartSpec, Limits, Specs, Start
from runtime.specs_advice import (
    OVERDISPERSED,
    SAMPLES_MIN,
    UNDERDISPERSED,
    Advice,
    History,
    advice,
    entry,
    sigma_z,
)
from runtime.specs_text import parse, to_yaml


def mark(scatter: float, expected: float, samples: int) -> int:
    """A plain test for the scatter; the real one is the kernels'."""
    assert expected > 0
    assert samples >= SAMPLES_MIN
    return OVERDISPERSED if scatter > 1.3 else UNDERDISPERSED if scatter < 0.7 else 0


def history(counts: list[float], units: float = 1.0, *, stage: int = 1) -> History:
    made = History()
    for count in counts:
        made.add(stage, count, units, flags=0)
    return made


def poisson(mean: float, samples: int = 200, *, spread: float = 0.0) -> list[float]:
    """Counts whose expected value has a variation coefficient of *spread* besides."""
    random = np.random.default_rng(20_250_301)
    means = mean * random.gamma(1 / spread**2, spread**2, samples) if spread else np.full(samples, mean)
    return [float(count) for count in random.poisson(means)]


def advised(counts: list[float], spec: ChartSpec | None = None, units: float = 1.0) -> Advice:
    return advice("ETCH-1", "p", history(counts, units), spec or ChartSpec(), mark)


def test_sigma_z_is_the_mean_moving_range_of_z_over_d2() -> None:
    counts, units = [4.0, 9.0, 1.0, 6.0], [1.0, 2.0, 1.0, 2.0]
    centre = 20 / 6
    z = [(c / n - centre) / math.sqrt(centre / n) for c, n in zip(counts, units, strict=True)]
    ranges = [abs(after - before) for before, after in itertools.pairwise(z)]
    assert sigma_z(np.array(counts), np.array(units)) == pytest.approx(sum(ranges) / 3 / 1.128, rel=1e-12)


@pytest.mark.parametrize("counts", [[], [3.0], [0.0] * 30])
def test_where_there_is_nothing_to_measure_sigma_z_is_1(counts: list[float]) -> None:
    assert sigma_z(np.array(counts), np.ones(len(counts))) == 1.0


@pytest.mark.parametrize(
    ("counts", "limits"),
    [
        (poisson(3), Limits.EXACT),
        (poisson(100), Limits.THREE_SIGMA),
        (poisson(100, spread=0.3), Limits.LANEY),
        (poisson(8, spread=1.0), Limits.LANEY),
        ([0.0] * 40, Limits.EXACT),
        ([50.0] * 40, Limits.THREE_SIGMA),
    ],
)
def test_the_expected_count_and_the_scatter_decide_about_the_limits(
    counts: list[float], limits: Limits
) -> None:
    found = advised(counts)
    assert found.advised is limits
    assert found.is_change == (limits is not Limits.THREE_SIGMA)
    assert found.expected_count == pytest.approx(sum(counts) / len(counts))


def test_the_expected_count_is_that_of_a_sample_and_not_of_a_unit() -> None:
    found = advised(poisson(100), units=700.0)
    assert found.advised is Limits.THREE_SIGMA
    assert found.expected_count == pytest.approx(100, rel=0.05)


def test_narrow_scatter_is_told_and_changes_no_limits() -> None:
    found = advised([50.0, 51.0] * 20)
    assert found.advised is Limits.THREE_SIGMA
    assert "see how it is counted" in found.reason


def test_too_few_samples_are_told_and_nothing_is_advised() -> None:
    found = advised(poisson(100, SAMPLES_MIN - 1))
    assert (found.advised, found.sigma_z, found.is_change) == (None, None, False)
    assert found.reason == "too few usable samples in a stage: 19, and 20 are needed"


def test_samples_that_rule_1_signalled_and_those_of_other_stages_do_not_count() -> None:
    made = history(poisson(100, 60), stage=10)
    for stage in (3, 90):
        made.add(stage, 1.0, 1.0, flags=0)
    for _ in range(30):
        made.add(10, 10_000.0, 1.0, flags=0b1)
    made.add(10, 100.0, 1.0, flags=0b10)
    found = advice("E", "p", made, ChartSpec(), mark)
    assert (found.samples, found.advised) == (61, Limits.THREE_SIGMA)


def test_of_stages_with_equally_many_samples_the_newer_one_counts() -> None:
    made = history([1.0] * 30, stage=5)
    for _ in range(30):
        made.add(50, 200.0, 1.0, flags=0)
    assert advice("E", "p", made, ChartSpec(), mark).expected_count == 200.0


def test_auto_limits_need_no_change_but_to_laney() -> None:
    auto = ChartSpec(limits=Limits.AUTO)
    assert not advised(poisson(3), auto).is_change
    assert not advised(poisson(100), auto).is_change
    assert advised(poisson(100, spread=0.3), auto).is_change


@pytest.mark.parametrize(
    "found",
    [
        ChartSpec("ETCH-*", name="etchers", k=2.5, rules=(1,)),
        ChartSpec(limits=Limits.EXACT, alpha=0.01),
        ChartSpec(limits=Limits.AUTO, alpha=0.01, start=Start.PREDICT),
        ChartSpec(limits=Limits.LANEY, sigma_z_floor=1.0, screen_ranges=True),
        ChartSpec(baseline=Baseline.GIVEN, centre=3.0),
        ChartSpec(baseline=Baseline.GIVEN, centre=3.0, limits=Limits.LANEY, sigma_z=1.2),
        ChartSpec(baseline=Baseline.MOVING, k=3.5),
    ],
)
@pytest.mark.parametrize("counts", [poisson(3), poisson(100), poisson(100, spread=0.3)])
def test_each_advice_makes_an_entry_that_can_be_applied_and_keeps_what_is_not_about_limits(
    found: ChartSpec, counts: list[float]
) -> None:
    told = advised(counts, found)
    made = entry(found, told)
    document = Specs(charts=(made,))
    assert parse(to_yaml(document)) == document
    assert (made.chamber, made.chart, made.limits) == ("ETCH-1", "p", told.advised)
    kept = (found.name, found.rules, found.baseline, found.centre, found.minimum, found.start)
    assert kept == (made.name, made.rules, made.baseline, made.centre, made.minimum, made.start)


def test_entries_are_made_of_those_that_match_the_charts_now() -> None:
    specs = Specs(charts=(ChartSpec("E[1]*", rules=(1,)), ChartSpec("F", k=2.0)))
    told = Advice("F", "odd[1]", 50, 100.0, 1.8, Limits.THREE_SIGMA, Limits.LANEY, "")
    assert entries(specs, [told]) == (ChartSpec("F", "odd[[]1]", k=2.0, limits=Limits.LANEY),)
