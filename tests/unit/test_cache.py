"""The cache's directory: what is evicted, what is forgotten, what a successor finds again."""

from __future__ import annotations

import os

import msgspec
import pytest

from runtime.arena import WHOLE, Arena, Shape
from runtime.cache import Cache, CacheFull
from runtime.examine import Limits
from runtime.flight import FlightLog
from runtime.judge import Judge, Sample
from runtime.names import Names
from runtime.specs import Specs

DEPTH = 4
NAMES = Names(partitions=1)


def arena(slots: int = 6, rows: int = 3) -> Arena:
    return Arena(os.memfd_create("test"), Shape(1, slots, rows, 4, flights=2, reports=8, samples=64))


def judge_over(memory: Arena) -> Judge:
    cache = Cache(memory, NAMES, Specs(), 0, DEPTH)
    judge = Judge(cache, FlightLog(memory), Limits(10_000, 1e9, 1e9), "defender-0")
    judge.epochs[0], judge.positions[0] = 1, 0
    return judge


def report(seq: int, chamber: str, *charts: str) -> Sample:
    payload = {"charts": charts, "counts": [1] * len(charts), "units": [2.0] * len(charts)}
    return Sample(chamber, 0, seq, 0, msgspec.json.encode(payload))


def known(judge: Judge, *chambers: str) -> None:
    for chamber in chambers:
        judge.cache.loaded([judge.cache.add(chamber, 0)])


def land(judge: Judge, *samples: Sample) -> None:
    batch = judge.judge(samples)
    assert len(batch.judged) == len(samples)
    assert batch.flight is not None
    judge.flights.confirm(batch.flight)


def test_charts_that_a_chamber_reports_no_more_make_room_for_its_new_ones() -> None:
    """A chamber with ever new chart names neither fills the cache nor drives others out."""
    judge = judge_over(arena())
    known(judge, "A", "B")
    land(judge, report(1, "B", "stays"))
    for seq in range(2, 60):
        land(judge, report(seq, "A", f"chart-{seq}"))
    assert judge.cache.evictions == 0
    assert judge.cache.get("B") is not None


def test_the_chamber_that_was_not_used_for_longest_leaves_first_and_its_partition_is_no_longer_whole() -> (
    None
):
    memory = arena()
    memory.partitions[0] = WHOLE
    judge = judge_over(memory)
    known(judge, "A", "B")
    land(judge, report(1, "A", "a", "b"), report(2, "B", "a", "b", "c"))
    known(judge, "C")
    land(judge, report(3, "B", "a", "b", "c"))
    land(judge, report(4, "C", "a", "b"))
    assert set(judge.cache.chambers) == {"B", "C"}
    assert memory.partitions[0] != WHOLE


def test_what_is_in_flight_is_never_evicted() -> None:
    judge = judge_over(arena())
    known(judge, "A", "B")
    flying = judge.judge([report(1, "A", "a", "b", "c", "d")])
    full = judge.judge([report(2, "B", "a", "b", "c")])
    assert (full.judged, len(full.left)) == ([], 1)
    with pytest.raises(CacheFull):
        judge.cache.resolve_names(judge.cache.chambers["B"], ["a", "b", "c"])
    assert flying.flight is not None
    judge.flights.confirm(flying.flight)
    land(judge, report(2, "B", "a", "b", "c"))
    assert set(judge.cache.chambers) == {"B"}


def test_a_successor_finds_what_was_confirmed_and_a_half_read_chamber_is_free() -> None:
    memory = arena()
    judge = judge_over(memory)
    known(judge, "A")
    land(judge, report(7, "A", "a", "b"))
    judge.cache.add("half-read", 0)
    found = Cache(Arena(memory.fd, memory.shape), NAMES, Specs(), 0, DEPTH)
    assert set(found.chambers) == {"A"}
    assert (found.chambers["A"].seq, found.chambers["A"].ordinal) == (7, 1)
    assert found.chambers["A"].slots == judge.cache.chambers["A"].slots
    assert found.slots_used == 2
    found.add("C", 0)
    found.add("D", 0)
    assert found.evictions == 0, "the half-read one left its row"


def test_memory_of_another_shape_is_forgotten() -> None:
    memory = arena()
    known(judge_over(memory), "A")
    other = Arena(memory.fd, Shape(1, 9, 3, 4, flights=2, reports=8, samples=64))
    assert not other.kept
    assert Cache(other, NAMES, Specs(), 0, DEPTH).chambers == {}
    known(judge_over(other), "B")
    other.header[1] += 1  # of another version of the layout, and as large by chance
    assert Cache(Arena(other.fd, other.shape), NAMES, Specs(), 0, DEPTH).chambers == {}


def test_a_report_that_will_be_rejected_takes_no_slots() -> None:
    judge = judge_over(arena())
    known(judge, "A")
    payload = msgspec.json.encode({"charts": ["a", "b"], "counts": [1], "units": [1.0]})
    batch = judge.judge([Sample("A", 0, 1, 0, payload)])
    assert len(batch.rejected) == 1
    assert judge.cache.slots_used == 0
