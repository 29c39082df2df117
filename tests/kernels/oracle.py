"""The u-chart judged naively: plain Python, one object a chart, nothing incremental.

It keeps every sample of the chart's stage and, for each new one, works everything out from what is
remembered; only the sums of CUSUM and EWMA and the open alarm run on. Sums are ``math.fsum``, tails of
distributions are SciPy's. The kernels must agree with it bit by bit, with p-values to 1e-9. Self-contained,
so that other tests can hold what came over the wire against it::

    chart = Chart(depth=256, window=256)
    verdict = chart.judge(Spec("frozen", phase_one=20, minimum=5), count=3.0, units=25.0, ordinal=17)
    alarm = chart.alert(spec, signal=verdict.flags != 0, ordinal=17, at=1_700_000_000_000_000_000)
    chart.reset()

``ordinal`` is the number of the chamber's report (resets are reports too): rises from sample to sample.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from scipy.special import betainc, betaincc, ndtri, pdtr, pdtrc

from kernels.dispersion import mark as mark_of
from kernels.state import DIAGNOSE_EVERY, DIAGNOSE_MIN

LEARNING, PHASE_ONE, PHASE_TWO, SELF_STARTING = 0, 1, 2, 3
NO_EVENT, BEGIN, AGAIN, END = 0, 1, 2, 3

ALPHA = 0.001349898031630094
EXACT_BELOW = 10.0
DESIGN_MEANS = [2.0 ** (e / 2) for e in range(-12, 21)]
EXACT_MEAN = 2.0**50
"""Largest expected count that quantiles are looked up for."""
COUNT_MAX = 2**53
"""Largest count, and so the largest limit of a prediction."""

Design = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Counts:
    """How many points make the pattern of rules 2 to 8."""

    side: int = 9
    trend: int = 6
    alternating: int = 14
    beyond_2: int = 2
    beyond_1: int = 4
    inside: int = 15
    outside: int = 8


@dataclass(frozen=True)
class Spec:
    """How a chart is judged.

    ``baseline``: given, frozen or moving. ``rules``: numbers of the rules in force, 1 to 12. ``limits``:
    three_sigma, laney, exact or auto. ``design``: for each of DESIGN_MEANS h of the upper CUSUM and of the
    lower one times log(cusum_ratio), and L of the EWMA.
    """

    baseline: str
    k: float = 3.0
    rules: frozenset[int] = frozenset({1, 2, 3, 4})
    centre: float = 0.0
    phase_one: int = 1
    minimum: int = 1
    basis: object = None
    """What a stage rests on; another value starts a new stage."""
    limits: str = "three_sigma"
    alpha: float = ALPHA
    sigma_z: float = 1.0
    sigma_z_floor: float = 0.0
    screens: bool = False
    predicts: bool = False
    tests: bool = False
    counts: Counts = Counts()
    cusum_ratio: float = 1.0
    cusum_head_start: float = 0.5
    ewma_weight: float = 0.0
    design: Design | None = None
    again_reports: int = 0
    again_ns: int = 0
    end_after: int = 1


@dataclass(frozen=True)
class Detail:
    """What only some verdicts have: None where this one has it not."""

    p: float | None = None
    sigma_z: float | None = None
    mark: int = 0
    froze: bool = False
    typical_units: float | None = None
    cusum_up: float | None = None
    cusum_down: float | None = None
    cusum_limit_up: float | None = None
    cusum_limit_down: float | None = None
    ewma: float | None = None
    ewma_variance: float | None = None
    ewma_lcl: float | None = None
    ewma_ucl: float | None = None
    event: int = NO_EVENT
    quiet: int | None = None
    episode: int | None = None
    alerted: int | None = None
    alerted_at: int | None = None


@dataclass(frozen=True)
class Verdict:
    """One sample's verdict; centre and limits are NaN while there are none."""

    u: float
    centre: float
    lcl: float
    ucl: float
    flags: int
    phase: int
    stage: int
    detail: Detail = Detail()


