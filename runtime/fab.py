"""A simulated fab: an endless, seeded stream of reports, and what the defender must make of each.

Chambers with rates, expected counts (0.4 to 300 a sample) and inspection units of their own; chambers
with an even number speak JSON, the others MessagePack. Among the ordinary reports there are

- *planted excursions*: a spike (one run) or a sustained shift (several runs) of one chart, so far out that
  rule 1 signals at each of its points whatever phase I made of the centre line;
- a maintenance reset of each chamber, now and then;
- broken messages, each `Reason` in turn: wholly broken ones, and ones with a single bad chart.

Ordinary points may lie beyond the limits by chance; those alarms are false ones, and not planted.
The stream is a pure function of the arguments: no clock, no randomness but the seed's. `published_set`
loads data of a textbook, with the limits that it prints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib import resources
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct

from runtime.specs import ChartSpec
from runtime.wire import CHARTS_MAX, RUN_CHARACTERS_MAX, Reason, to_datetime

_CHAMBER_KINDS: Final = ("ETCH", "CVD", "CMP", "LITHO", "IMPLANT", "CLEAN", "PVD", "DIFF")
_CHART_KINDS: Final = (
    "particles",
    "scratches",
    "residue",
    "pattern_defects",
    "pits",
    "bridges",
    "haze",
    "voids",
)
_EXPECTED_COUNT_MIN: Final = 0.4
_EXPECTED_COUNT_MAX: Final = 300.0
_UNITS: Final = (1.0, 5.0, 25.0, 70.69, 706.86)
"""Inspection units of one sample: wafers, dies, or cm² (a 300 mm wafer has 706.86)."""
_ABSENT: Final = 0.05
_SHIFT_RUNS: Final = 6
_SETTLED: Final = 5
"""Excursions begin this many samples after phase I."""
_RESET_FIRST: Final = 120
_RESET_EVERY: Final = 400


class Expect(StrEnum):
    """What must come of a report."""

    VERDICT = "verdict"
    PARTLY = "partly"
    REJECTED = "rejected"
    RESET = "reset"


class Excursion(StrEnum):
    """The shape of what was planted."""

    SPIKE = "spike"
    SHIFT = "shift"


class Plant(Struct, frozen=True):
    """One point of a planted excursion; the points of one excursion have the same *number*."""

    number: int
    kind: Excursion
    chamber: str
    chart: str
    run: str


class Planned(Struct, frozen=True):
    """One message of the fab: publish *payload* for *chamber*.

    ``samples`` of its charts must be judged; ``reason`` is why it (or, for `Expect.PARTLY`, one chart of it)
    must be rejected. A rejected message may have a ``chamber`` that no defender accepts as a name.
    """

    chamber: str
    run: str
    payload: bytes
    expect: Expect
    samples: int
    planted: tuple[Plant, ...] = ()
    reason: Reason | None = None


class Fab:
    """A fab of *chambers* with *charts* each. *start_ns* is the time of its first report (ns since 1970).

    Reports are *spacing_ns* apart in their own time. *phase_one* must be at least that of the charts' specs.
    One message in *broken_every* is broken (0: none); a chamber begins an excursion every *excursion_every*
    of its reports on average, as soon as a chart of it is past phase I.
    """

    def __init__(
        self,
        chambers: int = 12,
        charts: int = 4,
        seed: int = 0,
        *,
        start_ns: int,
        spacing_ns: int = 1_000_000,
        phase_one: int = 25,
        excursion_every: int = 30,
        broken_every: int = 40,
    ) -> None:
        self.seed = seed
        self._chambers = chambers
        self._charts = charts
        self._start_ns = start_ns
        self._spacing_ns = spacing_ns
        self._phase_one = phase_one
        self._excursion_every = excursion_every
        self._broken_every = broken_every

    def reports(self) -> Iterator[Planned]:
        """The messages in the order in which they are to be published, without end, the same at each call."""
        rng = np.random.default_rng(self.seed)
        chambers = [
            _Chamber(n, self._charts, self._phase_one, self._excursion_every, rng)
            for n in range(self._chambers)
        ]
        weights = rng.gamma(4.0, size=self._chambers)  # some chambers run five times as often as others
        turns: Iterator[int] = iter(())
        number = excursions = broken = 0
        while True:
            turn = next(turns, None)
            if turn is None:
                turns = iter(rng.choice(self._chambers, size=1024, p=weights / weights.sum()).tolist())
                continue
            at_ns = self._start_ns + number * self._spacing_ns
            number += 1
            chamber = chambers[turn]
            if self._broken_every and number % self._broken_every == 0:
                yield chamber.broken(at_ns, _BREAKAGES[broken % len(_BREAKAGES)])
                broken += 1
                continue
            planned = chamber.report(at_ns, excursions)
            excursions += sum(plant.number == excursions for plant in planned.planted)
            yield planned


class _Chamber:
    """One chamber's host: its charts' true rates, and how far each chart has come since the last reset."""

    def __init__(
        self, number: int, charts: int, phase_one: int, excursion_every: int, rng: np.random.Generator
    ) -> None:
        self._rng = rng
        self._name = f"{_CHAMBER_KINDS[number % len(_CHAMBER_KINDS)]}-{number // len(_CHAMBER_KINDS) + 1:02}"
        self._json = number % 2 == 0
        self._charts = [
            f"{kind}_{round_}" if round_ else kind
            for round_ in range(-(-charts // len(_CHART_KINDS)))
            for kind in _CHART_KINDS
        ][:charts]
        low, high = math.log(_EXPECTED_COUNT_MIN), math.log(_EXPECTED_COUNT_MAX)
        self._units = rng.choice(_UNITS, size=charts)
        self._varying = rng.random(charts) < 0.7
        self._rates = np.exp(rng.uniform(low, high, size=charts)) / self._units
        self._phase_one = phase_one
        self._excursion_every = excursion_every
        self._until_excursion = 0
        self._runs = 0
        self._next_reset = _RESET_FIRST + 10 * number
        self._judged = [0] * charts
        self._shifts: dict[int, tuple[int, int]] = {}  # chart -> (excursion, points left)

    def report(self, at_ns: int, next_excursion: int) -> Planned:
        """The chamber's next report or reset; *next_excursion* numbers an excursion that begins with it."""
        self._runs += 1
        run = f"R{self._runs:06}"
        if self._runs >= self._next_reset:
            return self._reset(at_ns, run)
        present, counts, units = self._draw()
        planted = self._plant(run, present, counts, units, next_excursion)
        for chart in present:
            self._judged[chart] += 1
        payload = self._encode(self._tree(at_ns, run, present, counts, units))
        return Planned(self._name, run, payload, Expect.VERDICT, len(present), planted)

    def broken(self, at_ns: int, breakage: _Breakage) -> Planned:
        """A message that is broken in one way; nothing else of the chamber's course is disturbed by it."""
        self._runs += 1
        run = f"R{self._runs:06}"
        present, counts, units = self._draw()
        tree = self._tree(at_ns, run, present, counts, units)
        payload = breakage.damage(tree)
        if not isinstance(payload, bytes):
            as_msgpack = breakage.reason is Reason.NOT_FINITE or not self._json  # JSON has no NaN
            payload = msgspec.msgpack.encode(payload) if as_msgpack else msgspec.json.encode(payload)
        judged = [] if breakage.lost is None else present[breakage.lost :]
        for chart in judged:
            self._judged[chart] += 1
        chamber = self._name if breakage.reason is not Reason.CHAMBER_NAME else self._name + "-" + "X" * 64
        expect = Expect.PARTLY if judged else Expect.REJECTED
        return Planned(chamber, run, payload, expect, len(judged), reason=breakage.reason)

    def _reset(self, at_ns: int, run: str) -> Planned:
        self._next_reset = self._runs + _RESET_EVERY
        self._judged = [0] * len(self._charts)
        self._shifts.clear()
        payload = self._encode(
            {"at": self._time(at_ns), "run": run, "reset": "maintenance: chamber was opened"}
        )
        return Planned(self._name, run, payload, Expect.RESET, 0)

    def _draw(self) -> tuple[list[int], list[int], list[float]]:
        """Charts that are present, and an ordinary count on so many units for each."""
        rng, size = self._rng, len(self._charts)
        present = np.flatnonzero(rng.random(size) >= _ABSENT)
        if not len(present):
            present = np.arange(1)
        factor = np.where(self._varying[present], rng.uniform(0.6, 1.4, size=len(present)), 1.0)
        units = np.round(self._units[present] * factor, 2)
        counts = rng.poisson(self._rates[present] * units)
        return present.tolist(), counts.tolist(), units.tolist()

    def _plant(
        self, run: str, present: list[int], counts: list[int], units: list[float], next_excursion: int
    ) -> tuple[Plant, ...]:
        """Raises the counts of charts in an excursion, and begins one when it is time."""
        self._until_excursion -= 1
        ready = [chart for chart in present if self._judged[chart] >= self._phase_one + _SETTLED]
        ready = [chart for chart in ready if chart not in self._shifts]
        if self._until_excursion <= 0 and ready:
            chart = int(self._rng.choice(ready))
            points = _SHIFT_RUNS if self._rng.random() < 0.5 else 1
            self._shifts[chart] = (next_excursion, points)
            self._until_excursion = int(self._rng.integers(1, 2 * self._excursion_every))
        planted: list[Plant] = []
        for place, chart in enumerate(present):
            if chart not in self._shifts:
                continue
            number, left = self._shifts.pop(chart)
            begins = number == next_excursion
            kind = Excursion.SPIKE if begins and left == 1 else Excursion.SHIFT
            if left > 1:
                self._shifts[chart] = (number, left - 1)
            counts[place] = far_out(float(self._rates[chart]), units[place])
            planted.append(Plant(number, kind, self._name, self._charts[chart], run))
        return tuple(planted)

    def _tree(
        self, at_ns: int, run: str, present: list[int], counts: list[int], units: list[float]
    ) -> dict[str, Any]:
        charts = [self._charts[chart] for chart in present]
        return {"at": self._time(at_ns), "run": run, "charts": charts, "counts": counts, "units": units}

    def _time(self, at_ns: int) -> Any:
        return to_datetime(at_ns) if self._json else at_ns

    def _encode(self, tree: dict[str, Any]) -> bytes:
        return msgspec.json.encode(tree) if self._json else msgspec.msgpack.encode(tree)


