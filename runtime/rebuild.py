"""Puts stored verdicts back into the cache: the rebuild of a partition, and of a chamber on a miss."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels import judge as kernel
from kernels.state import (
    CARRIED,
    DETAIL,
    PART_ALARM,
    PART_CUSUM,
    PART_EWMA,
    PART_MARK,
    PART_SIGMA_Z,
    RESET,
    SAMPLE,
)
from runtime import arena as arenas
from runtime.cache import Cache, CacheFull, Chamber
from runtime.stored import CARRY, SAMPLE_BYTES, Carried, StoredVerdict, split
from runtime.wire import CHARTS_MAX, decode_names


class Rebuild:
    """Fills the chambers of one partition; `finish` makes them valid.

    Rows may be given in any number of parts, and again: of each chamber oldest first, and what is there
    already is passed over. Where a chamber's rows have a gap (the store dropped the oldest of them between
    two parts), what came before the gap is no longer among its last D reports, and it begins anew.

    Never evicts: chambers that find no room stay out (``complete`` is then False), to be read on a miss; so
    do those that others evicted while more was to come.
    """

    def __init__(self, cache: Cache, partition: int) -> None:
        self._cache, self._partition = cache, partition
        self._filling: dict[str, Chamber] = {}
        self._refused: set[str] = set()
        self._follows = False
        self.complete = True
        self.reports = 0

    def take(self, rows: Sequence[StoredVerdict]) -> bool:
        """Puts rows back, of each chamber oldest first. Always True: rows of chambers that fit may follow."""
        columns = _Columns()
        for row in rows:
            chamber = self._chamber(row.chamber)
            if chamber is None or row.seq <= chamber.seq:
                continue
            if self._follows and row.ordinal != chamber.ordinal + 1:
                self._refuse(chamber, columns)
                continue
            if chamber.seq and row.ordinal != chamber.ordinal + 1:
                columns.restore(self._cache)
                self._cache.begin_anew(chamber)
            try:
                columns.add(self._cache, chamber, row, evict=False)
            except CacheFull:
                self._refuse(chamber, columns)
                continue
            chamber.seq, chamber.ordinal = row.seq, row.ordinal
            self.reports += 1
        columns.restore(self._cache)
        return True

    def adopt(self, name: str, seq: int, ordinal: int, charts: list[str]) -> list[int] | None:
        """A chamber as its owner has it in memory: the slots of its charts, for the caller to fill at once.
        None when it is there already, or there is no room."""
        chamber = self._chamber(name)
        if chamber is None or chamber.seq:
            return None
        try:
            slots = self._cache.allot(chamber, charts)
        except CacheFull:
            self._refuse(chamber, _Columns())
            return None
        chamber.seq, chamber.ordinal = seq, ordinal
        return slots

    def follow(self) -> None:
        """What was adopted is all that there is; from here on only rows that came since are given. A chamber
        whose first row is not the next one stays out: rows before it, which are not given, may count."""
        self._follows = True

    def finish(self) -> None:
        """The chambers filled are valid from here on, and the partition is read."""
        chambers = [chamber for chamber in self._filling.values() if self._is_there(chamber)]
        self.complete = self.complete and len(chambers) == len(self._filling)
        self._cache.loaded(chambers)
        self._filling.clear()
        self._cache.arena.partitions[self._partition] = arenas.WHOLE if self.complete else arenas.PARTLY

    def _is_there(self, chamber: Chamber) -> bool:
        return self._cache.get(chamber.name) is chamber

    def _chamber(self, name: str) -> Chamber | None:
        if name in self._refused:
            return None
        chamber = self._filling.get(name)
        if chamber is not None:
            if self._is_there(chamber):
                return chamber
            del self._filling[name]
            self._stays_out(name)
            return None
        if not self._cache.has_room(1):
            self._stays_out(name)
            return None
        chamber = self._filling[name] = self._cache.add(name, self._partition)
        chamber.referenced = False  # live ones stay rather than this one
        return chamber

    def _refuse(self, chamber: Chamber, columns: _Columns) -> None:
        columns.restore(self._cache)  # rows of the others, before slots change hands
        self._cache.drop(chamber)
        del self._filling[chamber.name]
        self._stays_out(chamber.name)

    def _stays_out(self, name: str) -> None:
        self._refused.add(name)
        self.complete = False


class _Columns:
    """Stored samples as the kernel takes them: rows of equal length are taken apart in one go."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._ops = bytearray()
        self._slots: list[array[int]] = []
        self._ordinals: list[int] = []
        self._lengths: list[int] = []
        self._samples: list[bytes] = []
        self._details: list[tuple[int, NDArray[Any]]] = []
        """(index of their first sample, DETAIL[n]) of the rows that carry more."""
        self._records: list[bytes] = []
        self._bases: list[int] = []
        """The same as records; of each, the index of its row's first sample."""

    def add(self, cache: Cache, chamber: Chamber, row: StoredVerdict, *, evict: bool) -> None:
        n, samples = row.charts_count, row.samples
        if row.reset is None:
            charts = cache.resolve(chamber, row.charts, length=n, json=False, evict=evict)
            assert charts is not None, f"verdict {row.seq} of {row.chamber} is ragged"
            if row.carried is not None:
                self._details.append((len(self._ops), details_of(row.carried, n)))
            elif row.records:
                self._records.append(row.records)
                self._bases += [len(self._ops)] * (len(row.records) // CARRY.itemsize)
            self._ops += _PLAIN[:n]
        else:
            charts = cache.resolve_reset(chamber, decode_names(row.charts, json=False))
            n = len(charts.slots)
            samples = bytes(SAMPLE_BYTES * n)
            self._ops += bytes([RESET]) * n
        self._slots.append(charts.slots)
        self._ordinals.append(row.ordinal)
        self._lengths.append(n)
        self._samples.append(samples)

    def restore(self, cache: Cache) -> None:
        """One kernel call for what was added; then empty again."""
        if self._ops:
            arena = cache.arena
            counts, units, centres, bases, stages, flags, phases = self._columns()
            kernel.restore(
                np.frombuffer(self._ops, np.uint8),
                np.frombuffer(bytearray().join(self._slots), np.int32),
                counts,
                units,
                np.repeat(np.array(self._ordinals, dtype=np.uint32), self._lengths),
                flags,
                phases,
                centres,
                bases,
                stages,
                *self._all_details(),
                arena.state,
                arena.sums,
                arena.carried,
                arena.window,
            )
        self._clear()

    def _columns(self) -> list[NDArray[Any]]:
        """`SAMPLE_COLUMNS` of all rows."""
        alike = [list(rows) for _, rows in groupby(self._samples, key=len)]
        parts = [split(b"".join(rows), len(rows)) for rows in alike if rows[0]]
        return [
            np.concatenate(columns) if len(parts) > 1 else columns[0] for columns in zip(*parts, strict=True)
        ]

    def _all_details(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Which of the details is a sample's, int32[n], and these; both empty where there are none."""
        ids: list[NDArray[Any]] = []
        details: list[NDArray[Any]] = []
        for first, some in self._details:
            has = np.flatnonzero(some["parts"])
            ids.append(first + has)
            details.append(some[has])
        if self._records:
            records = np.frombuffer(b"".join(self._records), CARRY)
            ids.append(np.array(self._bases) + records["index"])
            details.append(_details_of(records, len(records)))
        if not ids:
            return np.zeros(0, np.int32), np.zeros(0, DETAIL)
        samples = np.concatenate(ids)
        detail_ids = np.full(len(self._ops), -1, np.int32)
        detail_ids[samples] = np.arange(len(samples))
        return detail_ids, np.concatenate(details)


_PLAIN: Final = bytes([SAMPLE]) * CHARTS_MAX
_CARRIED: Final = frozenset(CARRIED.names or ())
_CARRIED_FLOATS: Final = {
    "sigma_z": PART_SIGMA_Z,
    "cusum_up": PART_CUSUM,
    "cusum_down": PART_CUSUM,
    "cusum_limit_up": PART_CUSUM,
    "cusum_limit_down": PART_CUSUM,
    "ewma": PART_EWMA,
    "ewma_variance": PART_EWMA,
    "typical_units": 0,
}


def details_of(found: Carried, n: int) -> NDArray[Any]:
    """DETAIL[n] of what a verdict's charts carry, as the kernel takes it back."""
    return _details_of({name: _as(column) for name, column in found._asdict().items() if column}, n)


def _details_of(columns: Mapping[str, NDArray[Any]] | NDArray[Any], n: int) -> NDArray[Any]:
    """The same from columns by name, or from `CARRY` records."""
    there = columns.dtype.names or () if isinstance(columns, np.ndarray) else columns
    details = np.zeros(n, dtype=DETAIL)
    carried, parts = details["carried"], details["parts"]
    for name, part in _CARRIED_FLOATS.items():
        if name in there:
            values = columns[name]
            has = ~np.isnan(values)
            (carried if name in _CARRIED else details)[name][has] = values[has]
            parts[has] |= part
    for name in ("episode", "alerted", "alerted_at", "mark", "event", "quiet"):
        if name in there:
            (carried if name in _CARRIED else details)[name] = columns[name]
    parts[details["mark"] != 0] |= PART_MARK
    parts[carried["episode"] != 0] |= PART_ALARM
    return details


def _as(column: array[Any]) -> NDArray[Any]:
    return np.frombuffer(column, dtype=column.typecode)


def restore_chamber(
    cache: Cache, name: str, partition: int, rows: Iterable[StoredVerdict], *, evict: bool = True
) -> Chamber:
    """A chamber read by itself, on a miss evicting others for it. Raises CacheFull; the cache is then
    unchanged."""
    if not evict and not cache.has_room(1):
        raise CacheFull
    chamber = cache.add(name, partition)
    columns = _Columns()
    chamber.pins += 1
    try:
        for row in rows:
            columns.add(cache, chamber, row, evict=evict)
            chamber.seq, chamber.ordinal = row.seq, row.ordinal
    except CacheFull:
        chamber.pins -= 1
        cache.drop(chamber)
        raise
    chamber.pins -= 1
    columns.restore(cache)
    cache.loaded([chamber])
    return chamber
