"""One control chart as its verdicts have it, and what a drawing of it is made of. Pure.

    verdicts ── control_chart ──► ControlChart ──┬── segments, breaks, episodes, marks ──► runtime.plot
                                                 ├── the same ──► runtime.terminal_chart
                                                 └── columns ──► JSON

A *segment* is a part of one stage and one phase; its limits are steps, each as wide as its sample's place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import groupby, pairwise
from statistics import median
from typing import Any, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import fields, replace

from runtime.wire import Verdict, rules_of

DAY_NS: Final = 86_400_000_000_000
LEARNING, PHASE_ONE, PHASE_TWO, PREDICTS = range(4)
PHASES: Final = ("learning", "phase I, trial limits", "phase II", "predicted limits")
PHASES_SHORT: Final = ("learn", "phase I", "II", "predict")
U_RULES: Final = range(1, 9)
"""Those of u; CUSUM and EWMA (9 to 12) signal in panels of their own."""
_MARKS: Final = {
    1: "overdispersed: limits of the Poisson distribution are too narrow (laney)",
    2: "underdispersed: limits of the Poisson distribution are too wide (see how it is counted)",
}
_END: Final = 3
_COLUMNS: Final = {"count": "counts"}
"""Fields of a point whose column in the verdict has another name."""


class Axis(StrEnum):
    """What a chart is drawn over."""

    REPORT = "report"
    """Number of the chamber's report."""
    TIME = "time"
    """Days since 1970."""


class Point(Struct, frozen=True):
    """One sample as it was judged; the fields are those of `Verdict`."""

    ordinal: int
    seq: int
    at: int
    run: str
    spec: int
    count: int
    units: float
    u: float
    centre: float | None
    lcl: float | None
    ucl: float | None
    flags: int
    phase: int
    basis: int
    stage: int
    left_out: bool = False
    """Of the baseline, when phase I ended."""
    p: float | None = None
    sigma_z: float | None = None
    mark: int = 0
    cusum_up: float | None = None
    cusum_down: float | None = None
    cusum_limit_up: float | None = None
    cusum_limit_down: float | None = None
    ewma: float | None = None
    ewma_lcl: float | None = None
    ewma_ucl: float | None = None
    event: int = 0
    episode: int = 0
    severity: str = ""

    @property
    def rules(self) -> list[int]:
        return rules_of(self.flags)


class Break(Struct, frozen=True):
    """Where a stage ends: a reset, or something else that began a new one. *ordinal* is that of the reset, or
    half-way between two samples."""

    ordinal: float
    at: int
    text: str


class Episode(NamedTuple):
    """An alarm: indices of its first and last points, and whether it is over."""

    first: int
    last: int
    severity: str
    ended: bool


class Segment(NamedTuple):
    """Points ``first`` ... ``last`` (inclusive) of one stage and phase, and the edges of their steps."""

    first: int
    last: int
    phase: int
    edges: list[float]


class Label(NamedTuple):
    """The rules that signal at a point, or at a run of points from it on."""

    at: int
    """Index of the point."""
    text: str
    above: bool


