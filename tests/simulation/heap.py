"""The fake clock: actions in the order of their time, and among equals of their entry."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

ACTIONS_MAX: Final = 200_000
"""A schedule takes 2,000-5,000; far more are a loop without end."""


class Violation(Exception):
    """An invariant does not hold."""


class Heap:
    """``at`` enters an action, ``run`` carries them out; *now_s* stands still in between."""

    __slots__ = ("_entered", "_entries", "done", "now_s")

    def __init__(self) -> None:
        self.now_s = 0.0
        self.done = 0
        self._entries: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._entered = 0

    def at(self, at_s: float, action: Callable[..., None], *args: Any) -> None:
        self._entered += 1
        heappush(self._entries, (at_s, self._entered, action, args))

    def after(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        self._entered += 1
        heappush(self._entries, (self.now_s + delay_s, self._entered, action, args))

    def run(self, until_s: float) -> None:
        """Everything up to *until_s*. Raises Violation when it does not come to an end."""
        entries = self._entries
        while entries and entries[0][0] <= until_s:
            self.now_s, _, action, args = heappop(entries)
            self.done += 1
            action(*args)
            if self.done > ACTIONS_MAX:
                raise Violation(f"no end: {self.done} actions by {self.now_s:.1f} s, the last {action}")
