"""The slow way: what exactly is wrong with a report, and what of it is good all the same.

Taken only by reports that the fast way refused, so it may look at every value by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from runtime import wire
from runtime.names import name_problem
from runtime.wire import CHARTS_MAX, Incoming, Problem, Reason

if TYPE_CHECKING:
    from runtime.judge import Sample

_NS = 1_000_000_000


@dataclass(frozen=True)
class Limits:
    """What a report may be, beyond its types."""

    report_bytes_max: int
    at_past_max_s: float
    at_future_max_s: float


@dataclass
class Examined:
    """The good part of a report (``names``, ``counts``, ``units`` of equal length) and its problems.

    ``reset`` is the reason of a reset, whose ``names`` are empty when it means all charts.
    """

    names: list[str] = field(default_factory=list)
    counts: list[float] = field(default_factory=list)
    units: list[float] = field(default_factory=list)
    at_ns: int = 0
    run: str = ""
    reset: str | None = None
    problems: list[Problem] = field(default_factory=list)


def header_problem(incoming: Incoming, sample: Sample, limits: Limits) -> Problem | None:
    """What is wrong with a report as a whole, its samples apart."""
    if len(sample.payload) > limits.report_bytes_max:
        return _too_large(sample, limits)
    if incoming.chamber is not None and incoming.chamber != sample.chamber:
        return Problem(
            Reason.CHAMBER_MISMATCH,
            f"the report says chamber {incoming.chamber!r}, its subject says {sample.chamber!r}",
        )
    if len(incoming.run) > wire.RUN_CHARACTERS_MAX:
        return Problem(Reason.RUN_NAME, f"run is longer than {wire.RUN_CHARACTERS_MAX} characters")
    if incoming.at is not None:
        return _time_problem(wire.time_ns(incoming.at, 0), sample.received_ns, limits)
    return None


def _too_large(sample: Sample, limits: Limits) -> Problem:
    size, most = len(sample.payload), limits.report_bytes_max
    return Problem(Reason.TOO_LARGE, f"{size} bytes, REPORT_BYTES_MAX allows {most}")


def _time_problem(at_ns: int, received_ns: int, limits: Limits) -> Problem | None:
    off_s = (at_ns - received_ns) / _NS
    if -limits.at_past_max_s <= off_s <= limits.at_future_max_s:
        return None
    side = "after" if off_s > 0 else "before"
    setting = "AT_FUTURE_MAX_S" if off_s > 0 else "AT_PAST_MAX_S"
    return Problem(Reason.TIME_FAR_OFF, f"at is {abs(off_s):.0f} s {side} the report came in; see {setting}")


def examine(sample: Sample, limits: Limits) -> Examined:
    """Looks at every value of a report by itself; never raises for what a report holds."""
    wrong = name_problem(sample.chamber)
    if wrong is not None:
        return Examined(problems=[Problem(Reason.CHAMBER_NAME, f"the chamber's name {wrong}")])
    if len(sample.payload) > limits.report_bytes_max:
        return Examined(problems=[_too_large(sample, limits)])
    try:
        report = wire.decode_any(sample.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Examined(problems=[Problem(Reason.UNDECODABLE, f"neither JSON nor MessagePack: {error}")])
    if not isinstance(report, dict):
        return Examined(
            problems=[Problem(Reason.WRONG_TYPE, f"a report is a map, not {type(report).__name__}")]
        )
    examined = Examined(at_ns=sample.received_ns)
    problem = _examine_header(report, sample, limits, examined)
    if problem is None:
        look = _examine_samples if report.get("reset") is None else _examine_reset
        problem = look(report, examined)
    if problem is not None:
        return Examined(problems=[*examined.problems, problem])
    return examined


def _examine_header(
    report: dict[Any, Any], sample: Sample, limits: Limits, examined: Examined
) -> Problem | None:
    for name in ("run", "chamber", "reset"):
        value = report.get(name)
        if value is not None and not isinstance(value, str):
            return Problem(Reason.WRONG_TYPE, f"{name} {value!r} is not a string")
    at = report.get("at")
    try:
        header = msgspec.convert(
            {"at": at, "run": report.get("run") or "", "chamber": report.get("chamber")}, Incoming
        )
        at_ns = wire.time_ns(header.at, sample.received_ns)
    except (msgspec.ValidationError, OverflowError):
        return Problem(
            Reason.WRONG_TYPE, f"at {at!r} is neither RFC 3339 with an offset nor nanoseconds since 1970"
        )
    problem = header_problem(header, sample, limits)
    if problem is None and isinstance(at, (int, str, datetime)):
        examined.at_ns = at_ns
    examined.run = header.run
    return problem


def _examine_names(charts: object, examined: Examined) -> Problem | None:
    if not isinstance(charts, list):
        return Problem(Reason.WRONG_TYPE, f"charts is a list of names, not {type(charts).__name__}")
    if len(charts) > CHARTS_MAX:
        return Problem(Reason.TOO_MANY_CHARTS, f"{len(charts)} charts, at most {CHARTS_MAX} a report")
    texts = []
    for index, chart in enumerate(charts):
        if isinstance(chart, str):
            texts.append(chart)
        else:
            texts.append("")
            examined.problems.append(
                Problem(Reason.WRONG_TYPE, f"charts[{index}] {chart!r} is not a string", index)
            )
    named = {problem.chart for problem in examined.problems}
    examined.problems += [p for p in wire.names_problems(texts) if p.chart not in named]
    examined.names = texts
    return None


def _examine_reset(report: dict[Any, Any], examined: Examined) -> Problem | None:
    reset = report["reset"]
    if not reset:
        return Problem(Reason.EMPTY, "reset has no reason")
    if report.get("counts") or report.get("units"):
        return Problem(Reason.RESET_WITH_SAMPLES, "a reset carries no counts and units; publish them apart")
    charts = report.get("charts")
    if charts is not None:
        problem = _examine_names(charts, examined)
        bad = {p.chart for p in examined.problems}
        examined.names = [name for i, name in enumerate(examined.names) if i not in bad]
        if problem is not None or not examined.names:
            return problem or Problem(Reason.EMPTY, "a reset of no chart; leave charts out to reset them all")
    examined.reset = reset
    return None


def _examine_samples(report: dict[Any, Any], examined: Examined) -> Problem | None:
    absent = [name for name in ("charts", "counts", "units") if report.get(name) is None]
    if absent:
        return Problem(Reason.MISSING_FIELD, f"{', '.join(absent)} missing")
    problem = _examine_names(report["charts"], examined)
    if problem is not None:
        return problem
    charts, counts, units = examined.names, report["counts"], report["units"]
    examined.names = []
    for name, column in (("counts", counts), ("units", units)):
        if not isinstance(column, list):
            return Problem(Reason.WRONG_TYPE, f"{name} is a list of numbers, not {type(column).__name__}")
    if not len(charts) == len(counts) == len(units):
        return Problem(
            Reason.LENGTHS_DIFFER,
            f"{len(charts)} charts, {len(counts)} counts, {len(units)} units: they must be as many",
        )
    if not charts:
        return Problem(Reason.EMPTY, "no chart")
    bad = {p.chart for p in examined.problems}
    for index, (chart, count, n) in enumerate(zip(charts, counts, units, strict=True)):
        if index in bad:
            continue
        wrong = wire.sample_problem(index, chart, count, n)
        if wrong is not None:
            examined.problems.append(wrong)
        else:
            examined.names.append(chart)
            examined.counts.append(float(count))
            examined.units.append(float(n))
    return None
