"""Which samples signal, which of them are alarms, and what an alarm says.

    flags ── false discovery rate of the report ──► signal ── episode (kernel ``alert``) ──► event ──► alarm
                                                       └───── mode "every" ─────────────────────────────┘

What an alarm says is a function of the verdict alone, so that one which a crash left out can be made up from
the stored verdict (`runtime.overdue`). The verdict therefore carries a severity wherever a chart signals:

    event     begin, again or end of the chart's episode: the chart is in the alarm
    severity  not empty and no episode: the chart signals in mode "every", and is in the alarm
              empty with flags: what the false discovery rate of its report let pass; no alarm

A verdict without any severity is of a release that knew no episodes: each chart with flags is in its alarm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.state import PART_P, Event
from runtime.specs import Alarm as AlarmSpec
from runtime.specs import Specs
from runtime.wire import (
    EVENTS,
    SEVERITIES,
    Alarm,
    ChartAlarm,
    Verdict,
    json_encoder,
    rules_of,
    to_datetime,
)

RULE_1: Final = 1


class AlarmRules:
    """What the specs say of alarms, by the spec's number. *specs* as `runtime.specs.compile` numbers them."""

    def __init__(self, specs: Specs) -> None:
        self._alarms: list[AlarmSpec] = [specs[i].alarm for i in range(len(specs))]
        self.episodic = np.array([alarm.is_episodic for alarm in self._alarms])
        rates = [np.nan if alarm.fdr is None else alarm.fdr for alarm in self._alarms]
        self._rates = np.array(rates, dtype=np.float64)
        self._has_rates = bool(np.any(~np.isnan(self._rates)))
        self._severities: dict[tuple[int, int], str] = {}

    def signals(
        self,
        flags: NDArray[np.uint16],
        spec_ids: NDArray[np.int32],
        lengths: Sequence[int],
        parts: NDArray[np.uint8],
        details: NDArray[Any],
    ) -> NDArray[np.uint16]:
        """The flags of the samples (n,) without those of rule 1 that the false discovery rate lets pass: what
        is not 0 signals. *lengths*: samples of each report."""
        if not self._has_rates or not (flags & RULE_1).any():
            return flags
        signals = flags.copy()
        rates = self._rates[spec_ids]
        tested = (parts & PART_P != 0) & ~np.isnan(rates)
        first = 0
        for length in lengths:
            report = slice(first, first + length)
            first += length
            at = np.flatnonzero(tested[report]) + report.start
            if len(at) and (flags[at] & RULE_1).any():
                passes = adjusted(details["p"][at]) > rates[at]
                signals[at[passes]] &= ~np.uint16(RULE_1)
        return signals

    def severity(self, spec_id: int, signal: int) -> str:
        """Of a sample with the flags *signal*; empty without any."""
        known = self._severities.get((spec_id, signal))
        if known is None:
            known = self._severities[spec_id, signal] = str(self._alarms[spec_id].severity_of(signal))
        return known


