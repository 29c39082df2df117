"""What the waits of reports say: the gaps around handoffs, and the run second by second. Pure.

Of ten million waits: the gaps of a thousand changes take 1.1 s, the timeline 1.2 s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.lab.tally import Waits

if TYPE_CHECKING:
    from bench.lab.observer import Change

AROUND_NS: Final = 500_000_000
SECOND_NS: Final = 1_000_000_000


class SecondOf(NamedTuple):
    """One second of the run."""

    at_ns: int
    """Its begin."""
    reports: int
    """Stored in it."""
    verdicts: int
    """Stored in it, first ones only."""
    latency_ms_p50: float
    """Of the reports that were *due* in it, as the other two; 0 without any."""
    latency_ms_p99: float
    latency_ms_max: float


def handoff_gaps_ms(changes: Iterable[Change], waits: Waits, around_ns: int = AROUND_NS) -> list[float]:
    """For each change of a partition's pod the longest wait of a report that waited around it.

    That is one which was due before *around_ns* after the partition was owned again and had no verdict yet
    *around_ns* before it was free: so a report counts that came when its pod died, long before another took
    the partition. A change around which no report waited has no gap, and none is told.
    """
    moved = [change for change in changes if change.before.pod_uid != change.after.pod_uid]
    of = _by_partition(waits, {change.partition for change in moved})
    found = []
    for change in moved:
        at_ns, stored_ns, wait_ms = of[change.partition]
        around = (stored_ns >= change.free_ns - around_ns) & (at_ns <= change.at_ns + around_ns)
        if around.any():
            found.append(float(wait_ms[around].max()))
    return found


def longest_gaps_ms(waits: Waits, begin_ns: int, end_ns: int) -> dict[int, float]:
    """By partition, the longest wait of the reports that were due within the time; none without any."""
    within = (waits.at_ns >= begin_ns) & (waits.at_ns < end_ns)
    partition, wait_ms = waits.partition[within], waits.wait_ms[within]
    longest = np.full(int(partition.max(initial=0)) + 1, -np.inf, np.float32)
    np.maximum.at(longest, partition, wait_ms)
    return {int(number): float(longest[number]) for number in np.flatnonzero(longest > -np.inf)}


def timeline(waits: Waits, begin_ns: int, end_ns: int) -> list[SecondOf]:
    """Each second from the begin on; the last one may be cut short by the end."""
    seconds = max(0, -(-(end_ns - begin_ns) // SECOND_NS))
    reports = _counts(waits.reports_at_ns, begin_ns, end_ns, seconds)
    verdicts = _counts(waits.stored_ns, begin_ns, end_ns, seconds)
    within = np.flatnonzero((waits.at_ns >= begin_ns) & (waits.at_ns < end_ns))
    second = (waits.at_ns[within] - begin_ns) // SECOND_NS
    order = within[np.argsort(second, kind="stable")]
    blocks = np.split(waits.wait_ms[order], np.searchsorted(np.sort(second), np.arange(1, seconds)))
    return [
        SecondOf(begin_ns + number * SECOND_NS, int(reports[number]), int(verdicts[number]), *_spread(block))
        for number, block in enumerate(blocks[:seconds])
    ]


def _spread(wait_ms: NDArray[np.float32]) -> tuple[float, float, float]:
    if not len(wait_ms):
        return 0.0, 0.0, 0.0
    p50, p99, longest = np.quantile(wait_ms, (0.5, 0.99, 1.0), method="inverted_cdf").tolist()
    return p50, p99, longest


def _counts(times_ns: NDArray[np.int64], begin_ns: int, end_ns: int, seconds: int) -> NDArray[np.int64]:
    within = times_ns[(times_ns >= begin_ns) & (times_ns < end_ns)]
    return np.bincount((within - begin_ns) // SECOND_NS, minlength=seconds)


def _by_partition(waits: Waits, wanted: set[int]) -> dict[int, tuple[NDArray[Any], ...]]:
    """(due, storage, wait) of each wanted partition's reports. 16-bit numbers are sorted in one pass."""
    order = np.argsort(waits.partition, kind="stable")
    numbers = sorted(wanted)
    first = np.searchsorted(waits.partition, numbers, "left", order).tolist()
    last = np.searchsorted(waits.partition, numbers, "right", order).tolist()
    found: dict[int, tuple[NDArray[Any], ...]] = {}
    for number, begin, end in zip(numbers, first, last, strict=True):
        rows = order[begin:end]
        found[number] = (waits.at_ns[rows], waits.stored_ns[rows], waits.wait_ms[rows])
    return found
