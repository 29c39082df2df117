"""One u-chart of numbers at hand, for a notebook: ``kernels.u_chart(counts, units)``.

The streaming kernels judge a sample by what came before it. Here all samples are there at once: the
baseline (all of them, or those named) gives the centre line, and then every sample is judged against it,
those of the baseline too. Conventions, limits and rules are the kernels'; so is each formula, in its order of
operations, so that a stream judged against this centre line gives the same bits.

Sources: Montgomery, Introduction to Statistical Quality Control, chapter 7 (u, centre line, limits);
Laney (2002), Quality Engineering 14(4), 531-537 (sigma_z); Nelson (1984), Journal of Quality Technology
16(4), 237-239, and Western Electric (1956), Statistical Quality Control Handbook (rules).

Defined results where others give NaN or fail:

================================  ====================================================================
case                              result
================================  ====================================================================
centre 0 (all baseline counts 0)  limits 0; z is 0 for a count of 0, else infinite; P(X >= c) is 0 for c > 0
fewer than two in the baseline    sigma_z 1
sigma_z 0 (all z alike), Laney    limits are the centre line; z is 0 for a tie, else infinite
nothing left in the baseline      ValueError
================================  ====================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kernels.chart import FREEZE_ROUNDS
from kernels.dispersion import RANGE_LIMIT, RANGE_PER_SIGMA
from kernels.poisson import quantiles, tails
from kernels.state import (
    ALPHA,
    COUNT_MAX,
    COUNTS_MAX,
    COUNTS_MIN,
    EXACT_BELOW,
    UNITS_MAX,
    UNITS_MIN,
    Limits,
    RuleCounts,
)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]

LimitsName = Literal["three_sigma", "laney", "exact", "auto"]
RulesName = Literal["nelson", "western_electric", "minitab"]

CENTRE_MAX: Final = COUNT_MAX / UNITS_MIN
"""No u is larger."""
CENTRE_MIN: Final = 2.0**-200
"""Least centre above 0: far below one nonconformity in any sum of units, far above where sigma is 0."""
SHOWN: Final = 8
"""Indices of a rule's signals that ``repr`` shows."""

RULE_SETS: Final[dict[str, tuple[tuple[int, ...], RuleCounts]]] = {
    "nelson": ((1, 2, 3, 4, 5, 6, 7, 8), RuleCounts()),
    "western_electric": ((1, 2, 5, 6), RuleCounts(side=8)),
    "minitab": ((1, 2, 3, 4, 5, 6, 7, 8), RuleCounts()),
}
"""By name: Nelson's numbers of the rules, and how many points they take. Western Electric's rules 1 to 4
are Nelson's 1, 5, 6 and 2 (of eight points). Minitab's defaults are Nelson's counts."""


class LimitSettings(NamedTuple):
    """How far from the centre line the limits are."""

    kind: Limits
    k: float
    alpha: float
    sigma_z_floor: float
    screen_ranges: bool


@dataclass(frozen=True, eq=False, repr=False)
class UChart:
    """A u-chart of N samples. Arrays are of length N, in time order; indices are 0-based."""

    counts: Floats
    """Nonconformities c."""
    units: Floats
    """Inspection units n."""
    u: Floats
    """c / n, nonconformities a unit."""
    centre: float
    """Centre line: sum of c / sum of n over the baseline, or as given."""
    lcl: Floats
    """Lower control limit of u, at least 0."""
    ucl: Floats
    """Upper control limit of u."""
    z: Floats
    """(u - centre) / sigma, sigma = sqrt(centre / n), times sigma_z with Laney's limits."""
    sigma_z: float
    """Scatter of the baseline: mean moving range of z / 1.128. Of Poisson counts about 1, and less where few
    are expected (0.93 at 1 a sample). With Laney's limits the one in force, otherwise a diagnosis only."""
    p_upper: Floats
    """P(X >= c), X Poisson with mean centre * n."""
    p_lower: Floats
    """P(X <= c)."""
    signals: dict[int, Indices]
    """By rule number, ascending: the samples that it flags. Only the rules asked for."""
    limits: str
    """Their name."""
    baseline: Indices
    """The samples that gave the centre line (and sigma_z)."""
    excluded: Indices
    """The samples of the baseline that were left out: named by the caller, or beyond the limits."""

    @property
    def p(self) -> Floats:
        """Two-sided p-value: twice the smaller tail, at most 1."""
        return np.minimum(1.0, 2.0 * np.minimum(self.p_upper, self.p_lower))

    def __repr__(self) -> str:
        excluded = f", {len(self.excluded)} left out: {_some(self.excluded)}" if len(self.excluded) else ""
        signals = [f"rule {rule}: {_some(found)}" for rule, found in self.signals.items() if len(found)]
        silent = [str(rule) for rule, found in self.signals.items() if not len(found)]
        if silent:
            signals.append(f"none by {', '.join(silent)}")
        return (
            f"UChart: {len(self.u)} samples, {len(self.baseline)} in the baseline{excluded}\n"
            f"  centre {self.centre:.6g}, sigma_z {self.sigma_z:.4g}\n"
            f"  limits {self.limits}: lcl {_span(self.lcl)}, ucl {_span(self.ucl)}\n"
            f"  signals: {'; '.join(signals) or 'no rules'}"
        )


