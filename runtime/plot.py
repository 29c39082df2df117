"""A control chart as a picture (PNG, SVG), by matplotlib: imported only to draw, with the extra ``plot``.

From the top: what it is, a strip with the stages, phases and alarms, the points with their limits, a panel
for the CUSUM and one for the EWMA where the chart has them, the legend. Same verdicts, same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from textwrap import wrap
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from runtime.control_chart import LEARNING, PHASE_ONE, PREDICTS, Axis, ControlChart, phase_name
from runtime.plot_panels import INK, MILD, QUIET, SEVERE, SLIGHT, Frame, draw_cusum, draw_ewma, draw_u

WIDTH_PX: Final = 1600
HEIGHT_PX: Final = 900
_INCHES: Final = 1600 / 144
"""Width of every picture, whatever its pixels, so that all of them are laid out alike."""
_HEIGHT_MIN: Final = 4.6
"""In inches, and _PANEL more for each panel; a picture that is flatter than that is wider instead."""
_PANEL: Final = 0.9
SEVERITIES: Final = {"critical": SEVERE, "warning": MILD, "info": SLIGHT}
_GROUNDS: Final = {LEARNING: "#efefef", PREDICTS: "#efefef", PHASE_ONE: "#f7f7f7"}
_LEFT, _RIGHT, _BOTTOM = 0.78, 1.05, 0.86
"""Margins in inches."""
_ROW: Final = 0.19
"""Height of a row of the strip, in inches."""
_SETTINGS: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "defender",
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.7,
    "axes.labelcolor": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def save(
    chart: ControlChart, path: Path, heading: Sequence[str], axis: Axis, width_px: int, height_px: int
) -> None:
    """Draws a chart of at least one point into a file; its suffix says the format. Raises OSError.

    *heading*: title, then lines of small print.
    """
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names may be in any script
        panels = chart.has_cusum + chart.has_ewma
        dpi = min(width_px / _INCHES, height_px / (_HEIGHT_MIN + _PANEL * panels))
        figure = draw(chart, heading, axis, width_px / dpi, height_px / dpi)
        # No date and no version within, so that a picture differs only when the chart does.
        metadata = (
            {"Date": None, "Creator": "defender"} if path.suffix == ".svg" else {"Software": "defender"}
        )
        figure.savefig(path, dpi=dpi, metadata=metadata)


def usual_height_px(chart: ControlChart) -> int:
    """More where there are more panels."""
    return HEIGHT_PX + 130 * (chart.has_cusum + chart.has_ewma)


def draw(chart: ControlChart, heading: Sequence[str], axis: Axis, width: float, height: float) -> Figure:
    """A figure of a size in inches."""
    figure = Figure(figsize=(width, height), facecolor="white")
    frame = _frame(chart, axis)
    top = _heading(figure, heading)
    has_alarms = any(point.episode for point in chart.points)
    rows = (["stages"] if chart.breaks else []) + ["phases"] + (["alarms"] if has_alarms else [])
    _strip(figure, frame, rows, top)
    top -= _ROW * len(rows) + 0.05
    extra = [panel for panel, has in ((draw_cusum, chart.has_cusum), (draw_ewma, chart.has_ewma)) if has]
    free, gap = top - _BOTTOM, 0.12
    share = {0: 0.0, 1: 0.27, 2: 0.21}[len(extra)] * free
    panels = [_axes(figure, frame, _BOTTOM + len(extra) * share, free - len(extra) * share)]
    panels += [
        _axes(figure, frame, _BOTTOM + (len(extra) - 1 - i) * share, share - gap) for i in range(len(extra))
    ]
    draw_u(panels[0], frame)
    for panel, fill in zip(panels[1:], extra, strict=True):
        fill(panel, frame)
    for panel in panels[:-1]:
        panel.tick_params(labelbottom=False)
    _foot(panels[-1], frame)
    _legend(figure, panels)
    return figure


def _frame(chart: ControlChart, axis: Axis) -> Frame:
    segments = chart.segments(axis)
    first, last = segments[0].edges[0], segments[-1].edges[-1]
    last = max([last, *(chart.place_of(one, axis) for one in chart.breaks)])
    margin = 0.006 * (last - first)
    return Frame(chart, axis, chart.places(axis), segments, (first - margin, last + margin))


def _heading(figure: Figure, heading: Sequence[str]) -> float:
    """Writes it; returns what is left of the height, in inches."""
    width, top = figure.get_size_inches()
    x, top = 0.2 / width, top - 0.34
    height = figure.get_size_inches()[1]
    figure.text(x, top / height, heading[0], fontsize=13, fontweight="bold", color=INK, parse_math=False)
    room = int((width - 0.4) / 0.064)
    for line in (part for text in heading[1:] for part in wrap(text, room)):
        top -= 0.2
        figure.text(x, top / height, line, fontsize=8.5, color=QUIET, parse_math=False)
    return float(top) - 0.14


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(room - 1, 0)].rstrip() + "…"


def _axes(figure: Figure, frame: Frame, bottom: float, height: float) -> Axes:
    """A panel at a height in inches, over the common horizontal axis."""
    wide, high = figure.get_size_inches()
    rect = (_LEFT / wide, bottom / high, (wide - _LEFT - _RIGHT) / wide, height / high)
    axes = figure.add_axes(rect)
    axes.set_xlim(*frame.span)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3)
    axes.yaxis.set_major_locator(
        MaxNLocator(nbins=max(3, min(7, int(height / 0.45))), steps=[1, 2, 2.5, 5, 10])
    )
    for segment in frame.segments:
        ground = _GROUNDS.get(segment.phase)
        if ground:
            axes.axvspan(segment.edges[0], segment.edges[-1], color=ground, linewidth=0, zorder=0)
    for one in frame.chart.breaks:
        axes.axvline(frame.chart.place_of(one, frame.axis), color=INK, linewidth=0.9, zorder=2)
    return axes


def _strip(figure: Figure, frame: Frame, rows: Sequence[str], top: float) -> None:
    """Rows above the points: why a stage began, the phases, the alarms."""
    axes = _axes(figure, frame, top - _ROW * len(rows), _ROW * len(rows))
    axes.set_ylim(0, len(rows))
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    inches = axes.get_position().width * figure.get_size_inches()[0]
    a_character = (frame.span[1] - frame.span[0]) / inches * 0.072
    for row, kind in enumerate(reversed(rows)):
        fill = {"stages": _stages, "phases": _phases, "alarms": _alarms}[kind]
        fill(axes, frame, row, a_character)
        if kind == "alarms":
            axes.text(
                -0.008,
                row + 0.5,
                "alarms",
                transform=axes.get_yaxis_transform(),
                ha="right",
                va="center",
                fontsize=7.5,
                color=QUIET,
            )


def _stages(axes: Axes, frame: Frame, row: int, a_character: float) -> None:
    places = [frame.chart.place_of(one, frame.axis) for one in frame.chart.breaks]
    free, room = frame.span[0], (_RIGHT - 0.1) / 0.072 * a_character
    for one, place, after in zip(
        frame.chart.breaks, places, [*places[1:], frame.span[1] + room], strict=True
    ):
        right, left = int((after - place) / a_character) - 2, int((place - free) / a_character) - 2
        on_the_left = right < len(one.text) and left > right
        text = _cut(one.text, left if on_the_left else right)
        free = place if on_the_left else place + (len(text) + 2) * a_character
        if len(text) > 3:
            x = place + (-0.6 if on_the_left else 0.6) * a_character
            axes.text(
                x,
                row + 0.5,
                text,
                ha="right" if on_the_left else "left",
                va="center",
                fontsize=8,
                fontweight="bold",
                color=INK,
                parse_math=False,
            )


def _phases(axes: Axes, frame: Frame, row: int, a_character: float) -> None:
    for i, segment in enumerate(frame.segments):
        first, last = segment.edges[0], segment.edges[-1]
        if i:
            axes.plot([first, first], [row, row + 0.9], color=QUIET, linewidth=0.6)
        room = (last - first) / a_character - 0.5
        names = (phase_name(segment.phase), phase_name(segment.phase, short=True))
        text = next((name for name in names if len(name) <= room), "")
        axes.text((first + last) / 2, row + 0.47, text, ha="center", va="center", fontsize=8, color=QUIET)


def _alarms(axes: Axes, frame: Frame, row: int, a_character: float) -> None:
    every = [edge for segment in frame.segments for edge in segment.edges[:-1]] + [
        frame.segments[-1].edges[-1]
    ]
    for episode in frame.chart.episodes():
        first, last = every[episode.first], every[episode.last + 1]
        colour = SEVERITIES.get(episode.severity, MILD)
        height = 0.34 if episode.severity == "critical" else 0.2
        axes.barh(row + 0.5, last - first, left=first, height=height, color=colour, linewidth=0)
        if not episode.ended:
            axes.plot(last, row + 0.5, marker=">", color=colour, markersize=5, clip_on=False)


def _foot(axes: Axes, frame: Frame) -> None:
    """The horizontal axis, on the lowest panel."""
    if frame.axis is Axis.REPORT:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=14, integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlabel("report of the chamber")
        return
    locator = AutoDateLocator(tz=UTC, minticks=3, maxticks=10)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))
    axes.set_xlabel("time of the reports, UTC")


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Each kind of line and marker that the picture has, at the foot."""
    handles, names = panels[0].get_legend_handles_labels()
    each = dict(zip(names, handles, strict=True))
    figure.legend(
        each.values(),
        each.keys(),
        loc="lower center",
        ncols=len(each),
        frameon=False,
        fontsize=8,
        handlelength=2.2,
        columnspacing=1.8,
        borderaxespad=0.5,
    )
