"""Verdicts, alarms and rejections as lines for people and as JSON for machines. Pure.

Each kind of message has a function that makes, of one record of its stream, the `Line` s that match the
filters; none when nothing of it does.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from runtime import wire
from runtime.cli.reading import Record
from runtime.cli.terminal import clean, clock, fits
from runtime.frames import header
from runtime.wire import ChartAlarm, Verdict

VERDICT_HEADING: Final = (
    f"{'time (UTC)':<23}  {'chamber':<12}  {'run':<10}  {'chart':<18}  {'count':>7} {'units':>9}  "
    f"{'u':>10}  {'LCL':>10} {'centre':>10} {'UCL':>10}  {'phase':<8}  rules"
)
ALARM_HEADING: Final = (
    f"{'time (UTC)':<23}  {'chamber':<12}  {'run':<10}  {'severity':<8}  {'event':<5}  alarm"
)
REJECTED_HEADING: Final = f"{'time (UTC)':<23}  {'chamber':<12}  {'reason':<18}  {'bytes':>7}  detail"
_PHASES: Final = ("learning", "phase I", "phase II", "predicts")
_MARKS: Final = ("", "overdispersed", "underdispersed")
_EVENTS: Final = ("", "alarm begins", "alarm again", "alarm ends")
_STYLES: Final = {"critical": "bold red", "warning": "yellow", "info": ""}
"""By severity; one of another version is shown as rule 1 or another rule would be."""


@dataclass(frozen=True)
class Filter:
    """Globs on chamber and chart; empty ones let everything pass."""

    chamber: str = ""
    chart: str = ""


@dataclass(frozen=True)
class Line:
    """One line for people, with its colour; *tree* is the whole message for machines."""

    text: str
    style: str
    tree: Any = field(compare=False)


def verdict_lines(record: Record, wanted: Filter) -> list[Line]:
    """A line a chart. A verdict of another version that cannot be read is a line that says so."""
    if not fits(record.chamber, wanted.chamber):
        return []
    try:
        verdict = wire.decode_verdict(record.payload)
    except msgspec.MsgspecError as error:
        return [_unreadable(record, error)]
    tree = msgspec.to_builtins(verdict)
    left = f"{clock(verdict.at):<23}  {verdict.chamber:<12}  {clean(verdict.run):<10}"
    if verdict.reset is not None:
        charts = ", ".join(verdict.charts) or "all charts"
        matches = not wanted.chart or not verdict.charts or any(fits(c, wanted.chart) for c in verdict.charts)
        ended = ", ".join(c for c, event in zip(verdict.charts, verdict.event, strict=False) if event)
        text = f"{left}  reset of {charts}: {clean(verdict.reset)}"
        text += f"; ends the alarms of {ended}" if ended else ""
        return [Line(text, "magenta", tree)] if matches else []
    return [
        Line(f"{left}  {_chart_text(verdict, i)}", _style(verdict.flags[i], verdict.phase[i]), tree)
        for i, chart in enumerate(verdict.charts)
        if fits(chart, wanted.chart)
    ]


def alarm_lines(record: Record, wanted: Filter) -> list[Line]:
    """A line a chart whose alarm begins, is said again or ends."""
    if not fits(record.chamber, wanted.chamber):
        return []
    try:
        alarm = wire.decode_alarm(record.payload)
    except msgspec.MsgspecError as error:
        return [_unreadable(record, error)]
    tree = msgspec.to_builtins(alarm)
    left = f"{clock(wire.time_ns(alarm.at, 0)):<23}  {alarm.chamber:<12}  {clean(alarm.run):<10}"
    return [
        Line(f"{left}  {chart.severity:<8}  {chart.event:<5}  {clean(chart.text)}", _alarm_style(chart), tree)
        for chart in alarm.charts
        if fits(chart.chart, wanted.chart)
    ]


def rejected_lines(record: Record, wanted: Filter) -> list[Line]:
    """One line a message, with the first problem and how many there are."""
    chamber = (header(record.headers, b"Tfdc-Chamber") or record.chamber.encode()).decode(errors="replace")
    if not fits(chamber, wanted.chamber):
        return []
    reason = (header(record.headers, b"Tfdc-Reason") or b"?").decode(errors="replace")
    problems = json.loads(header(record.headers, b"Tfdc-Problems") or b"[]")
    details = [clean(str(problem.get("detail", ""))) for problem in problems]
    if wanted.chart and not any(fits(name, wanted.chart) for name in _named(record.payload, problems)):
        return []
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    detail = (details[0] if details else "") + more
    tree = {
        "at": wire.to_datetime(record.at_ns),
        "chamber": chamber,
        "reason": reason,
        "problems": problems,
        "seq": int(header(record.headers, b"Tfdc-Seq") or 0),
        **_payload(record.payload),
    }
    left = f"{clock(record.at_ns):<23}  {clean(chamber):<12}  {reason:<18}  {len(record.payload):>7}"
    return [Line(f"{left}  {detail}", "yellow", tree)]


def _chart_text(verdict: Verdict, i: int) -> str:
    rules = ",".join(str(rule) for rule in wire.rules_of(verdict.flags[i]))
    limits = " ".join(
        f"{_number(limit):>10}" for limit in (verdict.lcl[i], verdict.centre[i], verdict.ucl[i])
    )
    phase = _PHASES[verdict.phase[i]] if verdict.phase[i] < len(_PHASES) else str(verdict.phase[i])
    text = (
        f"{verdict.charts[i]:<18}  {verdict.counts[i]:>7} {verdict.units[i]:>9.6g}  "
        f"{_number(verdict.u[i]):>10}  {limits}  {phase:<8}  {rules}"
    )
    return "  ".join([text, *_notes(verdict, i)]).rstrip()


def _notes(verdict: Verdict, i: int) -> list[str]:
    """What only some charts have: p, sigma_z, a mark, samples left out, where its alarm stands."""
    notes = []
    if verdict.p and verdict.p[i] is not None:
        notes.append(f"p {verdict.p[i]:.2g}")
    mark = verdict.mark[i] if verdict.mark else 0
    if verdict.sigma_z and verdict.sigma_z[i] is not None:
        notes.append(f"{_one_of(_MARKS, mark)} sigma_z {verdict.sigma_z[i]:.3g}".strip())
    left_out = len(verdict.excluded.get(verdict.charts[i], []))
    if left_out:
        notes.append(f"{left_out} left out of the baseline")
    event = verdict.event[i] if verdict.event else 0
    severity = verdict.severity[i] if verdict.severity else ""
    if event:
        notes.append(f"{_one_of(_EVENTS, event)} {severity}".strip())
    elif verdict.episode and verdict.episode[i]:
        notes.append(f"alarm since report {verdict.episode[i]}")
    return notes


def _one_of(words: tuple[str, ...], number: int) -> str:
    return words[number] if number < len(words) else str(number)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _style(flags: int, phase: int) -> str:
    if flags:
        return "bold red" if flags & 1 else "yellow"
    return "dim" if phase == 0 else ""


def _alarm_style(chart: ChartAlarm) -> str:
    usual = _style(1 if 1 in chart.rules else 2, chart.phase)
    return "green" if chart.event == "end" else _STYLES.get(chart.severity, usual)


def _unreadable(record: Record, error: Exception) -> Line:
    tree = {"stream": record.stream, "seq": record.seq, "unreadable": str(error)}
    return Line(
        f"{clock(record.at_ns):<23}  {clean(record.chamber):<12}  cannot be read: {error}", "yellow", tree
    )


def _named(payload: bytes, problems: list[dict[str, Any]]) -> list[str]:
    """The charts that the problems are about, as far as the payload can be read."""
    try:
        tree = wire.decode_any(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []
    charts = tree.get("charts") if isinstance(tree, dict) else None
    if not isinstance(charts, list):
        return []
    indices = {problem.get("chart", -1) for problem in problems}
    return [str(chart) for index, chart in enumerate(charts) if index in indices or -1 in indices]


def _payload(payload: bytes) -> dict[str, str]:
    """The original bytes: as text where they are text, else in base64."""
    try:
        return {"payload": payload.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(payload).decode()}