def u_chart(
    counts: ArrayLike,
    units: ArrayLike,
    *,
    baseline: int | slice | ArrayLike | None = None,
    exclude: ArrayLike | None = None,
    centre: float | None = None,
    limits: LimitsName = "three_sigma",
    sigma_z_floor: float | None = None,
    rules: RulesName | Iterable[int] = "nelson",
    points: Mapping[int, int] | None = None,
    k: float = 3.0,
    alpha: float = ALPHA,
    screen: bool = False,
    screen_ranges: bool = False,
) -> UChart:
    """Judge a chart's samples against the centre line of its baseline.

    counts:        N whole numbers of nonconformities, 0 to 2^53, in time order.
    units:         N inspection units, 2^-20 to 2^40, or one number for all.
    baseline:      samples of phase I: None (all), m (the first m), a slice, N booleans or indices.
    exclude:       samples left out of the baseline, N booleans or indices; they are judged all the same.
    centre:        a given centre line; the baseline then only measures sigma_z.
    limits:        "three_sigma": centre +- k * sqrt(centre / n). "laney": centre +- k * sigma_z *
                   sqrt(centre / n). "exact": quantiles of the Poisson distribution, at most ``alpha``
                   beyond each. "auto": exact where centre * n < 10, else three_sigma.
    sigma_z_floor: "laney": sigma_z is at least this (1: never narrower than Poisson limits).
    rules:         "nelson" (1 to 8), "western_electric" (Nelson's numbers 1, 2, 5, 6; eight points on a
                   side), "minitab" (1 to 8) or numbers.
    points:        rule (2 to 8) -> points that make its pattern; of rules 5 and 6 "of one more".
    k:             sigmas of "three_sigma" and "laney".
    screen:        leave out, round by round, baseline samples beyond the limits: at most 10 rounds and a
                   third of the samples. ``UChart.excluded`` names them.
    screen_ranges: measure sigma_z without the moving ranges of 3.267 times their mean or more.

    Rule 1 is beyond a limit, strictly; the others look at z, and flag the sample that completes or extends
    a pattern. Raises ValueError that names the index and the value.
    """
    c = _counts(counts)
    n = _units(units, len(c))
    settings = _settings(limits, k, alpha, sigma_z_floor, screen_ranges)
    numbers, in_rule = _rules(rules, points)
    named = _chosen("baseline", baseline, len(c), whole_means_first=True)
    usable = named & ~_chosen("exclude", () if exclude is None else exclude, len(c))
    if not usable.any():
        raise ValueError(
            f"nothing is left in the baseline: it names {int(named.sum())} of {len(c)} samples,"
            f" of which exclude leaves out {int(named.sum())}"
        )
    if centre is not None and screen:
        raise ValueError("screen=True draws the centre line anew, which centre=... fixes: leave out one")
    if screen:
        line, usable = _screened(c, n, usable, settings)
    else:
        line = _ratio(c, n, usable) if centre is None else _given(centre)
    return _drawn(c, n, named, usable, line, settings, numbers, in_rule)


