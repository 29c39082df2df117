"""What the lab's producers publish, and when each report is due. Pure.

A report of one load is the same whoever makes it when: its chamber, its charts and its counts follow from the
seed, the producer and the report's number; only `at` is the time. They are drawn in blocks by NumPy (1 µs
a report of 10 samples), and what many reports have in common is encoded once: then a frame takes 3 µs more.
Frames pieced together from bytes, the counts encoded by NumPy, took 2 µs, for twice the text.

    load ──► divided ──► Part a producer ──► Reports ──► frames
                                  Schedule ──► due times ──┘
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
import numpy as np
from msgspec import Raw, Struct
from numpy.typing import NDArray

from bench.lab.errors import LabError
from bench.lab.scenario import LoadOf
from runtime.frames import frame_hpub
from runtime.names import Names
from runtime.specs import Baseline, ChartSpec, Specs
from runtime.wire import CHARTS_MAX

SPECS: Final = Specs(
    charts=(
        ChartSpec(chart="given_*", baseline=Baseline.GIVEN, centre=0.11),
        ChartSpec(chart="moving_*", baseline=Baseline.MOVING, minimum=5),
        ChartSpec(chart="frozen_*", phase_one=12, minimum=4),
    ),
    default=ChartSpec(phase_one=16, minimum=6),
)
"""What the lab applies: a report's charts take turns at them."""
KINDS: Final = ("given", "moving", "frozen", "other")
GIVEN_U: Final = 0.11
"""Nonconformities a unit on the given charts; the others have their own between the two below."""
U_LEAST: Final = 0.08
U_MOST: Final = 0.2
UNITS_LEAST: Final = 10.0
UNITS_MOST: Final = 40.0
UNIT_SETS: Final = 16
"""How many different areas the reports of a load have."""
EXCURSION_LEAST: Final = 60
"""Of a planted excursion's count: the Poisson means are 8 at most, the upper limits below 20."""
EXCURSION_MOST: Final = 120
BLOCK_REPORTS_MAX: Final = 1024
BLOCK_SAMPLES_MAX: Final = 65_536
CHAMBERS_MAX: Final = 100_000
NS: Final = 1_000_000_000


class Part(NamedTuple):
    """What one producer publishes."""

    producer: int
    chambers: tuple[int, ...]
    """Their places in the load, 0 is the hottest."""
    share: float
    """Of the load's rate."""


def checked(load: LoadOf) -> LoadOf:
    """The load itself. Raises LabError, which says everything that it cannot be."""
    problems = [
        f"{name} is {value}: {must}"
        for name, value, is_good, must in (
            ("reports_per_s", load.reports_per_s, _is_rate(load.reports_per_s), "give 0 or more"),
            ("chambers", load.chambers, 1 <= load.chambers <= CHAMBERS_MAX, f"give 1 to {CHAMBERS_MAX}"),
            ("samples", load.samples, 1 <= load.samples <= CHARTS_MAX, f"give 1 to {CHARTS_MAX}"),
            ("producers", load.producers, load.producers >= 1, "give 1 or more"),
            ("skew", load.skew, _is_rate(load.skew), "give 0 (all chambers alike) or more"),
            ("burst", load.burst, load.burst >= 1, "give 1 or more"),
            ("excursion_every", load.excursion_every, load.excursion_every >= 0, "give 0 (none) or more"),
            ("seed", load.seed, load.seed >= 0, "give 0 or more"),
        )
        if not is_good
    ]
    if not problems and load.producers > load.chambers:
        problems.append(
            f"{load.producers} producers for {load.chambers} chambers: each chamber has one, give fewer"
        )
    if problems:
        raise LabError(f"load: {'; '.join(problems)}")
    return load