@dataclass
class Sample:
    """A remembered sample; ``z`` as it was judged, where the centre is fixed."""

    count: float
    units: float
    ordinal: int
    usable: bool
    z: float = math.nan


# Limits of u


def standardised(count: float, units: float, centre: float, sigma_z: float = 1.0) -> float:
    """z of a sample; where sigma is 0, a tie is 0 and anything else is infinite."""
    difference = count / units - centre
    sigma = sigma_z * math.sqrt(centre / units)
    if sigma == 0.0:
        return 0.0 if difference == 0.0 else math.copysign(math.inf, difference)
    return difference / sigma


def limits(centre: float, units: float, k: float, sigma_z: float = 1.0) -> tuple[float, float]:
    """Lower and upper limit of u, k sigma from the centre."""
    sigma = sigma_z * math.sqrt(centre / units)
    return max(0.0, centre - k * sigma), centre + k * sigma


def smallest(holds: Callable[[int], bool]) -> int:
    """The smallest whole number from which on ``holds`` is true."""
    beyond = 1
    while not holds(beyond) and beyond < 4 * COUNT_MAX:
        beyond *= 2
    low, high = -1, beyond
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


@lru_cache(maxsize=100_000)
def quantiles(expected: float, alpha: float) -> tuple[int, int]:
    """The counts of a Poisson distribution beyond which there is at most alpha, a side.

    About the normal ones of an ``expected`` count whose neighbours a float64 hardly tells apart.
    """
    if expected > EXACT_MEAN:
        reach = -float(ndtri(alpha)) * math.sqrt(expected)
        return int(expected - reach), int(expected + reach)
    low = smallest(lambda x: pdtr(x, expected) >= alpha)
    high = smallest(lambda x: pdtrc(x, expected) <= alpha)
    return low, high


def poisson_p(count: float, expected: float) -> float:
    """Two-sided p-value of a count."""
    if expected == 0.0:
        return 1.0 if count == 0.0 else 0.0
    at_most = float(pdtr(count, expected))
    at_least = float(pdtrc(count - 1, expected)) if count > 0.0 else 1.0
    return min(1.0, 2.0 * min(at_most, at_least))


def is_exact(spec: Spec, centre: float, units: float) -> bool:
    """Whether a sample's limits are quantiles of the Poisson distribution."""
    return spec.limits == "exact" or (spec.limits == "auto" and centre * units < EXACT_BELOW)


def limits_of(
    spec: Spec, count: float, units: float, centre: float, sigma_z: float
) -> tuple[float, float, bool]:
    """Lower and upper limit of u, and whether the sample is beyond them."""
    if is_exact(spec, centre, units):
        low, high = quantiles(centre * units, spec.alpha)
        return low / units, high / units, count > high or count < low
    lower, upper = limits(centre, units, spec.k, sigma_z)
    u = count / units
    return lower, upper, u > upper or u < lower


# Prediction while a chart learns: a count given its sum with the counts so far is binomial


@lru_cache(maxsize=100_000)
def prediction_tails(count: float, units: float, counts: float, sum_of_units: float) -> tuple[float, float]:
    """P(X >= count) and P(X <= count) for X ~ Binomial(counts + count, units / (sum_of_units + units))."""
    share, rest = units / (sum_of_units + units), sum_of_units / (sum_of_units + units)
    at_least = 1.0 if count == 0.0 else beta_tail(count, counts + 1.0, share, rest)
    at_most = 1.0 if counts == 0.0 else beta_tail(counts, count + 1.0, rest, share)
    return at_least, at_most


def beta_tail(a: float, b: float, x: float, y: float) -> float:
    """I_x(a, b) with y = 1 - x, by the smaller of x and y: it has all its digits."""
    return float(betainc(a, b, x) if x < y else betaincc(b, a, y))


