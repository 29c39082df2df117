"""Run lengths are the published ones, and designs run as long as was asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.design import (
    EWMA_DESIGN_STATES,
    EWMA_LIMIT_STEP,
    _cusum_excess,
    cusum_arl,
    cusum_design,
    cusum_design_step,
    cusum_reference,
    ewma_arl,
    ewma_design,
    table,
    u_chart_arl0,
)
from kernels.state import DESIGN_DOWN, DESIGN_EWMA, DESIGN_MEANS, DESIGN_UP

FOLDER = Path(__file__).parent.parent / "reference"
PUBLISHED: dict[str, Any] = json.loads((FOLDER / "poisson_cusum_ewma_arl.json").read_text())
RULE_1: list[dict[str, Any]] = json.loads((FOLDER / "u_chart_arl0_by_mean_count.json").read_text())
OFF_GRID = (0.05, 0.3, 1.7, 6.3, 40.0, 300.0)
SPC_STATES = 101
"""Cells that R's spc takes."""
Update = Callable[[NDArray[np.int64]], NDArray[np.bool_]]


@pytest.mark.parametrize("side", ["upper", "lower"])
@pytest.mark.parametrize(("start", "head_start"), [("zero", 0.0), ("half_headstart", 0.5)])
def test_lucas_run_lengths_come_out(side: Any, start: str, head_start: float) -> None:
    """The four figures of Lucas (1985) to their rounding, and R's to 1e-6."""
    figures = PUBLISHED["lucas1985"][f"{side}_{start}"]
    found = cusum_arl(0.25, 0.25, 10, side=side, head_start=head_start)
    assert round(found) == figures["published"]
    assert found == pytest.approx(figures["r_spc"], rel=1e-6)


@pytest.mark.parametrize("row", PUBLISHED["upper_cusum_arl0_370"], ids=lambda row: f"mean {row['mu0']}")
def test_upper_cusums_run_as_long_as_r_says(row: dict[str, Any]) -> None:
    """In control, and with the mean one and two sigma higher: to 1e-6, also where h is between two sums."""
    mean = row["mu0"]
    for shift, name in enumerate(("arl0", "arl1_1sigma", "arl1_2sigma")):
        actual = mean + shift * math.sqrt(mean)
        assert cusum_arl(mean, row["k"], row["h"], true_mean=actual) == pytest.approx(row[name], rel=1e-6)


def test_borrors_chart_runs_as_long_as_r_says_by_transfer() -> None:
    """To the two digits given with spc's 101 cells; the coarser classic chain is within 1 %."""
    figures = PUBLISHED["borror1998"]
    rows = zip(figures["mu"], figures["arl_transfer"], figures["arl_classic"], strict=True)
    for mean, transfer, classic in rows:
        found = ewma_arl(20, 0.27, 3.319, true_mean=mean, states=SPC_STATES)
        assert found == pytest.approx(transfer, abs=0.0051)
        assert found == pytest.approx(classic, rel=1e-2)


@pytest.mark.parametrize(
    "row",
    PUBLISHED["poisson_ewma_two_sided_arl0_370"],
    ids=lambda row: f"mean {row['mu0']} weight {row['lambda']}",
)
def test_ewma_charts_run_as_long_as_r_says(row: dict[str, Any]) -> None:
    """With spc's 101 cells to 1e-6; one has a count that lands on the border of a cell, and 5e-4.

    With finer cells run lengths are up to 0.7 % longer: 101 cells make them too short, as simulation says.
    """
    mean, weight, limit = row["mu0"], row["lambda"], row["A"]
    shifted = mean + math.sqrt(mean)
    tolerance = 5e-4 if (mean, weight) == (1, 0.2) else 1e-6
    found = ewma_arl(mean, weight, limit, states=SPC_STATES)
    assert found == pytest.approx(row["arl0"], rel=tolerance)
    after = ewma_arl(mean, weight, limit, true_mean=shifted, states=SPC_STATES)
    assert after == pytest.approx(row["arl_up_1sigma"], rel=tolerance)
    assert 1 < ewma_arl(mean, weight, limit) / found < 1.007
    assert ewma_arl(mean, weight, limit, true_mean=shifted) == pytest.approx(after, rel=1e-3)


def test_an_ewma_of_weight_1_is_rule_1() -> None:
    """Then only the newest count is judged."""
    assert ewma_arl(4.3, 1.0, 3.0) == pytest.approx(u_chart_arl0(4.3), rel=1e-9)


