"""A verdict as a row of Cassandra, layout 1, and back: pure.

    samples   the columns that a rebuild needs, one after another, little-endian, n entries each: counts f64,
              units f64, centre f64 (0.0 where phase is 0), basis u32, stage u32, flags u16, phase u8
    charts    a MessagePack list of names, as in the verdict
    carried   `CARRY` records, little-endian, of those charts that carry something over; null if none does
    shown     a MessagePack map of all its other fields, which only people read

A rebuild takes the columns of ``samples`` as they are (lists of MessagePack take 26 µs for 150 charts), and
``carried`` for the few charts that have it (most reports of 150 charts have one with an open alarm); it asks
the server for nothing of ``shown``, four tenths of a row.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from msgspec import Raw, Struct

from runtime.errors import HistoryDiffers
from runtime.stored import CARRY, CARRY_FLOATS, SAMPLE_BYTES, SAMPLE_COLUMNS, StoredVerdict, split
from runtime.wire import DetailedVerdict, Verdict, decode_names, decode_verdict, msgpack_encoder

LAYOUT: Final = 1
_KINDS: Final = tuple(kind.char for kind in SAMPLE_COLUMNS)
_CARRIED: Final = tuple(name for name in CARRY.names or () if name != "index")
_ALARM_FIELDS: Final = 6
_ALARM: Final = frozenset(_CARRIED[:_ALARM_FIELDS])
_ALARM_RECORD: Final = struct.Struct("<HBBHIIq").pack
_NO_FLOATS: Final = struct.pack("<8d", *[math.nan] * 8)
_NONE: Final = Raw(b"\x90")


class Row(NamedTuple):
    """The columns of the table ``reports`` but for its block, in the order of its statements."""

    chamber: str
    seq: int
    layout: int
    ordinal: int
    epoch: int
    at_ns: int
    run: str
    reset: str | None
    charts: bytes
    samples: bytes
    carried: bytes | None
    shown: bytes


class _Shown(Struct, omit_defaults=True, gc=False):
    spec: Raw = _NONE
    defender: Raw = _NONE
    position: Raw = _NONE
    v: Raw = _NONE
    u: Raw = _NONE
    lcl: Raw = _NONE
    ucl: Raw = _NONE
    p: Raw = _NONE
    ewma_lcl: Raw = _NONE
    ewma_ucl: Raw = _NONE
    severity: Raw = _NONE
    excluded: Raw = _NONE


class _Published(_Shown, kw_only=True, gc=False):
    """A verdict, decoded as far as a row has to take it apart."""

    chamber: str
    seq: int
    ordinal: int
    epoch: int
    charts: Raw = _NONE
    counts: list[float] = []
    units: list[float] = []
    centre: list[Any] = []
    basis: list[int] = []
    stage: list[int] = []
    flags: list[int] = []
    phase: list[int] = []
    run: str = ""
    at: int = 0
    reset: str | None = None
    sigma_z: list[Any] = []
    mark: list[int] = []
    cusum_up: list[Any] = []
    cusum_down: list[Any] = []
    cusum_limit_up: list[Any] = []
    cusum_limit_down: list[Any] = []
    ewma: list[Any] = []
    ewma_variance: list[Any] = []
    typical_units: list[Any] = []
    event: list[int] = []
    episode: list[int] = []
    alerted: list[int] = []
    alerted_at: list[int] = []
    quiet: list[int] = []


_published = msgspec.msgpack.Decoder(_Published)
_shown_of = attrgetter(*_Shown.__struct_fields__)
_carried_of = attrgetter(*_CARRIED)


def pack(payload: bytes) -> Row:
    """The row of a verdict as it was published. Raises HistoryDiffers for one that is none of a defender's:
    columns of unequal length, or a centre in phase 0."""
    found = _published.decode(payload)
    return Row(
        found.chamber,
        found.seq,
        LAYOUT,
        found.ordinal,
        found.epoch,
        found.at,
        found.run,
        found.reset,
        bytes(found.charts),
        _columns(found),
        _records(dict(zip(_CARRIED, _carried_of(found), strict=True))),
        msgpack_encoder.encode(_Shown(*_shown_of(found))),
    )


def _records(carried: dict[str, list[Any]]) -> bytes | None:
    """Records of the charts that carry something."""
    columns = {name: column for name, column in carried.items() if column}
    if not columns:
        return None
    if columns.keys() <= _ALARM:  # a few open alarms: no arrays, a quarter of the time
        found = {at for column in columns.values() for at, value in enumerate(column) if value}
        of = [columns.get(name) for name in _CARRIED[:_ALARM_FIELDS]]
        rows = ((at, *(0 if column is None else column[at] for column in of)) for at in sorted(found))
        return b"".join(_ALARM_RECORD(*row) + _NO_FLOATS for row in rows) or None
    n = len(next(iter(columns.values())))
    records = np.zeros(n, CARRY)
    records["index"] = np.arange(n)
    has = np.zeros(n, np.bool_)
    for name in _CARRIED:
        if name in columns:
            values = records[name] = np.array(columns[name], CARRY[name])
            has |= ~np.isnan(values) if name in CARRY_FLOATS else values != 0
        elif name in CARRY_FLOATS:
            records[name] = math.nan
    return records[has].tobytes() or None


def _carried_columns(row: Row, n: int) -> dict[str, list[Any]]:
    """The fields of the verdict that its records are of: null or 0 for a chart without."""
    columns: dict[str, list[Any]] = {}
    if row.carried is not None:
        records = np.frombuffer(row.carried, CARRY)
        for name in _CARRIED:
            values = records[name]
            has = ~np.isnan(values) if name in CARRY_FLOATS else values != 0
            if has.any():
                column: list[Any] = [None if name in CARRY_FLOATS else 0] * n
                for at, value in zip(records["index"][has].tolist(), values[has].tolist(), strict=True):
                    column[at] = value
                columns[name] = column
    return columns


def _columns(head: _Published) -> bytes:
    centre = head.centre
    if 0 in head.phase:
        centre = [0.0 if value is None else value for value in centre]
    values: tuple[list[Any], ...] = (
        *(head.counts, head.units, centre),
        *(head.basis, head.stage, head.flags, head.phase),
    )
    n = len(head.counts)
    nulls = [value is None for value in head.centre]
    if len({n, *map(len, values)}) > 1 or nulls != [phase == 0 for phase in head.phase]:
        raise HistoryDiffers(
            f"verdict {head.seq} of chamber {head.chamber!r} has columns of unequal length, or a centre in "
            "phase 0: no defender publishes such a verdict, so it cannot be stored"
        )
    return b"".join(array(kind, column).tobytes() for kind, column in zip(_KINDS, values, strict=True))


def _check(row: Row) -> None:
    """Raises HistoryDiffers for a row that cannot be read."""
    check_layout(row.layout, row.chamber, row.seq)
    if len(row.samples) % SAMPLE_BYTES or len(row.carried or b"") % CARRY.itemsize:
        raise _damaged(row)


def _damaged(row: Row) -> HistoryDiffers:
    return HistoryDiffers(
        f"the row of report {row.seq} of chamber {row.chamber!r} is damaged: delete it; what VERDICTS still "
        "has is stored again"
    )


def check_layout(layout: int, chamber: str, seq: int) -> None:
    """Raises HistoryDiffers for a layout that this version does not know."""
    if layout != LAYOUT:
        raise HistoryDiffers(
            f"the row of report {seq} of chamber {chamber!r} has layout {layout}, this defender knows layout "
            f"{LAYOUT}: run the version that wrote it, or a newer one"
        )


def stored(row: Row) -> StoredVerdict:
    """What a rebuild needs of a row; ``at_ns``, ``run`` and ``shown`` are not looked at."""
    _check(row)
    plain = row.reset is None
    return StoredVerdict(
        *(row.chamber, row.seq, row.ordinal, row.charts, row.samples if plain else b"", row.reset),
        epoch=row.epoch,
        records=(row.carried or b"") if plain else b"",
    )


def payload(row: Row) -> bytes:
    """The verdict as it was published, byte for byte."""
    _check(row)
    counts, units, centre, basis, stage, flags, phase = (column.tolist() for column in split(row.samples))
    try:
        others: dict[str, Any] = msgspec.msgpack.decode(row.shown)
    except msgspec.MsgspecError:
        raise _damaged(row) from None
    others |= _carried_columns(row, len(counts) or len(decode_names(row.charts, json=False)))
    verdict = DetailedVerdict(
        chamber=row.chamber,
        seq=row.seq,
        ordinal=row.ordinal,
        epoch=row.epoch,
        run=row.run,
        at=row.at_ns,
        charts=Raw(row.charts),
        counts=[int(count) for count in counts],
        units=units,
        centre=[None if at == 0 else value for at, value in zip(phase, centre, strict=True)],
        flags=flags,
        phase=phase,
        basis=basis,
        stage=stage,
        reset=row.reset,
        **{name: others.pop(name, empty()) for name, empty in _REQUIRED.items()},
        **others,
    )
    return msgpack_encoder.encode(verdict)


_REQUIRED: Final[dict[str, Callable[[], Any]]] = {
    "spec": int,
    "defender": str,
    "position": int,
    "u": list,
    "lcl": list,
    "ucl": list,
}
"""Fields that every published verdict has."""


def verdict(row: Row) -> Verdict:
    """The verdict as the stream VERDICTS has it."""
    return decode_verdict(payload(row))
