"""What the kernels give for a batch, as the columns of its verdicts.

Most verdicts have the seven plain columns only. What some charts have besides (p-values, sigma_z, CUSUM,
EWMA, marks, open alarms) is made of the records in ``details``, and costs nothing where no sample has any.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.state import (
    CARRIED,
    DETAIL,
    ENTRY,
    PART_ALARM,
    PART_CUSUM,
    PART_EWMA,
    PART_MARK,
    PART_P,
    PART_SIGMA_Z,
    Phase,
)

_FLOATS: Final = {
    "p": PART_P,
    "sigma_z": PART_SIGMA_Z,
    "cusum_up": PART_CUSUM,
    "cusum_down": PART_CUSUM,
    "cusum_limit_up": PART_CUSUM,
    "cusum_limit_down": PART_CUSUM,
    "ewma": PART_EWMA,
    "ewma_variance": PART_EWMA,
    "ewma_lcl": PART_EWMA,
    "ewma_ucl": PART_EWMA,
    "typical_units": PART_CUSUM | PART_EWMA,
}
"""Fields of a verdict that are null where a chart has none, with the parts that tell it."""
_INTEGERS: Final = {
    "mark": PART_MARK,
    "event": PART_ALARM,
    "quiet": PART_ALARM,
    "episode": PART_ALARM,
    "alerted": PART_ALARM,
    "alerted_at": PART_ALARM,
}
"""Those that are 0 then."""
_CARRIED: Final = frozenset(CARRIED.names or ())


class Columns(NamedTuple):
    """The plain columns as lists, one entry a sample; null where a chart has no limits yet."""

    u: list[float]
    centre: list[Any]
    lcl: list[Any]
    ucl: list[Any]
    flags: list[int]
    phase: list[int]
    stage: list[int]


class Outputs:
    """The kernels' output columns, allocated once, for batches of up to *size* samples."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.u, self.centre, self.lcl, self.ucl = (np.zeros(size) for _ in range(4))
        self.flags = np.zeros(size, dtype=np.uint16)
        self.phase = np.zeros(size, dtype=np.uint8)
        self.stage = np.zeros(size, dtype=np.uint32)
        self._plain: tuple[NDArray[Any], ...] = (
            self.u,
            self.centre,
            self.lcl,
            self.ucl,
            self.flags,
            self.phase,
            self.stage,
        )
        self.parts = np.zeros(size, dtype=np.uint8)
        self.details = np.zeros(size, dtype=DETAIL)

    def upto(self, n: int) -> tuple[NDArray[Any], ...]:
        """The outputs of ``kernels.judge.judge`` for n samples, in its order."""
        return (*(column[:n] for column in self._plain), self.parts[:n], self.details[:n])

    def lists(self, n: int) -> Columns:
        """The plain columns of n samples."""
        columns = Columns(*(column[:n].tolist() for column in self._plain))
        for i in np.flatnonzero(self.phase[:n] == Phase.LEARNING).tolist():
            columns.centre[i] = columns.lcl[i] = columns.ucl[i] = None
        return columns

    def detailed(self, n: int) -> DetailColumns:
        """The other columns of n samples, as far as any of them has them."""
        return DetailColumns(self.parts[:n], self.details[:n])


class DetailColumns:
    """The columns that only some verdicts have, over the samples of a batch."""

    def __init__(self, parts: NDArray[np.uint8], details: NDArray[Any]) -> None:
        carried = details["carried"]
        union = int(np.bitwise_or.reduce(parts)) if len(parts) else 0
        self._columns: list[tuple[str, int, list[Any]]] = []
        for name, part in _FLOATS.items():
            if union & part:
                column = (carried if name in _CARRIED else details)[name]
                self._columns.append((name, part, _or_null(column, parts & part != 0)))
        for name, part in _INTEGERS.items():
            if union & part:
                column = (carried if name in _CARRIED else details)[name]
                self._columns.append((name, part, np.where(parts & part != 0, column, 0).tolist()))

    def of_report(self, first: int, last: int, union: int) -> list[tuple[str, list[Any]]]:
        """(field, column) of the report of the samples first ... last - 1, which have the parts *union*."""
        found = [(name, column[first:last]) for name, part, column in self._columns if union & part]
        return [(name, column) for name, column in found if name not in _INTEGERS or any(column)]


def _or_null(column: NDArray[Any], has: NDArray[np.bool_]) -> list[Any]:
    if has.all():
        values: list[Any] = column.tolist()
        return values
    objects = column.astype(object)
    objects[~has] = None
    nullable: list[Any] = objects.tolist()
    return nullable


def left_out(slot: Any, ring: NDArray[Any], past: Any, ordinal: int, depth: int) -> list[int]:
    """Ordinals of the samples that a chart left out of its baseline when it froze, oldest first.

    *slot* and *ring* (``ENTRY[W]``) are as the freezing sample left them, *past* is its journal entry. Of a
    full ring that sample took the place of the oldest one, which may have been left out too.
    """
    width = len(ring)
    ages = np.arange(int(slot["length"]), 1, -1)
    entries = ring[(int(slot["head"]) - ages) % width]
    overwritten = past["entry"]
    if int(past["slot"]["length"]) == width and int(overwritten["ordinal"]) >= ordinal - depth:
        entries = np.concatenate([np.array([overwritten], dtype=ENTRY), entries])
    found: list[int] = entries["ordinal"][entries["usable"] == 0].tolist()
    return found