def test_an_ewma_at_one_count_in_three_samples_runs_as_long_as_computed() -> None:
    """By simulation, within four standard errors: where the lower limit is 0 and counts are mostly 0."""
    mean, weight, limit = 0.3, 0.1, 3.2
    computed = ewma_arl(mean, weight, limit)
    upper = mean + limit * math.sqrt(weight * mean / (2 - weight))
    ewma = np.full(1000, mean)

    def update(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
        ewma[:] = weight * counts + (1 - weight) * ewma
        beyond = ewma > upper
        ewma[beyond] = mean
        return beyond

    assert simulated(mean, update, 1000, samples=6000) == pytest.approx(
        computed, rel=4 / math.sqrt(6e6 / computed)
    )


@pytest.mark.parametrize("mean", [0.05, 0.7, 5.0, 80.0])
@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.25, 1.6])
@pytest.mark.parametrize("head_start", [0.0, 0.5])
def test_a_cusum_design_is_the_smallest_that_runs_long_enough(
    mean: float, ratio: float, head_start: float
) -> None:
    """One step of its lattice less does not; on a finer lattice it runs at most 25 % longer."""
    h, step = cusum_design_step(mean, ratio, 500, head_start)
    assert h == cusum_design(mean, ratio, 500, head_start)
    states = round(h / step)
    assert _cusum_excess(mean, ratio, step, states, 500, head_start, 1) >= 0
    if states > 1:
        assert _cusum_excess(mean, ratio, step, states - 1, 500, head_start, 1) < 0
    k = cusum_reference(mean, ratio)
    found = cusum_arl(mean, k, h, side="upper" if ratio > 1 else "lower", head_start=head_start)
    assert found > 0.99 * 500
    if states > 1:  # k far from the mean, and h a count or two: a step of h is much
        assert found < 1.25 * 500


@pytest.mark.parametrize("mean", [0.3, 3.0, 50.0])
@pytest.mark.parametrize("weight", [0.05, 0.2])
def test_an_ewma_design_is_the_smallest_that_runs_long_enough(mean: float, weight: float) -> None:
    """The next smaller L does not, and with finer cells it is at most 2 % too long."""
    limit = ewma_design(mean, weight, 370)
    assert ewma_arl(mean, weight, limit, states=EWMA_DESIGN_STATES) >= 370
    assert ewma_arl(mean, weight, limit - EWMA_LIMIT_STEP, states=EWMA_DESIGN_STATES) < 370
    assert 0.995 * 370 < ewma_arl(mean, weight, limit) < 1.02 * 370


def simulated(mean: float, update: Update, charts: int, samples: int) -> float:
    """Samples between two signals: charts that start anew after each, so that runs follow on each other."""
    rng = np.random.default_rng(1)
    signals = 0
    for counts in rng.poisson(mean, (samples, charts)):
        signals += int(np.count_nonzero(update(counts)))
    return charts * samples / signals


def interpolated(row: NDArray[np.float64], mean: float) -> float:
    """A design between two means, as the kernels take it."""
    return float(np.interp(math.log2(mean), np.log2(DESIGN_MEANS), row))


