"""Which limits suit a chart, by what its history says of the scatter and the expected counts. Pure.

One stage of the chart is looked at: the one with the most usable samples. Those that rule 1 signalled are not
usable, as in any baseline, so that a few excursions do not pass for overdispersion. Its own centre line is
taken, not the one in force: a process that runs elsewhere has not for that reason a scatter of its own.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from runtime.specs import Baseline, ChartSpec, Limits, Start
from runtime.specs_adopt import escaped
from runtime.specs_methods import BY_QUANTILES

SAMPLES_MIN: Final = 20
"""Usable samples that an advice needs (``kernels.state.DIAGNOSE_MIN``)."""
EXACT_BELOW: Final = 10.0
"""Expected count below which the quantiles of the Poisson distribution are far from normal ones."""
RANGE_OVER_SIGMA: Final = 1.128
"""d2 of ranges of two."""
OVERDISPERSED: Final = 1
UNDERDISPERSED: Final = 2
_RULE_1: Final = 1

Mark = Callable[[float, float, int], int]
"""``kernels.dispersion.mark``: (sigma_z, expected count, samples) to a number of ``kernels.state.Mark``."""
Floats = NDArray[np.float64]


class History:
    """The usable samples of one chart by stage, in the order of time."""

    def __init__(self) -> None:
        self._stages: dict[int, tuple[array[float], array[float]]] = {}

    def add(self, stage: int, count: float, units: float, flags: int) -> None:
        """A sample of the stage that began at ordinal *stage*; *flags* as in its verdict."""
        counts, of = self._stages.setdefault(stage, (array("d"), array("d")))
        if not flags & _RULE_1:
            counts.append(count)
            of.append(units)

    def longest(self) -> tuple[Floats, Floats]:
        """(counts, units), float64, of the stage with the most usable samples; the newer of equals."""
        counts, units = max(
            (self._stages[stage] for stage in sorted(self._stages, reverse=True)),
            key=lambda columns: len(columns[0]),
            default=(array("d"), array("d")),
        )
        return np.array(counts, dtype=np.float64), np.array(units, dtype=np.float64)


class Advice(Struct, frozen=True):
    """What is advised for one chart. *advised* is None where there are too few samples to tell."""

    chamber: str
    chart: str
    samples: int
    expected_count: float | None
    sigma_z: float | None
    limits: Limits
    """In force."""
    advised: Limits | None
    reason: str

    @property
    def is_change(self) -> bool:
        """Whether the limits in force are others, and would be others at this expected count."""
        if self.advised is None or self.advised is self.limits:
            return False
        return not (self.limits is Limits.AUTO and self.advised in (Limits.EXACT, Limits.THREE_SIGMA))


def advice(chamber: str, chart: str, history: History, spec: ChartSpec, mark: Mark) -> Advice:
    """What *history* advises for a chart that is judged by *spec* now."""
    counts, units = history.longest()
    samples = len(counts)
    if samples < SAMPLES_MIN:
        reason = f"too few usable samples in a stage: {samples}, and {SAMPLES_MIN} are needed"
        return Advice(chamber, chart, samples, None, None, spec.limits, None, reason)
    expected = float(counts.sum() / units.sum() * units.mean())
    scatter = sigma_z(counts, units)
    found = mark(scatter, expected, samples) if expected else 0
    low = expected < EXACT_BELOW
    if found == OVERDISPERSED:
        advised = Limits.LANEY
        reason = f"scatters {scatter:.2f} times as much as the Poisson distribution"
    elif low:
        advised = Limits.EXACT
        reason = f"expected count below {EXACT_BELOW:g}: the distribution is skewed"
    else:
        advised = Limits.THREE_SIGMA
        reason = "scatters as the Poisson distribution does"
    if found == UNDERDISPERSED:
        reason = (
            f"scatters only {scatter:.2f} times as much as the Poisson distribution: see how it is counted"
        )
    return Advice(chamber, chart, samples, expected, scatter, spec.limits, advised, reason)


def sigma_z(counts: Floats, units: Floats) -> float:
    """Laney's sigma_z over samples in the order of time: mean |z_i - z_(i-1)| / 1.128 (Laney 2002).

    1.0 for fewer than two samples, and where nothing was counted.
    """
    centre = counts.sum() / units.sum() if len(counts) else 0.0
    if len(counts) < 2 or centre == 0:
        return 1.0
    z = (counts / units - centre) / np.sqrt(centre / units)
    return float(np.abs(np.diff(z)).mean() / RANGE_OVER_SIGMA)


def entry(found: ChartSpec, of: Advice) -> ChartSpec:
    """*found*, for exactly this chart and with the advised limits; what these do not use is left out."""
    assert of.advised is not None, "there is an advice"
    usual, limits = ChartSpec(), of.advised
    is_laney, is_given = limits is Limits.LANEY, found.baseline is Baseline.GIVEN
    keeps_alpha = limits in BY_QUANTILES or found.start is Start.PREDICT
    changes: dict[str, Any] = {
        "chamber": escaped(of.chamber),
        "chart": escaped(of.chart),
        "limits": limits,
        "k": usual.k if limits is Limits.EXACT else found.k,
        "alpha": found.alpha if keeps_alpha else usual.alpha,
        "sigma_z": of.sigma_z if is_laney and is_given else None,
        "sigma_z_floor": found.sigma_z_floor if is_laney else None,
        "screen_ranges": found.screen_ranges and is_laney,
    }
    return msgspec.structs.replace(found, **changes)
