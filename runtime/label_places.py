"""Where the labels of a drawing go, so that they neither cover each other nor what they are about. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

CHARACTER: Final = 4.6
LINE: Final = 8.0
"""Width of a character and height of a line, in points of 1/72 inch, at a size of 7.5."""
STEPS: Final = 6


class Box(NamedTuple):
    """In points of 1/72 inch."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Their common area."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return wide * high if wide > 0 and high > 0 else 0.0


def spots(texts: Sequence[tuple[float, float, str, bool]], taken: Sequence[Box], within: Box) -> list[Box]:
    """Where to put labels, (x, y, text, above) each, such that they cover as little as can be of each other,
    of what is *taken* and of what is outside *within*. A label is above its point or below it, and moves away
    step by step."""
    found: list[Box] = []
    for x, y, text, above in texts:
        wide, high = CHARACTER * len(text) + 1, LINE
        best, cost = None, float("inf")
        for step in range(STEPS):
            for up in (above, not above):
                for aside in (-wide / 2, -3.0, 3.0 - wide):
                    bottom = y + (5 + 6 * step) if up else y - (5 + 6 * step) - high
                    box = Box(x + aside, bottom, x + aside + wide, bottom + high)
                    outside = wide * high - box.overlap(within)
                    covers = sum(box.overlap(other) for other in (*taken, *found)) + 2 * outside
                    moved = 9 * step + 6 * (up is not above) + 2 * (aside != -wide / 2)
                    price = 8 * covers + moved
                    if price < cost:
                        best, cost = box, price
        assert best is not None
        found.append(best)
    return found


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Falling values, moved as little as it takes to be *gap* apart, from *high* down and not below *low*."""
    found: list[float] = []
    for value in values:
        found.append(min(value, high, found[-1] - gap if found else high))
    for i in reversed(range(len(found))):
        found[i] = max(found[i], low + gap * (len(found) - 1 - i))
    return found