@lru_cache(maxsize=100_000)
def prediction_limits(units: float, counts: float, sum_of_units: float, alpha: float) -> tuple[int, int]:
    """The smallest and the largest count with more than alpha beyond it, itself included."""
    low = smallest(lambda x: prediction_tails(float(x), units, counts, sum_of_units)[1] > alpha)
    first_beyond = smallest(lambda x: prediction_tails(float(x), units, counts, sum_of_units)[0] <= alpha)
    return min(low, COUNT_MAX), min(first_beyond - 1, COUNT_MAX)


# Scatter


def scatter(samples: list[Sample], centre: float, *, screens: bool = False) -> float:
    """sigma_z: mean moving range of z over 1.128."""
    if len(samples) < 2 or centre == 0.0:
        return 1.0
    z = [standardised(s.count, s.units, centre) for s in samples]
    ranges = [abs(after - before) for before, after in itertools.pairwise(z)]
    mean = mean_in_order(ranges)
    if screens:
        kept = [value for value in ranges if value < 3.267 * mean]
        if kept:
            mean = mean_in_order(kept)
    return mean / 1.128


def mean_in_order(values: list[float]) -> float:
    """Mean, summed from the first to the last."""
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def scale_of(spec: Spec, samples: list[Sample], centre: float) -> float:
    """sigma_z in force: 1 unless the limits are Laney's."""
    if spec.limits != "laney":
        return 1.0
    if spec.baseline == "given":
        return max(spec.sigma_z, spec.sigma_z_floor)
    return max(scatter(samples, centre, screens=spec.screens), spec.sigma_z_floor)


# Rules


def rule_flags(z: list[float], counts: Counts) -> int:
    """Nelson's rules 2 to 8 at the last of ``z``: whole windows only, ties break runs."""
    # No differences: inf - inf is not a tie.
    steps = [(after > before) - (after < before) for before, after in itertools.pairwise(z)]
    flags = 0
    side = z[-counts.side :]
    if len(side) == counts.side and (all(v > 0 for v in side) or all(v < 0 for v in side)):
        flags |= 2
    trend = steps[-(counts.trend - 1) :]
    if len(trend) == counts.trend - 1 and (all(v > 0 for v in trend) or all(v < 0 for v in trend)):
        flags |= 4
    zigzag = steps[-(counts.alternating - 1) :]
    alternates = all(a * b < 0 for a, b in itertools.pairwise(zigzag)) and all(v != 0 for v in zigzag)
    if len(zigzag) == counts.alternating - 1 and alternates:
        flags |= 8
    if most_beyond(z, 2.0, counts.beyond_2):
        flags |= 16
    if most_beyond(z, 1.0, counts.beyond_1):
        flags |= 32
    inside = z[-counts.inside :]
    if len(inside) == counts.inside and not any(v > 1 or v < -1 for v in inside):
        flags |= 64
    outside = z[-counts.outside :]
    beyond = all(v > 1 or v < -1 for v in outside) and any(v > 1 for v in outside)
    if len(outside) == counts.outside and beyond and any(v < -1 for v in outside):
        flags |= 128
    return flags


def most_beyond(z: list[float], sigmas: float, count: int) -> bool:
    """``count`` of the newest ``count + 1`` points beyond so many sigma on one side, the newest one too."""
    newest = z[-(count + 1) :]
    if len(newest) < count + 1:
        return False
    above = [v > sigmas for v in newest]
    below = [v < -sigmas for v in newest]
    return (above[-1] and sum(above) >= count) or (below[-1] and sum(below) >= count)


# Baselines


def ratio(samples: list[Sample]) -> float:
    """Sum of counts / sum of units."""
    return math.fsum(s.count for s in samples) / math.fsum(s.units for s in samples)


def mean_units(samples: list[Sample]) -> float:
    """Mean of the samples' units."""
    return math.fsum(s.units for s in samples) / len(samples)


def phase_one_of(samples: list[Sample], spec: Spec) -> tuple[float, list[Sample]]:
    """Screened centre of phase I and the samples it rests on."""
    included = list(samples)
    centre = ratio(included)
    for _ in range(10):
        sigma_z = scale_of(spec, included, centre)
        kept = [s for s in included if not limits_of(spec, s.count, s.units, centre, sigma_z)[2]]
        if len(kept) == len(included) or 3 * (len(samples) - len(kept)) > len(samples):
            break
        included = kept
        centre = ratio(included)
    return centre, included


