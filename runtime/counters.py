"""The board: counters of all workers in one shared memory, and the deadline of the lease.

The supervisor creates the memory (a memfd) and writes the lease's deadline; worker i attaches by descriptor
and writes block i; anybody reads. There are no locks, because every word has one writer, and an aligned
64-bit word is read and written whole on the machines that we run on (x86-64, aarch64). Words that belong
together (a histogram's count and sum) may be seen a moment apart.

A worker's block outlives it: its successor goes on adding to the counts and resets the gauges.

    header    magic, layout, workers, partitions, lease deadline, 0, 0, 0
    a block   counters | rejected by reason | charts in alarms by event and severity | latency buckets, sum |
              lag by partition | epoch by partition

Blocks begin at multiples of 64 bytes, so that two workers never write to one cache line. Nothing here needs
numpy: the supervisor attaches before it may import that.
"""

from __future__ import annotations

import mmap
import os
import weakref
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from enum import IntEnum
from itertools import accumulate, product
from typing import Final

from runtime.errors import DefenderError
from runtime.wire import EVENTS, SEVERITIES, Reason


class Counter(IntEnum):
    """A worker's counters; those in `GAUGES` are set, all others only ever rise."""

    REPORTS = 0
    SAMPLES = 1
    VERDICTS = 2
    ALARMS = 3
    REJECTED = 4
    RESETS = 5
    BATCHES = 6
    SKIPPED = 7
    """Reports that were published already, by this worker or a former owner."""
    CACHE_HITS = 8
    CACHE_MISSES = 9
    EVICTIONS = 10
    HISTORY_READS = 11
    REBUILT_REPORTS = 12
    REBUILD_US = 13
    """Duration of the last rebuild, µs."""
    SLOTS_USED = 14
    SLOTS_TOTAL = 15
    CHAMBERS = 16
    SESSIONS = 17
    """NATS sessions begun."""
    PROGRESS = 18
    """Turns of the worker's loop."""
    PROGRESS_AT_NS = 19
    """When the loop turned last, CLOCK_MONOTONIC, ns."""
    BYTES_IN = 20
    BYTES_OUT = 21
    WAITING = 22
    """Messages that wait for a read of the history."""
    INBOX = 23
    """Messages received and not yet judged."""
    SPEC_REVISION = 24
    KERNEL_MISSES = 25
    """Kernels that had to be compiled because the kernel cache lacked them."""
    TRANSFERRED = 26
    """Chambers copied from the memory of their owner."""
    TRANSFERS_FAILED = 27
    """Copies that were to come from their owner's memory, and were read from the history."""
    HISTORY_DOWN = 28
    """1 while the store of the history takes nothing and reports wait for it, else 0."""
    HISTORY_ROWS = 29
    """Reports stored in Cassandra."""
    HISTORY_RETRIES = 30
    """Requests to Cassandra that failed and were sent again."""
    HISTORY_APPENDS = 31
    """Appends to the history that returned."""
    HISTORY_APPEND_US = 32
    """Sum of the durations of these appends, µs."""
    HISTORY_REPAIRED = 33
    """Reports that Cassandra lacked and the stream of verdicts had."""
    REBUILD_LEFT = 34
    """Chambers of the worker's partitions that are still to be read from the history."""


GAUGES: Final = frozenset(
    {
        Counter.REBUILD_US,
        Counter.SLOTS_USED,
        Counter.SLOTS_TOTAL,
        Counter.CHAMBERS,
        Counter.PROGRESS_AT_NS,
        Counter.WAITING,
        Counter.INBOX,
        Counter.SPEC_REVISION,
        Counter.HISTORY_DOWN,
        Counter.REBUILD_LEFT,
    }
)

REASONS: Final = tuple(Reason)
LATENCY_BOUNDS_MS: Final = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
LATENCY_BOUNDS_US: Final = tuple(int(bound * 1000) for bound in LATENCY_BOUNDS_MS)
"""Upper bounds, inclusive, of all buckets but the last; the bucket of v is ``bisect_left(bounds, v)``."""
LATENCY_BUCKETS: Final = len(LATENCY_BOUNDS_MS) + 1