def _drawn(
    counts: Floats,
    units: Floats,
    named: Mask,
    usable: Mask,
    centre: float,
    settings: LimitSettings,
    rules: tuple[int, ...],
    points: RuleCounts,
) -> UChart:
    """The chart about a centre line; *usable* is what is left of the baseline that was *named*."""
    sigma_z = _sigma_z(counts, units, usable, centre, settings)
    u = counts / units
    z = _standardised(u, units, centre, sigma_z if settings.kind is Limits.LANEY else 1.0)
    lcl, ucl, beyond = _judged(counts, units, centre, sigma_z, settings)
    p_upper, p_lower = np.empty(len(u)), np.empty(len(u))
    tails(counts, centre * units, p_lower, p_upper)
    return UChart(
        counts=counts,
        units=units,
        u=u,
        centre=centre,
        lcl=lcl,
        ucl=ucl,
        z=z,
        sigma_z=sigma_z,
        p_upper=p_upper,
        p_lower=p_lower,
        signals={rule: _indices(beyond if rule == 1 else _pattern(rule, z, points)) for rule in rules},
        limits=settings.kind.name.lower(),
        baseline=_indices(usable),
        excluded=_indices(named & ~usable),
    )


def _indices(mask: Mask) -> Indices:
    return np.flatnonzero(mask).astype(np.int64, copy=False)


def _some(found: Indices) -> str:
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(map(str, found[:SHOWN].tolist())) + more


def _span(limit: Floats) -> str:
    least, most = float(limit.min()), float(limit.max())
    return f"{least:.6g}" if least == most else f"{least:.6g} to {most:.6g}"


def _ratio(counts: Floats, units: Floats, usable: Mask) -> float:
    # Sums rounded once, as the kernels' fixed-point ones are.
    return math.fsum(counts[usable].tolist()) / math.fsum(units[usable].tolist())


def _standardised(u: Floats, units: Floats, centre: float, sigma_z: float) -> Floats:
    sigma = sigma_z * np.sqrt(centre / units)
    difference = u - centre
    flat = np.where(difference == 0.0, 0.0, np.copysign(math.inf, difference))
    return np.divide(difference, sigma, out=flat, where=sigma > 0.0)


def _sigma_z(counts: Floats, units: Floats, usable: Mask, centre: float, settings: LimitSettings) -> float:
    z = _standardised(counts[usable] / units[usable], units[usable], centre, 1.0)
    measured = 1.0
    if len(z) >= 2 and centre > 0.0:
        ranges = np.abs(np.diff(z))
        mean = _mean(ranges)
        if settings.screen_ranges:
            kept = ranges[ranges < RANGE_LIMIT * mean]
            mean = _mean(kept) if len(kept) else mean
        measured = mean / RANGE_PER_SIGMA
    return max(measured, settings.sigma_z_floor)


def _mean(values: Floats) -> float:
    # In time order, as the kernels add: np.sum adds pairwise and ends in other bits.
    return float(np.add.accumulate(values)[-1]) / len(values)


def _judged(
    counts: Floats, units: Floats, centre: float, sigma_z: float, settings: LimitSettings
) -> tuple[Floats, Floats, Mask]:
    """Lower and upper limits of u, and which samples are beyond."""
    sigma = np.sqrt(centre / units)
    if settings.kind is Limits.LANEY:
        sigma = sigma_z * sigma
    u = counts / units
    lcl = np.maximum(0.0, centre - settings.k * sigma)
    ucl = centre + settings.k * sigma
    beyond = (u > ucl) | (u < lcl)
    if settings.kind in (Limits.EXACT, Limits.AUTO):
        means = centre * units
        low, high = np.empty(len(units)), np.empty(len(units))
        quantiles(means, settings.alpha, low, high)
        exact = np.full(len(units), True) if settings.kind is Limits.EXACT else means < EXACT_BELOW
        lcl = np.where(exact, low / units, lcl)
        ucl = np.where(exact, high / units, ucl)
        beyond = np.where(exact, (counts > high) | (counts < low), beyond)
    return lcl, ucl, beyond


