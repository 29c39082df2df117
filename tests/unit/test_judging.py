"""From reports to verdicts with what only some charts have: marks, samples left out, episodes of alarms."""

from __future__ import annotations

import os
import random
from typing import Any

import msgspec
import pytest

from kernels.state import DIAGNOSE_EVERY
from runtime.arena import WHOLE, Arena, Shape
from runtime.cache import Cache
from runtime.examine import Limits
from runtime.flight import FlightLog
from runtime.judge import Judge, Sample
from runtime.names import Names
from runtime.rebuild import Rebuild
from runtime.specs import Alarm, Baseline, ChartSpec, Specs
from runtime.specs_methods import Mode
from runtime.stored import decode_stored
from runtime.wire import Verdict, decode_alarm, decode_verdict

NAMES = Names(partitions=1)
NOW_NS = 1_700_000_000_000_000_000
PLAIN = {
    *("chamber", "seq", "ordinal", "epoch", "spec", "defender", "run", "at", "position", "charts"),
    *("counts", "units", "u", "centre", "lcl", "ucl", "flags", "phase", "basis", "stage"),
}


class One:
    """A worker with one chamber, C."""

    def __init__(self, default: ChartSpec, *, window: int = 8, depth: int = 8) -> None:
        shape = Shape(1, 20, 4, window, flights=2, reports=8, samples=64)
        arena = Arena(os.memfd_create("test"), shape)
        arena.partitions[0] = WHOLE
        self.cache = Cache(arena, NAMES, Specs(default=default), 1, depth)
        self.judge = Judge(self.cache, FlightLog(arena), Limits(10_000, 1e9, 1e9), "defender-0")
        self.judge.epochs[0], self.judge.positions[0] = 1, 0
        self.stored: list[bytes] = []
        self.alarms: list[bytes] = []

    def add(self) -> None:
        self.cache.loaded([self.cache.add("C", 0)])

    def report(self, **fields: Any) -> Verdict:
        sample = Sample("C", 0, len(self.stored) + 1, NOW_NS, msgspec.json.encode(fields))
        batch = self.judge.judge([sample])
        assert batch.flight is not None
        self.judge.flights.confirm(batch.flight)
        self.stored.append(batch.verdicts[0][2])
        self.alarms = [payload for _, _, payload in batch.alarms]
        return decode_verdict(self.stored[-1])

    def counts(self, **counts: float) -> Verdict:
        return self.report(charts=list(counts), counts=list(counts.values()), units=[1.0] * len(counts))

    def told(self) -> list[tuple[str, str, str]]:
        """(chart, event, text) of the newest report's alarm."""
        return [
            (one.chart, one.event, one.text) for alarm in self.alarms for one in decode_alarm(alarm).charts
        ]


def one(spec: ChartSpec, **settings: int) -> One:
    worker = One(spec, **settings)
    worker.add()
    return worker


GIVEN = ChartSpec(baseline=Baseline.GIVEN, centre=2.0)


def test_a_report_of_which_no_chart_has_more_has_the_plain_fields_only() -> None:
    worker = one(GIVEN)
    worker.counts(a=2, b=3)
    assert (
        set(msgspec.msgpack.decode(worker.stored[0])) == PLAIN | {"v"} - {"v"}
        or set(msgspec.msgpack.decode(worker.stored[0])) == PLAIN
    )


def test_an_episode_is_one_alarm_that_begins_and_one_that_ends() -> None:
    worker = one(GIVEN)
    told = []
    for count in (2, 30, 30, 2, 2, 2, 2):
        worker.counts(a=count, b=2)
        told.append(worker.told())
    (begin,), (end,) = told[1], told[5]
    assert begin == ("a", "begin", "a: u 30 is above UCL 6.24264")
    assert end == ("a", "end", "a: alarm since report 2 is over: quiet for 3 reports")
    assert [told[i] for i in (0, 2, 3, 4, 6)] == [[]] * 5


def test_a_reset_ends_the_alarms_of_its_charts_and_names_them() -> None:
    worker = one(GIVEN)
    worker.counts(a=30, b=2, c=30)
    verdict = worker.report(reset="pump changed", charts=["a", "unknown"])
    assert (verdict.charts, verdict.event, verdict.episode, verdict.counts) == (["a"], [3], [1], [])
    assert worker.told() == [("a", "end", "a: alarm since report 1 is over: reset (pump changed)")]
    verdict = worker.report(reset="cleaned")
    assert (verdict.charts, verdict.event) == (["a", "b", "c"], [0, 0, 3])
    assert worker.report(reset="again").charts == [], "all charts, and no alarm is open"


