"""A verdict as a row of Cassandra, layout 1, and back: pure.

    samples   the columns that a rebuild needs, one after another, little-endian, n entries each: counts f64,
              units f64, centre f64 (0.0 where phase is 0), basis u32, stage u32, flags u16, phase u8
    charts    a MessagePack list of names, as in the verdict
    carried   a MessagePack map of those fields of `runtime.stored.Carried` that the verdict has, else null
    shown     a MessagePack map of all its other fields, which only people read

A rebuild copies the columns of ``samples`` (9 µs for 150 charts, where lists of MessagePack take 26 µs), and
asks the server for nothing of ``shown``, four tenths of a row.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw, Struct

from runtime.errors import HistoryDiffers
from runtime.frames import Message
from runtime.stored import Carried, StoredVerdict, carried_of
from runtime.wire import DetailedVerdict, Verdict, decode_verdict, msgpack_encoder

LAYOUT: Final = 1
SAMPLE_BYTES: Final = 35
_KINDS: Final = "dddIIHB"
_SWAPS: Final = sys.byteorder == "big"
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


class _Carried(Struct, omit_defaults=True, gc=False):
    sigma_z: Raw = _NONE
    mark: Raw = _NONE
    cusum_up: Raw = _NONE
    cusum_down: Raw = _NONE
    cusum_limit_up: Raw = _NONE
    cusum_limit_down: Raw = _NONE
    ewma: Raw = _NONE
    ewma_variance: Raw = _NONE
    typical_units: Raw = _NONE
    event: Raw = _NONE
    episode: Raw = _NONE
    alerted: Raw = _NONE
    alerted_at: Raw = _NONE
    quiet: Raw = _NONE


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


class _Head(Struct, gc=False):
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


_head = msgspec.msgpack.Decoder(_Head)
_carried = msgspec.msgpack.Decoder(_Carried)
_shown = msgspec.msgpack.Decoder(_Shown)
_EMPTY: Final = msgpack_encoder.encode(_Carried())


def pack(payload: bytes) -> Row:
    """The row of a verdict as it was published. Raises HistoryDiffers for one that is none of a defender's:
    columns of unequal length, or a centre in phase 0."""
    head = _head.decode(payload)
    carried = msgpack_encoder.encode(_carried.decode(payload))
    return Row(
        head.chamber,
        head.seq,
        LAYOUT,
        head.ordinal,
        head.epoch,
        head.at,
        head.run,
        head.reset,
        bytes(head.charts),
        _columns(head),
        None if carried == _EMPTY else carried,
        msgpack_encoder.encode(_shown.decode(payload)),
    )


def _columns(head: _Head) -> bytes:
    centre = [0.0 if value is None else value for value in head.centre]
    values: tuple[list[Any], ...] = (
        *(head.counts, head.units, centre),
        *(head.basis, head.stage, head.flags, head.phase),
    )
    arrays: list[array[Any]] = [array(kind, column) for kind, column in zip(_KINDS, values, strict=True)]
    samples = b"".join(_little(column) for column in arrays)
    n = len(head.counts)
    nulls = [phase == 0 for phase in head.phase]
    if len(samples) != SAMPLE_BYTES * n or [value is None for value in head.centre] != nulls:
        raise HistoryDiffers(
            f"verdict {head.seq} of chamber {head.chamber!r} has columns of unequal length, or a centre in "
            "phase 0: no defender publishes such a verdict, so it cannot be stored"
        )
    return samples


def _little(column: array[Any]) -> bytes:
    if _SWAPS:
        column.byteswap()
    return column.tobytes()


def _split(row: Row) -> tuple[array[Any], ...]:
    """The columns of ``samples``: counts, units, centre, basis, stage, flags, phase."""
    check_layout(row.layout, row.chamber, row.seq)
    n, samples, columns, at = len(row.samples) // SAMPLE_BYTES, memoryview(row.samples), [], 0
    for kind in _KINDS:
        column = array(kind)
        end = at + n * column.itemsize
        column.frombytes(samples[at:end])
        if _SWAPS:
            column.byteswap()
        columns.append(column)
        at = end
    return tuple(columns)


def check_layout(layout: int, chamber: str, seq: int) -> None:
    """Raises HistoryDiffers for a layout that this version does not know."""
    if layout != LAYOUT:
        raise HistoryDiffers(
            f"the row of report {seq} of chamber {chamber!r} has layout {layout}, this defender knows layout "
            f"{LAYOUT}: run the version that wrote it, or a newer one"
        )


def stored(row: Row) -> StoredVerdict:
    """What a rebuild needs of a row; ``at_ns``, ``run`` and ``shown`` are not looked at."""
    counts, units, centre, basis, stage, flags, phase = _split(row)
    carried: Carried | None = None
    if row.carried is not None and row.reset is None:
        carried = carried_of(row.carried)
    return StoredVerdict(
        *(row.chamber, row.seq, row.ordinal, row.charts),
        *(counts, units, centre, flags, phase, basis, stage),
        row.reset,
        carried,
        row.epoch,
    )


def payload(row: Row) -> bytes:
    """The verdict as it was published, byte for byte."""
    counts, units, centre, basis, stage, flags, phase = _split(row)
    others: dict[str, Any] = msgspec.msgpack.decode(row.shown)
    if row.carried is not None:
        others |= msgspec.msgpack.decode(row.carried)
    verdict = DetailedVerdict(
        chamber=row.chamber,
        seq=row.seq,
        ordinal=row.ordinal,
        epoch=row.epoch,
        run=row.run,
        at=row.at_ns,
        charts=Raw(row.charts),
        counts=[int(count) for count in counts],
        units=units.tolist(),
        centre=[None if at == 0 else value for at, value in zip(phase, centre, strict=True)],
        flags=flags.tolist(),
        phase=phase.tolist(),
        basis=basis.tolist(),
        stage=stage.tolist(),
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


def message(row: Row, subject: str, message_id_prefix: str) -> Message:
    """The message by which its verdict was published."""
    return subject, f"{message_id_prefix}{row.seq}", payload(row)
