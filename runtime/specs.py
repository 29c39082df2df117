"""Chart specs: how each chart is judged.

A `Specs` document is a list of entries, each with a glob for the chamber and one for the chart, and a
default at the end. The first entry that matches a chart decides everything about it; there is always a
match, since the default is always there. A person writes the document as YAML or JSON
(`runtime.specs_text`), the bucket ``chart-specs`` keeps it as JSON under the key ``specs`` (`encode`,
`decode`), and the key's revision is the *spec revision* that verdicts carry (0: the built-in default, no
document was ever stored).

This module is pure. `docs/charts.md` explains the fields to people.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from fnmatch import translate
from functools import cached_property
from typing import Any, Final, TypedDict

import msgspec
from msgspec import Struct

from runtime.errors import InputError
from runtime.names import fnv1a_32

KEY: Final = "specs"
"""The key of the document in the bucket ``chart-specs``."""
RULES_KNOWN: Final = (1, 2, 3, 4)
K_MAX: Final = 10.0
CENTRE_MAX: Final = 2.0**53
WINDOW_MAX: Final = 4096
GLOB_CHARACTERS_MAX: Final = 256
DOCUMENT_BYTES_MAX: Final = 1_000_000
"""One message of a bucket: a server takes 1 MB (1,048,576 bytes) unless it is told otherwise."""
MATCH_CACHE_MAX: Final = 65_536
"""Charts whose match is remembered; past it the cache starts anew, so that memory stays bounded (~10 MB)."""

_GLOB_CHARACTERS: Final = frozenset("*?[")
_NEVER_IN_A_NAME: Final = re.compile(r"[\s.>\x00-\x1f\x7f]")


class Baseline(StrEnum):
    """Where a chart's centre line comes from."""

    FROZEN = "frozen"
    MOVING = "moving"
    GIVEN = "given"


KINDS: Final = {Baseline.GIVEN: 0, Baseline.FROZEN: 1, Baseline.MOVING: 2}
"""The numbers of the baselines in the kernels."""
KIND_MASK: Final = 3


class Compiled(TypedDict):
    """One spec as the kernels take it: the arguments of ``kernels.state.spec_row``."""

    kind: Any  # a number of KINDS; the kernels' own enum is not imported here, for it brings numpy
    k: float
    rules: int
    phase_one: int
    minimum: int
    centre: float
    basis: int


class SpecsError(InputError):
    """A specs document cannot be used; *problems* lists everything that was found, each with its place."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ChartSpec(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How the charts are judged whose chamber and chart name match the globs (case counts).

    ``baseline``: ``frozen`` (the centre line of the first ``phase_one`` usable subgroups, then kept),
    ``moving`` (of the usable subgroups in the window) or ``given`` (``centre``, in nonconformities a unit).
    ``k`` is the distance of the limits in sigma, ``rules`` the Nelson rules in force, ``minimum`` the usable
    subgroups that there must be before a chart has limits at all. ``name`` is a label for people.
    """

    chamber: str = "*"
    chart: str = "*"
    name: str = ""
    baseline: Baseline = Baseline.FROZEN
    centre: float | None = None
    k: float = 3.0
    rules: tuple[int, ...] = RULES_KNOWN
    phase_one: int = 25
    minimum: int = 10

    @property
    def rules_mask(self) -> int:
        """Bit r-1 set for rule r."""
        return sum(1 << (rule - 1) for rule in set(self.rules))

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
    """The whole document. `match` gives the index of an entry; the default's index is ``len(charts)``."""

    charts: tuple[ChartSpec, ...] = ()
    default: ChartSpec = ChartSpec()

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
"""What holds while nobody has applied a document: frozen after 25 subgroups, k 3, Nelson rules 1-4."""


def basis(spec: ChartSpec) -> int:
    """Fingerprint of what a chart's *stage* rests on: when it changes, the chart starts a new stage.

    32 bits, never 0 (0 stands for "no spec yet"); the low two are the kind of the baseline, by which a
    rebuild from the history knows it. The rules in force, the names and the globs are not part
    of it, nor is k of a given centre: with them the limits change, but the baseline is what it was. k of the
    other two is, because it decides which subgroups are left out of the baseline.
    """
    match spec.baseline:
        case Baseline.GIVEN:
            text = f"given {spec.centre!r}"
        case Baseline.FROZEN:
            text = f"frozen {spec.phase_one} {spec.k!r}"
        case Baseline.MOVING:
            text = f"moving {spec.k!r}"
    return (fnv1a_32(text) & ~KIND_MASK | KINDS[spec.baseline]) or KIND_MASK + 1