_WORD_BYTES: Final = 8
_LINE_WORDS: Final = 8
_MAGIC: Final = 0x746664632D626F61  # "tfdc-boa"
_LAYOUT: Final = 3
_HEADER_WORDS: Final = 8
_DEADLINE: Final = 4
_REJECTED: Final = len(Counter)
_TOLD: Final = _REJECTED + len(REASONS)
_TOLD_WORDS: Final = {pair: _TOLD + i for i, pair in enumerate(product(EVENTS, SEVERITIES))}
_BUCKETS: Final = _TOLD + len(_TOLD_WORDS)
_SUM_US: Final = _BUCKETS + LATENCY_BUCKETS
_LAG: Final = _SUM_US + 1
_REASON_WORDS: Final = {reason: _REJECTED + i for i, reason in enumerate(REASONS)}


class BoardMismatch(DefenderError):
    """A descriptor does not lead to a board, or to one of another shape."""


class WorkerCounters:
    """The block of one worker: written by that worker alone, read by anybody."""

    __slots__ = ("_epoch", "_words", "partitions")

    def __init__(self, words: memoryview, partitions: int) -> None:
        self._words = words
        self._epoch = _LAG + partitions
        self.partitions = partitions

    def add(self, counter: Counter, n: int = 1) -> None:
        self._words[counter] += n

    def set(self, counter: Counter, n: int) -> None:
        self._words[counter] = n

    def get(self, counter: Counter) -> int:
        return self._words[counter]

    def reject(self, reason: Reason, n: int = 1) -> None:
        """Counts *n* rejections, under their reason and in REJECTED."""
        self._words[_REASON_WORDS[reason]] += n
        self._words[Counter.REJECTED] += n

    def rejected(self, reason: Reason) -> int:
        return self._words[_REASON_WORDS[reason]]

    def tell(self, event: str, severity: str) -> None:
        """Counts a chart in an alarm."""
        self._words[_TOLD_WORDS[event, severity]] += 1

    def told(self) -> dict[tuple[str, str], int]:
        """Charts in alarms by (event, severity)."""
        return {pair: self._words[word] for pair, word in _TOLD_WORDS.items()}

    def observe_latency_us(self, values: Iterable[int]) -> None:
        """Puts latencies, in µs, into their buckets."""
        words = self._words
        for value in values:
            words[_BUCKETS + bisect_left(LATENCY_BOUNDS_US, value)] += 1
            words[_SUM_US] += value

    def observe_buckets(self, bucket_counts: Sequence[int], sum_us: int) -> None:
        """As `observe_latency_us`, for latencies already counted into the `LATENCY_BUCKETS` buckets."""
        assert len(bucket_counts) == LATENCY_BUCKETS, len(bucket_counts)
        for i, n in enumerate(bucket_counts):
            if n:
                self._words[_BUCKETS + i] += n
        self._words[_SUM_US] += sum_us

    def latency(self) -> tuple[list[int], int]:
        """The count of each bucket (not cumulative), and the sum of all latencies in µs."""
        return self._words[_BUCKETS:_SUM_US].tolist(), self._words[_SUM_US]

    def set_lag(self, partition: int, n: int) -> None:
        """Messages of the partition that are not judged yet."""
        self._words[_LAG + self._checked(partition)] = n

    def lag(self, partition: int) -> int:
        return self._words[_LAG + self._checked(partition)]

    def set_epoch(self, partition: int, epoch: int) -> None:
        """The epoch by which this worker owns the partition; 0 (owns it no longer) clears its lag."""
        self._words[self._epoch + self._checked(partition)] = epoch
        if epoch == 0:
            self._words[_LAG + partition] = 0

    def epoch(self, partition: int) -> int:
        return self._words[self._epoch + self._checked(partition)]

    def owned(self) -> dict[int, int]:
        """The epoch of each partition that this worker owns."""
        epochs = self._words[self._epoch : self._epoch + self.partitions].tolist()
        return {partition: epoch for partition, epoch in enumerate(epochs) if epoch}

    def reset_gauges(self) -> None:
        """What a successor does first: gauges, lags and epochs of the dead are no longer true; counts are."""
        for gauge in GAUGES:
            self._words[gauge] = 0
        for word in range(_LAG, self._epoch + self.partitions):
            self._words[word] = 0

    def _checked(self, partition: int) -> int:
        # Without this a partition too large would write into the next array.
        if not 0 <= partition < self.partitions:
            raise IndexError(f"partition {partition} is not below {self.partitions}")
        return partition