def test_an_open_alarm_that_the_history_has_forgotten_ends_without_a_word() -> None:
    """As it does where the chart was read from the history, which does not have it."""
    for count, event in ((2, []), (30, [1])):
        worker = one(GIVEN, window=4, depth=4)
        worker.counts(a=30)
        for _ in range(4):
            worker.counts(b=2)
        assert worker.counts(a=count).event == event


def test_where_every_signal_is_an_alarm_none_has_an_episode() -> None:
    worker = one(ChartSpec(baseline=Baseline.GIVEN, centre=2.0, alarm=Alarm(mode=Mode.EVERY)))
    for _ in range(3):
        verdict = worker.counts(a=30, b=2)
        assert (verdict.severity, verdict.episode, verdict.event) == (["critical", ""], [], [])
        assert worker.told() == [("a", "", "a: u 30 is above UCL 6.24264")]
    worker.counts(a=2, b=2)
    assert worker.told() == []


def test_an_episode_that_is_open_when_every_signal_becomes_an_alarm_ends_with_the_next_sample() -> None:
    worker = one(GIVEN)
    worker.counts(a=30)
    every = ChartSpec(baseline=Baseline.GIVEN, centre=2.0, alarm=Alarm(mode=Mode.EVERY, end_after=9))
    worker.cache.use_specs(Specs(default=every), 2)
    worker.counts(a=30)
    assert [event for _, event, _ in worker.told()] == ["end"]
    worker.counts(a=30)
    assert [event for _, event, _ in worker.told()] == [""]


@pytest.mark.parametrize(("before", "left_out"), [(0, [1, 4]), (1, [2, 5])])
def test_the_first_verdict_after_phase_one_names_what_was_left_out(before: int, left_out: list[int]) -> None:
    """Also what that very sample displaced from a full window."""
    worker = one(ChartSpec(phase_one=7, minimum=2), window=7, depth=9)
    for _ in range(before):
        worker.counts(b=1)
    for count in (60, 12, 13, 60, 12, 11, 12):
        assert worker.counts(a=count).excluded == {}
    verdict = worker.counts(a=12, b=1)
    assert verdict.phase[0] == 2
    assert verdict.excluded == {"a": left_out}
    assert worker.counts(a=12).excluded == {}


def rebuilt(worker: One, spec: ChartSpec, **settings: int) -> One:
    """Another one that has read the history."""
    other = One(spec, **settings)
    rebuild = Rebuild(other.cache, 0)
    rebuild.take([decode_stored(row) for row in worker.stored[-worker.cache.depth :]])
    rebuild.finish()
    other.stored = list(worker.stored)
    return other


@pytest.mark.parametrize(
    "spec",
    [
        ChartSpec(phase_one=25, minimum=5),
        ChartSpec(baseline=Baseline.GIVEN, centre=10.0),
        ChartSpec(baseline=Baseline.MOVING, minimum=5),
    ],
    ids=lambda spec: spec.baseline.value,
)
def test_a_chart_whose_scatter_is_no_poisson_distributions_is_marked_and_stays_so_when_read_again(
    spec: ChartSpec,
) -> None:
    """Counts with half of a Poisson distribution's scatter, looked at when it froze or now and then."""
    rng = random.Random(5)
    memory = {"window": 32, "depth": 40}
    worker = one(spec, **memory)
    verdicts = [
        worker.counts(a=rng.choice([9, 10, 11]), b=rng.choice([4, 16])) for _ in range(DIAGNOSE_EVERY + 9)
    ]
    since = 25 if spec.baseline is Baseline.FROZEN else DIAGNOSE_EVERY - 1
    assert all(verdict.mark == [] for verdict in verdicts[:since])
    assert all(verdict.mark[0] == 2 for verdict in verdicts[since:])
    assert all(0.0 < (verdict.sigma_z[0] or 0.0) < 0.5 for verdict in verdicts[since:])
    other = rebuilt(worker, spec, **memory)
    for _ in range(140):
        counts = {"a": rng.choice([9, 10, 11]), "b": rng.choice([4, 16])}
        worker.counts(**counts)
        other.counts(**counts)
        assert worker.stored[-1] == other.stored[-1]


def test_a_verdict_of_a_former_release_is_put_back_as_it_was() -> None:
    """Without the fields of alarms: none is open."""
    worker = one(GIVEN)
    worker.counts(a=30)
    fields = msgspec.msgpack.decode(worker.stored[0])
    former = msgspec.msgpack.encode({name: fields[name] for name in fields if name in PLAIN})
    worker.stored = [former]
    other = rebuilt(worker, GIVEN)
    assert other.counts(a=30).event == [1]