def compile(specs: Specs) -> list[Compiled]:
    """All specs for the kernels, in the order of the document, the default last."""
    return [
        Compiled(
            kind=KINDS[spec.baseline],
            k=spec.k,
            rules=spec.rules_mask,
            phase_one=spec.phase_one,
            minimum=spec.minimum,
            centre=0.0 if spec.centre is None else spec.centre,
            basis=basis(spec),
        )
        for spec in (*specs.charts, specs.default)
    ]


def problems_of(specs: Specs, window: int) -> list[str]:
    """What is wrong with a document's values and their relations; *window* is the setting WINDOW."""
    return [
        f"{specs.label(index)}: {problem}"
        for index in range(len(specs))
        for problem in spec_problems(specs[index], window, is_default=index == len(specs.charts))
    ]


def spec_problems(spec: ChartSpec, window: int, *, is_default: bool) -> Iterable[str]:
    """What is wrong with the values of one entry and their relations; each begins with its field's name."""
    for field, glob in (("chamber", spec.chamber), ("chart", spec.chart)):
        if is_default and glob != "*":
            yield f"{field} {glob!r}: the default is for every chart; move it into an entry of charts"
        yield from _glob_problems(field, glob)
    if not 0 < spec.k <= K_MAX:
        yield f"k {spec.k!r} must be above 0 and at most {K_MAX:g} (3 is usual)"
    unknown = [rule for rule in spec.rules if rule not in RULES_KNOWN]
    if unknown:
        yield f"rules {unknown} are not known; this version has Nelson rules 1, 2, 3 and 4"
    if spec.baseline is Baseline.GIVEN:
        if spec.centre is None:
            yield "baseline given needs a centre (nonconformities a unit)"
        elif not 0 < spec.centre <= CENTRE_MAX:
            yield f"centre {spec.centre!r} must be above 0 and finite"
        return
    if spec.centre is not None:
        yield f"centre {spec.centre!r} is only for baseline given, not for {spec.baseline}"
    if spec.minimum < 1:
        yield f"minimum {spec.minimum} must be at least 1"
    if spec.baseline is Baseline.MOVING:
        if 1 not in spec.rules:
            yield "baseline moving needs rule 1: what it signals is left out of the baseline"
        if spec.minimum > window:
            yield f"minimum {spec.minimum} is above WINDOW {window}: such a chart never has limits"
        return
    if spec.phase_one < 2:
        yield f"phase_one {spec.phase_one} must be at least 2"
    if spec.phase_one > window:
        yield f"phase_one {spec.phase_one} is above WINDOW {window}: lower it, or set WINDOW higher"
    if spec.minimum > spec.phase_one:
        yield f"minimum {spec.minimum} is above phase_one {spec.phase_one}: lower minimum, or raise phase_one"


def _glob_problems(field: str, glob: str) -> Iterable[str]:
    if not glob:
        yield f"{field} is empty: write '*' for all"
    elif len(glob) > GLOB_CHARACTERS_MAX:
        yield f"{field} is longer than {GLOB_CHARACTERS_MAX} characters"
    elif _NEVER_IN_A_NAME.search(glob):
        yield f"{field} {glob!r} can match nothing: no {field} has a space, a dot or a '>' in its name"


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


def adopt(specs: Specs, frozen: Iterable[tuple[str, str, float]]) -> Specs:
    """*specs* with the given centre of each (chamber, chart, centre) in *frozen*.

    An entry for exactly this chart is put before the one that matched it so far and takes over its k, rules
    and name; an entry that was adopted before gets the new centre. All other charts match what they matched.
    """
    before: dict[int, list[ChartSpec]] = {}
    replaced: dict[int, ChartSpec] = {}
    for chamber, chart, centre in sorted(frozen):
        index, found = specs.match(chamber, chart)
        entry = ChartSpec(
            chamber=escaped(chamber),
            chart=escaped(chart),
            name=found.name,
            baseline=Baseline.GIVEN,
            centre=centre,
            k=found.k,
            rules=found.rules,
        )
        if index < len(specs.charts) and (found.chamber, found.chart) == (entry.chamber, entry.chart):
            replaced[index] = entry
        else:
            before.setdefault(index, []).append(entry)
    entries: list[ChartSpec] = []
    for index, spec in enumerate(specs.charts):
        entries += before.get(index, [])
        entries.append(replaced.get(index, spec))
    entries += before.get(len(specs.charts), [])
    return Specs(charts=tuple(entries), default=specs.default)


def escaped(name: str) -> str:
    """A glob that matches exactly *name*."""
    return re.sub(r"[*?[]", r"[\g<0>]", name)
