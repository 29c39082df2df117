"""The plots of the page over the run's time, and the gaps' distribution. Pure.

All plots over time share one x scale, so that what happened at a moment stands in one vertical line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from bench.lab import words
from bench.lab.page_axes import (
    TEXT_WIDTH,
    Frame,
    Scale,
    area,
    curve,
    drawing,
    line,
    log_limits,
    rect,
    round_up,
    steps,
    text,
    x_axis,
    y_axis,
)
from bench.lab.result import Mark, Result, Second

HOVERS_MAX: Final = 400
"""Columns of a plot that tell their values; a longer run tells those of every n-th second."""
GAPS_MAX: Final = 400
"""Steps of a distribution; more gaps are drawn by so many of their quantiles."""
MARK_ROWS: Final = 3
"""Lines of labels over the first plot; a mark that finds no room is named by hovering and in the list."""
MARK_CUT: Final = 20
"""Characters of a label in a narrow plot."""
MARK_ROW: Final = 15
RIGHT: Final = 14
UNDER: Final = 26
"""Pixels under a frame for the x axis."""


class Size(NamedTuple):
    """Of a drawing, in pixels at its natural size; ``left`` is for the y axis' values."""

    width: float
    left: float = 62


WIDE: Final = Size(1180)
NARROW: Final = Size(400, 50)


class Bounds(NamedTuple):
    """The ends of the axes, common to results that stand side by side."""

    length_s: float
    latency_ms: tuple[float, float]
    gap_ms: tuple[float, float]
    per_s: float
    cores: float
    pods: float


def bounds(results: Sequence[Result]) -> Bounds:
    """Ends that fit all of *results*."""
    seconds = [second for result in results for second in result.timeline]
    latencies = [ms for s in seconds for ms in (s.latency_ms_p50, s.latency_ms_p99, s.latency_ms_max)]
    waits = [max(gap, 1.0) for result in results for gap in result.gaps_ms]
    promised = {
        field: [limit for result in results if (limit := limit_of(result, field)) is not None]
        for field in ("latency_ms_p99", "gap_ms_p99")
    }
    return Bounds(
        max((_length_s(result) for result in results), default=1.0),
        log_limits(latencies + promised["latency_ms_p99"]),
        log_limits(waits + promised["gap_ms_p99"]),
        round_up(max((max(s.reports, s.verdicts) for s in seconds), default=0), 4),
        round_up(max((s.cpu_cores + s.lab_cores + s.server_cores for s in seconds), default=0), 4),
        round_up(max((max(s.pods, s.ready) for s in seconds), default=0), 4),
    )


def _length_s(result: Result) -> float:
    begun = words.begun_ns(result)
    ends = [result.ended_ns, *(s.at_ns + 10**9 for s in result.timeline[-1:])]
    return max(1.0, (max(ends) - begun) / 1e9)


def limit_of(result: Result, field: str) -> float | None:
    """What the budget allows of a figure."""
    return next((promise.limit for promise in result.promises if promise.name == field), None)