def _screened(counts: Floats, units: Floats, usable: Mask, settings: LimitSettings) -> tuple[float, Mask]:
    """Centre line and baseline after leaving out what is beyond the limits, as at the end of phase I."""
    kept = usable
    centre = _ratio(counts, units, kept)
    for _ in range(FREEZE_ROUNDS):
        sigma_z = _sigma_z(counts, units, kept, centre, settings)
        beyond = _judged(counts, units, centre, sigma_z, settings)[2] & kept
        left_out = int(usable.sum()) - int(kept.sum()) + int(beyond.sum())
        if not beyond.any() or 3 * left_out > int(usable.sum()):
            break
        kept = kept & ~beyond
        centre = _ratio(counts, units, kept)
    return centre, kept


def _pattern(rule: int, z: Floats, points: RuleCounts) -> Mask:
    """Which samples complete or extend the pattern of a rule from 2 to 8."""
    steps_up, steps_down = np.zeros(len(z), np.bool_), np.zeros(len(z), np.bool_)
    steps_up[1:] = z[1:] > z[:-1]
    steps_down[1:] = z[1:] < z[:-1]
    outside = (z > 1.0) | (z < -1.0)
    match rule:
        case 2:
            return _all(z > 0.0, points.side) | _all(z < 0.0, points.side)
        case 3:
            return _all(steps_up, points.trend - 1) | _all(steps_down, points.trend - 1)
        case 4:
            turns = np.zeros(len(z), np.bool_)
            turns[1:] = (steps_up[1:] & steps_down[:-1]) | (steps_down[1:] & steps_up[:-1])
            return _all(turns, points.alternating - 2)
        case 5:
            return _all_but_one(z > 2.0, points.beyond_2) | _all_but_one(z < -2.0, points.beyond_2)
        case 6:
            return _all_but_one(z > 1.0, points.beyond_1) | _all_but_one(z < -1.0, points.beyond_1)
        case 7:
            return _all(~outside, points.inside)
        case _:
            m = points.outside
            return _all(outside, m) & (_of_last(z > 1.0, m) > 0) & (_of_last(z < -1.0, m) > 0)


def _of_last(holds: Mask, points: int) -> Indices:
    """Of how many of the newest *points* it holds; 0 where there are fewer."""
    total = np.cumsum(holds.view(np.int8), dtype=np.int64)
    found = total.copy()
    found[: points - 1] = 0
    found[points:] -= total[:-points]
    return found


def _all(holds: Mask, points: int) -> Mask:
    all_hold: Mask = _of_last(holds, points) == points
    return all_hold


def _all_but_one(holds: Mask, points: int) -> Mask:
    """Of the newest, and of *points* of the newest ``points + 1``."""
    found: Mask = holds & (_of_last(holds, points + 1) >= points)
    return found


def _numbers(name: str, values: ArrayLike) -> tuple[NDArray[Any], Floats]:
    """As they came, and as float64."""
    raw = np.asarray(values)
    if raw.dtype.kind not in "biufO":
        raise ValueError(f"{name} must be numbers, not of dtype {raw.dtype}")
    try:
        # + 0.0 makes a copy, and 0.0 of -0.0.
        return raw, np.asarray(raw, np.float64) + 0.0
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be numbers: {error}") from error


def _refuse(name: str, raw: NDArray[Any], bad: Mask, why: str) -> None:
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{name}[{i}] is {raw[i]}: {why}")


def _counts(values: ArrayLike) -> Floats:
    raw, counts = _numbers("counts", values)
    if counts.ndim != 1:
        raise ValueError(
            f"counts must be one-dimensional, one chart's samples in time order: shape {counts.shape}"
        )
    if len(counts) == 0:
        raise ValueError("counts is empty: a chart needs one sample at least")
    _refuse("counts", raw, ~np.isfinite(counts), "a count of nonconformities must be a finite number")
    _refuse("counts", raw, counts < 0.0, "a count of nonconformities must not be negative")
    _refuse("counts", raw, counts != np.floor(counts), "a count of nonconformities must be a whole number")
    # Of the numbers as they came: 2^53 + 1 is 2^53 as a float64.
    too_large = np.asarray(raw > COUNT_MAX, np.bool_)
    _refuse("counts", raw, too_large, "above 2^53 not every whole number is a float64")
    return counts


