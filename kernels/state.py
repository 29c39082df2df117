"""A chart in memory: four arrays over the same slots, so that an arena of them describes itself.

===========  ==============  ======  ============================================================
array        dtype           bytes   holds
===========  ==============  ======  ============================================================
``state``    ``SLOT[S]``     64      one cache line: all that a sample against a fixed centre needs
``sums``     ``SUMS[S]``     32      what a baseline that still moves needs besides: exact sums
``carried``  ``CARRIED[S]``  64      what the verdicts carry, for the remembered samples do not tell
``window``   ``ENTRY[S,W]``  24      the newest W samples of the chart's stage, a ring
===========  ==============  ======  ============================================================

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

import math
import struct
import zlib
from enum import IntEnum
from typing import Any, Final, NamedTuple

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

ALPHA: Final = 0.001349898031630094
"""Probability beyond each three-sigma limit of a normal distribution: 1 - Phi(3)."""


class RuleCounts(NamedTuple):
    """How many points make the pattern of rules 2 to 8; Nelson's counts by default."""

    side: int = 9
    trend: int = 6
    alternating: int = 14
    beyond_2: int = 2
    """Of one point more: 2 of 3."""
    beyond_1: int = 4
    """Of one point more: 4 of 5."""
    inside: int = 15
    outside: int = 8


COUNTS_MAX: Final = RuleCounts(15, 15, 15, 14, 14, 15, 15)
"""What fits the 16-bit registers and the points that are looked back at."""
COUNTS_MIN: Final = RuleCounts(2, 3, 3, 2, 2, 2, 2)


class Baseline(IntEnum):
    """Where a chart's centre line comes from."""

    GIVEN = 0
    FROZEN = 1
    MOVING = 2


class Phase(IntEnum):
    """What a verdict rests on: no limits yet, trial limits of phase I, limits of phase II, or, while a
    chart learns, what its few samples so far predict of the next."""

    LEARNING = 0
    PHASE_ONE = 1
    PHASE_TWO = 2
    SELF_STARTING = 3


class Limits(IntEnum):
    """How far from the centre line the limits are."""

    THREE_SIGMA = 0
    """k sigma of the Poisson distribution's normal approximation."""
    LANEY = 1
    """The same, wider or narrower by sigma_z (Laney 2002)."""
    EXACT = 2
    """Quantiles of the Poisson distribution."""
    AUTO = 3
    """EXACT where fewer than ``EXACT_BELOW`` nonconformities are expected, else THREE_SIGMA."""


class Mark(IntEnum):
    """What the scatter says of the Poisson distribution."""

    NONE = 0
    OVERDISPERSED = 1
    UNDERDISPERSED = 2


class Event(IntEnum):
    """What a sample means for the chart's alarm."""

    NONE = 0
    BEGIN = 1
    AGAIN = 2
    END = 3


EXACT_BELOW: Final = 10.0
"""Expected count below which AUTO takes exact limits."""
DIAGNOSE_EVERY: Final = 512
"""Ordinals between two looks at the scatter of a chart whose centre is given or moves."""
DIAGNOSE_MIN: Final = 20
"""Samples that a look at the scatter needs."""

CUSUM_ABOVE, CUSUM_BELOW, EWMA_ABOVE, EWMA_BELOW = 9, 10, 11, 12
"""Numbers of the rules that look for small lasting shifts; Nelson's are 1 to 8. Rule r is bit r-1 of flags.
"""

DESIGN_MEANS: Final = tuple(2.0 ** (e / 2) for e in range(-12, 21))
"""Expected counts for which a design is tabled: 1/64 ... 1024, a factor of sqrt 2 apart."""
DESIGN_UP, DESIGN_DOWN, DESIGN_EWMA = 0, 1, 2
"""Rows of a design: h of the upper and of the lower CUSUM times the logarithm of the shift's ratio, and
L of the EWMA; between two means it is interpolated over log2 of the mean."""

