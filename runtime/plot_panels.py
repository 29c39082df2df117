"""The panels of a picture: u with its limits and signals, the CUSUM, the EWMA.

Colours are Okabe and Ito's, which colour-blind people tell apart; nothing is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from matplotlib.axes import Axes

from runtime.control_chart import (
    PHASE_ONE,
    PHASE_TWO,
    PREDICTS,
    U_RULES,
    Axis,
    ControlChart,
    Label,
    Segment,
    labels,
    u_range,
)
from runtime.label_places import Box, spots, spread

INK, QUIET, PATH = "#222222", "#6b6b6b", "#9a9a9a"
LINE: Final = "#0072B2"
"""Of limits and the centre line."""
SEVERE, MILD, SLIGHT = "#D55E00", "#E69F00", "#56B4E9"
_STYLES: Final = {PHASE_ONE: (0, (5, 2.5)), PREDICTS: (0, (1.2, 1.8))}
"""Dashes of limits that are not phase II's."""
_MILD: Final = {"color": MILD, "markeredgecolor": INK, "markeredgewidth": 0.5}
_GROUND: Final[dict[str, Any]] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4}
"""Of text amid lines. A path effect would turn the text of an SVG into outlines."""


class Kind(NamedTuple):
    """How points are drawn at which the same rules signal."""

    name: str
    larger: float
    style: dict[str, Any]


KINDS: Final = (
    Kind("sample", 0.0, {"marker": "o", "color": INK}),
    Kind("rule 1", 1.6, {"marker": "s", "color": SEVERE, "markeredgecolor": INK, "markeredgewidth": 0.5}),
    Kind("rules 2 to 8", 1.6, {"marker": "D", **_MILD}),
)


class Frame(NamedTuple):
    """What all panels of a picture share."""

    chart: ControlChart
    axis: Axis
    places: list[float]
    segments: list[Segment]
    span: tuple[float, float]
    """Of the horizontal axis."""


def draw_u(axes: Axes, frame: Frame) -> None:
    """u with its limits and signals."""
    points = frame.chart.points
    bottom, top = u_range(points)
    axes.set_ylim(bottom, top)
    axes.set_ylabel("u, nonconformities a unit")
    _limits(axes, frame, "lcl", "ucl")
    _centre(axes, frame)
    drawn = [min(point.u, top) for point in points]
    _path(axes, frame, drawn)
    size = 4.2 if len(points) <= 150 else 3.0
    for i, kind in enumerate(KINDS):
        at = [j for j, point in enumerate(points) if point.u <= top and kind_of(point.rules) == i]
        shown = [j for j in at if i or not points[j].left_out]
        _dots(axes, frame, shown, drawn, label=kind.name, markersize=size + kind.larger, **kind.style)
    left_out = [i for i, point in enumerate(points) if point.left_out and point.u <= top]
    style = {"marker": "x", "markersize": size + 5, "markeredgewidth": 1.3, "color": INK}
    _dots(axes, frame, left_out, drawn, label="left out of the baseline", **style)
    _beyond(axes, frame, top)
    _rule_numbers(axes, frame, labels(points, U_RULES), drawn)
    newest = points[-1]
    named = [("UCL", newest.ucl), ("centre", newest.centre), ("LCL", newest.lcl)]
    _ends(axes, [(name, value) for name, value in named if value is not None])


def kind_of(rules: Iterable[int]) -> int:
    """Which of `KINDS` a point is by the rules that signal; CUSUM and EWMA have panels of their own."""
    at_u = [rule for rule in rules if rule in U_RULES]
    return 0 if not at_u else 1 if 1 in at_u else 2


def _beyond(axes: Axes, frame: Frame, top: float) -> None:
    """Points above the top of the panel, at its edge, with their value."""
    for place, point in zip(frame.places, frame.chart.points, strict=True):
        if point.u > top:
            colour = SEVERE if 1 in point.rules else INK
            axes.plot(place, top, marker="^", color=colour, markersize=7, clip_on=False, zorder=6)
            axes.annotate(
                f"{point.u:.3g}, left out" if point.left_out else f"{point.u:.3g}",
                (place, top),
                (6, -3),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                bbox=_GROUND,
            )


def _column(frame: Frame, segment: Segment, name: str) -> list[Any]:
    return [getattr(point, name) for point in frame.chart.points[segment.first : segment.last + 1]]


def _limits(axes: Axes, frame: Frame, low: str, high: str) -> None:
    for segment in frame.segments:
        lows, highs = _column(frame, segment, low), _column(frame, segment, high)
        if None in lows or None in highs:
            continue
        if segment.phase == PHASE_TWO:
            axes.stairs(highs, segment.edges, baseline=lows, fill=True, color=LINE, alpha=0.06, linewidth=0)
        style = _STYLES.get(segment.phase, "-")
        name = {PHASE_TWO: "limits", PHASE_ONE: "trial limits", PREDICTS: "predicted limits"}.get(
            segment.phase
        )
        for values in (lows, highs):
            axes.stairs(
                values,
                segment.edges,
                baseline=None,
                color=LINE,
                linewidth=1.2,
                linestyle=style,
                zorder=3,
                label=name,
            )


def _centre(axes: Axes, frame: Frame) -> None:
    for segment in frame.segments:
        values = _column(frame, segment, "centre")
        if None not in values:
            axes.stairs(
                values, segment.edges, baseline=None, color=LINE, linewidth=0.7, zorder=2, label="centre line"
            )