class ControlChart(Struct, frozen=True):
    """The points of one chart in order, and the breaks between its stages."""

    chamber: str
    chart: str
    points: list[Point]
    breaks: list[Break]

    @property
    def has_cusum(self) -> bool:
        return any(point.cusum_up is not None for point in self.points)

    @property
    def has_ewma(self) -> bool:
        return any(point.ewma is not None for point in self.points)

    def places(self, axis: Axis) -> list[float]:
        """Where each point is on the axis; in time never before the point that was judged before it."""
        if axis is Axis.REPORT:
            return [float(point.ordinal) for point in self.points]
        latest, found = -(2**63), []
        for point in self.points:
            latest = max(latest, point.at)
            found.append(latest / DAY_NS)
        return found

    def place_of(self, one: Break, axis: Axis) -> float:
        return one.ordinal if axis is Axis.REPORT else one.at / DAY_NS

    def segments(self, axis: Axis) -> list[Segment]:
        """In order; the edges of neighbours meet."""
        every = edges(self.places(axis))
        found, first = [], 0
        for (_, phase), group in groupby(self.points, key=lambda point: (point.stage, point.phase)):
            last = first + len(list(group)) - 1
            found.append(Segment(first, last, phase, every[first : last + 2]))
            first = last + 1
        return found

    def episodes(self) -> list[Episode]:
        """The alarms, those that are still open at the last point with it as their end."""
        found = []
        for number, group in groupby(enumerate(self.points), key=lambda pair: pair[1].episode):
            if not number:
                continue
            pairs = list(group)
            severities = [point.severity for _, point in pairs]
            worst = next((s for s in ("critical", "warning", "info") if s in severities), "warning")
            (first, _), (last, end) = pairs[0], pairs[-1]
            is_over = end.event == _END or last + 1 < len(self.points) or self._reset_after(end)
            found.append(Episode(first, last, worst, is_over))
        return found

    def _reset_after(self, point: Point) -> bool:
        return any(one.ordinal > point.ordinal for one in self.breaks)

    def columns(self) -> dict[str, Any]:
        """The points as columns by the names of a verdict, without those in which no point has anything."""
        found: dict[str, Any] = {"chamber": self.chamber, "chart": self.chart}
        for field in fields(Point):
            column = [getattr(point, field.name) for point in self.points]
            if field.required or any(value != field.default for value in column):
                found[_COLUMNS.get(field.name, field.name)] = column
        found["rules"] = [point.rules for point in self.points]
        found["breaks"] = self.breaks
        return found


def control_chart(
    verdicts: Iterable[Verdict], chamber: str, chart: str, last: int | None = None
) -> ControlChart:
    """The newest *last* points of a chart, of its chamber's verdicts. Other charts are passed over.

    Fields that a verdict of an older release does not have are as if the chart had none.
    """
    once = sorted({verdict.seq: verdict for verdict in verdicts}.values(), key=lambda v: v.ordinal)
    points: list[Point] = []
    resets: list[Verdict] = []
    left_out: set[int] = set()
    for verdict in once:
        if verdict.reset is not None:
            if not verdict.charts or chart in verdict.charts:
                resets.append(verdict)
        elif chart in verdict.charts:
            points.append(_point(verdict, verdict.charts.index(chart)))
            left_out.update(verdict.excluded.get(chart, ()))
    points = [replace(point, left_out=True) if point.ordinal in left_out else point for point in points]
    breaks = _breaks(points, resets)
    shown = points if last is None else points[-last:]
    begin = shown[0].ordinal if shown else 0
    return ControlChart(chamber, chart, shown, [one for one in breaks if one.ordinal > begin])


def _point(verdict: Verdict, i: int) -> Point:
    def of(name: str, default: Any = None) -> Any:
        column = getattr(verdict, name)
        return column[i] if i < len(column) else default

    more = {field.name: of(field.name, field.default) for field in fields(Point)[_AFTER_LEFT_OUT:]}
    return Point(
        ordinal=verdict.ordinal,
        seq=verdict.seq,
        at=verdict.at,
        run=verdict.run,
        spec=verdict.spec,
        count=verdict.counts[i],
        units=verdict.units[i],
        u=verdict.u[i],
        centre=of("centre"),
        lcl=of("lcl"),
        ucl=of("ucl"),
        flags=of("flags", 0),
        phase=of("phase", 0),
        basis=of("basis", 0),
        stage=of("stage", 0),
        **more,
    )


_AFTER_LEFT_OUT: Final = [field.name for field in fields(Point)].index("left_out") + 1


