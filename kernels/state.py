"""A chart in memory: three arrays over the same slots, so that an arena of them describes itself.

==========  =============  ======  =============================================================
array       dtype          bytes   holds
==========  =============  ======  =============================================================
``state``   ``SLOT[S]``    64      one cache line: all that a sample against a fixed centre needs
``sums``    ``SUMS[S]``    32      what a baseline that still moves needs besides: exact sums
``window``  ``ENTRY[S,W]`` 24      the newest W samples of the chart's stage, a ring
==========  =============  ======  =============================================================

All zeros is an empty slot. Byte order is the machine's (little-endian where Defender runs).

The window is one array of records, not a column a field: an entry into a random slot then touches one or
two cache lines and not three. Measured over 100 MB: 89 million entries/s against 76 million
(``bench/test_kernel.py``).

Life of a slot's baseline, by kind::

    GIVEN    ──────────────────────────────────────────────► phase II
    MOVING   learning ──(usable >= minimum)────────────────► phase II ⇄ learning
    FROZEN   learning ──(usable >= minimum)──► phase I ──(the sample after usable >= phase_one)──► phase II
       any   ──(reset, other basis, absent from the last D reports)──► a new stage, empty

Freezing happens before the *next* sample is judged, over what is remembered then. So it is a function
of the remembered samples alone, and a chart put back from its history freezes exactly as one that
never left memory.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import Final

import numpy as np

WINDOW_MAX: Final = 1023
"""Samples a window can hold: 1023 counts of at most 2^53 fit a signed 64-bit sum."""
COUNT_MAX: Final = 2**53
"""Largest count; above it not every whole number is a float64."""
UNITS_MIN: Final = 2.0**-20
"""Fewest inspection units of a sample: below it their sum would not be exact (see ``kernels.exact``)."""
UNITS_MAX: Final = 2.0**40
"""Most inspection units of a sample."""
ORDINAL_MAX: Final = 2**32 - 1

RESET: Final = 1
"""Value of ``ops`` for "this chart forgets everything"."""
SAMPLE: Final = 0
"""Value of ``ops`` for "judge this sample"."""

KIND_MASK: Final = 3


class Baseline(IntEnum):
    """Where a chart's centre line comes from."""

    GIVEN = 0
    FROZEN = 1
    MOVING = 2


class Phase(IntEnum):
    """What a verdict rests on: no limits yet, trial limits of phase I, or limits of phase II."""

    LEARNING = 0
    PHASE_ONE = 1
    PHASE_TWO = 2


SPEC: Final = np.dtype(
    [
        ("k", "f8"),  # limits are centre ± k sigma
        ("centre", "f8"),  # GIVEN: the centre line; otherwise unused
        ("basis", "u4"),  # basis_of(...): low two bits are the kind
        ("phase_one", "u4"),  # FROZEN: usable subgroups of phase I, at most the window
        ("minimum", "u4"),  # usable subgroups before FROZEN and MOVING have limits
        ("rules", "u2"),  # bit r-1: Nelson rule r is in force
        ("reserved", "u2"),
    ],
    align=True,
)
"""How a chart is judged, 32 bytes; make one with ``spec_row``."""

SLOT: Final = np.dtype(
    [
        ("centre", "f8"),  # FROZEN, once frozen: the centre line
        ("last_z", "f8"),  # newest sample standardised with the fixed centre
        ("basis", "u4"),  # of the stage's samples
        ("stage", "u4"),  # ordinal of the stage's first sample
        ("newest", "u4"),  # ordinal of the newest sample
        ("head", "u2"),  # ring position that the next sample takes
        ("length", "u2"),  # samples in the ring; 0: nothing is remembered
        ("above", "u2"),  # run registers, bit j is the j-th newest sample: z > 0
        ("below", "u2"),  # z < 0
        ("rising", "u2"),  # z above its predecessor's
        ("falling", "u2"),  # z below its predecessor's
        ("usable", "u2"),  # samples of the ring in the baseline, while that moves
        ("frozen", "u1"),  # 1: phase II of a FROZEN baseline
        ("reserved_byte", "u1"),
        ("reserved", "u1", (20,)),  # room for CUSUM sums
    ],
    align=True,
)
"""Hot part of a chart, 64 bytes. Registers are kept only while the centre is fixed."""

SUMS: Final = np.dtype(
    [
        ("counts", "i8"),  # sum of the usable counts
        ("units_high", "i8"),  # sum of the usable units, fixed point: see kernels.exact
        ("units_low", "i8"),
        ("reserved", "i8"),
    ],
    align=True,
)
"""Sums over the usable remembered samples, 32 bytes; valid while the baseline moves."""

ENTRY: Final = np.dtype(
    [
        ("count", "f8"),
        ("units", "f8"),
        ("ordinal", "u4"),
        ("usable", "u4"),  # 1: in the baseline (or would be: not beyond the limits)
    ],
    align=True,
)
"""One remembered sample, 24 bytes."""

JOURNAL: Final = np.dtype(
    [
        ("slot", SLOT),  # before the sample
        ("entry", ENTRY),  # before the sample, at position
        ("index", "i4"),  # of the slot
        ("position", "u2"),  # in the ring
        ("holds", "u1"),  # which parts were written, and are to be undone: HOLDS_..., FROZE
        ("reserved", "u1"),
        ("sums", SUMS),  # before the sample
    ],
    align=True,
)
"""What undoes one sample, 128 bytes: two cache lines, and what a fixed centre needs comes first."""

HOLDS_ENTRY: Final = 1
"""The sample took a place in the window."""
HOLDS_SUMS: Final = 2
"""The sums could change."""
FROZE: Final = 4
"""Phase I ended: marks of excluded samples were cleared."""


def basis_of(kind: Baseline, *, centre: float = 0.0, k: float = 3.0, phase_one: int = 0) -> int:
    """Fingerprint of the settings that a stage rests on: a chart starts a new stage when it changes.

    GIVEN rests on its centre, FROZEN on ``k`` (which excludes) and ``phase_one``, MOVING on nothing
    else: the rules in force, and k for GIVEN and MOVING, may change within a stage. The low two bits are
    the kind, which lets ``restore`` do without specs. A caller may mix in more (``basis ^ salt << 2``).
    """
    settings = {
        Baseline.GIVEN: struct.pack("<d", centre),
        Baseline.FROZEN: struct.pack("<dI", k, phase_one),
        Baseline.MOVING: b"",
    }[kind]
    return (zlib.crc32(settings) & ~KIND_MASK) | int(kind)


def spec_row(
    kind: Baseline,
    *,
    k: float = 3.0,
    rules: int = 1,
    centre: float = 0.0,
    phase_one: int = 1,
    minimum: int = 1,
    basis: int | None = None,
) -> tuple[float, float, int, int, int, int, int]:
    """A row for ``np.array([...], SPEC)``.

    Checked by the caller, not here: k > 0, centre finite and >= 0, 1 <= phase_one <= W, minimum >= 1.
    ``basis`` defaults to ``basis_of``; one of the caller's own keeps the kind in its low two bits.
    """
    if basis is None:
        basis = basis_of(kind, centre=centre, k=k, phase_one=phase_one)
    return (k, centre, basis, phase_one, minimum, rules, 0)
