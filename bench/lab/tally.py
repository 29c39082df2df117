"""What a follower of the streams counts: how long each report waited for its verdict, what went wrong. Pure.

A wait is the time from when a report was *due* (the verdict's ``at``, which is the report's) to the storage
of its first verdict. A *doubled* verdict is one beyond the first of its report; a *stale* one is of an older
epoch than another verdict of its partition before it; one is *out of order* when its chamber had one of a
later report before.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from bench.lab.histogram import Histogram
from runtime.bus import header
from runtime.names import PARTITIONS_A_STREAM, Names

KEPT_MAX: Final = 10_000_000
"""Waits that are kept one by one, 22 bytes each; the histogram has all of them."""
RECENT_NS: Final = 1_000_000_000
BLOCK_BITS: Final = 16
_BLOCK: Final = 1 << BLOCK_BITS
_VERDICT, _REJECTED = 1, 2


class Followed(Struct, frozen=True, kw_only=True):
    """How far a follower is, and what it has seen. Latencies are of what was stored in the last second."""

    at_ns: int = 0
    reports: int = 0
    """Stored."""
    verdicts: int = 0
    """Doubled ones included."""
    rejected: int = 0
    waiting: int = 0
    """Reports without verdict and rejection."""
    doubled: int = 0
    stale: int = 0
    out_of_order: int = 0
    unreadable: int = 0
    """Verdicts and rejections that are none."""
    latency_ms_p50: float = 0.0
    latency_ms_p99: float = 0.0
    latency_ms_max: float = 0.0
    behind: int = 0
    """Messages that the streams had beyond the last one read, when the server sent that."""
    behind_ms: float = 0.0
    """The age of the oldest such last message; 0 when nothing is behind."""
    missed: int = 0
    """Messages that the streams dropped by their limits before they were read: what is counted is too low."""
    kept_all: bool = True
    """False when there were more waits than `KEPT_MAX`."""
    resumed: int = 0
    """Times that a consumer was gone and was made anew from where it was."""
    cores: float = 0.0
    """The follower's own, over the last second; in what `Following.finish` gives, over its life."""
    trouble: str = ""


@dataclass(frozen=True)
class Waits:
    """Each report's wait for its first verdict, in the order of the verdicts' storage."""

    at_ns: NDArray[np.int64]
    """When the report was due."""
    stored_ns: NDArray[np.int64]
    """When its verdict was stored."""
    wait_ms: NDArray[np.float32]
    partition: NDArray[np.uint16]
    reports_at_ns: NDArray[np.int64]
    """When each report was stored."""
    latency: Histogram
    """All waits, also those beyond `KEPT_MAX`."""
    counts: Followed

    @property
    def cores(self) -> float:
        """What the follower took, over its life."""
        return self.counts.cores

    @property
    def notes(self) -> list[str]:
        """Why the figures are not the whole truth; empty when they are."""
        found = []
        if not self.counts.kept_all:
            found.append(
                f"waits beyond the first {KEPT_MAX:,} are in the latencies, but in no gap and no plot"
            )
        if self.counts.missed:
            found.append(f"{self.counts.missed:,} messages left the streams before the follower read them")
        if self.counts.unreadable:
            found.append(f"{self.counts.unreadable:,} verdicts or rejections could not be read")
        if self.counts.behind:
            found.append(f"the follower had {self.counts.behind:,} messages before it when its time was over")
        return found


class Marks:
    """Which reports of a stream have a verdict, and which a rejection: a byte a report, in blocks, of which
    those go whose reports all have verdicts."""

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}
        self._left: dict[int, int] = {}
        self._whole: set[int] = set()

    def mark(self, seq: int, bit: int) -> int:
        """The report's marks before: 0, or the sum of `_VERDICT` and `_REJECTED`."""
        number, place = divmod(seq - 1, _BLOCK)
        block = self._blocks.get(number)
        if block is None:
            if number in self._whole:
                return _VERDICT | _REJECTED
            block = self._blocks[number] = bytearray(_BLOCK)
            self._left[number] = _BLOCK
        before = block[place]
        block[place] = before | bit
        if bit == _VERDICT and not before & _VERDICT:
            self._left[number] -= 1
            if not self._left[number]:
                del self._blocks[number], self._left[number]
                self._whole.add(number)
        return before

    @property
    def blocks(self) -> int:
        """How many are held."""
        return len(self._blocks)


class _Verdict(Struct, gc=False):
    """A verdict as far as it is needed: without its columns, which msgspec skips."""

    seq: int
    epoch: int
    at: int


class _Place(Struct, gc=False):
    """Where a chamber's verdicts come from, and the newest report that has one."""

    partition: int
    shard: int
    seq: int = 0