def _breaks(points: Sequence[Point], resets: Sequence[Verdict]) -> list[Break]:
    """A reset breaks where the next point is of a stage that began after it; the last of several counts."""
    found = []
    for before, after in pairwise(points):
        if before.stage == after.stage:
            continue
        between = [r for r in resets if before.ordinal < r.ordinal < after.ordinal]
        if between:
            found.append(_reset(between[-1]))
        else:
            middle = (before.ordinal + after.ordinal) / 2
            found.append(Break(middle, (before.at + after.at) // 2, _why(before, after)))
    if points:
        found += [_reset(one) for one in resets if one.ordinal > points[-1].ordinal][-1:]
    return found


def _reset(verdict: Verdict) -> Break:
    return Break(verdict.ordinal, verdict.at, f"reset: {verdict.reset}")


def _why(before: Point, after: Point) -> str:
    if before.basis != after.basis:
        return f"new specs, revision {after.spec}"
    absent = after.ordinal - before.ordinal - 1
    return f"absent for {absent} reports" if absent else "new stage"


def edges(places: Sequence[float]) -> list[float]:
    """Of N places in order, the N + 1 edges between and around them: half-way, and at the ends half of the
    usual distance."""
    if not places:
        return []
    gaps = [after - before for before, after in pairwise(places)]
    half = (median(gaps) if gaps else 1.0) / 2 or 0.5 * (max(gaps) or 1.0)
    middles = [(before + after) / 2 for before, after in pairwise(places)]
    return [places[0] - half, *middles, places[-1] + half]


def labels(points: Sequence[Point], only: range) -> list[Label]:
    """The numbers of the rules (of *only*) at the points that signal; a run of points with the same ones, on
    the same side, has one label, at its first point."""
    told: list[tuple[str, bool]] = []
    for point in points:
        text = ",".join(str(rule) for rule in point.rules if rule in only)
        told.append((text, point.centre is None or point.u >= point.centre))
    found, first = [], 0
    for (text, above), group in groupby(told):
        length = len(list(group))
        if text:
            found.append(Label(first, f"{text} ×{length}" if length > 1 else text, above))
        first += length
    return found


def u_range(points: Sequence[Point]) -> tuple[float, float]:
    """(bottom, top) of an axis for u and its limits. Few points far away do not squeeze all others: they are
    beyond the top, to be drawn at the edge."""
    lows = [value for point in points for value in (point.u, point.lcl) if value is not None]
    highs = [value for point in points for value in (point.u, point.ucl) if value is not None]
    if not highs:
        return 0.0, 1.0
    bottom, top = min(lows), max(highs)
    usual = max(_most([point.u for point in points]), _most([p.ucl for p in points if p.ucl is not None]))
    if usual > 0:
        top = min(top, 1.7 * usual)
    if bottom < 0.5 * (top - bottom) or top <= bottom:
        bottom = 0.0
    span = (top - bottom) or abs(top) or 1.0
    return (bottom - 0.06 * span if bottom else 0.0), top + 0.08 * span


def _most(values: Sequence[float]) -> float:
    """What nine of ten values do not exceed."""
    return sorted(values)[-(-9 * len(values) // 10) - 1] if values else 0.0


def runs(numbers: Sequence[int]) -> str:
    """Rising numbers in short: 3, 7–9."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in spans)


def signals(chart: ControlChart) -> dict[int, str]:
    """By rule, ascending, the reports in which it signals."""
    found: dict[int, list[int]] = {}
    for point in chart.points:
        for rule in point.rules:
            found.setdefault(rule, []).append(point.ordinal)
    return {rule: runs(ordinals) for rule, ordinals in sorted(found.items())}


def facts(chart: ControlChart) -> list[str]:
    """What the newest point says of the chart: specs, centre line, baseline, scatter."""
    newest = chart.points[-1]
    revisions = sorted({point.spec for point in chart.points})
    found = ["built-in specs" if revisions == [0] else f"specs revision {runs(revisions)}"]
    if newest.centre is None:
        found.append("no centre line yet")
    else:
        found.append(f"centre {newest.centre:.4g}")
    stage = [point for point in chart.points if point.stage == newest.stage]
    is_whole = stage[0].ordinal == newest.stage
    baseline = [point for point in stage if point.phase != PHASE_TWO]
    if newest.phase == PHASE_TWO and baseline and is_whole:
        left_out = [point.ordinal for point in stage if point.left_out]
        without = f" without {runs(left_out)}" if left_out else ""
        found.append(f"baseline: reports {_span(baseline)}{without}")
    elif newest.stage > 1:
        found.append(f"stage since report {newest.stage}")
    if newest.sigma_z is not None:
        found.append(f"σz {newest.sigma_z:.3g}")
    return found


def remark(chart: ControlChart) -> str:
    """What the mark of the newest point means; empty without one."""
    mark = chart.points[-1].mark
    return _MARKS.get(mark, f"mark {mark}") if mark else ""


def _span(points: Sequence[Point]) -> str:
    first, last = points[0].ordinal, points[-1].ordinal
    return f"{first}–{last}" if first != last else str(first)


def phase_name(phase: int, *, short: bool = False) -> str:
    names = PHASES_SHORT if short else PHASES
    return names[phase] if phase < len(names) else f"phase {phase}"