SPEC: Final = np.dtype(
    [
        ("k", "f8"),  # limits are centre ± k sigma
        ("alpha", "f8"),  # exact limits: probability beyond each
        ("centre", "f8"),  # GIVEN: the centre line; otherwise unused
        ("sigma_z", "f8"),  # GIVEN and LANEY: sigma_z
        ("sigma_z_floor", "f8"),  # LANEY: sigma_z is at least this; 0: no floor
        ("cusum_log_ratio", "f8"),  # log of the ratio of centre lines that the CUSUM is tuned to; 0: no CUSUM
        ("cusum_head_start", "f8"),  # where it starts, as a part of h
        ("ewma_weight", "f8"),  # weight of the newest sample; 0: no EWMA
        ("basis", "u4"),  # basis_of(...): low two bits are the kind
        ("phase_one", "u4"),  # FROZEN: usable subgroups of phase I, at most the window
        ("minimum", "u4"),  # usable subgroups before FROZEN and MOVING have limits
        ("design", "i4"),  # of CUSUM and EWMA: row of ``designs``
        ("rules", "u2"),  # bit r-1: rule r is in force
        ("limits", "u1"),  # Limits
        ("screens", "u1"),  # 1: LANEY leaves out moving ranges beyond their own limit
        ("predicts", "u1"),  # 1: prediction limits while there is no verdict yet
        ("tests", "u1"),  # 1: p-values are wanted although the limits are not exact
        ("side", "u1"),  # rule 2: points on one side (9)
        ("trend", "u1"),  # rule 3: points rising or falling (6)
        ("alternating", "u1"),  # rule 4: points up and down (14)
        ("beyond_2", "u1"),  # rule 5: points beyond 2 sigma, of one more (2)
        ("beyond_1", "u1"),  # rule 6: points beyond 1 sigma, of one more (4)
        ("inside", "u1"),  # rule 7: points within 1 sigma (15)
        ("outside", "u1"),  # rule 8: points beyond 1 sigma, on both sides (8)
        ("plain", "u1"),  # 1: limits of k sigma, and none of the rest
        ("quick", "u4", (8,)),  # masks of the rules in force, see kernels.runs.may_signal
        ("again_reports", "u4"),  # alarm: say it again after so many reports; 0: never by that
        ("end_after", "u4"),  # alarm: ends after so many samples without a signal
        ("again_ns", "i8"),  # alarm: say it again after so long; 0: never by that
    ],
    align=True,
)
"""How a chart is judged, 152 bytes; make one with ``spec_row``."""

SLOT: Final = np.dtype(
    [
        ("centre", "f8"),  # GIVEN, and FROZEN once frozen: the centre line
        ("last_z", "f8"),  # newest sample standardised with the fixed centre
        ("near", "u8"),  # registers of runs: z above 0, below 0, above 1, below -1 (see kernels.runs)
        ("far", "u8"),  # z above 2, below -2, rising, falling
        ("basis", "u4"),  # of the stage's samples
        ("stage", "u4"),  # ordinal of the stage's first sample
        ("newest", "u4"),  # ordinal of the newest sample
        ("head", "u2"),  # ring position that the next sample takes
        ("length", "u2"),  # samples in the ring; 0: nothing is remembered
        ("usable", "u2"),  # samples of the ring in the baseline, while that moves
        ("quiet", "u2"),  # samples since the newest signal, while an alarm is open
        ("frozen", "u1"),  # 1: phase II of a FROZEN baseline
        ("mark", "u1"),  # Mark
        ("alarmed", "u1"),  # 1: an alarm is open
        ("tracks", "u1"),  # PART_CUSUM, PART_EWMA: is in use; UP_, DOWN_SIGNALLED
        ("fixed", "u1"),  # 1: ``centre`` is in force
        ("reserved", "u1", (3,)),
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

CARRIED: Final = np.dtype(
    [
        ("sigma_z", "f8"),  # in force: of LANEY, or of a chart that is marked; 0: not measured
        ("cusum_up", "f8"),  # sum of the upper CUSUM, in nonconformities
        ("cusum_down", "f8"),  # of the lower one
        ("ewma", "f8"),
        ("ewma_variance", "f8"),  # over the centre line: sum of squared weights / units
        ("typical_units", "f8"),  # of a sample of the baseline; 0: no CUSUM or EWMA yet
        ("alerted_at", "i8"),  # time of the newest alarm message, ns since 1970
        ("episode", "u4"),  # ordinal of the sample that opened the alarm; valid while ``alarmed``
        ("alerted", "u4"),  # ordinal of the newest alarm message
    ],
    align=True,
)
"""What the remembered samples do not tell, 64 bytes. Verdicts carry it, and ``restore`` puts it back."""

DETAIL: Final = np.dtype(
    [
        ("carried", CARRIED),  # after the sample
        ("p", "f8"),  # two-sided p-value: twice the smaller tail, at most 1
        ("cusum_limit_up", "f8"),
        ("cusum_limit_down", "f8"),
        ("ewma_lcl", "f8"),
        ("ewma_ucl", "f8"),
        ("parts", "u1"),  # which of it is valid: PART_...
        ("mark", "u1"),
        ("event", "u1"),  # Event
        ("reserved", "u1"),
        ("quiet", "u2"),  # of SLOT
    ],
    align=True,
)
"""What only some charts' verdicts have besides, 112 bytes; written where ``parts`` is not 0."""

PART_P: Final = 1
PART_SIGMA_Z: Final = 2
PART_CUSUM: Final = 4
PART_EWMA: Final = 8
UP_SIGNALLED: Final = 1
DOWN_SIGNALLED: Final = 2
"""In ``tracks``, beside PART_CUSUM: this sum signalled with the newest sample, and starts anew with the
next."""
PART_FROZE: Final = 16
"""Phase I ended with this sample: entries of the window before it that are not usable were left out."""
PART_MARK: Final = 32
PART_ALARM: Final = 64
"""An alarm is open (or was, until this sample): ``episode``, ``alerted`` and ``alerted_at`` count."""

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
        ("carried", CARRIED),  # before the sample
    ],
    align=True,
)
"""What undoes one sample, 192 bytes: three cache lines, and what a fixed centre needs comes first."""