def far_out(rate: float, units: float) -> int:
    """A count that rule 1 flags even if phase I took the centre line for three times the true *rate*.

    With 25 subgroups of an expected count of at least 0.4 that happens to one chart in ten million.
    """
    expected = 3.0 * rate * units
    return math.ceil(expected + 6.0 * math.sqrt(expected) + 12.0)


class _Breakage(Struct, frozen=True):
    """One way to break a report: *damage* returns the changed tree, or bytes that are none.

    *lost*: how many of the report's own charts (the first ones) it takes; None for all of them.
    """

    reason: Reason
    damage: Callable[[dict[str, Any]], Any]
    lost: int | None = None


def _first(field: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    """Damage to the first chart only."""
    return lambda tree: {**tree, field: [value, *tree[field][1:]]}


def _twice(tree: dict[str, Any]) -> Any:
    """The first chart named again at the end: the second one is refused."""
    return {
        name: [*values, values[0]] if isinstance(values, list) else values for name, values in tree.items()
    }


def _many(tree: dict[str, Any]) -> Any:
    size = CHARTS_MAX + 1
    charts = [f"c{n}" for n in range(size)]
    return {**tree, "charts": charts, "counts": [1] * size, "units": [1.0] * size}


_BREAKAGES: Final = (
    _Breakage(Reason.UNDECODABLE, lambda _: b'{"charts": ["particles", \xff\xfe'),
    _Breakage(Reason.COUNT_NEGATIVE, _first("counts", -3), lost=1),
    _Breakage(Reason.MISSING_FIELD, lambda tree: {k: v for k, v in tree.items() if k != "counts"}),
    _Breakage(Reason.COUNT_FRACTIONAL, _first("counts", 2.5), lost=1),
    _Breakage(Reason.LENGTHS_DIFFER, lambda tree: {**tree, "units": [*tree["units"], 1.0]}),
    _Breakage(Reason.UNITS_NOT_POSITIVE, _first("units", 0.0), lost=1),
    _Breakage(Reason.CHART_TWICE, _twice, lost=0),
    _Breakage(Reason.WRONG_TYPE, lambda tree: {**tree, "counts": "many"}),
    _Breakage(Reason.NOT_FINITE, _first("units", math.nan), lost=1),
    _Breakage(Reason.EMPTY, lambda tree: {**tree, "charts": [], "counts": [], "units": []}),
    _Breakage(Reason.CHART_NAME, _first("charts", "two words"), lost=1),
    _Breakage(Reason.TIME_FAR_OFF, lambda tree: {**tree, "at": 0}),
    _Breakage(Reason.COUNT_TOO_LARGE, _first("counts", 2**60), lost=1),
    _Breakage(Reason.CHAMBER_MISMATCH, lambda tree: {**tree, "chamber": "ANOTHER-01"}),
    _Breakage(Reason.RESET_WITH_SAMPLES, lambda tree: {**tree, "reset": "maintenance"}),
    _Breakage(Reason.UNITS_OUT_OF_RANGE, _first("units", 1e300), lost=1),
    _Breakage(Reason.RUN_NAME, lambda tree: {**tree, "run": "R" * (RUN_CHARACTERS_MAX + 1)}),
    _Breakage(Reason.CHAMBER_NAME, lambda tree: tree),
    _Breakage(Reason.TOO_MANY_CHARTS, _many),
    _Breakage(Reason.TOO_LARGE, lambda tree: {**tree, "note": "x" * 300_000}),
)


class PublishedSet(Struct, frozen=True):
    """One chart's samples from a textbook, with what the book says of them.

    ``excluded`` (indices of phase I), ``centre``, ``lcl``, ``ucl`` (of phase II) and ``signals`` (indices of
    phase II that rule 1 flags) must come out of the verdicts.
    """

    name: str
    source: str
    chamber: str
    chart: str
    phase_one: int
    counts: list[int]
    units: list[float]
    excluded: list[int]
    centre: float
    lcl: float
    ucl: float
    signals: list[int]

    def spec(self) -> ChartSpec:
        """The spec under which the book's limits come out."""
        return ChartSpec(self.chamber, self.chart, self.name, phase_one=self.phase_one)

    def reports(self, start_ns: int, spacing_ns: int = 1_000_000) -> Iterator[Planned]:
        """One report a sample, in order."""
        for index, (count, units) in enumerate(zip(self.counts, self.units, strict=True)):
            run = f"sample-{index + 1}"
            tree = {
                "at": to_datetime(start_ns + index * spacing_ns),
                "run": run,
                "charts": [self.chart],
                "counts": [count],
                "units": [units],
            }
            yield Planned(self.chamber, run, msgspec.json.encode(tree), Expect.VERDICT, 1)


def published_set(name: str = "circuit_boards") -> PublishedSet:
    """A packaged data set: ``circuit_boards`` (Montgomery's printed circuit boards)."""
    text = resources.files("runtime").joinpath("sets", f"{name}.json").read_bytes()
    return msgspec.json.decode(text, type=PublishedSet)
