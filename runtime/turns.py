"""One report of a chamber at a time: the next one is judged when the verdict of the one before is stored.

So of each chamber at most one verdict is unacknowledged, and VERDICTS never has a later one without an
earlier one, whatever the server refuses in between (it may store a message although it refused the one
before it: its disk had room again, its leader changed). The last sequence that is stored of a chamber then
says what is published of it, which everything else rests on. Reports of other chambers go on, so a worker
with some dozens of chambers loses nothing by it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.judge import Sample


class Turns:
    """Reports in the order of their delivery, let through by chamber."""

    def __init__(self) -> None:
        self._arrived: deque[Sample] = deque()
        self._ready: deque[Sample] = deque()
        """Reports whose chamber's turn they have already."""
        self._behind: dict[str, deque[Sample]] = {}
        """The chambers whose turn is taken, with the reports behind."""
        self._waiting = 0

    def __len__(self) -> int:
        """Reports that were not let through yet."""
        return len(self._arrived) + len(self._ready) + self._waiting

    @property
    def may_take(self) -> bool:
        """Whether `take` might let one through."""
        return bool(self._ready or self._arrived)

    def arrive(self, sample: Sample) -> None:
        self._arrived.append(sample)

    def take(self, most: int) -> list[Sample]:
        """Up to *most* reports, each of another chamber, whose turn they have until they are `over`."""
        ready, behind, arrived = self._ready, self._behind, self._arrived
        taken = [ready.popleft() for _ in range(min(most, len(ready)))]
        while arrived and len(taken) < most:
            sample = arrived.popleft()
            queue = behind.get(sample.chamber)
            if queue is None:
                behind[sample.chamber] = deque()
                taken.append(sample)
            else:
                queue.append(sample)
                self._waiting += 1
        return taken

    def put_back(self, samples: Iterable[Sample]) -> None:
        """Reports that were taken and could not be judged yet; they come first, and keep their turn."""
        self._ready.extendleft(reversed(list(samples)))

    def drop(self, partition: int) -> None:
        """Forgets the reports of a partition that were not taken; what is taken keeps its turn."""
        for queue in self._behind.values():
            if queue and queue[0].partition == partition:
                self._waiting -= len(queue)
                queue.clear()
        for sample in self._ready:
            if sample.partition == partition:
                del self._behind[sample.chamber]
        self._ready = deque(sample for sample in self._ready if sample.partition != partition)
        self._arrived = deque(sample for sample in self._arrived if sample.partition != partition)

    def over(self, samples: Iterable[Sample]) -> None:
        """These are stored: it is the turn of those behind them."""
        for sample in samples:
            queue = self._behind[sample.chamber]
            if queue:
                self._ready.append(queue.popleft())
                self._waiting -= 1
            else:
                del self._behind[sample.chamber]