def _path(axes: Axes, frame: Frame, values: Sequence[float | None]) -> None:
    """A thin line through the points of each stage."""
    points = frame.chart.points
    begins = [0, *(i for i in range(1, len(points)) if points[i].stage != points[i - 1].stage), len(points)]
    for first, end in pairwise(begins):
        axes.plot(
            frame.places[first:end],
            [float("nan") if v is None else v for v in values[first:end]],
            color=PATH,
            linewidth=0.8,
            zorder=3.5,
        )


def _dots(axes: Axes, frame: Frame, at: Sequence[int], values: Sequence[Any], **style: Any) -> None:
    if at:
        places = [frame.places[i] for i in at]
        axes.plot(places, [values[i] for i in at], linestyle="", zorder=5, **style)


def _rule_numbers(axes: Axes, frame: Frame, told: Sequence[Label], values: Sequence[float]) -> None:
    """The numbers of the rules beside the points that signal."""
    if not told:
        return
    figure = axes.get_figure()
    assert figure is not None
    scale = 72 / figure.dpi
    pixels = axes.transData.transform(list(zip(frame.places, values, strict=True))) * scale
    window = axes.get_window_extent()
    within = Box(*(edge * scale for edge in (window.x0, window.y0, window.x1, window.y1)))
    taken = [Box(x - 2.6, y - 2.6, x + 2.6, y + 2.6) for x, y in pixels]
    texts = [(*pixels[label.at], label.text, label.above) for label in told]
    for label, (x, y, *_), box in zip(told, texts, spots(texts, taken, within), strict=True):
        axes.annotate(
            label.text,
            (frame.places[label.at], values[label.at]),
            ((box.left + box.right) / 2 - x, (box.bottom + box.top) / 2 - y),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7.5,
            color=INK,
            bbox=_GROUND,
            zorder=7,
        )


def _ends(axes: Axes, named: Sequence[tuple[str, float]]) -> None:
    """Names and values of lines at the right of the newest point, apart from each other."""
    low, high = axes.get_ylim()
    figure = axes.get_figure(root=True)
    assert figure is not None
    inches = axes.get_position().height * figure.get_size_inches()[1]
    for (name, value), y in zip(
        named, spread([v for _, v in named], 0.16 * (high - low) / inches, low, high), strict=True
    ):
        axes.annotate(
            f"{name} {value:.4g}",
            (1, y),
            (5, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=LINE,
            annotation_clip=False,
        )


def draw_cusum(axes: Axes, frame: Frame) -> None:
    """The sums of rises upwards, those of falls downwards, with their limits."""
    points, newest = frame.chart.points, frame.chart.points[-1]
    axes.set_ylabel("CUSUM\nrules 9, 10", fontsize=8)
    axes.axhline(0, color=LINE, linewidth=0.7, zorder=2)
    ends = []
    for name, limit, sign, rule in (
        ("cusum_up", "cusum_limit_up", 1, 9),
        ("cusum_down", "cusum_limit_down", -1, 10),
    ):
        sums = [getattr(point, name) for point in points]
        values = [None if value is None else sign * value for value in sums]
        _path(axes, frame, values)
        signals = [i for i, point in enumerate(points) if rule in point.rules and values[i] is not None]
        plain = [i for i, value in enumerate(values) if value is not None and i not in signals]
        _dots(axes, frame, plain, values, marker="o", markersize=2.2, color=INK)
        _dots(axes, frame, signals, values, marker="^" if sign > 0 else "v", markersize=6.5, **_MILD)
        for segment in frame.segments:
            _stairs(axes, frame, segment, limit, sign)
        at = getattr(newest, limit)
        if at is not None:
            ends.append(("limit", sign * at))
    _fit(axes)
    _ends(axes, ends)


def _fit(axes: Axes) -> None:
    axes.margins(y=0.12)
    axes.autoscale_view(scalex=False)


def _stairs(axes: Axes, frame: Frame, segment: Segment, name: str, sign: int) -> None:
    values = _column(frame, segment, name)
    if None not in values:
        axes.stairs(
            [sign * value for value in values],
            segment.edges,
            baseline=None,
            color=LINE,
            linewidth=1.2,
            zorder=3,
        )


def draw_ewma(axes: Axes, frame: Frame) -> None:
    points, newest = frame.chart.points, frame.chart.points[-1]
    axes.set_ylabel("EWMA of u\nrules 11, 12", fontsize=8)
    values = [point.ewma for point in points]
    _path(axes, frame, values)
    signals = [i for i, point in enumerate(points) if {11, 12} & set(point.rules) and values[i] is not None]
    plain = [i for i, value in enumerate(values) if value is not None and i not in signals]
    _dots(axes, frame, plain, values, marker="o", markersize=2.4, color=INK)
    _dots(axes, frame, signals, values, marker="D", markersize=4.8, **_MILD)
    for segment in frame.segments:
        for name in ("ewma_lcl", "ewma_ucl"):
            _stairs(axes, frame, segment, name, 1)
        if None not in _column(frame, segment, "ewma"):
            centres = _column(frame, segment, "centre")
            axes.stairs(centres, segment.edges, baseline=None, color=LINE, linewidth=0.7, zorder=2)
    named = [("UCL", newest.ewma_ucl), ("LCL", newest.ewma_lcl)]
    _fit(axes)
    _ends(axes, [(name, value) for name, value in named if value is not None])
