"""The u-chart judged naively: plain Python, one object a chart, nothing incremental.

It keeps every sample of the chart's stage and, for each new one, works everything out from what is
remembered. Sums are ``math.fsum``. The kernels must agree with it bit by bit. Self-contained, so that
other tests can hold what came over the wire against it::

    chart = Chart(depth=256, window=256)
    verdict = chart.judge(Spec("frozen", phase_one=20, minimum=5), count=3.0, units=25.0, ordinal=17)
    chart.reset()

``ordinal`` is the number of the chamber's report (resets are reports too): rises from sample to sample.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

LEARNING, PHASE_ONE, PHASE_TWO = 0, 1, 2


@dataclass(frozen=True)
class Spec:
    """How a chart is judged. ``baseline``: given, frozen or moving; ``rules``: numbers of Nelson rules."""

    baseline: str
    k: float = 3.0
    rules: frozenset[int] = frozenset({1, 2, 3, 4})
    centre: float = 0.0
    phase_one: int = 1
    minimum: int = 1
    basis: object = None
    """What a stage rests on; another value starts a new stage."""


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


@dataclass
class Sample:
    """A remembered sample."""

    count: float
    units: float
    ordinal: int
    usable: bool


def limits(centre: float, units: float, k: float) -> tuple[float, float]:
    """Lower and upper limit of u."""
    sigma = math.sqrt(centre / units)
    return max(0.0, centre - k * sigma), centre + k * sigma


def standardised(count: float, units: float, centre: float) -> float:
    """z of a sample; where sigma is 0, a tie is 0 and anything else is infinite."""
    difference = count / units - centre
    sigma = math.sqrt(centre / units)
    if sigma == 0.0:
        return 0.0 if difference == 0.0 else math.copysign(math.inf, difference)
    return difference / sigma


def ratio(samples: list[Sample]) -> float | None:
    """Sum of counts / sum of units, or None of nothing."""
    if not samples:
        return None
    return math.fsum(s.count for s in samples) / math.fsum(s.units for s in samples)


def run_flags(z: list[float]) -> int:
    """Nelson rules 2 to 4 at the last of ``z``: whole windows only, ties break runs."""
    flags = 0
    nine = z[-9:]
    if len(nine) == 9 and (all(value > 0 for value in nine) or all(value < 0 for value in nine)):
        flags |= 2
    # No differences: inf - inf is not a tie.
    steps = [(after > before) - (after < before) for before, after in itertools.pairwise(z)]
    five = steps[-5:]
    if len(five) == 5 and (all(step > 0 for step in five) or all(step < 0 for step in five)):
        flags |= 4
    thirteen = steps[-13:]
    if len(thirteen) == 13 and all(a * b < 0 for a, b in itertools.pairwise(thirteen)):
        flags |= 8
    return flags


def phase_one_centre(samples: list[Sample], k: float) -> tuple[float, list[Sample]]:
    """Screened centre of phase I and the samples left out of it."""
    included = list(samples)
    excluded: list[Sample] = []
    centre = ratio(included)
    assert centre is not None
    for _ in range(10):
        beyond = []
        for sample in included:
            lower, upper = limits(centre, sample.units, k)
            u = sample.count / sample.units
            if u > upper or u < lower:
                beyond.append(sample)
        if not beyond or 3 * (len(excluded) + len(beyond)) > len(samples):
            break
        excluded += beyond
        included = [sample for sample in included if not any(sample is other for other in beyond)]
        centre = ratio(included)
        assert centre is not None
    return centre, excluded


@dataclass
class Chart:
    """A chart that remembers at most ``window`` samples of its last ``depth`` reports."""

    depth: int
    window: int
    remembered: list[Sample] = field(default_factory=list)
    basis: object = None
    stage: int = 0
    frozen: float | None = None

    def reset(self) -> None:
        """Forget everything; the next sample starts a new stage."""
        self.remembered = []
        self.frozen = None

    def judge(self, spec: Spec, count: float, units: float, ordinal: int) -> Verdict:
        """Judge and remember one sample."""
        self.remembered = [s for s in self.remembered if s.ordinal >= ordinal - self.depth]
        if not self.remembered or self.basis != spec.basis:
            self.reset()
            self.basis = spec.basis
            self.stage = ordinal
        centre = self._centre(spec)
        u = count / units
        flags, phase, lower, upper = 0, LEARNING, math.nan, math.nan
        in_phase_one = spec.baseline == "frozen" and self.frozen is None
        if centre is not None:
            lower, upper = limits(centre, units, spec.k)
            z = [standardised(s.count, s.units, centre) for s in self.remembered]
            flags = run_flags([*z, standardised(count, units, centre)])
            if u > upper or u < lower:
                flags |= 1
            flags &= sum(1 << (rule - 1) for rule in spec.rules)
            phase = PHASE_ONE if in_phase_one else PHASE_TWO
        self.remembered.append(Sample(count, units, ordinal, in_phase_one or not flags & 1))
        self.remembered = self.remembered[-self.window :]
        return Verdict(u, math.nan if centre is None else centre, lower, upper, flags, phase, self.stage)

    def _centre(self, spec: Spec) -> float | None:
        if spec.baseline == "given":
            return spec.centre
        usable = [s for s in self.remembered if s.usable]
        if spec.baseline == "frozen":
            if self.frozen is None and len(usable) >= spec.phase_one:
                self.frozen, excluded = phase_one_centre(usable, spec.k)
                for sample in excluded:
                    sample.usable = False
            if self.frozen is not None:
                return self.frozen
        return ratio(usable) if len(usable) >= spec.minimum else None
