"""The way between a pod and the server: delays, losses, cuts. Requests of one lane arrive in their order."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final

from simulation.heap import Heap
from simulation.server import Server

if TYPE_CHECKING:
    from simulation.process import Process

NO_ANSWER: Final = None
HELD_SHARE: Final = 0.3
"""Of the requests written to a connection that is cut off: those that arrive when it heals, by TCP."""


class Link:
    """One pod's; *timeout_s* is the time after which a request counts as unanswered."""

    def __init__(self, heap: Heap, server: Server, random: Random, timeout_s: float, lag_s: float) -> None:
        self.cut_until_s = 0.0
        self.loss = 0.0
        self.lag_s = lag_s
        self.heap, self.server, self._random, self._timeout_s = heap, server, random, timeout_s

    @property
    def is_cut(self) -> bool:
        return self.heap.now_s < self.cut_until_s

    def delay_s(self) -> float:
        return self.lag_s * (0.5 + self._random.random())


class Lane:
    """A connection: *then* gets the result of *operation*, or NO_ANSWER, where the process still lives."""

    def __init__(self, link: Link, process: Process) -> None:
        self._link = link
        self._process = process
        self._last_s = 0.0

    def call(self, then: Callable[[Any], None], operation: Callable[..., Any], *args: Any) -> None:
        link, heap = self._link, self._link.heap
        now_s = heap.now_s
        answer_by_s = now_s + link._timeout_s
        self._last_s = at_s = max(now_s + link.delay_s(), self._last_s)
        if link.is_cut or link._random.random() < link.loss:
            if link.is_cut and link._random.random() < HELD_SHARE:
                late_s = link.cut_until_s + link.delay_s()
                self._last_s = late_s
                heap.at(late_s, self._arrive_late, operation, args)
            heap.at(answer_by_s, self._process.run, then, NO_ANSWER)
            return
        heap.at(at_s, self._arrive, then, operation, args, answer_by_s)

    def tell(self, operation: Callable[..., Any], *args: Any) -> None:
        """Without an answer."""
        link = self._link
        self._last_s = at_s = max(link.heap.now_s + link.delay_s(), self._last_s)
        if not link.is_cut and link._random.random() >= link.loss:
            link.heap.at(at_s, self._arrive_late, operation, args)

    def _arrive(
        self,
        then: Callable[[Any], None],
        operation: Callable[..., Any],
        args: tuple[Any, ...],
        answer_by_s: float,
    ) -> None:
        link, server = self._link, self._link.server
        heap = link.heap
        if not server.takes(operation):
            heap.at(answer_by_s, self._process.run, then, NO_ANSWER)
            return
        result = operation(*args)
        if link.is_cut or link._random.random() < link.loss:
            heap.at(answer_by_s, self._process.run, then, NO_ANSWER)
        else:
            heap.after(link.delay_s(), self._process.run, then, result)

    def _arrive_late(self, operation: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self._link.server.takes(operation):
            operation(*args)
