"""The cache's memory: one anonymous file a worker, owned by the supervisor, that outlives the worker.

Sections, each aligned to a cache line, found again by a successor from the header alone:

    header    magic, layout version, sizes
    partitions u1[partitions]     how much of a partition's history was read, and
    epochs    u8[partitions]      with which epoch it was served last
    chambers  CHAMBER[chambers]   what is stored of each chamber: last published sequence, report number
    keys      KEY[slots]          which chart a slot is
    state     SLOT[slots]         the charts' state, and
    sums      SUMS[slots]         the exact sums of their baselines (kernels), and
    carried   CARRIED[slots]      what their verdicts carry, for the samples do not tell it (kernels)
    window    ENTRY[slots, W]     their remembered samples
    flights   a log of the batches in flight: what each batch changed, so that it can be undone

A chamber's row always says what is *confirmed* (verdict stored and history stored); slots may be ahead of
it by the batches in flight, and the flight log takes them back (`runtime.flight`).

A container's /dev/shm is 64 MB, hence memfd and not a file there.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import astuple, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.state import CARRIED, ENTRY, JOURNAL, SLOT, SUMS
from runtime.names import NAME_BYTES_MAX

MAGIC: Final = 0x7466_6463_6361_6368
LAYOUT_VERSION: Final = 3
_LINE: Final = 64
_MB: Final = 1_000_000

FREE, USED, LOADING = 0, 1, 2
"""States of a chamber's row; a row found LOADING was being filled when its worker died."""

UNREAD, WHOLE, PARTLY = 0, 1, 2
"""How much of a partition's chambers is in memory; in a WHOLE one an unknown chamber is a new one."""

CHAMBER: Final = np.dtype(
    [("name", f"S{NAME_BYTES_MAX}"), ("seq", "u8"), ("ordinal", "u4"), ("partition", "i4"), ("used", "u1")],
    align=True,
)
KEY: Final = np.dtype([("chart", f"S{NAME_BYTES_MAX}"), ("chamber", "i4"), ("used", "u1")], align=True)
FLIGHT: Final = np.dtype(
    [("number", "u8"), ("reports", "i4"), ("samples", "i4"), ("state", "u1")], align=True
)
FLIGHT_REPORT: Final = np.dtype(
    [("seq", "u8"), ("chamber", "i4"), ("ordinal", "u4"), ("samples", "i4")], align=True
)


@dataclass(frozen=True)
class Shape:
    """How large an arena is. *flights* batches of up to *reports* reports and *samples* samples in flight."""

    partitions: int
    slots: int
    chambers: int
    window: int
    flights: int
    reports: int
    samples: int

    @classmethod
    def fitting(
        cls, cache_bytes: int, *, partitions: int, window: int, flights: int, reports: int, samples: int
    ) -> Shape:
        """The shape whose slots, keys and chamber rows take *cache_bytes*; the flight log comes on top."""
        chart = SLOT.itemsize + SUMS.itemsize + CARRIED.itemsize + window * ENTRY.itemsize
        a_slot = chart + KEY.itemsize + CHAMBER.itemsize
        slots = max(16, cache_bytes // a_slot)
        return cls(partitions, slots, slots, window, flights, reports, samples)

    def sections(self) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
        return [
            ("header", np.dtype("u8"), (16,)),
            ("partitions", np.dtype("u1"), (self.partitions,)),
            ("epochs", np.dtype("u8"), (self.partitions,)),
            ("chambers", CHAMBER, (self.chambers,)),
            ("keys", KEY, (self.slots,)),
            ("state", SLOT, (self.slots,)),
            ("sums", SUMS, (self.slots,)),
            ("carried", CARRIED, (self.slots,)),
            ("window", ENTRY, (self.slots, self.window)),
            ("flights", FLIGHT, (self.flights,)),
            ("flight_reports", FLIGHT_REPORT, (self.flights, self.reports)),
            ("flight_slots", np.dtype("i4"), (self.flights, self.samples)),
            ("journal", JOURNAL, (self.flights, self.samples)),
        ]

    def header(self) -> list[int]:
        sizes = astuple(self)
        records = (SLOT, SUMS, CARRIED, ENTRY, JOURNAL)
        return [MAGIC, LAYOUT_VERSION, *(record.itemsize for record in records), *sizes]

    @property
    def size_bytes(self) -> int:
        return sum(_aligned(dtype.itemsize * int(np.prod(shape))) for _, dtype, shape in self.sections())


def _aligned(size: int) -> int:
    return -(-size // _LINE) * _LINE


class Arena:
    """The sections as arrays over one mapping; attach to the same descriptor to find them again."""

    partitions: NDArray[np.uint8]
    epochs: NDArray[np.uint64]
    chambers: NDArray[Any]
    keys: NDArray[Any]
    state: NDArray[Any]
    sums: NDArray[Any]
    carried: NDArray[Any]
    window: NDArray[Any]
    flights: NDArray[Any]
    flight_reports: NDArray[Any]
    flight_slots: NDArray[np.int32]
    journal: NDArray[Any]
    header: NDArray[np.uint64]

    def __init__(self, fd: int, shape: Shape) -> None:
        """Maps *fd*, a memfd. What it held before is kept if it has this very shape, and forgotten
        otherwise; `kept` says which. Pages come as they are touched."""
        if os.fstat(fd).st_size != shape.size_bytes:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, shape.size_bytes)
        self.fd, self.shape = fd, shape
        self._memory = mmap.mmap(fd, shape.size_bytes)
        offset = 0
        for name, dtype, dimensions in shape.sections():
            count = int(np.prod(dimensions))
            section = np.frombuffer(self._memory, dtype=dtype, count=count, offset=offset)
            setattr(self, name, section.reshape(dimensions))
            offset += _aligned(dtype.itemsize * count)
        expected = np.array(shape.header(), dtype=np.uint64)
        self.kept = bool(np.array_equal(self.header[: len(expected)], expected))
        if not self.kept:
            self.wipe()
            self.header[: len(expected)] = expected

    def wipe(self) -> None:
        """Forgets every chamber and chart. The windows stay as they are: nothing reads an unused slot."""
        self.partitions[:] = UNREAD
        self.epochs[:] = 0
        self.chambers["used"] = FREE
        self.keys["used"] = FREE
        self.flights["state"] = 0