class Tally:
    """Takes what the streams of a fleet have; `settle` puts it into the columns."""

    def __init__(self, names: Names, kept_max: int = KEPT_MAX) -> None:
        self.reports = self.verdicts = self.rejected = self.unreadable = 0
        self.settled = self.doubled = self.stale = self.out_of_order = 0
        self.latency = Histogram()
        self._sharded = names.shards > 1
        self._kept_max, self._kept_all = kept_max, True
        self._marks = [Marks() for _ in range(names.shards)]
        self._epochs = [0] * names.partitions
        self._places: dict[bytes, _Place] = {}
        self._decode = msgspec.msgpack.Decoder(_Verdict).decode
        # What came since the last `settle`: to append to lists is cheapest, and NumPy takes them in one go.
        self._at: list[int] = []
        self._stored: list[int] = []
        self._partition: list[int] = []
        self._came: list[int] = []
        self._kept = (array("q"), array("q"), array("H"), array("q"))
        self._recent: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []

    # --- what the streams have ----------------------------------------------------------------------

    def report(self, subject: bytes, seq: int, time_ns: int, payload: bytes, headers: bytes | None) -> None:
        self.reports += 1
        self._came.append(time_ns)

    def verdict(self, subject: bytes, seq: int, time_ns: int, payload: bytes, headers: bytes | None) -> None:
        self.verdicts += 1
        try:
            verdict = self._decode(payload)
            place = self._places.get(subject) or self._place(subject)
        except (msgspec.MsgspecError, ValueError):
            self.unreadable += 1
            return
        partition, report = place.partition, verdict.seq
        if verdict.epoch < self._epochs[partition]:
            self.stale += 1
        else:
            self._epochs[partition] = verdict.epoch
        before = self._marks[place.shard].mark(report, _VERDICT)
        if before & _VERDICT:
            self.doubled += 1
            return
        self.settled += not before
        if report < place.seq:
            self.out_of_order += 1
        else:
            place.seq = report
        self._at.append(verdict.at)
        self._stored.append(time_ns)
        self._partition.append(partition)

    def rejection(
        self, subject: bytes, seq: int, time_ns: int, payload: bytes, headers: bytes | None
    ) -> None:
        self.rejected += 1
        try:
            partition = int(header(headers, b"Tfdc-Partition") or b"")
            report = int(header(headers, b"Tfdc-Seq") or b"")
            shard = self._shard(partition)
        except ValueError:
            self.unreadable += 1
            return
        self.settled += not self._marks[shard].mark(report, _REJECTED)

    def _place(self, subject: bytes) -> _Place:
        """Of ``<root>.verdict.<partition>.<chamber>``. Raises ValueError."""
        partition = int(subject.split(b".")[-2])
        place = self._places[subject] = _Place(partition, self._shard(partition))
        return place

    def _shard(self, partition: int) -> int:
        if not 0 <= partition < len(self._epochs):
            raise ValueError(f"partition {partition} of {len(self._epochs)}")
        return partition // PARTITIONS_A_STREAM if self._sharded else 0

    # --- what comes of it ---------------------------------------------------------------------------

    def settle(self) -> None:
        """Puts what came since the last call into the columns and the histogram."""
        at, stored = np.array(self._at, np.int64), np.array(self._stored, np.int64)
        came, partition = np.array(self._came, np.int64), np.array(self._partition, np.uint16)
        for fresh in (self._at, self._stored, self._partition, self._came):
            fresh.clear()
        wait_ms = (stored - at) / 1e6
        self.latency.record(wait_ms)
        if len(stored):
            self._recent.append((stored, wait_ms))
        columns: tuple[NDArray[Any], ...] = (at, stored, partition, came)
        for kept, new in zip(self._kept, columns, strict=True):
            free = self._kept_max - len(kept)
            kept.frombytes(new[:free].tobytes())
            self._kept_all = self._kept_all and len(new) <= free

    def recent_ms(self, now_ns: int) -> tuple[float, float, float]:
        """p50, p99 and the longest of the waits that ended in the last second; zeros of none."""
        since = now_ns - RECENT_NS
        self._recent = [block for block in self._recent if block[0][-1] >= since]
        waits = [wait_ms[stored >= since] for stored, wait_ms in self._recent]
        recent = np.concatenate(waits) if waits else np.empty(0)
        if not len(recent):
            return 0.0, 0.0, 0.0
        p50, p99 = np.quantile(recent, (0.5, 0.99)).tolist()
        return p50, p99, float(recent.max())

    def followed(self, now_ns: int, **more: Any) -> Followed:
        """The figures of the moment; *more* are what only the follower knows."""
        p50, p99, longest = self.recent_ms(now_ns)
        return Followed(
            at_ns=now_ns,
            reports=self.reports,
            verdicts=self.verdicts,
            rejected=self.rejected,
            waiting=max(0, self.reports - self.settled),
            doubled=self.doubled,
            stale=self.stale,
            out_of_order=self.out_of_order,
            unreadable=self.unreadable,
            latency_ms_p50=p50,
            latency_ms_p99=p99,
            latency_ms_max=longest,
            kept_all=self._kept_all,
            **more,
        )

    def columns(self) -> tuple[NDArray[Any], ...]:
        """(due, verdict's storage, partition) of each wait kept, and the reports' storage."""
        return tuple(np.frombuffer(kept, kept.typecode) for kept in self._kept)
