"""A control chart as lines of text, of any width. Pure.

    title, small print
    stages and phases     ┊reset: chamber clean
    0.5 ┤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤      ■1            UCL 0.48       lines in Braille dots (2 x 4 a character)
        │    •    •   •      •         CL 0.3         points as •
    0.0 ┤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤
        └────┬─────────┬──────────
    CUSUM and EWMA panels, legend, the signals in words

Signals are ■ (rule 1) and ◆ (another rule), samples left out of the baseline ×, points beyond the top ▲:
nothing is told by colour alone. `room` says how many reports have a column of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from textwrap import wrap
from typing import Final, NamedTuple

from runtime.control_chart import (
    DAY_NS,
    PHASE_ONE,
    PHASE_TWO,
    U_RULES,
    Axis,
    ControlChart,
    Label,
    Point,
    Segment,
    labels,
    phase_name,
    signals,
    u_range,
)
from runtime.wire import to_datetime

WIDTH_MIN: Final = 40
HEIGHT_MIN: Final = 6
PANEL_ROWS: Final = 5
_NO_BREAK: Final = "\N{NO-BREAK SPACE}"
_BRAILLE: Final = 0x2800
_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_LEFT: Final = 7
_RIGHT: Final = 12
"""Columns left and right of a panel: numbers with a tick, names of lines."""
LIMIT, CENTRE, POINT, SEVERE, MILD, QUIET = "blue", "cyan", "", "bold red", "bold yellow", "dim"


class Run(NamedTuple):
    """Characters of one style (as rich names it; empty: the terminal's own)."""

    text: str
    style: str = ""


Line = list[Run]


class Canvas:
    """Columns x rows of characters, in each of which there are 2 x 4 dots; what is drawn later wins."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._dots = [[0] * columns for _ in range(rows)]
        self._signs = [[""] * columns for _ in range(rows)]
        self._styles = [[""] * columns for _ in range(rows)]

    def dot(self, x: int, y: int, style: str) -> None:
        """x in 0 ... 2 columns - 1, y in 0 ... 4 rows - 1 from the top; elsewhere nothing is drawn."""
        column, row = x // 2, y // 4
        if 0 <= column < self.columns and 0 <= row < self.rows:
            self._dots[row][column] |= _DOTS[y % 4][x % 2]
            self._styles[row][column] = style

    def sign(self, column: int, row: int, text: str, style: str) -> None:
        for i, sign in enumerate(text):
            if 0 <= column + i < self.columns and 0 <= row < self.rows:
                self._signs[row][column + i] = sign
                self._styles[row][column + i] = style

    def is_free(self, column: int, row: int, length: int) -> bool:
        """Whether signs would fit there and cover none."""
        within = 0 <= row < self.rows and column >= 0 and column + length <= self.columns
        return within and not any(self._signs[row][column : column + length])

    def is_blank(self, column: int, row: int) -> bool:
        return not self._signs[row][column] and not self._dots[row][column]

    def line(self, row: int) -> Line:
        cells = [
            (sign or (chr(_BRAILLE + dots) if dots else " "), style)
            for sign, dots, style in zip(self._signs[row], self._dots[row], self._styles[row], strict=True)
        ]
        return _joined(cells)


class Scale(NamedTuple):
    """From values to the dots of a canvas."""

    low: float
    high: float
    dots: int

    def __call__(self, value: float) -> int:
        part = (value - self.low) / (self.high - self.low)
        return min(max(int(part * self.dots), 0), self.dots - 1)

    def down(self, value: float) -> int:
        """From the top."""
        return self.dots - 1 - self(value)


class Frame(NamedTuple):
    """What all panels share."""

    chart: ControlChart
    axis: Axis
    places: list[float]
    segments: list[Segment]
    x: Scale

    @property
    def columns(self) -> int:
        return self.x.dots // 2


def terminal_chart(
    chart: ControlChart, heading: Sequence[str], axis: Axis, width: int, height: int
) -> list[Line]:
    """The lines, none longer than *width* (at least 40); *height* rows have the points (at least 6)."""
    width, height = max(width, WIDTH_MIN), max(height, HEIGHT_MIN)
    frame = _frame(chart, axis, room(width))
    lines: list[Line] = [[Run(_cut(heading[0], width), "bold")]]
    lines += [[Run(part, QUIET)] for text in heading[1:] for part in wrap(text, width)]
    lines += _strip(frame)
    lines += _u_panel(frame, height)
    if chart.has_cusum:
        lines += _cusum_panel(frame)
    if chart.has_ewma:
        lines += _ewma_panel(frame)
    lines += _axis_lines(frame)
    lines += [[Run(part.replace(_NO_BREAK, " "), QUIET)] for part in wrap(_legend(frame), width)]
    lines += [
        [Run(part)]
        for rule, reports in signals(chart).items()
        for part in wrap(f"rule {rule}: reports {reports}", width, subsequent_indent="  ")
    ]
    return lines


def room(width: int) -> int:
    """How many reports have a column of their own."""
    return max(width, WIDTH_MIN) - _LEFT - 2 - _RIGHT


def _frame(chart: ControlChart, axis: Axis, columns: int) -> Frame:
    segments = chart.segments(axis)
    first, last = segments[0].edges[0], segments[-1].edges[-1]
    last = max([last, *(chart.place_of(one, axis) for one in chart.breaks)])
    return Frame(chart, axis, chart.places(axis), segments, Scale(first, last, 2 * columns))


def _joined(cells: Iterable[tuple[str, str]]) -> Line:
    """Neighbours of one style in one run; blanks have any."""
    found: Line = []
    for style, group in groupby(cells, key=lambda cell: cell[1] if cell[0] != " " else ""):
        found.append(Run("".join(sign for sign, _ in group), style))
    return found


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(room - 1, 0)].rstrip() + "…"


def _strip(frame: Frame) -> list[Line]:
    """Why stages began, the phases and the alarms, each where it is."""
    rows = []
    if frame.chart.breaks:
        rows.append(_stages_row(frame))
    phases = Canvas(frame.columns, 1)
    for i, segment in enumerate(frame.segments):
        first, last = frame.x(segment.edges[0]) // 2, frame.x(segment.edges[-1]) // 2
        names = (phase_name(segment.phase), phase_name(segment.phase, short=True))
        text = next((name for name in names if len(name) < last - first), "")
        phases.sign(first, 0, ("│" if i else "") + text, QUIET)
    rows.append(phases)
    episodes = frame.chart.episodes()
    if episodes:
        alarms = Canvas(frame.columns, 1)
        every = [edge for segment in frame.segments for edge in segment.edges[:-1]]
        every.append(frame.segments[-1].edges[-1])
        for one in episodes:
            first, last = frame.x(every[one.first]) // 2, frame.x(every[one.last + 1]) // 2
            sign = "━" if one.severity == "critical" else "─"
            text = sign * max(last - first, 1)
            style = SEVERE if one.severity == "critical" else MILD
            alarms.sign(first, 0, text if one.ended else text[:-1] + "►", style)
        rows.append(alarms)
    left = ["alarms" if episodes and row is rows[-1] else "" for row in rows]
    return [
        [Run(f"{name:>{_LEFT - 1}}  ", QUIET), *row.line(0)] for name, row in zip(left, rows, strict=True)
    ]


def _stages_row(frame: Frame) -> Canvas:
    row = Canvas(frame.columns + _RIGHT, 1)
    columns = [frame.x(frame.chart.place_of(one, frame.axis)) // 2 for one in frame.chart.breaks]
    free = 0
    for one, column, after in zip(frame.chart.breaks, columns, [*columns[1:], row.columns], strict=True):
        right, left = after - column - 1, column - free - 1
        row.sign(column, 0, "┊", "bold")
        if right < len(one.text) and left > right:
            text = _cut(one.text, left)
            row.sign(column - len(text), 0, text, "bold")
            free = column + 1
        else:
            text = _cut(one.text, right)
            row.sign(column + 1, 0, text, "bold")
            free = column + 1 + len(text)
    return row


def _u_panel(frame: Frame, rows: int) -> list[Line]:
    points = frame.chart.points
    canvas = Canvas(frame.columns, rows)
    low, high = u_range(points)
    y = Scale(low, high, 4 * rows)
    for segment in frame.segments:
        _steps(canvas, frame, segment, "centre", y, CENTRE, lambda x: x % 4 == 0)
        for name in ("lcl", "ucl"):
            _steps(canvas, frame, segment, name, y, LIMIT, _dash(segment.phase))
    _points(canvas, frame, [point.u for point in points], y, high)
    _rule_numbers(canvas, frame, labels(points, U_RULES), y)
    newest = points[-1]
    ends = [("UCL", newest.ucl), ("CL", newest.centre), ("LCL", newest.lcl)]
    return _panel(canvas, frame, y, "u", ends)


def _dash(phase: int) -> Callable[[int], bool]:
    """Which dots of a limit are drawn: all in phase II, else dashes, and dots where it is predicted."""
    if phase == PHASE_TWO:
        return lambda x: True
    if phase == PHASE_ONE:
        return lambda x: x % 4 < 2
    return lambda x: x % 3 == 0


def _steps(
    canvas: Canvas,
    frame: Frame,
    segment: Segment,
    name: str,
    y: Scale,
    style: str,
    is_drawn: Callable[[int], bool],
    sign: int = 1,
) -> None:
    """One line of a segment: a step for each sample, but for what is above the panel. Joined up and down in
    phase II, where a sample has a column."""
    joins = segment.phase == PHASE_TWO and len(frame.chart.points) <= frame.columns
    before = None
    for i in range(segment.first, segment.last + 1):
        value = getattr(frame.chart.points[i], name)
        if value is None or sign * value > y.high:
            before = None
            continue
        level = y.down(sign * value)
        first = frame.x(segment.edges[i - segment.first])
        last = frame.x(segment.edges[i - segment.first + 1])
        for x in range(first, max(last, first + 1)):
            if is_drawn(x):
                canvas.dot(x, level, style)
        if joins and before is not None:
            for dot in range(min(before, level) + 1, max(before, level)):
                canvas.dot(first, dot, style)
        before = level


def _points(canvas: Canvas, frame: Frame, values: Sequence[float], y: Scale, top: float) -> None:
    """Points, then what is marked, so that no point covers it."""
    marked = []
    for place, point, value in zip(frame.places, frame.chart.points, values, strict=True):
        column, row = frame.x(place) // 2, y.down(value) // 4
        if value > top or point.left_out or any(rule in U_RULES for rule in point.rules):
            marked.append((column, row, point, value > top))
        else:
            canvas.sign(column, row, "•", POINT)
    for column, row, point, is_beyond in marked:
        canvas.sign(column, row, *_mark(point, is_beyond))


def _mark(point: Point, is_beyond: bool) -> tuple[str, str]:
    style = SEVERE if 1 in point.rules else MILD if point.rules else POINT
    if is_beyond:
        return "▲", style
    if point.left_out:
        return "×", style or "bold"
    return ("■", SEVERE) if 1 in point.rules else ("◆", MILD)


def _rule_numbers(canvas: Canvas, frame: Frame, told: Sequence[Label], y: Scale) -> None:
    """Beside the points, where there is room; the signals in words have all."""
    for label in told:
        point = frame.chart.points[label.at]
        column, row = frame.x(frame.places[label.at]) // 2, y.down(point.u) // 4
        text, aside = label.text.replace(" ", ""), label.text.split()[0]
        above = row - 1 if label.above else row + 1
        for wanted, at, line in (
            (text, column, above),
            (text, column + 1, row),
            (aside, column + 1, row),
            (aside, column - len(aside), row),
            (aside, column, above),
        ):
            if canvas.is_free(at, line, len(wanted)):
                canvas.sign(at, line, wanted, SEVERE if 1 in point.rules else MILD)
                break


def _cusum_panel(frame: Frame) -> list[Line]:
    points = frame.chart.points
    canvas = Canvas(frame.columns, PANEL_ROWS)
    kinds = (("cusum_up", "cusum_limit_up", 1, 9), ("cusum_down", "cusum_limit_down", -1, 10))
    every = [
        sign * value
        for name, limit, sign, _ in kinds
        for point in points
        for value in (getattr(point, name), getattr(point, limit))
        if value is not None
    ]
    y = _scale([0.0, *every], PANEL_ROWS)
    for segment in frame.segments:
        for _, limit, sign, _ in kinds:
            _steps(canvas, frame, segment, limit, y, LIMIT, lambda x: True, sign)
    for name, _, sign, rule in kinds:
        values = [None if (v := getattr(point, name)) is None else sign * v for point in points]
        _track(canvas, frame, values, y, {rule})
    newest = points[-1]
    ends = [("limit", newest.cusum_limit_up), ("limit", _minus(newest.cusum_limit_down))]
    return [[], *_panel(canvas, frame, y, "CUSUM", ends)]


def _ewma_panel(frame: Frame) -> list[Line]:
    points = frame.chart.points
    canvas = Canvas(frame.columns, PANEL_ROWS)
    every = [v for p in points for v in (p.ewma, p.ewma_lcl, p.ewma_ucl) if v is not None]
    y = _scale(every, PANEL_ROWS)
    for segment in frame.segments:
        for name in ("ewma_lcl", "ewma_ucl"):
            _steps(canvas, frame, segment, name, y, LIMIT, lambda x: True)
    _track(canvas, frame, [point.ewma for point in points], y, {11, 12})
    newest = points[-1]
    return [[], *_panel(canvas, frame, y, "EWMA", [("UCL", newest.ewma_ucl), ("LCL", newest.ewma_lcl)])]


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _scale(values: Sequence[float], rows: int) -> Scale:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or abs(high) or 1.0
    return Scale(low - margin, high + margin, 4 * rows)


def _track(canvas: Canvas, frame: Frame, values: Sequence[float | None], y: Scale, rules: set[int]) -> None:
    """The dots of a CUSUM or an EWMA; ◆ where it signals."""
    for place, point, value in zip(frame.places, frame.chart.points, values, strict=True):
        if value is None:
            continue
        x, down = frame.x(place), y.down(value)
        if rules & set(point.rules):
            canvas.sign(x // 2, down // 4, "◆", MILD)
        else:
            canvas.dot(x, down, POINT)


def _panel(
    canvas: Canvas, frame: Frame, y: Scale, name: str, ends: Sequence[tuple[str, float | None]]
) -> list[Line]:
    """The rows of a canvas with numbers on the left, and on the right the lines' names at their height."""
    for one in frame.chart.breaks:
        column = frame.x(frame.chart.place_of(one, frame.axis)) // 2
        for row in range(canvas.rows):
            if canvas.is_blank(column, row):
                canvas.sign(column, row, "┊", "bold")
    right = [""] * canvas.rows
    least = 0
    for text, value in ends:
        if value is not None and least < canvas.rows:
            row = max(y.down(min(value, y.high)) // 4, least)
            right[row] = f" {text} {_short(value, _RIGHT - 2 - len(text))}"
            least = row + 1
    left = [" " * (_LEFT - 1) + "│"] * canvas.rows
    for value in round_numbers(y.low, y.high, max(canvas.rows // 4, 2)):
        left[y.down(value) // 4] = f"{_short(value, _LEFT - 2):>{_LEFT - 2}} ┤"
    left[0] = f"{name:<{_LEFT - 1}}│"
    return [
        [Run(left[row] + " ", QUIET), *canvas.line(row), Run(right[row], LIMIT)] for row in range(canvas.rows)
    ]


def _short(value: float, room: int) -> str:
    """As many digits as there is room for, four at most."""
    texts = (f"{value:.{digits}g}" for digits in (4, 3, 2))
    return next((text for text in texts if len(text) <= room), f"{value:.0e}")


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """At most so many multiples of a round number (1, 2 or 5 times a power of ten) in low ... high."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    factor = next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) < most)
    step *= factor
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _axis_lines(frame: Frame) -> list[Line]:
    """The horizontal axis with its numbers, or times."""
    ticks, numbers = Canvas(frame.columns, 1), Canvas(frame.columns, 1)
    ticks.sign(0, 0, "─" * frame.columns, QUIET)
    free = -1
    for place, text in _ticks(frame):
        column = frame.x(place) // 2
        begin = min(max(column - len(text) // 2, 0), frame.columns - len(text))
        if begin > free:
            ticks.sign(column, 0, "┬", QUIET)
            numbers.sign(begin, 0, text, "")
            free = begin + len(text)
    name = "report" if frame.axis is Axis.REPORT else "UTC"
    return [
        [Run(" " * (_LEFT - 1) + "└─", QUIET), *ticks.line(0)],
        [Run(f"{name:>{_LEFT - 1}}  ", QUIET), *numbers.line(0)],
    ]


def _ticks(frame: Frame) -> list[tuple[float, str]]:
    """Round numbers of reports; times at even distances."""
    low, high = frame.x.low, frame.x.high
    if frame.axis is Axis.REPORT:
        numbers = round_numbers(low, high, max(frame.columns // 10, 2))
        return [(n, f"{n:.0f}") for n in numbers if n == int(n)]
    pattern = "%m-%d %H:%M" if high - low < 20 else "%Y-%m-%d"
    count = max(frame.columns // 18, 2)
    places = [low + (high - low) * i / (count - 1) for i in range(count)]
    return [(place, to_datetime(int(place * DAY_NS)).strftime(pattern)) for place in places]


def _legend(frame: Frame) -> str:
    """The signs that the chart has."""
    points = frame.chart.points
    told = ["• sample"]
    phases = {segment.phase for segment in frame.segments}
    named = {PHASE_TWO: "⠤⠤ limits", PHASE_ONE: "⠤ ⠤ trial limits", 3: "⠄⠠⠄ predicted limits"}
    told += [text for phase, text in named.items() if phase in phases]
    told += ["■ rule 1"] if any(1 in point.rules for point in points) else []
    told += ["◆ another rule"] if any(set(point.rules) - {1} for point in points) else []
    told += ["× left out of the baseline"] if any(point.left_out for point in points) else []
    told += ["▲ above the chart"] if any(point.u > u_range(points)[1] for point in points) else []
    return "   ".join(text.replace(" ", _NO_BREAK) for text in told)