def _units(values: ArrayLike, samples: int) -> Floats:
    raw, units = _numbers("units", values)
    if units.ndim == 0:
        raw, units = np.full(samples, raw), np.full(samples, float(units))
    if units.shape != (samples,):
        raise ValueError(f"units must be as many as counts, {samples}, or one number: shape {units.shape}")
    _refuse("units", raw, ~np.isfinite(units), "inspection units must be a finite number")
    _refuse("units", raw, units <= 0.0, "inspection units must be above 0")
    fit = (units >= UNITS_MIN) & (units <= UNITS_MAX)
    _refuse("units", raw, ~fit, "inspection units must be from 2^-20 to 2^40; choose another unit")
    return units


def _chosen(
    name: str, choice: int | slice | ArrayLike | None, samples: int, *, whole_means_first: bool = False
) -> Mask:
    """A mask from what names samples."""
    mask = np.zeros(samples, np.bool_)
    if choice is None:
        return ~mask
    if isinstance(choice, slice):
        mask[choice] = True
        return mask
    named = np.asarray(choice)
    if named.size == 0:
        return mask
    if named.dtype == np.bool_ and named.shape == mask.shape:
        return named.copy()
    if named.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be indices or {samples} booleans, not dtype {named.dtype}, shape {named.shape}"
        )
    if named.ndim == 0 and whole_means_first:
        if not 1 <= int(named) <= samples:
            raise ValueError(f"{name} is {int(named)}: the first m samples, m from 1 to {samples}")
        mask[: int(named)] = True
        return mask
    named = np.atleast_1d(named)
    if named.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, not of shape {named.shape}")
    _refuse(name, named, (named < 0) | (named >= samples), f"indices are from 0 to {samples - 1}")
    mask[named] = True
    return mask


def _given(centre: float) -> float:
    if centre != 0.0 and not CENTRE_MIN <= centre <= CENTRE_MAX:
        raise ValueError(f"centre is {centre}: nonconformities a unit, 0 or from 2^-200 to 2^73")
    return float(centre) + 0.0


def _settings(
    limits: str, k: float, alpha: float, sigma_z_floor: float | None, screen_ranges: bool
) -> LimitSettings:
    names = [kind.name.lower() for kind in Limits]
    if limits not in names:
        raise ValueError(f"limits is {limits!r}: one of {', '.join(names)}")
    kind = Limits[limits.upper()]
    if not 0.0 < k < math.inf:
        raise ValueError(f"k is {k}: sigmas from the centre line to a limit, above 0")
    if not 0.0 < alpha < 0.5:
        raise ValueError(f"alpha is {alpha}: the probability beyond one exact limit, above 0 and below 0.5")
    if sigma_z_floor is None:
        return LimitSettings(kind, k, alpha, 0.0, screen_ranges)
    if kind is not Limits.LANEY:
        raise ValueError(f"sigma_z_floor is {sigma_z_floor}, but limits are {limits}: it is for laney")
    if not 0.0 <= sigma_z_floor < math.inf:
        raise ValueError(f"sigma_z_floor is {sigma_z_floor}: a finite number, at least 0")
    return LimitSettings(kind, k, alpha, float(sigma_z_floor), screen_ranges)


def _rules(
    rules: str | Iterable[int], points: Mapping[int, int] | None
) -> tuple[tuple[int, ...], RuleCounts]:
    """Numbers of the rules, ascending, and how many points their patterns take."""
    if isinstance(rules, str):
        if rules not in RULE_SETS:
            raise ValueError(f"rules is {rules!r}: one of {', '.join(RULE_SETS)}, or numbers from 1 to 8")
        numbers, in_rule = RULE_SETS[rules]
    else:
        asked = tuple(rules)
        for rule in asked:
            if rule not in range(1, 9):
                raise ValueError(f"rules has {rule!r}: rules are numbered 1 to 8")
        numbers, in_rule = tuple(sorted({int(rule) for rule in asked})), RuleCounts()
    for rule, m in (points or {}).items():
        if rule not in numbers or rule == 1:
            raise ValueError(f"points has rule {rule!r}, which is not one of the rules asked for from 2 on")
        field = RuleCounts._fields[int(rule) - 2]
        least, most = getattr(COUNTS_MIN, field), getattr(COUNTS_MAX, field)
        if not (isinstance(m, int | np.integer) and least <= m <= most):
            raise ValueError(f"points of rule {rule} is {m!r}: a whole number from {least} to {most}")
        in_rule = in_rule._replace(**{field: int(m)})
    return numbers, in_rule
