"""What is wrong with the values of a chart spec, in words: field, value, remedy. Pure.

Each problem begins with the field that it is about (``alarm.fdr`` of a field within a field), by which
`runtime.specs_text` finds its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from runtime.specs_methods import (
    AGAIN_REPORTS_MAX,
    AGAIN_S_MAX,
    ALPHA,
    ALPHA_MAX,
    ALPHA_MIN,
    ARL0_MAX,
    ARL0_MIN,
    BY_QUANTILES,
    CENTRE_MAX,
    COUNTS,
    CUSUM_RULES,
    END_AFTER_MAX,
    EWMA_RULES,
    HEAD_START_MAX,
    K_MAX,
    RATIO_MAX,
    RATIO_MIN,
    RULES_KNOWN,
    RULES_OF_ALARMS,
    SIGMA_Z_MAX,
    WEIGHT_MIN,
    Alarm,
    Baseline,
    K,
    Limits,
    Start,
)

if TYPE_CHECKING:
    from runtime.specs import ChartSpec

GLOB_CHARACTERS_MAX: Final = 256
_NEVER_IN_A_NAME: Final = re.compile(r"[\s.>\x00-\x1f\x7f]")
_SHIFT_RULES: Final = (*CUSUM_RULES, *EWMA_RULES)


def spec_problems(spec: ChartSpec, window: int, *, is_default: bool) -> Iterable[str]:
    """What is wrong with the values of one entry and their relations; each begins with its field's name."""
    for field, glob in (("chamber", spec.chamber), ("chart", spec.chart)):
        if is_default and glob != "*":
            yield f"{field} {glob!r}: the default is for every chart; move it into an entry of charts"
        yield from _glob_problems(field, glob)
    yield from _limits_problems(spec)
    yield from _rules_problems(spec)
    yield from _shifts_problems(spec)
    yield from _alarm_problems(spec.alarm, spec)
    yield from _baseline_problems(spec, window)


def _glob_problems(field: str, glob: str) -> Iterable[str]:
    if not glob:
        yield f"{field} is empty: write '*' for all"
    elif len(glob) > GLOB_CHARACTERS_MAX:
        yield f"{field} is longer than {GLOB_CHARACTERS_MAX} characters"
    elif _NEVER_IN_A_NAME.search(glob):
        yield f"{field} {glob!r} can match nothing: no {field} has a space, a dot or a '>' in its name"


def _limits_problems(spec: ChartSpec) -> Iterable[str]:
    limits, is_given = spec.limits, spec.baseline is Baseline.GIVEN
    if not 0 < spec.k <= K_MAX:
        yield f"k {spec.k!r} must be above 0 and at most {K_MAX:g} (3 is usual)"
    elif limits is Limits.EXACT and spec.k != K:
        yield f"k {spec.k!r} has no meaning with limits exact: leave it out, and set alpha"
    if not ALPHA_MIN <= spec.alpha <= ALPHA_MAX:
        yield (
            f"alpha {spec.alpha!r} must be in {ALPHA_MIN:g} ... {ALPHA_MAX:g}: the probability beyond each "
            f"limit (0.00135 is that of three sigma)"
        )
    elif spec.alpha != ALPHA and limits not in BY_QUANTILES and spec.start is not Start.PREDICT:
        yield (
            f"alpha {spec.alpha!r} is only for limits exact or auto (or start predict), not for {limits}: "
            f"set k instead"
        )
    yield from _laney_problems(spec)
    if spec.sigma_z is None:
        if is_given and limits is Limits.LANEY:
            yield "sigma_z is missing: limits laney with baseline given need it (see defender specs advise)"
    elif not (is_given and limits is Limits.LANEY):
        yield (
            f"sigma_z {spec.sigma_z!r} is only for baseline given with limits laney, not for "
            f"{spec.baseline} with {limits}: leave it out"
        )
    elif not 0 < spec.sigma_z <= SIGMA_Z_MAX:
        yield f"sigma_z {spec.sigma_z!r} must be above 0 and at most {SIGMA_Z_MAX:g} (1: as Poisson has it)"


def _laney_problems(spec: ChartSpec) -> Iterable[str]:
    """Of what has a meaning only where sigma_z is estimated."""
    if spec.limits is not Limits.LANEY:
        why = f"is only for limits laney, not for {spec.limits}: leave it out"
    elif spec.baseline is Baseline.GIVEN:
        why = "has no meaning with baseline given, whose sigma_z stands in the spec: leave it out"
    else:
        why = ""
    if spec.screen_ranges and why:
        yield f"screen_ranges true {why}"
    floor = spec.sigma_z_floor
    if floor is not None and why:
        yield f"sigma_z_floor {floor!r} {why}"
    elif floor is not None and not 0 < floor <= SIGMA_Z_MAX:
        yield (
            f"sigma_z_floor {floor!r} must be above 0 and at most {SIGMA_Z_MAX:g}; 1: limits are never "
            f"narrower than those of a Poisson distribution"
        )


