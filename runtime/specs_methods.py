"""What a chart spec can ask for: baselines, limits, rules, small lasting shifts, alarms. Pure.

The words and numbers that people write, with their ranges; what they mean stands in `docs/charts.md`. The
kernels' own enums and bounds are not imported, for they bring NumPy: the numbers here are theirs, and a test
compares them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from msgspec import Struct


class Baseline(StrEnum):
    """Where a chart's centre line comes from."""

    FROZEN = "frozen"
    MOVING = "moving"
    GIVEN = "given"


KINDS: Final = {Baseline.GIVEN: 0, Baseline.FROZEN: 1, Baseline.MOVING: 2}
"""The numbers of the baselines in the kernels."""
KIND_MASK: Final = 3


class Start(StrEnum):
    """What a chart does while it has fewer than ``minimum`` usable subgroups."""

    LEARN = "learn"
    PREDICT = "predict"


class Limits(StrEnum):
    """How far from the centre line the limits are."""

    THREE_SIGMA = "three_sigma"
    LANEY = "laney"
    EXACT = "exact"
    AUTO = "auto"


LIMITS: Final = {Limits.THREE_SIGMA: 0, Limits.LANEY: 1, Limits.EXACT: 2, Limits.AUTO: 3}
"""The numbers of the limits in the kernels."""
BY_QUANTILES: Final = frozenset((Limits.EXACT, Limits.AUTO))
"""Limits that have an alpha."""

K: Final = 3.0
K_MAX: Final = 10.0
ALPHA: Final = 0.001349898031630094
"""The tail of the normal distribution beyond three sigma."""
ALPHA_MIN: Final = 1e-9
ALPHA_MAX: Final = 0.1
CENTRE_MAX: Final = 2.0**53
SIGMA_Z_MAX: Final = 1000.0


class RuleSet(StrEnum):
    """Rules by the name of the book."""

    NELSON = "nelson"
    WESTERN_ELECTRIC = "western_electric"
    MINITAB = "minitab"
    NONE = "none"


class Count(NamedTuple):
    """How many points make the pattern of a rule: Nelson's, and the range that the kernels can look at."""

    usual: int
    least: int
    most: int


COUNTS: Final = {
    2: Count(9, 2, 15),
    3: Count(6, 3, 15),
    4: Count(14, 3, 15),
    5: Count(2, 2, 14),
    6: Count(4, 2, 14),
    7: Count(15, 2, 15),
    8: Count(8, 2, 15),
}
"""By rule, in the order of ``kernels.state.RuleCounts``. Of rules 5 and 6 it is "so many of one more"."""

RULES_KNOWN: Final = (1, *COUNTS)
RULES_DEFAULT: Final = (1, 2, 3, 4)
RULES_OF_SETS: Final[dict[RuleSet, tuple[int, ...]]] = {
    RuleSet.NELSON: RULES_KNOWN,
    RuleSet.WESTERN_ELECTRIC: (1, 5, 6, 2),
    RuleSet.MINITAB: RULES_KNOWN,
    RuleSet.NONE: (),
}
COUNTS_OF_SETS: Final[dict[RuleSet, dict[int, int]]] = {
    RuleSet.NELSON: {},
    RuleSet.WESTERN_ELECTRIC: {2: 8},
    RuleSet.MINITAB: {2: 9, 3: 6, 4: 14, 5: 2, 6: 4, 7: 15, 8: 8},
    RuleSet.NONE: {},
}
"""Where a set differs from Nelson, or says its counts itself: Minitab's K are Nelson's today."""
CUSUM_RULES: Final = (9, 10)
"""Above, below."""
EWMA_RULES: Final = (11, 12)
RULES_OF_ALARMS: Final = (*RULES_KNOWN, *CUSUM_RULES, *EWMA_RULES)

RATIO_MIN: Final = 1.05
RATIO_MAX: Final = 10.0
HEAD_START_MAX: Final = 0.5
WEIGHT_MIN: Final = 0.01
ARL0_MIN: Final = 20.0
ARL0_MAX: Final = 100_000.0


class Cusum(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A two-sided Poisson CUSUM tuned to a centre line that rises ``ratio``-fold, or falls to 1/``ratio``.

    ``arl0`` is the mean number of samples between two false signals, ``head_start`` where its sums begin, as
    a part of their limits.
    """

    ratio: float = 1.5
    arl0: float = 370.0
    head_start: float = 0.5


class Ewma(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """An EWMA of u in which the newest sample has ``weight``; ``arl0`` as of `Cusum`."""

    weight: float = 0.2
    arl0: float = 370.0


class Mode(StrEnum):
    """What one alarm is: a whole episode of signals, or every sample that signals."""

    EPISODE = "episode"
    EVERY = "every"


class Severity(StrEnum):
    """How urgent an alarm is, in rising order."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


_RANKS: Final = tuple(Severity)
AGAIN_S_MAX: Final = 3650 * 86_400.0
AGAIN_REPORTS_MAX: Final = 2**32 - 1
END_AFTER_MAX: Final = 65_535


class Alarm(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """When a signal becomes an alarm, when it is said again, and when it is over.

    With ``mode`` ``every`` each sample that signals is an alarm of its own and nothing is remembered: the
    three fields after it then mean nothing. ``fdr`` is the false discovery rate of Benjamini and Hochberg
    over the charts of a report. ``severity`` overrides single rules; rule 1 is critical, the others are
    warnings.
    """

    mode: Mode = Mode.EPISODE
    again_after_reports: int = 0
    again_after_s: float = 3600.0
    end_after: int = 3
    fdr: float | None = None
    severity: dict[int, Severity] = {}

    @property
    def is_episodic(self) -> bool:
        """Whether the kernel ``alert`` keeps episodes of these charts."""
        return self.mode is Mode.EPISODE

    def severity_of_rule(self, rule: int) -> Severity:
        usual = Severity.CRITICAL if rule == 1 else Severity.WARNING
        return self.severity.get(rule, usual)

    def severity_of(self, flags: int) -> str:
        """The highest severity of the rules in *flags* (bit r-1: rule r); empty where there is none."""
        rules = [bit + 1 for bit in range(flags.bit_length()) if flags >> bit & 1]
        return max((self.severity_of_rule(rule) for rule in rules), key=_RANKS.index, default="")


class Design(Struct, frozen=True, forbid_unknown_fields=True):
    """The limits of a CUSUM, of an EWMA, or of both, for a range of expected counts: made by machine.

    ``rows`` are those of ``kernels.state``: upper CUSUM, lower CUSUM, EWMA, each at the ``DESIGN_MEANS``.
    *ratio* 1: without a CUSUM, whose rows are then zeros; *weight* 0: without an EWMA.
    """

    ratio: float
    head_start: float
    weight: float
    arl0: float
    rows: tuple[tuple[float, ...], ...]
