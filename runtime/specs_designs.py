"""Designs of CUSUM and EWMA charts: their limits by expected count, computed once and kept in the document.

``defender specs apply`` computes the designs that a document needs and stores them in it, so that every
defender judges by the same numbers and none of them computes anything. A design that a stored document lacks
(one that was put into the bucket by other means) is computed where it is asked for first: half a second each.

Pure; ``kernels.design``, which brings NumPy, is imported only to compute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

from runtime.specs_methods import Cusum, Design, Ewma

DESIGN_ROWS: Final = 3
DESIGN_POINTS: Final = 33
"""Expected counts for which a design is tabled: the number of ``kernels.state.DESIGN_MEANS``."""
_UP, _DOWN, _EWMA = range(DESIGN_ROWS)

Rows = tuple[tuple[float, ...], ...]


class Shifts(NamedTuple):
    """What a spec asks for against small lasting shifts."""

    cusum: Cusum | None
    ewma: Ewma | None

    @property
    def keys(self) -> list[_Key]:
        """The designs that it takes: one where both have the same ARL0, otherwise one of each."""
        cusum, ewma = self.cusum, self.ewma
        if cusum is not None and ewma is not None and cusum.arl0 == ewma.arl0:
            return [_Key(cusum.ratio, cusum.head_start, ewma.weight, cusum.arl0)]
        keys = [] if cusum is None else [_Key(cusum.ratio, cusum.head_start, 0.0, cusum.arl0)]
        return keys if ewma is None else [*keys, _Key(1.0, 0.0, ewma.weight, ewma.arl0)]


class _Key(NamedTuple):
    """What a `Design` is for."""

    ratio: float
    head_start: float
    weight: float
    arl0: float


def numbered(wanted: Iterable[Shifts]) -> dict[Shifts, int]:
    """The index of each that asks for anything, in the order of their first appearance."""
    indices: dict[Shifts, int] = {}
    for shifts in wanted:
        if shifts.keys:
            indices.setdefault(shifts, len(indices))
    return indices


def complete(wanted: Iterable[Shifts], known: Iterable[Design]) -> tuple[Design, ...]:
    """The designs that all of *wanted* take: of *known* where they are there, computed otherwise.

    A known design of another shape (of a version with other tables) is computed again. Raises ValueError
    where there is no such design.
    """
    sound = {_key_of(design): design for design in known if _is_sound(design)}
    keys = {key: None for shifts in numbered(wanted) for key in shifts.keys}
    return tuple(sound.get(key) or computed(key) for key in keys)


def rows(shifts: Shifts, designs: Iterable[Design]) -> Rows:
    """The rows of the kernels for one spec. *designs* has what it takes."""
    by_key = {_key_of(design): design.rows for design in designs}
    nothing: Rows = ((0.0,) * DESIGN_POINTS,) * DESIGN_ROWS
    keys = shifts.keys
    cusum = by_key[keys[0]] if shifts.cusum is not None else nothing
    ewma = by_key[keys[-1]] if shifts.ewma is not None else nothing
    return cusum[_UP], cusum[_DOWN], ewma[_EWMA]


def computed(key: _Key) -> Design:
    """Computes a design with NumPy. Raises ValueError where there is none."""
    from kernels.design import table

    tabled = table(
        ratio=key.ratio if key.ratio > 1 else None,
        head_start=key.head_start,
        ewma_weight=key.weight or None,
        arl0=key.arl0,
    )
    return Design(*key, rows=tuple(tuple(map(float, row)) for row in tabled))


def _key_of(design: Design) -> _Key:
    return _Key(design.ratio, design.head_start, design.weight, design.arl0)


def _is_sound(design: Design) -> bool:
    return len(design.rows) == DESIGN_ROWS and all(
        len(row) == DESIGN_POINTS and all(math.isfinite(value) and value >= 0 for value in row)
        for row in design.rows
    )