def cusum_runs(mean: float, ratio: float, head_start: float, arl0: float) -> float:
    """Simulated run length of the two-sided CUSUM with the table's h."""
    designs = table(ratio=ratio, head_start=head_start, ewma_weight=None, arl0=arl0)
    scale = math.log(ratio)
    h_up = interpolated(designs[DESIGN_UP], mean) / scale
    h_down = interpolated(designs[DESIGN_DOWN], mean) / scale
    k_up, k_down = mean * (ratio - 1) / scale, mean * (1 - 1 / ratio) / scale
    charts = 500
    up, down = np.full(charts, head_start * h_up), np.full(charts, head_start * h_down)

    def update(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
        np.maximum(0, up + counts - k_up, out=up)
        np.maximum(0, down + k_down - counts, out=down)
        signals = (up >= h_up) | (down >= h_down)
        up[signals], down[signals] = head_start * h_up, head_start * h_down
        return signals

    return simulated(mean, update, charts, samples=4000)


@pytest.mark.parametrize("mean", OFF_GRID)
@pytest.mark.parametrize(("ratio", "head_start"), [(1.25, 0.5), (1.25, 0.0)])
def test_a_tabled_cusum_runs_as_long_as_asked_between_the_means_of_the_table(
    mean: float, ratio: float, head_start: float
) -> None:
    """By simulation of both sides together: not below 370 by more than 5 %, nor above by more than 25 %."""
    assert 0.95 < cusum_runs(mean, ratio, head_start, 370) / 370 < 1.25


@pytest.mark.parametrize("mean", [0.6, 0.8, 9.0])
def test_a_tabled_cusum_for_a_doubled_mean_does_not_run_too_short(mean: float) -> None:
    """Where neighbouring designs jump, plain interpolation gave runs 8 % to 18 % too short."""
    assert 0.95 < cusum_runs(mean, 2.0, 0.0, 370) / 370 < 1.5


@pytest.mark.parametrize("mean", OFF_GRID)
def test_a_tabled_ewma_runs_as_long_as_asked_between_the_means_of_the_table(mean: float) -> None:
    """By simulation: not below 370 by more than 5 %, nor above by more than 25 %."""
    weight, charts = 0.1, 500
    limit = interpolated(
        table(ratio=None, head_start=0.0, ewma_weight=weight, arl0=370)[DESIGN_EWMA], mean
    ) * math.sqrt(weight * mean / (2 - weight))
    ewma = np.full(charts, mean)

    def update(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
        ewma[:] = weight * counts + (1 - weight) * ewma
        signals = (ewma > mean + limit) | (ewma < max(0, mean - limit))
        ewma[signals] = mean
        return signals

    assert 0.95 < simulated(mean, update, charts, samples=4000) / 370 < 1.25


def test_a_table_has_the_rows_asked_for_and_is_remembered() -> None:
    """Zeros for the rest; every design positive and finite; nobody can write into it."""
    both = table(ratio=5.0, head_start=0.5, ewma_weight=0.4, arl0=1000)
    assert both.shape == (3, len(DESIGN_MEANS))
    assert both.dtype == np.float64
    assert np.all(np.isfinite(both) & (both > 0))
    assert table(ratio=5.0, head_start=0.5, ewma_weight=0.4, arl0=1000) is both
    assert not both.flags.writeable
    cusum = table(ratio=1.25, head_start=0.5, ewma_weight=None, arl0=370)
    assert not cusum[DESIGN_EWMA].any()
    ewma = table(ratio=None, head_start=0.5, ewma_weight=0.1, arl0=370)
    assert not ewma[[DESIGN_UP, DESIGN_DOWN]].any()


@pytest.mark.parametrize(("ratio", "arl0"), [(1.001, 370), (100.0, 370), (2.0, 1.5), (2.0, 1e9), (1.05, 1e6)])
def test_every_cusum_table_that_can_be_asked_for_is_found(ratio: float, arl0: float) -> None:
    """Slight and huge changes, short and endless runs: positive and finite at every mean."""
    designs = table(ratio=ratio, head_start=0.5, ewma_weight=None, arl0=arl0)[[DESIGN_UP, DESIGN_DOWN]]
    assert np.all(np.isfinite(designs) & (designs > 0))


@pytest.mark.parametrize(("weight", "arl0"), [(0.001, 370), (0.01, 1e6), (1.0, 1e9), (0.2, 1.5), (0.9, 20)])
def test_every_ewma_table_that_can_be_asked_for_is_found(weight: float, arl0: float) -> None:
    """Long and no memory, short and endless runs: positive and finite at every mean."""
    designs = table(ratio=None, head_start=0.0, ewma_weight=weight, arl0=arl0)[DESIGN_EWMA]
    assert np.all(np.isfinite(designs) & (designs > 0))


@pytest.mark.parametrize("row", RULE_1, ids=lambda row: f"mean {row['mean_count']}")
def test_rule_1_runs_as_long_as_published(row: dict[str, Any]) -> None:
    """Three-sigma and exact limits to 1e-9."""
    mean = row["mean_count"]
    assert u_chart_arl0(mean) == pytest.approx(row["three_sigma"]["arl0"], rel=1e-9)
    assert u_chart_arl0(mean, "exact") == pytest.approx(row["exact_00135"]["arl0"], rel=1e-9)


def test_a_run_without_end_is_infinite() -> None:
    """No count is beyond, or hardly any: infinite instead of what rounding leaves."""
    assert cusum_arl(300, 433, 50) == math.inf
    assert ewma_arl(4, 0.1, 40) == math.inf


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (lambda: cusum_arl(0, 1, 1), "mean is 0"),
        (lambda: cusum_arl(1, 1, math.nan), "h is nan"),
        (lambda: cusum_arl(1, 1, 1, head_start=1.0), "head_start is 1.0"),
        (lambda: cusum_reference(1, 1), "ratio is 1"),
        (lambda: cusum_design(1, 2, 1), "arl0 is 1"),
        (lambda: ewma_arl(1, 1.5, 3), "weight is 1.5"),
        (lambda: ewma_design(1, 0.1, math.inf), "arl0 is inf"),
        (lambda: table(ratio=0.5, head_start=0.0, ewma_weight=None, arl0=370), "ratio is 0.5"),
        (lambda: table(ratio=2.0, head_start=0.6, ewma_weight=None, arl0=370), "head_start is 0.6"),
        (lambda: table(ratio=None, head_start=0.0, ewma_weight=0.0, arl0=370), "ewma_weight is 0"),
        (lambda: u_chart_arl0(1, "exact", 0.5), "alpha is 0.5"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(wrong: Callable[[], object], problem: str) -> None:
    """ValueError says what was wrong."""
    with pytest.raises(ValueError, match=problem):
        wrong()