def _rules_problems(spec: ChartSpec) -> Iterable[str]:
    rules = spec.nelson_rules
    shifts = [rule for rule in rules if rule in _SHIFT_RULES]
    if shifts:
        yield f"rules {shifts} come with cusum (9, 10) and ewma (11, 12): write those instead of the numbers"
    unknown = [rule for rule in rules if rule not in RULES_KNOWN and rule not in _SHIFT_RULES]
    if unknown:
        yield f"rules {unknown} are not known: there are Nelson rules 1 to 8"
    for rule, points in spec.counts.items():
        if rule not in COUNTS:
            yield f"counts {{{rule}: {points}}}: only rules 2 to 8 count points"
            continue
        count = COUNTS[rule]
        if not count.least <= points <= count.most:
            of = f" of {points + 1}" if rule in (5, 6) else ""
            yield (
                f"counts {{{rule}: {points}}}: rule {rule} cannot be {points}{of} points, but "
                f"{count.least} to {count.most} ({count.usual} is usual)"
            )
        elif rule not in rules:
            yield f"counts {{{rule}: {points}}}: rule {rule} is not in rules: add it there, or leave this out"


def _shifts_problems(spec: ChartSpec) -> Iterable[str]:
    cusum, ewma = spec.cusum, spec.ewma
    if cusum is not None:
        if not RATIO_MIN <= cusum.ratio <= RATIO_MAX:
            yield (
                f"cusum.ratio {cusum.ratio!r} must be in {RATIO_MIN:g} ... {RATIO_MAX:g}: the shift to look "
                f"for, as new centre line / old one (it looks for its inverse too)"
            )
        if not 0 <= cusum.head_start <= HEAD_START_MAX:
            yield (
                f"cusum.head_start {cusum.head_start!r} must be in 0 ... {HEAD_START_MAX:g}: where the sums "
                f"begin, as a part of their limits (0.5 is usual, 0 for none)"
            )
    if ewma is not None and not WEIGHT_MIN <= ewma.weight <= 1:
        yield f"ewma.weight {ewma.weight!r} must be in {WEIGHT_MIN:g} ... 1 (0.1 to 0.3 is usual)"
    for field, method in (("cusum", cusum), ("ewma", ewma)):
        if method is not None and not ARL0_MIN <= method.arl0 <= ARL0_MAX:
            yield (
                f"{field}.arl0 {method.arl0!r} must be in {ARL0_MIN:g} ... {ARL0_MAX:g}: samples between two "
                f"false signals (370 is that of three sigma)"
            )


def _alarm_problems(alarm: Alarm, spec: ChartSpec) -> Iterable[str]:
    if not 0 <= alarm.again_after_reports <= AGAIN_REPORTS_MAX:
        reports = alarm.again_after_reports
        yield f"alarm.again_after_reports {reports} must be 0 (never) to {AGAIN_REPORTS_MAX}"
    if not 0 <= alarm.again_after_s <= AGAIN_S_MAX:
        yield f"alarm.again_after_s {alarm.again_after_s!r} must be 0 (never) to {AGAIN_S_MAX:.0f} seconds"
    if not 1 <= alarm.end_after <= END_AFTER_MAX:
        yield f"alarm.end_after {alarm.end_after} must be 1 to {END_AFTER_MAX} samples without a signal"
    if not alarm.is_episodic:
        usual = Alarm()
        for field in ("again_after_reports", "again_after_s", "end_after"):
            if getattr(alarm, field) != getattr(usual, field):
                yield f"alarm.{field} is only for mode episode, not for every: leave it out"
    if alarm.fdr is not None:
        if not 0 < alarm.fdr < 1:
            yield f"alarm.fdr {alarm.fdr!r} must be above 0 and below 1 (0.05 is usual), or none"
        elif 1 not in spec.nelson_rules:
            yield f"alarm.fdr {alarm.fdr!r} needs rule 1: it decides which of its signals are alarms"
    unknown = [rule for rule in alarm.severity if rule not in RULES_OF_ALARMS]
    if unknown:
        yield f"alarm.severity names rules {unknown}: there are rules 1 to 12"


def _baseline_problems(spec: ChartSpec, window: int) -> Iterable[str]:
    if spec.baseline is Baseline.GIVEN:
        if spec.centre is None:
            yield "baseline given needs a centre (nonconformities a unit)"
        elif not 0 < spec.centre <= CENTRE_MAX:
            yield f"centre {spec.centre!r} must be above 0 and finite"
        if spec.start is Start.PREDICT:
            yield "start predict is not for baseline given, which has limits from the start: leave it out"
        return
    if spec.centre is not None:
        yield f"centre {spec.centre!r} is only for baseline given, not for {spec.baseline}"
    if spec.minimum < 1:
        yield f"minimum {spec.minimum} must be at least 1"
    elif spec.minimum == 1 and spec.start is Start.PREDICT:
        yield "minimum 1 leaves nothing to predict: raise it to 2 or more, or leave out start predict"
    if spec.baseline is Baseline.MOVING:
        if 1 not in spec.nelson_rules:
            yield "baseline moving needs rule 1: what it signals is left out of the baseline"
        if spec.minimum > window:
            yield f"minimum {spec.minimum} is above WINDOW {window}: such a chart never has limits"
        return
    if spec.phase_one < 2:
        yield f"phase_one {spec.phase_one} must be at least 2"
    if spec.phase_one > window:
        yield f"phase_one {spec.phase_one} is above WINDOW {window}: lower it, or set WINDOW higher"
    if spec.minimum > spec.phase_one:
        yield f"minimum {spec.minimum} is above phase_one {spec.phase_one}: lower minimum, or raise phase_one"