def _is_rate(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def chamber_name(place: int) -> str:
    return f"LAB-{place:05}"


def chart_names(samples: int) -> list[str]:
    return [f"{KINDS[i % len(KINDS)]}_{i:02}" for i in range(samples)]


def weights(load: LoadOf) -> NDArray[np.float64]:
    """Each chamber's share of the rate."""
    shares = np.arange(1, load.chambers + 1, dtype=np.float64) ** -load.skew
    return np.asarray(shares / shares.sum(), np.float64)


def divided(load: LoadOf) -> list[Part]:
    """The chambers, each to one producer, so that all producers have about the same to do."""
    shares = weights(load)
    chambers: list[list[int]] = [[] for _ in range(load.producers)]
    least = [(0.0, producer) for producer in range(load.producers)]
    for place, share in enumerate(shares.tolist()):
        sum_, producer = least[0]
        chambers[producer].append(place)
        heapq.heapreplace(least, (sum_ + share, producer))
    return [Part(p, tuple(places), float(shares[places].sum())) for p, places in enumerate(chambers)]


class _Stretch(NamedTuple):
    """From report *first* on: one *per_s* from *begin_ns* on."""

    first: int
    begin_ns: int
    per_s: float


class Schedule:
    """When each report is due: evenly, *burst* at a time, at a rate that may change."""

    def __init__(self, burst: int) -> None:
        self._burst = burst
        self._stretches: list[_Stretch] = []

    def change(self, at_ns: int, per_s: float) -> None:
        """Another rate from *at_ns* on; its first report is not due sooner after the last than it says."""
        first = self.due_by(at_ns)
        if self._stretches:
            last = self._stretches[-1]
            interval_ns = int(self._burst * NS / per_s) if per_s else 0
            is_due = first > last.first
            at_ns = max(at_ns, int(self.due_ns(first - 1, 1)[0]) + interval_ns if is_due else last.begin_ns)
        self._stretches.append(_Stretch(first, at_ns, per_s))

    def due_by(self, now_ns: int) -> int:
        """How many reports are due."""
        if not self._stretches:
            return 0
        first, begin_ns, per_s = self._stretches[-1]
        if now_ns < begin_ns or per_s == 0.0:
            return first
        return first + (int((now_ns - begin_ns) * per_s / NS / self._burst) + 1) * self._burst

    def due_ns(self, first: int, count: int) -> NDArray[np.int64]:
        """When reports *first* … are due; they must be so by a stretch that has begun."""
        numbers = np.arange(first, first + count)
        times = np.zeros(count, np.int64)
        for stretch in self._stretches:
            if stretch.per_s and stretch.first < first + count:
                ours = numbers >= stretch.first
                groups = (numbers[ours] - stretch.first) // self._burst
                after_ns = groups * (self._burst * NS / stretch.per_s)
                times[ours] = stretch.begin_ns + after_ns.astype(np.int64)
        return times

    def pause_s(self, published: int, now_ns: int, most_s: float) -> float:
        """Until the next report is due; *most_s* at most."""
        if self._stretches and self._stretches[-1].per_s:
            wait_s = (int(self.due_ns(published, 1)[0]) - now_ns) / NS
            return min(most_s, max(0.0, wait_s))
        return most_s


class _Outgoing(Struct, gc=False):
    """A report whose charts and units are encoded already."""

    at: int
    run: str
    charts: Raw
    counts: list[int]
    units: Raw


class _Form(NamedTuple):
    """One encoding, and in it what many reports have in common."""

    encode: Callable[[_Outgoing], bytes]
    charts: Raw
    unit_sets: list[Raw]


class _Block(NamedTuple):
    """What was drawn for the reports of one block."""

    chambers: list[int]
    unit_sets: list[int]
    counts: list[list[int]]


class Reports:
    """One producer's reports as frames. *token* begins every run's name and message ID, the number ends it.

    Acknowledgements come on *inbox* with the report's number as last token.
    """

    def __init__(self, load: LoadOf, names: Names, part: Part, token: str, inbox: bytes) -> None:
        self._load, self._part, self._token, self._inbox = load, part, token, inbox
        self._block_reports = max(1, min(BLOCK_REPORTS_MAX, BLOCK_SAMPLES_MAX // load.samples))
        rng = np.random.default_rng(np.random.SeedSequence(load.seed, spawn_key=(0,)))
        units = rng.uniform(UNITS_LEAST, UNITS_MOST, (UNIT_SETS, load.samples)).round(1)
        u = rng.uniform(U_LEAST, U_MOST, load.samples)
        u[:: len(KINDS)] = GIVEN_U
        self._means = u * units
        shares = weights(load)[list(part.chambers)]
        self._cumulated = np.cumsum(shares / shares.sum())
        self._subjects = [names.sample(chamber_name(place)).encode() for place in part.chambers]
        packed, text = (
            _form(msgspec.msgpack.Encoder().encode, units),
            _form(msgspec.json.Encoder().encode, units),
        )
        is_packed = rng.random(load.chambers) < {"msgpack": 1.0, "json": 0.0, "mixed": 0.5}[load.encoding]
        self._forms = [packed if is_packed[place] else text for place in part.chambers]
        self._block_number, self._block = -1, _Block([], [], [])

    def frames(self, first: int, due_ns: NDArray[np.int64]) -> list[tuple[bytes, bytes]]:
        """(number, frame) of reports *first* …, one a due time."""
        made: list[tuple[bytes, bytes]] = []
        token, inbox, subjects, forms = self._token, self._inbox, self._subjects, self._forms
        for number, at in enumerate(due_ns.tolist(), first):
            block, row = divmod(number, self._block_reports)
            if block != self._block_number:
                self._block_number, self._block = block, self._drawn(block)
            chamber, units = self._block.chambers[row], self._block.unit_sets[row]
            form, run = forms[chamber], f"{token}{number}"
            payload = form.encode(
                _Outgoing(at, run, form.charts, self._block.counts[row], form.unit_sets[units])
            )
            digits = b"%d" % number
            reply, header = b"%b.%b" % (inbox, digits), b"Nats-Msg-Id:%b\r\n" % run.encode()
            made.append((digits, frame_hpub(subjects[chamber], header, payload, reply)))
        return made

    def _drawn(self, number: int) -> _Block:
        load, size = self._load, self._block_reports
        key = (1, self._part.producer, number)
        rng = np.random.default_rng(np.random.SeedSequence(load.seed, spawn_key=key))
        chambers = np.searchsorted(self._cumulated, rng.random(size), side="right")
        chambers = np.minimum(chambers, len(self._subjects) - 1)  # a sum may end a little below 1
        unit_sets = rng.integers(0, UNIT_SETS, size)
        counts = rng.poisson(self._means[unit_sets])
        if load.excursion_every:
            rows = np.flatnonzero(rng.random(size) < 1.0 / load.excursion_every)
            charts = rng.integers(0, load.samples, len(rows))
            counts[rows, charts] = rng.integers(EXCURSION_LEAST, EXCURSION_MOST + 1, len(rows))
        return _Block(chambers.tolist(), unit_sets.tolist(), counts.tolist())


def _form(encode: Callable[[object], bytes], units: NDArray[np.float64]) -> _Form:
    charts = Raw(encode(chart_names(units.shape[1])))
    return _Form(encode, charts, [Raw(encode(row)) for row in units.tolist()])