class Board:
    """The shared memory of one pod. ``fd`` is its descriptor, to be handed to the workers."""

    def __init__(self, fd: int, workers: int, partitions: int, *, owns_fd: bool) -> None:
        self.fd = fd
        self.workers = workers
        self.partitions = partitions
        self._map = mmap.mmap(fd, _bytes(workers, partitions))
        self._words = memoryview(self._map).cast("q")
        stride = _block_words(partitions)
        self._blocks = [
            WorkerCounters(self._words[start : start + stride], partitions)
            for start in range(_HEADER_WORDS, _HEADER_WORDS + workers * stride, stride)
        ]
        self._finalizer = weakref.finalize(self, os.close, fd) if owns_fd else None

    @classmethod
    def create(cls, workers: int, partitions: int) -> Board:
        """A new board, all zero: fenced, nothing counted. It closes its descriptor with itself."""
        fd = os.memfd_create("defender-counters", os.MFD_CLOEXEC)
        os.ftruncate(fd, _bytes(workers, partitions))
        board = cls(fd, workers, partitions, owns_fd=True)
        for i, word in enumerate((_MAGIC, _LAYOUT, workers, partitions)):
            board._words[i] = word
        return board

    @classmethod
    def attach(cls, fd: int, workers: int, partitions: int) -> Board:
        """The board that *fd* leads to; the descriptor stays the caller's, who may close it at once.

        Raises BoardMismatch when the memory is no board of this shape.
        """
        size, wanted = os.fstat(fd).st_size, _bytes(workers, partitions)
        if size != wanted:
            raise BoardMismatch(f"the counters' memory has {size} bytes, a board of this shape {wanted}")
        board = cls(fd, workers, partitions, owns_fd=False)
        header = board._words[:4].tolist()
        if header != [_MAGIC, _LAYOUT, workers, partitions]:
            board.close()
            raise BoardMismatch(f"the counters' memory begins with {header}, which is no board of this shape")
        return board

    @property
    def lease_deadline_ns(self) -> int:
        """CLOCK_MONOTONIC, ns, up to which the lease is held; 0 when fenced. Written by the supervisor."""
        return self._words[_DEADLINE]

    @lease_deadline_ns.setter
    def lease_deadline_ns(self, deadline_ns: int) -> None:
        self._words[_DEADLINE] = deadline_ns

    def worker(self, index: int) -> WorkerCounters:
        """The block of worker *index*."""
        return self._blocks[index]

    def total(self, counter: Counter) -> int:
        """The sum over all workers."""
        return sum(block.get(counter) for block in self._blocks)

    def rejected(self) -> dict[Reason, int]:
        """Rejections by reason, over all workers."""
        return {reason: sum(block.rejected(reason) for block in self._blocks) for reason in REASONS}

    def told(self) -> dict[tuple[str, str], int]:
        """Charts in alarms by (event, severity), over all workers."""
        each = [block.told() for block in self._blocks]
        return {pair: sum(one[pair] for one in each) for pair in _TOLD_WORDS}

    def latency(self) -> tuple[list[int], int]:
        """Cumulative counts of the latency buckets over all workers, and the sum in µs."""
        each = [block.latency() for block in self._blocks]
        counts = [sum(column) for column in zip(*(buckets for buckets, _ in each), strict=True)]
        return list(accumulate(counts)), sum(sum_us for _, sum_us in each)

    def partitions_owned(self) -> dict[int, tuple[int, int]]:
        """(epoch, lag) of each partition that a worker owns; of two during a move, the higher epoch's."""
        owned: dict[int, tuple[int, int]] = {}
        for block in self._blocks:
            for partition, epoch in block.owned().items():
                if epoch > owned.get(partition, (0, 0))[0]:
                    owned[partition] = (epoch, block.lag(partition))
        return dict(sorted(owned.items()))

    def close(self) -> None:
        """Unmaps the memory, and closes the descriptor if this board created it. May be called again."""
        for block in self._blocks:
            block._words.release()
        self._blocks.clear()
        self._words.release()
        self._map.close()
        if self._finalizer is not None:
            self._finalizer()


def _block_words(partitions: int) -> int:
    words = _LAG + 2 * partitions
    return -(-words // _LINE_WORDS) * _LINE_WORDS


def _bytes(workers: int, partitions: int) -> int:
    return (_HEADER_WORDS + workers * _block_words(partitions)) * _WORD_BYTES