def adjusted(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values (m,) as adjusted by Benjamini and Hochberg (1995, JRSS B 57, 289-300): what is at most q is
    rejected at the false discovery rate q. The smallest of p[j] m / rank over all j with p[j] >= p[i]."""
    order = np.argsort(p, kind="stable")
    ratios = p[order] * len(p) / np.arange(1, len(p) + 1)
    found = np.empty(len(p))
    found[order] = np.minimum.accumulate(ratios[::-1])[::-1]
    return found


def charts_told(verdict: Verdict) -> list[int]:
    """Indices of the charts that are in the alarm of a verdict; empty: there is none."""
    told = []
    for i in range(max(len(verdict.flags), len(verdict.event))):
        if _at(verdict.event, i):
            told.append(i)
        elif i < len(verdict.flags) and verdict.flags[i]:
            of_every = _at(verdict.severity, i, "") and not _at(verdict.episode, i)
            if of_every or not verdict.severity:
                told.append(i)
    return told


def alarm_of(verdict: Verdict) -> Alarm | None:
    """The alarm of a verdict, None when it has none."""
    charts = [_chart_alarm(verdict, i) for i in charts_told(verdict)]
    if not charts:
        return None
    return Alarm(
        chamber=verdict.chamber,
        run=verdict.run,
        at=to_datetime(verdict.at),
        seq=verdict.seq,
        epoch=verdict.epoch,
        spec=verdict.spec,
        defender=verdict.defender,
        charts=charts,
        severity=max((chart.severity for chart in charts), key=SEVERITIES.index),
    )


def encode_alarm(verdict: Verdict) -> bytes | None:
    """The alarm of a verdict as JSON, None when it has none."""
    alarm = alarm_of(verdict)
    return None if alarm is None else json_encoder.encode(alarm)


def _at(column: Sequence[Any], i: int, default: Any = 0) -> Any:
    return column[i] if i < len(column) else default


def _chart_alarm(verdict: Verdict, i: int) -> ChartAlarm:
    """The entry of one chart. The end by a reset has no sample: its units are 0."""
    event = Event(_at(verdict.event, i))
    flags, phase = _at(verdict.flags, i), _at(verdict.phase, i)
    severity = _at(verdict.severity, i, "")
    if event is Event.END:
        severity = "info"
    elif not severity:
        severity = "critical" if flags & RULE_1 else "warning"
    text = _end_text(verdict, i) if event is Event.END else _signal_text(verdict, i)
    if event is Event.AGAIN:
        text += f" (alarm since report {verdict.episode[i]})"
    return ChartAlarm(
        chart=verdict.charts[i],
        count=_at(verdict.counts, i),
        units=_at(verdict.units, i, 0.0),
        u=_at(verdict.u, i, 0.0),
        centre=_at(verdict.centre, i, 0.0) or 0.0,
        lcl=_at(verdict.lcl, i, 0.0) or 0.0,
        ucl=_at(verdict.ucl, i, 0.0) or 0.0,
        rules=rules_of(flags),
        phase=phase,
        text=f"{verdict.charts[i]}: {text}",
        event=EVENTS[event],
        severity=severity,
        since=_at(verdict.episode, i) if event is not Event.NONE else 0,
    )


_PHASE_TEXTS: Final = {1: " (trial limits)", 3: " (predicted limits)"}
_RULE_TEXTS: Final = {
    2: "a run of points on one side of the centre line",
    3: "a run of points steadily rising or falling",
    4: "a run of points alternating up and down",
    5: "nearly all of the newest points beyond 2 sigma on one side",
    6: "nearly all of the newest points beyond 1 sigma on one side",
    7: "a run of points within 1 sigma of the centre line",
    8: "a run of points beyond 1 sigma, on both sides of the centre line",
}
"""Without numbers: how many points make a pattern is the spec's, which the verdict does not carry."""


def _signal_text(verdict: Verdict, i: int) -> str:
    texts = [_rule_text(verdict, i, rule) for rule in rules_of(verdict.flags[i])]
    return "; ".join(texts) + _PHASE_TEXTS.get(verdict.phase[i], "")


def _rule_text(verdict: Verdict, i: int, rule: int) -> str:
    match rule:
        case 1:
            u, lcl, ucl = verdict.u[i], verdict.lcl[i] or 0.0, verdict.ucl[i] or 0.0
            return f"u {u:.6g} is {f'above UCL {ucl:.6g}' if u >= ucl else f'below LCL {lcl:.6g}'}"
        case 9:
            sums, limits = verdict.cusum_up, verdict.cusum_limit_up
            return f"CUSUM {_of(sums, i)} of rises has reached {_of(limits, i)}"
        case 10:
            sums, limits = verdict.cusum_down, verdict.cusum_limit_down
            return f"CUSUM {_of(sums, i)} of falls has reached {_of(limits, i)}"
        case 11:
            return f"EWMA {_of(verdict.ewma, i)} is above its limit {_of(verdict.ewma_ucl, i)}"
        case 12:
            return f"EWMA {_of(verdict.ewma, i)} is below its limit {_of(verdict.ewma_lcl, i)}"
    return _RULE_TEXTS.get(rule, f"rule {rule}")


def _of(column: Sequence[float | None], i: int) -> str:
    value = _at(column, i, None)
    return "-" if value is None else f"{value:.6g}"


def _end_text(verdict: Verdict, i: int) -> str:
    over = f"alarm since report {verdict.episode[i]} is over"
    if verdict.reset is not None:
        return f"{over}: reset ({verdict.reset})"
    if verdict.stage[i] == verdict.ordinal:
        return f"{over}: a new stage began"
    quiet = _at(verdict.quiet, i)
    if not quiet:
        return f"{over}: quiet"
    return f"{over}: quiet for {quiet} {'report' if quiet == 1 else 'reports'}"