# Small lasting shifts


def designed(row: tuple[float, ...], mean: float) -> float:
    """A design's value for an expected count."""
    if mean <= DESIGN_MEANS[0]:
        return row[0]
    if mean >= DESIGN_MEANS[-1]:
        return row[-1]
    position = (math.log2(mean) + 6.0) * 2.0
    i = min(int(position), len(row) - 2)
    part = position - i
    return row[i] * (1.0 - part) + row[i + 1] * part


@dataclass
class Cusum:
    """Two one-sided sums; ``None`` where one starts (again) with the next sample."""

    up: float | None = None
    down: float | None = None

    def add(
        self, spec: Spec, count: float, units: float, centre: float, typical_units: float
    ) -> tuple[int, Detail]:
        """Flags and the sums after a sample."""
        assert spec.design is not None
        g = math.log(spec.cusum_ratio)
        ratio = math.exp(g)
        mean = centre * typical_units
        h_up, h_down = designed(spec.design[0], mean) / g, designed(spec.design[1], mean) / g
        up = spec.cusum_head_start * h_up if self.up is None else self.up
        down = spec.cusum_head_start * h_down if self.down is None else self.down
        up = max(0.0, up + count - units * (centre * (ratio - 1.0) / g))
        down = max(0.0, down + units * (centre * (1.0 - 1.0 / ratio) / g) - count)
        self.up = None if up >= h_up else up
        self.down = None if down >= h_down else down
        flags = (256 if up >= h_up else 0) | (512 if down >= h_down else 0)
        return flags, Detail(cusum_up=up, cusum_down=down, cusum_limit_up=h_up, cusum_limit_down=h_down)


@dataclass
class Ewma:
    """Exponentially weighted mean of u and, over the centre, its variance."""

    mean: float
    variance: float

    def add(
        self, spec: Spec, count: float, units: float, centre: float, typical_units: float
    ) -> tuple[int, Detail]:
        """Flags and limits after a sample."""
        assert spec.design is not None
        w = spec.ewma_weight
        width = designed(spec.design[2], centre * typical_units)
        self.mean = w * (count / units) + (1.0 - w) * self.mean
        self.variance = w * w / units + (1.0 - w) * (1.0 - w) * self.variance
        half = width * math.sqrt(centre * self.variance)
        lower, upper = max(0.0, centre - half), centre + half
        flags = (1024 if self.mean > upper else 0) | (2048 if self.mean < lower else 0)
        return flags, Detail(ewma=self.mean, ewma_variance=self.variance, ewma_lcl=lower, ewma_ucl=upper)


def merged(*details: Detail) -> Detail:
    """All that any of the details has."""
    nothing = Detail()
    found = {
        name: value
        for detail in details
        for name, value in vars(detail).items()
        if value != getattr(nothing, name)
    }
    return replace(nothing, **found)


# Alarms


@dataclass
class Alarm:
    """An open alarm; ``stale`` once the stage that it is of has ended."""

    episode: int
    alerted: int
    alerted_at: int
    quiet: int = 0
    stale: bool = False

    def detail(self, event: int) -> Detail:
        """What a verdict says of it."""
        return Detail(
            event=event,
            quiet=self.quiet,
            episode=self.episode,
            alerted=self.alerted,
            alerted_at=self.alerted_at,
        )