HOLDS_ENTRY: Final = 1
"""The sample took a place in the window."""
HOLDS_SUMS: Final = 2
"""The sums could change."""
FROZE: Final = 4
"""Phase I ended: marks of excluded samples were cleared."""
HOLDS_CARRIED: Final = 8
"""What verdicts carry could change."""
LOST: Final = 16
"""The chart was absent for so long that nothing of it is remembered, nor an alarm that was open."""


def basis_of(
    kind: Baseline,
    *,
    centre: float = 0.0,
    k: float = 3.0,
    phase_one: int = 0,
    limits: Limits = Limits.THREE_SIGMA,
    alpha: float = ALPHA,
    sigma_z_floor: float = 0.0,
    screens: bool = False,
) -> int:
    """Fingerprint of the settings that a stage rests on: a chart starts a new stage when it changes.

    GIVEN rests on its centre, FROZEN on ``phase_one`` and on what its limits rest on, by which it excludes,
    MOVING on nothing else: the rules in force, and the limits of GIVEN and MOVING, may change within a
    stage. The low two bits are the kind, which lets ``restore`` do without specs. A caller may mix in more
    (``basis ^ salt << 2``).
    """
    settings = {
        Baseline.GIVEN: struct.pack("<d", centre),
        Baseline.FROZEN: struct.pack("<dIBdd?", k, phase_one, limits, alpha, sigma_z_floor, screens),
        Baseline.MOVING: b"",
    }[kind]
    return (zlib.crc32(settings) & ~KIND_MASK) | int(kind)


NELSON: Final = RuleCounts()

NEVER: Final = 0xFFFF_FFFF
"""A mask of 16 bits that no register fits."""


def quick_masks(rules: int, counts: RuleCounts) -> tuple[int, ...]:
    """What ``kernels.runs.may_signal`` compares registers with; NEVER (7: 0) where a rule is not in force.

    Rule 2, 3, 4 (steps up and down in turn, in both halves), 4 (the other way), 5, 6, 7 (in both halves), 8.
    """
    steps = (1 << (counts.alternating - 1)) - 1
    odd = 0x5555 & steps
    masks = (
        (1 << counts.side) - 1,
        (1 << (counts.trend - 1)) - 1,
        odd << 16 | (steps ^ odd),
        (steps ^ odd) << 16 | odd,
        (2 << counts.beyond_2) - 1,
        (2 << counts.beyond_1) - 1,
        (1 << counts.inside) - 1 << 16 | (1 << counts.inside) - 1,
        (1 << counts.outside) - 1,
    )
    of_rule = (2, 3, 4, 4, 5, 6, 7, 8)
    absent = (*(NEVER,) * 6, 0, NEVER)
    return tuple(
        mask if rules >> (rule - 1) & 1 else none
        for mask, rule, none in zip(masks, of_rule, absent, strict=True)
    )


def spec_row(
    kind: Baseline,
    *,
    k: float = 3.0,
    rules: int = 1,
    centre: float = 0.0,
    phase_one: int = 1,
    minimum: int = 1,
    basis: int | None = None,
    limits: Limits = Limits.THREE_SIGMA,
    alpha: float = ALPHA,
    sigma_z: float = 1.0,
    sigma_z_floor: float = 0.0,
    screens: bool = False,
    predicts: bool = False,
    tests: bool = False,
    counts: tuple[int, ...] = NELSON,
    cusum_ratio: float = 1.0,
    cusum_head_start: float = 0.5,
    ewma_weight: float = 0.0,
    design: int = -1,
    again_reports: int = 0,
    again_ns: int = 0,
    end_after: int = 1,
) -> tuple[Any, ...]:
    """A row for ``np.array([...], SPEC)``.

    Checked by the caller, not here: k > 0, 0 < alpha < 0.5, centre finite and >= 0, sigma_z > 0,
    1 <= phase_one <= W, minimum >= 1, cusum_ratio >= 1 (1: no CUSUM), 0 <= ewma_weight <= 1 (0: no EWMA),
    a design where there is either. ``basis`` defaults to ``basis_of``; one of the caller's own keeps the
    kind in its low two bits.
    """
    if basis is None:
        basis = basis_of(
            kind,
            centre=centre,
            k=k,
            phase_one=phase_one,
            limits=limits,
            alpha=alpha,
            sigma_z_floor=sigma_z_floor,
            screens=screens,
        )
    numbers = (k, alpha, centre, sigma_z, sigma_z_floor, math.log(cusum_ratio), cusum_head_start, ewma_weight)
    plain = limits == Limits.THREE_SIGMA and design < 0 and not tests
    flags = (int(limits), int(screens), int(predicts), int(tests))
    quick = quick_masks(rules, RuleCounts(*counts))
    return (
        *numbers, basis, phase_one, minimum, design, rules, *flags, *counts, int(plain), quick,
        again_reports, end_after, again_ns,
    )  # fmt: skip
