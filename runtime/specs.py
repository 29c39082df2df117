"""Chart specs: how each chart is judged.

A `Specs` document is a list of entries, each with a glob for the chamber and one for the chart, and a
default at the end. The first entry that matches a chart decides everything about it; there is always a
match, since the default is always there. A person writes the document as YAML or JSON
(`runtime.specs_text`), the bucket ``chart-specs`` keeps it as JSON under the key ``specs`` (`encode`,
`decode`), and the key's revision is the *spec revision* that verdicts carry (0: the built-in default, no
document was ever stored).

What a spec can ask for is in `runtime.specs_methods`, what is refused in `runtime.specs_problems`, and the
designs of its CUSUM and EWMA, which the document carries along, in `runtime.specs_designs`. All of it is
pure. `docs/charts.md` explains the fields to people.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from functools import cached_property
from typing import Any, Final, TypedDict

import msgspec
from msgspec import Struct

from runtime.errors import InputError
from runtime.names import fnv1a_32
from runtime.specs_designs import Rows, Shifts, complete, numbered, rows
from runtime.specs_methods import (
    ALPHA,
    BY_QUANTILES,
    COUNTS,
    COUNTS_OF_SETS,
    CUSUM_RULES,
    EWMA_RULES,
    KIND_MASK,
    KINDS,
    LIMITS,
    RULES_DEFAULT,
    RULES_OF_SETS,
    Alarm,
    Baseline,
    Cusum,
    Design,
    Ewma,
    K,
    Limits,
    RuleSet,
    Start,
)
from runtime.specs_problems import spec_problems

__all__ = [
    "BUILT_IN",
    "KEY",
    "WINDOW_MAX",
    "Alarm",
    "Baseline",
    "ChartSpec",
    "Compiled",
    "Cusum",
    "Design",
    "Ewma",
    "Limits",
    "RuleSet",
    "Specs",
    "SpecsError",
    "Start",
    "Step",
    "basis",
    "compile",
    "decode",
    "designed",
    "designs_of",
    "encode",
    "problems_of",
]

KEY: Final = "specs"
"""The key of the document in the bucket ``chart-specs``."""
WINDOW_MAX: Final = 4096
DOCUMENT_BYTES_MAX: Final = 1_000_000
"""One message of a bucket: a server takes 1 MB (1,048,576 bytes) unless it is told otherwise."""
MATCH_CACHE_MAX: Final = 65_536
"""Charts whose match is remembered; past it the cache starts anew, so that memory stays bounded (~10 MB)."""

_GLOB_CHARACTERS: Final = frozenset("*?[")


class Compiled(TypedDict):
    """One spec as the kernels take it: the arguments of ``kernels.state.spec_row``."""

    kind: Any  # a number of KINDS; the kernels' own enum is not imported here, for it brings numpy
    k: float
    rules: int
    phase_one: int
    minimum: int
    centre: float
    basis: int
    limits: Any  # a number of LIMITS
    alpha: float
    sigma_z: float
    sigma_z_floor: float
    screens: bool
    predicts: bool
    tests: bool
    counts: Any  # kernels.state.RuleCounts in all but name
    cusum_ratio: float
    cusum_head_start: float
    ewma_weight: float
    design: int
    again_reports: int
    again_ns: int
    end_after: int


class SpecsError(InputError):
    """A specs document cannot be used; *problems* lists everything that was found, each with its place."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ChartSpec(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How the charts are judged whose chamber and chart name match the globs (case counts).

    ``baseline``: ``frozen`` (the centre line of the first ``phase_one`` usable subgroups, then kept),
    ``moving`` (of the usable subgroups in the window) or ``given`` (``centre``, in nonconformities a unit).
    ``minimum`` usable subgroups there must be before a chart has limits at all; with ``start`` ``predict``
    it has prediction limits until then. ``limits`` says what the limits are: ``k`` sigma of the Poisson
    distribution, or ``sigma_z`` times that (``laney``), or its quantiles at ``alpha`` a side. ``rules`` are
    the Nelson rules in force, ``counts`` how many points make their patterns where that is not as usual.
    ``cusum`` and ``ewma`` look for small lasting shifts. ``name`` is a label for people.
    """

    chamber: str = "*"
    chart: str = "*"
    name: str = ""
    baseline: Baseline = Baseline.FROZEN
    centre: float | None = None
    phase_one: int = 25
    minimum: int = 10
    start: Start = Start.LEARN
    limits: Limits = Limits.THREE_SIGMA
    k: float = K
    alpha: float = ALPHA
    sigma_z: float | None = None
    sigma_z_floor: float | None = None
    screen_ranges: bool = False
    rules: tuple[int, ...] | RuleSet = RULES_DEFAULT
    counts: dict[int, int] = {}
    cusum: Cusum | None = None
    ewma: Ewma | None = None
    alarm: Alarm = Alarm()

    @property
    def nelson_rules(self) -> tuple[int, ...]:
        """The numbers of the rules that are asked for by ``rules``."""
        return RULES_OF_SETS[self.rules] if isinstance(self.rules, RuleSet) else self.rules

    @property
    def rules_in_force(self) -> tuple[int, ...]:
        """``nelson_rules`` and those that ``cusum`` and ``ewma`` bring along."""
        cusum = CUSUM_RULES if self.cusum is not None else ()
        ewma = EWMA_RULES if self.ewma is not None else ()
        return (*self.nelson_rules, *cusum, *ewma)

    @property
    def rules_mask(self) -> int:
        """Bit r-1 set for rule r in force."""
        return sum(1 << (rule - 1) for rule in set(self.rules_in_force))

    @property
    def rule_counts(self) -> tuple[int, ...]:
        """How many points make rules 2 to 8, in this order."""
        of_set = COUNTS_OF_SETS[self.rules] if isinstance(self.rules, RuleSet) else {}
        return tuple(self.counts.get(rule, of_set.get(rule, COUNTS[rule].usual)) for rule in COUNTS)

    @property
    def shifts(self) -> Shifts:
        return Shifts(self.cusum, self.ewma)

    @property
    def is_exact(self) -> bool:
        """Whether both globs are plain names."""
        return _GLOB_CHARACTERS.isdisjoint(self.chamber) and _GLOB_CHARACTERS.isdisjoint(self.chart)


class Step(Struct, frozen=True):
    """One entry on the way to a match: which, whether it matched, and why."""

    index: int
    label: str
    matched: bool
    why: str


class Specs(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, dict=True):
    """The whole document. `match` gives the index of an entry; the default's index is ``len(charts)``.

    ``designs`` is made by machine (`designed`); people neither write nor see it.
    """

    charts: tuple[ChartSpec, ...] = ()
    default: ChartSpec = ChartSpec()
    designs: tuple[Design, ...] = ()

    def __len__(self) -> int:
        """Number of specs, the default included."""
        return len(self.charts) + 1

    def __getitem__(self, index: int) -> ChartSpec:
        return self.default if index == len(self.charts) else self.charts[index]

    @cached_property
    def _exact(self) -> dict[tuple[str, str], int]:
        """Entries without globs: a document with thousands of adopted charts still matches in one look-up."""
        exact: dict[tuple[str, str], int] = {}
        for index, spec in enumerate(self.charts):
            if spec.is_exact:
                exact.setdefault((spec.chamber, spec.chart), index)
        return exact

    @cached_property
    def _globs(self) -> list[tuple[int, re.Pattern[str], re.Pattern[str]]]:
        return [
            (index, re.compile(translate(spec.chamber)), re.compile(translate(spec.chart)))
            for index, spec in enumerate(self.charts)
            if not spec.is_exact
        ]

    @cached_property
    def _matches(self) -> dict[tuple[str, str], int]:
        return {}

    def match(self, chamber: str, chart: str) -> tuple[int, ChartSpec]:
        """The spec of one chart and its index (as in `compile`)."""
        key = (chamber, chart)
        index = self._matches.get(key)
        if index is None:
            index = self._search(key)
            if len(self._matches) >= MATCH_CACHE_MAX:
                self._matches.clear()
            self._matches[key] = index
        return index, self[index]

    def _search(self, key: tuple[str, str]) -> int:
        last = self._exact.get(key, len(self.charts))
        for index, chamber, chart in self._globs:
            if index > last:
                break
            if chamber.match(key[0]) and chart.match(key[1]):
                return index
        return last

    def label(self, index: int) -> str:
        """What to call an entry before people: its place, and its name where it has one."""
        place = "default" if index == len(self.charts) else f"charts[{index}]"
        name = self[index].name
        return f"{place} ({name})" if name else place

    def explain(self, chamber: str, chart: str) -> list[Step]:
        """Every entry that was looked at for one chart; the last step is the match."""
        steps: list[Step] = []
        for index, spec in enumerate(self.charts):
            misses = [
                f"{field} {value!r} is not {glob!r}"
                for field, value, glob in (("chamber", chamber, spec.chamber), ("chart", chart, spec.chart))
                if not re.match(translate(glob), value)
            ]
            why = " and ".join(misses) or f"chamber {spec.chamber!r} and chart {spec.chart!r} match"
            steps.append(Step(index, self.label(index), not misses, why))
            if not misses:
                return steps
        index = len(self.charts)
        steps.append(Step(index, self.label(index), True, "no entry before it matches"))
        return steps


BUILT_IN: Final = Specs()
"""What holds while nobody has applied a document: frozen after 25 subgroups, three-sigma limits, Nelson rules
1-4."""


def basis(spec: ChartSpec) -> int:
    """Fingerprint of what a chart's *stage* rests on: when it changes, the chart starts a new stage.

    32 bits, never 0 (0 stands for "no spec yet"); the low two are the kind of the baseline, by which a
    rebuild from the history knows it. The rules in force, the names and the globs are not part
    of it, nor is k of a given centre: with them the limits change, but the baseline is what it was. k of the
    other two is, because it decides which subgroups are left out of the baseline; so do the other settings of
    the limits where a baseline is to be frozen. Those are part of it only where they are not the defaults:
    a spec that an older version has judged by keeps its fingerprint.
    """
    match spec.baseline:
        case Baseline.GIVEN:
            text = f"given {spec.centre!r}"
        case Baseline.FROZEN:
            text = f"frozen {spec.phase_one} {spec.k!r}{_limits_text(spec)}"
        case Baseline.MOVING:
            text = f"moving {spec.k!r}"
    return (fnv1a_32(text) & ~KIND_MASK | KINDS[spec.baseline]) or KIND_MASK + 1


def _limits_text(spec: ChartSpec) -> str:
    """What the fingerprint has of the limits by which a baseline leaves subgroups out."""
    parts = [spec.limits.value] if spec.limits is not Limits.THREE_SIGMA else []
    if spec.limits in BY_QUANTILES and spec.alpha != ALPHA:
        parts.append(f"alpha {spec.alpha!r}")
    if spec.sigma_z_floor is not None:
        parts.append(f"floor {spec.sigma_z_floor!r}")
    if spec.screen_ranges:
        parts.append("screened")
    return "".join(f" {part}" for part in parts)


def compile(specs: Specs) -> list[Compiled]:
    """All specs for the kernels, in the order of the document, the default last.

    ``design`` is an index into `designs_of`, -1 without CUSUM and EWMA. Where ``alarm.mode`` is ``every`` the
    kernel ``alert`` is to be left out, which no field says here.
    """
    every = (*specs.charts, specs.default)
    designs = numbered(spec.shifts for spec in every)
    return [_compiled(spec, designs.get(spec.shifts, -1)) for spec in every]


def _compiled(spec: ChartSpec, design: int) -> Compiled:
    cusum, alarm = spec.cusum or Cusum(ratio=1.0), spec.alarm
    return Compiled(
        kind=KINDS[spec.baseline],
        k=spec.k,
        rules=spec.rules_mask,
        phase_one=spec.phase_one,
        minimum=spec.minimum,
        centre=0.0 if spec.centre is None else spec.centre,
        basis=basis(spec),
        limits=LIMITS[spec.limits],
        alpha=spec.alpha,
        sigma_z=1.0 if spec.sigma_z is None else spec.sigma_z,
        sigma_z_floor=0.0 if spec.sigma_z_floor is None else spec.sigma_z_floor,
        screens=spec.screen_ranges,
        predicts=spec.start is Start.PREDICT,
        tests=alarm.fdr is not None,
        counts=spec.rule_counts,
        cusum_ratio=cusum.ratio,
        cusum_head_start=cusum.head_start,
        ewma_weight=0.0 if spec.ewma is None else spec.ewma.weight,
        design=design,
        again_reports=alarm.again_after_reports,
        again_ns=round(alarm.again_after_s * 1e9),
        end_after=alarm.end_after,
    )


def designs_of(specs: Specs) -> list[Rows]:
    """The rows of each design, in the order of the indices that `compile` gives.

    Computes what the document lacks (`designed`): half a second each, and NumPy. Raises SpecsError.
    """
    designs = designed(specs).designs
    wanted = numbered(spec.shifts for spec in (*specs.charts, specs.default))
    return [rows(shifts, designs) for shifts in wanted]


def designed(specs: Specs, known: Iterable[Design] = ()) -> Specs:
    """*specs* with exactly the designs that they take: their own, or of *known*, or computed (with NumPy).

    Raises SpecsError where there is no such design.
    """
    wanted = [spec.shifts for spec in (*specs.charts, specs.default)]
    try:
        designs = complete(wanted, (*known, *specs.designs))
    except ValueError as error:
        raise SpecsError([f"no design for a CUSUM or EWMA of this document: {error}"]) from error
    return specs if designs == specs.designs else msgspec.structs.replace(specs, designs=designs)


def problems_of(specs: Specs, window: int) -> list[str]:
    """What is wrong with a document's values and their relations; *window* is the setting WINDOW."""
    return [
        f"{specs.label(index)}: {problem}"
        for index in range(len(specs))
        for problem in spec_problems(specs[index], window, is_default=index == len(specs.charts))
    ]


def encode(specs: Specs) -> bytes:
    """The document as the bucket keeps it. Raises SpecsError when it is too large for one message."""
    payload = msgspec.json.encode(specs)
    if len(payload) > DOCUMENT_BYTES_MAX:
        raise SpecsError(
            [
                f"the document has {len(specs.charts)} entries and {len(payload)} bytes; at most "
                f"{DOCUMENT_BYTES_MAX} bytes fit into the bucket: use globs for charts with the same settings"
            ]
        )
    return payload


def decode(payload: bytes, window: int = WINDOW_MAX) -> Specs:
    """A document from the bucket. Raises SpecsError: written by a newer version, or for another WINDOW."""
    try:
        specs = msgspec.json.decode(payload, type=Specs)
    except msgspec.MsgspecError as error:
        problem = f"the stored specs cannot be read ({error}): apply a document of this version"
        raise SpecsError([problem]) from error
    problems = problems_of(specs, window)
    if problems:
        raise SpecsError([f"the stored specs: {problem}" for problem in problems])
    return specs
