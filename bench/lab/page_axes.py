"""Scales, axes and paths of the page's plots, as SVG. Pure; coordinates are pixels of the drawing.

Colours are classes of the page's style sheet, so that one drawing serves light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Final, NamedTuple

TEXT_WIDTH: Final = 7.0
"""Of a character at the plots' font size, on average."""


class Scale(NamedTuple):
    """Maps [low, high] to [begin, end]; by logarithm where is_log, and then low > 0."""

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value; values beyond the scale sit at its rim."""
        inside = min(max(value, self.low), self.high)
        if self.is_log:
            share = math.log(inside / self.low) / math.log(self.high / self.low)
        else:
            share = (inside - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self, about: int) -> list[float]:
        """Round values within the scale, *about* so many."""
        return (
            log_ticks(self.low, self.high, about) if self.is_log else even_ticks(self.low, self.high, about)
        )


class Frame(NamedTuple):
    """The rectangle that the values are drawn in."""

    left: float
    top: float
    right: float
    bottom: float


def round_step(span: float, about: int) -> float:
    """The smallest of 1, 2, 5 · 10^k that divides *span* into at most *about* parts."""
    exact = span / max(about, 1)
    decade = 10.0 ** math.floor(math.log10(exact))
    return next((m * decade for m in (1, 2, 5) if m * decade >= exact * 0.999), 10 * decade)


def even_ticks(low: float, high: float, about: int) -> list[float]:
    step = round_step(high - low, about)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, about: int) -> list[float]:
    """Powers of ten; with 2 and 5 between them where there is room."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**k for k in decades for m in factors]
        inside = [tick for tick in found if low * 0.999 <= tick <= high * 1.001]
        if len(inside) <= about or factors == (1,):
            return inside
    raise AssertionError("unreachable: the last factors always return")


def round_up(value: float, about: int) -> float:
    """An end for an axis from 0: the next tick above *value*; 1 for nothing at all."""
    if value <= 0:
        return 1.0
    step = round_step(value, about)
    return math.ceil(value / step - 1e-9) * step


def log_limits(values: Iterable[float]) -> tuple[float, float]:
    """Ends for a log axis over the positive *values*, at 1, 2 or 5 · 10^k, a factor of 10 apart at least."""
    positive = [value for value in values if 0 < value < math.inf]
    if not positive:
        return 1.0, 10.0
    steps = [m * 10.0**k for k in range(-6, 13) for m in (1, 2, 5)]
    low = max((step for step in steps if step <= min(positive)), default=steps[0])
    high = min((step for step in steps if step >= max(positive)), default=steps[-1])
    return low, max(high, low * 10)


# --- marks on paper -------------------------------------------------------------------------------


def px(value: float) -> str:
    """A coordinate, to a tenth of a pixel, short."""
    return f"{value:.1f}".removesuffix(".0")


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f"<line x1='{px(x1)}' y1='{px(y1)}' x2='{px(x2)}' y2='{px(y2)}' class='{kind}'/>"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Words from outside may stand here: they are escaped."""
    where = "" if anchor == "start" else f" text-anchor='{anchor}'"
    return f"<text x='{px(x)}' y='{px(y)}' class='{kind}'{where}>{escape(words)}</text>"


def rect(x: float, y: float, width: float, height: float, kind: str, hover: str = "") -> str:
    at = f"<rect x='{px(x)}' y='{px(y)}' width='{px(width)}' height='{px(height)}'"
    named = f" class='{kind}'" if kind else ""
    return f"{at}{named}><title>{escape(hover)}</title></rect>" if hover else f"{at}{named}/>"


Points = Sequence[tuple[float, float | None]]
"""(x, y) in pixels; y None where there is nothing to draw."""


def runs(points: Points) -> Iterator[list[tuple[float, float]]]:
    """The stretches of points without a hole."""
    stretch: list[tuple[float, float]] = []
    for x, y in points:
        if y is not None:
            stretch.append((x, y))
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def curve(points: Points, kind: str) -> str:
    """Straight lines from point to point, open at holes; a lone point is a dot."""
    found = []
    for stretch in runs(points):
        if len(stretch) == 1:
            stretch = [stretch[0], (stretch[0][0] + 0.1, stretch[0][1])]
        found.append("M" + "L".join(f"{px(x)} {px(y)}" for x, y in stretch))
    return f"<path d='{''.join(found)}' class='{kind}'/>" if found else ""


def steps(points: Points, kind: str) -> str:
    """Level from each point to the next one's x: for counts that jump."""
    found: list[tuple[float, float | None]] = []
    for k, (x, y) in enumerate(points):
        found.append((x, y))
        if y is not None and k + 1 < len(points):
            found.append((points[k + 1][0], y))
    return curve(found, kind)


def area(above: Sequence[tuple[float, float]], below: Sequence[tuple[float, float]], kind: str) -> str:
    """What is between two lines."""
    if not above:
        return ""
    round_trip = [*above, *reversed(below)]
    return f"<path d='M{'L'.join(f'{px(x)} {px(y)}' for x, y in round_trip)}Z' class='{kind}'/>"


# --- axes -----------------------------------------------------------------------------------------


def value(tick: float) -> str:
    """``0.5``, ``1,000``: no more figures than it takes."""
    return f"{tick:,.10g}"


def y_axis(frame: Frame, y: Scale, unit: str, about: int = 6) -> str:
    """Grid lines with their values left of the frame; the unit stands over them."""
    found = []
    for tick in y.ticks(about):
        at = y.at(tick)
        found.append(line(frame.left, at, frame.right, at, "grid"))
        found.append(text(frame.left - 7, at + 4, value(tick), "tick", "end"))
    found.append(text(frame.left - 7, frame.top - 13, unit, "tick", "end"))
    return "".join(found)


def x_axis(frame: Frame, x: Scale, unit: str, about: int = 10) -> str:
    """Values under the frame, the last with the unit; what would touch its right neighbour is left out."""
    ticks = x.ticks(about)
    found = [line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")]
    free = frame.right + TEXT_WIDTH
    for tick in reversed(ticks):
        at = x.at(tick)
        found.append(line(at, frame.bottom, at, frame.bottom + 4, "axis"))
        words = f"{value(tick)} {unit}" if tick == ticks[-1] else value(tick)
        wide = TEXT_WIDTH * len(words)
        left = min(at - wide / 2, frame.right + TEXT_WIDTH - wide)
        if left + wide <= free:
            found.append(text(left + wide / 2, frame.bottom + 17, words, "tick", "middle"))
            free = left - TEXT_WIDTH / 2
    return "".join(found)


def drawing(width: float, height: float, told: str, parts: Iterable[str]) -> str:
    """The SVG; *told* is what a reader hears who does not see it."""
    return (
        f"<svg role='img' aria-label='{escape(told, quote=True)}' viewBox='0 0 {px(width)} {px(height)}' "
        f"preserveAspectRatio='xMidYMid meet'>{''.join(parts)}</svg>"
    )