class Sheet:
    """A plot over time: its frame, its x scale, and the marks of the run behind what is drawn."""

    def __init__(self, result: Result, ends: Bounds, size: Size, height: float, top: float = 22) -> None:
        self.result, self.size = result, size
        self.height = top + height + UNDER
        self.frame = Frame(size.left, top, size.width - RIGHT, top + height)
        self.x = Scale(0.0, ends.length_s, self.frame.left, self.frame.right)
        self._begun_ns = words.begun_ns(result)

    def at(self, at_ns: int) -> float:
        """The pixel of a time."""
        return self.x.at((at_ns - self._begun_ns) / 1e9)

    def clock(self, at_ns: int) -> str:
        """A time as the axis has it: ``12.3 s``."""
        return f"{(at_ns - self._begun_ns) / 1e9:.1f} s"

    def linear(self, high: float) -> Scale:
        return Scale(0.0, high, self.frame.bottom, self.frame.top)

    def axes(self, y: Scale, unit: str, about: int = 5) -> Iterator[str]:
        yield y_axis(self.frame, y, unit, about)
        yield self.time_axis()

    def time_axis(self) -> str:
        return x_axis(self.frame, self.x, "s", 12 if self.size == WIDE else 5)

    def marks(self) -> Iterator[str]:
        """Shaded spans for steps, dashed lines for moments."""
        for mark in self.result.marks:
            left, told = self.at(mark.begun_ns), f"{mark.what}, {self.clock(mark.begun_ns)}"
            if mark.ended_ns:
                width = max(1.0, self.at(mark.ended_ns) - left)
                hover = f"{told}, for {words.lasted(mark)}"
                yield rect(left, self.frame.top, width, self.frame.bottom - self.frame.top, "span", hover)
                yield line(left + width, self.frame.top, left + width, self.frame.bottom, "edge")
            yield line(left, self.frame.top, left, self.frame.bottom, "edge")

    def placed(self) -> Iterator[tuple[Mark, float, int, str]]:
        """The marks that find room for their names: (mark, x, row from below, name)."""
        free = [0.0] * (MARK_ROWS if self.size == WIDE else 1)
        for mark in sorted(self.result.marks, key=lambda mark: mark.begun_ns):
            told = mark.what if self.size == WIDE else mark.what.partition(",")[0][:MARK_CUT]
            width = (len(told) + 2) * TEXT_WIDTH
            x = max(self.frame.left, min(self.at(mark.begun_ns), self.frame.right - width))
            row = next((k for k, begin in enumerate(free) if begin <= x), None)
            if row is not None:
                free[row] = x + width
                yield mark, x, row, told

    def labels(self) -> Iterator[str]:
        """The marks' names over the frame."""
        for mark, x, row, told in self.placed():
            base = self.frame.top - 8 - MARK_ROW * row
            at = self.at(mark.begun_ns)
            yield line(at, base - 9, at, self.frame.top, "edge")
            yield text(x + 4, base, told, "mark")

    def hovers(self, told: Callable[[Second], str]) -> Iterator[str]:
        """Invisible columns that tell a second's values."""
        seconds = self.result.timeline
        every = -(-len(seconds) // HOVERS_MAX) or 1
        for second in seconds[::every]:
            left, right = self.at(second.at_ns), self.at(second.at_ns + every * 10**9)
            if right > left:
                hover = f"{self.clock(second.at_ns)}: {told(second)}"
                height = self.frame.bottom - self.frame.top
                yield rect(left, self.frame.top, right - left, height, "hover", hover)

    def middle(self, second: Second) -> float:
        return self.at(second.at_ns + 5 * 10**8)

    def draw(self, told: str, parts: Sequence[str]) -> str:
        return drawing(self.size.width, self.height, told, parts)


def _empty(size: Size, told: str) -> str:
    return drawing(size.width, 60, told, [text(size.width / 2, 34, told, "mark", "middle")])


# --- over time ------------------------------------------------------------------------------------


def latency(result: Result, ends: Bounds, size: Size = WIDE) -> str:
    """p50, p99 and the longest wait of each second's reports, on a log scale, with the marks named."""
    if not result.timeline:
        return _empty(size, "No second of this run was kept.")
    rows = max((row for _, _, row, _ in Sheet(result, ends, size, 1).placed()), default=0)
    over = 24 + MARK_ROW * rows
    sheet = Sheet(result, ends, size, 250 if size == WIDE else 170, over)
    y = Scale(*ends.latency_ms, sheet.frame.bottom, sheet.frame.top, is_log=True)

    def points(of: Callable[[Second], float]) -> list[tuple[float, float | None]]:
        return [(sheet.middle(s), y.at(of(s)) if of(s) > 0 else None) for s in result.timeline]

    whole = [s for s in result.timeline if s.latency_ms_p50 > 0]
    between = area(
        [(sheet.middle(s), y.at(s.latency_ms_p99)) for s in whole],
        [(sheet.middle(s), y.at(s.latency_ms_p50)) for s in whole],
        "between",
    )
    parts = [*sheet.marks(), *sheet.axes(y, "ms", 7), between]
    parts += [
        curve(points(lambda s: s.latency_ms_max), "line max"),
        curve(points(lambda s: s.latency_ms_p99), "line p99"),
        curve(points(lambda s: s.latency_ms_p50), "line p50"),
        *_limit(sheet.frame, y, limit_of(result, "latency_ms_p99"), "p99"),
        *sheet.labels(),
        *sheet.hovers(
            lambda s: (
                f"p50 {words.ms(s.latency_ms_p50)}, p99 {words.ms(s.latency_ms_p99)}, "
                f"max {words.ms(s.latency_ms_max)}"
            )
        ),
    ]
    told = f"Verdict latency over time: p99 {words.ms(result.latency_ms_p99)} over the whole run"
    return sheet.draw(told, parts)


def _limit(frame: Frame, y: Scale, limit: float | None, of: str) -> Iterator[str]:
    if limit is not None and y.low < limit < y.high:
        yield line(frame.left, y.at(limit), frame.right, y.at(limit), "limit")
        told = f"{of} promised: {words.ms(limit)}"
        yield text(frame.right - 4, y.at(limit) - 5, told, "promised", "end")


def throughput(result: Result, ends: Bounds, size: Size = WIDE) -> str:
    """Reports and verdicts stored in each second."""
    if not result.timeline:
        return _empty(size, "No second of this run was kept.")
    sheet = Sheet(result, ends, size, 120)
    y = sheet.linear(ends.per_s)
    parts = [
        *sheet.marks(),
        *sheet.axes(y, "/s", 4),
        curve([(sheet.middle(s), y.at(s.reports)) for s in result.timeline], "line reports"),
        curve([(sheet.middle(s), y.at(s.verdicts)) for s in result.timeline], "line verdicts"),
        *sheet.hovers(lambda s: f"{s.reports:,} reports, {s.verdicts:,} verdicts"),
    ]
    return sheet.draw("Reports and verdicts stored in each second", parts)


def cpu(result: Result, ends: Bounds, size: Size = WIDE) -> str:
    """Cores taken by the pods, the lab and the server, on top of each other."""
    if not result.timeline:
        return _empty(size, "No second of this run was kept.")
    sheet = Sheet(result, ends, size, 120)
    machine = result.machine.cores if result.machine else 0
    y = sheet.linear(max(ends.cores, machine if machine <= 2 * ends.cores else 0))
    parts = [*sheet.marks(), *sheet.axes(y, "cores", 4)]
    below = [0.0] * len(result.timeline)
    taken: tuple[tuple[str, Callable[[Second], float]], ...] = (
        ("cpu-pods", lambda s: s.cpu_cores),
        ("cpu-lab", lambda s: s.lab_cores),
        ("cpu-server", lambda s: s.server_cores),
    )
    for kind, of in taken:
        above = [low + of(s) for low, s in zip(below, result.timeline, strict=True)]
        x = [sheet.middle(s) for s in result.timeline]
        parts.append(
            area(
                [(at, y.at(v)) for at, v in zip(x, above, strict=True)],
                [(at, y.at(v)) for at, v in zip(x, below, strict=True)],
                kind,
            )
        )
        below = above
    if 0 < machine <= y.high:
        parts.append(line(sheet.frame.left, y.at(machine), sheet.frame.right, y.at(machine), "limit"))
        told = f"the machine has {machine}"
        parts.append(text(sheet.frame.right - 4, y.at(machine) - 5, told, "promised", "end"))
    parts += sheet.hovers(
        lambda s: f"pods {s.cpu_cores:.2f}, lab {s.lab_cores:.2f}, server {s.server_cores:.2f} cores"
    )
    return sheet.draw("Cores taken by the pods, the lab and the server", parts)


def pods(result: Result, ends: Bounds, size: Size = WIDE) -> str:
    """Pods whose process runs, and those that are Ready."""
    if not result.timeline:
        return _empty(size, "No second of this run was kept.")
    sheet = Sheet(result, ends, size, 110)
    y = sheet.linear(ends.pods)
    last = result.timeline[-1]
    end = sheet.at(last.at_ns + 10**9)
    parts = [
        *sheet.marks(),
        *sheet.axes(y, "pods", 4),
        steps(
            [*((sheet.at(s.at_ns), y.at(s.pods)) for s in result.timeline), (end, y.at(last.pods))],
            "line all",
        ),
        steps(
            [*((sheet.at(s.at_ns), y.at(s.ready)) for s in result.timeline), (end, y.at(last.ready))],
            "line ready",
        ),
        *sheet.hovers(lambda s: f"{s.pods} running, {s.ready} ready"),
    ]
    return sheet.draw("Pods running and ready", parts)


# --- gaps -----------------------------------------------------------------------------------------


def gaps(result: Result, ends: Bounds, size: Size) -> str:
    """What share of the changes of a partition's pod left it unattended for at most so long."""
    if not any(words.is_told(gap) for gap in result.gaps_ms):
        return _empty(size, "No partition changed its pod.")
    height = 190 if size == NARROW else 250
    frame = Frame(size.left, 26, size.width - RIGHT, 26 + height)
    x = Scale(*ends.gap_ms, frame.left, frame.right, is_log=True)
    y = Scale(0.0, 100.0, frame.bottom, frame.top)
    waits = sorted(gap for gap in result.gaps_ms if words.is_told(gap))
    shown = min(len(waits), GAPS_MAX)
    places = [((k + 1) * len(waits) + shown - 1) // shown - 1 for k in range(shown)]
    points: list[tuple[float, float | None]] = [(frame.left, y.at(0))]
    before = y.at(0)
    for place in places:
        at, level = x.at(max(waits[place], ends.gap_ms[0])), y.at(100 * (place + 1) / len(waits))
        points += [(at, before), (at, level)]
        before = level
    points.append((frame.right, before))
    parts = [y_axis(frame, y, "%", 4), x_axis(frame, x, "ms", 7), curve(points, "line p99")]
    limit = limit_of(result, "gap_ms_p99")
    if limit is not None and x.low < limit < x.high:
        parts.append(line(x.at(limit), frame.top, x.at(limit), frame.bottom, "limit"))
        told = f"promised: {words.ms(limit)}" if size != NARROW else f"≤ {words.ms(limit)}"
        at, is_early = x.at(limit), limit < result.gap_ms_p50
        if is_early and at - frame.left > TEXT_WIDTH * len(told) + 8:  # the curve rises right of it
            parts.append(text(at - 8, y.at(80), told, "promised", "end"))
        else:
            parts.append(_beside(frame, at, y.at(80 if is_early else 5), told, "promised"))
    for share, name, wait in ((50, "p50", result.gap_ms_p50), (99, "p99", result.gap_ms_p99)):
        if not words.is_told(wait):
            continue
        told = f"{name} {words.ms(wait)}"
        at, up = x.at(max(wait, ends.gap_ms[0])), y.at(share)
        parts.append(f"<circle cx='{at:.1f}' cy='{up:.1f}' r='3.5' class='point'/>")
        parts.append(_at_curve(frame, at, up, told))
    told = f"Unattended gaps: p50 {words.ms(result.gap_ms_p50)}, p99 {words.ms(result.gap_ms_p99)}"
    return drawing(size.width, frame.bottom + UNDER, told, parts)


def _at_curve(frame: Frame, x: float, y: float, told: str) -> str:
    """The curve rises to the right: below right of a point, or above left, is free of it."""
    fits = x + 9 + TEXT_WIDTH * len(told) < frame.right
    return text(x + 8, y + 16, told, "value") if fits else text(x - 8, y - 6, told, "value", "end")


def _beside(frame: Frame, x: float, y: float, told: str, kind: str) -> str:
    """Right of x, or left of it where there is no room."""
    fits = x + 9 + TEXT_WIDTH * len(told) < frame.right
    return text(x + 8 if fits else x - 8, y, told, kind, "start" if fits else "end")