@dataclass
class Chart:
    """A chart that remembers at most ``window`` samples of its last ``depth`` reports."""

    depth: int
    window: int
    remembered: list[Sample] = field(default_factory=list)
    basis: object = None
    stage: int = 0
    frozen: float | None = None
    scale: float = 1.0
    """sigma_z, once frozen."""
    mark: int = 0
    mark_sigma_z: float = 0.0
    typical_units: float | None = None
    cusum: Cusum | None = None
    ewma: Ewma | None = None
    alarm: Alarm | None = None
    newest: int | None = None

    def reset(self) -> None:
        """Forget everything but an open alarm; the next sample starts a new stage."""
        self.remembered = []
        self.frozen, self.scale = None, 1.0
        self.mark, self.mark_sigma_z = 0, 0.0
        self.typical_units, self.cusum, self.ewma = None, None, None
        if self.alarm is not None:
            self.alarm.stale = True

    def judge(self, spec: Spec, count: float, units: float, ordinal: int) -> Verdict:
        """Judge and remember one sample."""
        self._lose_alarm(ordinal)
        self.newest = ordinal
        self.remembered = [s for s in self.remembered if s.ordinal >= ordinal - self.depth]
        if not self.remembered or self.basis != spec.basis:
            self.reset()
            self.basis = spec.basis
            self.stage = ordinal
        froze = self._freezes(spec)
        usable = [s for s in self.remembered if s.usable]
        in_phase_one = spec.baseline == "frozen" and self.frozen is None
        centre = self._centre(spec, usable)
        z = math.nan
        if centre is not None:
            scale = self.scale if self.frozen is not None else scale_of(spec, usable, centre)
            z = standardised(count, units, centre, scale)
            verdict = self._compared(spec, count, units, centre, scale, z)
            verdict = replace(verdict, phase=PHASE_ONE if in_phase_one else PHASE_TWO)
            if not in_phase_one:
                verdict = self._shifts(spec, verdict, usable, count, units)
            self._look_at_scatter(spec, usable, centre, ordinal)
        else:
            verdict = Verdict(count / units, math.nan, math.nan, math.nan, 0, LEARNING, self.stage)
            if spec.predicts and usable:
                verdict = self._predicted(spec, verdict, usable, count, units)
        if centre is None or in_phase_one:
            self.cusum = self.ewma = self.typical_units = None
        if centre is None or spec.limits == "laney":
            self.mark = 0
        flags = verdict.flags & sum(1 << (rule - 1) for rule in spec.rules)
        self.remembered.append(Sample(count, units, ordinal, in_phase_one or not flags & 1, z))
        self.remembered = self.remembered[-self.window :]
        marked = Detail(mark=self.mark, sigma_z=self.mark_sigma_z if self.mark else None, froze=froze)
        return replace(verdict, flags=flags, detail=merged(verdict.detail, marked))

    def alert(self, spec: Spec | None, signal: bool, ordinal: int, at: int) -> Detail:
        """What a sample just judged, or (``spec`` None) a reset, means for the chart's alarm."""
        self._lose_alarm(ordinal)
        alarm = self.alarm
        if spec is not None and signal and (alarm is None or alarm.stale):
            self.alarm = Alarm(episode=ordinal, alerted=ordinal, alerted_at=at)
            return self.alarm.detail(BEGIN)
        if alarm is None:
            return Detail()
        event = NO_EVENT
        if alarm.stale:
            event = END
        elif signal:
            assert spec is not None
            alarm.quiet = 0
            by_reports = spec.again_reports > 0 and ordinal - alarm.alerted >= spec.again_reports
            if by_reports or (spec.again_ns > 0 and at - alarm.alerted_at >= spec.again_ns):
                event = AGAIN
                alarm.alerted, alarm.alerted_at = ordinal, at
        else:
            assert spec is not None
            alarm.quiet += 1
            event = END if alarm.quiet >= spec.end_after else NO_EVENT
        if event == END:
            self.alarm = None
        return alarm.detail(event)

    def _lose_alarm(self, ordinal: int) -> None:
        """No report still remembered tells of an alarm of a chart that was absent for longer."""
        if self.newest is not None and self.newest < ordinal - self.depth:
            self.alarm = None

    def _freezes(self, spec: Spec) -> bool:
        usable = [s for s in self.remembered if s.usable]
        if spec.baseline != "frozen" or self.frozen is not None or not len(usable) >= spec.phase_one:
            return False
        self.frozen, included = phase_one_of(usable, spec)
        self.scale = scale_of(spec, included, self.frozen)
        self.typical_units = mean_units(included)
        for sample in self.remembered:
            sample.usable = any(sample is other for other in included)
            sample.z = standardised(sample.count, sample.units, self.frozen, self.scale)
        if spec.limits != "laney":
            self._measure(included, self.frozen)
        return True

    def _centre(self, spec: Spec, usable: list[Sample]) -> float | None:
        if spec.baseline == "given":
            return spec.centre
        if spec.baseline == "frozen" and self.frozen is not None:
            return self.frozen
        return ratio(usable) if usable and len(usable) >= spec.minimum else None

    def _compared(
        self, spec: Spec, count: float, units: float, centre: float, scale: float, z: float
    ) -> Verdict:
        fixed = spec.baseline == "given" or self.frozen is not None
        before = [
            s.z if fixed else standardised(s.count, s.units, centre, scale) for s in self.remembered[-15:]
        ]
        lower, upper, beyond = limits_of(spec, count, units, centre, scale)
        flags = rule_flags([*before, z], spec.counts) | (1 if beyond else 0)
        tested = spec.tests or spec.limits in ("exact", "auto")
        detail = Detail(
            p=poisson_p(count, centre * units) if tested else None,
            sigma_z=scale if spec.limits == "laney" else None,
        )
        return Verdict(count / units, centre, lower, upper, flags, LEARNING, self.stage, detail)

    def _predicted(
        self, spec: Spec, verdict: Verdict, usable: list[Sample], count: float, units: float
    ) -> Verdict:
        counts, sum_of_units = math.fsum(s.count for s in usable), math.fsum(s.units for s in usable)
        low, high = prediction_limits(units, counts, sum_of_units, spec.alpha)
        tails = prediction_tails(count, units, counts, sum_of_units)
        return replace(
            verdict,
            centre=counts / sum_of_units,
            lcl=low / units,
            ucl=high / units,
            flags=1 if count > high or count < low else 0,
            phase=SELF_STARTING,
            detail=Detail(p=min(1.0, 2.0 * min(tails))),
        )

    def _shifts(
        self, spec: Spec, verdict: Verdict, usable: list[Sample], count: float, units: float
    ) -> Verdict:
        has_cusum, has_ewma = spec.cusum_ratio > 1.0, spec.ewma_weight > 0.0
        if not has_cusum:
            self.cusum = None
        if not has_ewma:
            self.ewma = None
        if not has_cusum and not has_ewma:
            if spec.baseline == "given":
                self.typical_units = None
            return verdict
        if spec.baseline == "moving":
            self.typical_units = mean_units(usable)
        elif self.typical_units is None:  # given: of the stage's first sample
            self.typical_units = units
        details, flags = [verdict.detail, Detail(typical_units=self.typical_units)], verdict.flags
        if has_cusum:
            self.cusum = self.cusum or Cusum()
            signals, detail = self.cusum.add(spec, count, units, verdict.centre, self.typical_units)
            flags, details = flags | signals, [*details, detail]
        if has_ewma:
            w = spec.ewma_weight
            self.ewma = self.ewma or Ewma(verdict.centre, w / (2.0 - w) / self.typical_units)
            signals, detail = self.ewma.add(spec, count, units, verdict.centre, self.typical_units)
            flags, details = flags | signals, [*details, detail]
        return replace(verdict, flags=flags, detail=merged(*details))

    def _look_at_scatter(self, spec: Spec, usable: list[Sample], centre: float, ordinal: int) -> None:
        if spec.baseline == "frozen" or spec.limits == "laney":
            return
        if ordinal % DIAGNOSE_EVERY == 0:
            self._measure(usable, centre)

    def _measure(self, samples: list[Sample], centre: float) -> None:
        if len(samples) < DIAGNOSE_MIN:
            self.mark = 0
            return
        self.mark_sigma_z = scatter(samples, centre)
        self.mark = mark_of(self.mark_sigma_z, centre * mean_units(samples), len(samples))
