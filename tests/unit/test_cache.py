"""The cache's directory: what is evicted, what is forgotten, what a successor finds again."""

from __future__ import annotations

import os

import msgspec
import pytest

from runtime.arena import PARTLY, UNREAD, WHOLE, Arena, Shape
from runtime.cache import Cache, CacheFull
from runtime.examine import Limits
from runtime.flight import FlightLog
from runtime.judge import Judge, Sample
from runtime.names import Names
from runtime.rebuild import Rebuild
from runtime.specs import Specs
from runtime.stored import StoredVerdict, decode_stored

DEPTH = 4
NAMES = Names(partitions=2)


def arena(slots: int = 6, rows: int = 3) -> Arena:
    made = Arena(os.memfd_create("test"), Shape(2, slots, rows, 4, flights=2, reports=8, samples=64))
    made.partitions[0] = WHOLE
    return made


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
    other = Arena(memory.fd, Shape(2, 9, 3, 4, flights=2, reports=8, samples=64))
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


def stored(*reports: tuple[str, int, str], partition: int = 1) -> list[StoredVerdict]:
    """Verdicts of (chamber, sequence, charts), as another worker published them."""
    judge, rows = judge_over(arena(slots=99, rows=9)), []
    judge.cache.arena.partitions[partition] = WHOLE
    judge.epochs[partition], judge.positions[partition] = 1, 0
    for chamber, seq, charts in reports:
        if judge.cache.get(chamber) is None:
            judge.cache.loaded([judge.cache.add(chamber, partition)])
        sample = report(seq, chamber, *charts)
        batch = judge.judge([Sample(chamber, partition, seq, 0, sample.payload)])
        assert batch.flight is not None
        judge.flights.confirm(batch.flight)
        rows += [decode_stored(message[2]) for message in batch.verdicts]
    return rows


def slots_of(cache: Cache, chamber: str) -> dict[str, tuple[bytes, bytes, bytes]]:
    """The memory of a chamber's charts: state, sums, and what is remembered, oldest first."""
    memory, found = cache.arena, {}
    for name, slot in cache.chambers[chamber].slots.items():
        state = memory.state[slot]
        at, length, window = int(state["head"]), int(state["length"]), memory.window[slot]
        remembered = [window[(at + i) % len(window)].tobytes() for i in range(length)]
        found[name] = (state["length"].tobytes(), memory.sums[slot].tobytes(), b"".join(remembered))
    return found


def test_a_partition_that_was_forgotten_leaves_nothing_and_the_others_stay() -> None:
    """Its chambers, charts, rows, and its mark; a successor finds nothing of it either."""
    memory = arena()
    judge = judge_over(memory)
    memory.partitions[1], memory.epochs[1] = WHOLE, 7
    judge.cache.loaded([judge.cache.add("theirs", 1)])
    judge.cache.resolve_names(judge.cache.chambers["theirs"], ["a", "b"])
    known(judge, "A")
    land(judge, report(1, "A", "a"))
    judge.cache.forget(1)
    assert set(judge.cache.chambers) == {"A"}
    assert judge.cache.slots_used == 1
    assert (memory.partitions[1], memory.epochs[1]) == (UNREAD, 0)
    found = Cache(Arena(memory.fd, memory.shape), NAMES, Specs(), 0, DEPTH)
    assert set(found.chambers) == {"A"}
    assert found.slots_used == 1


def test_a_worker_that_died_while_it_forgot_a_partition_leaves_none_of_its_chambers_valid() -> None:
    """The mark of the partition is what counts; rows that were not freed yet are freed by the successor."""
    memory = arena()
    judge = judge_over(memory)
    known(judge, "A", "B")
    land(judge, report(1, "A", "a"))
    memory.partitions[0] = UNREAD
    found = Cache(Arena(memory.fd, memory.shape), NAMES, Specs(), 0, DEPTH)
    assert found.chambers == {}
    assert found.slots_used == 0


def test_rows_may_come_again_and_in_any_parts() -> None:
    """A copy ahead, then what came since, with some of it twice: as if all were read at once."""
    rows = stored(
        *[("X", seq, "ab" if seq % 3 else "a") for seq in range(1, 5)], ("Y", 5, "c"), ("X", 6, "ab")
    )
    at_once, in_parts = (Cache(arena(9, 4), NAMES, Specs(), 0, DEPTH) for _ in range(2))
    Rebuild(at_once, 1).take(rows)
    rebuild = Rebuild(in_parts, 1)
    for first, last in [(0, 2), (0, 3), (1, 2), (3, 6), (2, 6)]:
        rebuild.take(rows[first:last])
    rebuild.finish()
    for chamber in ("X", "Y"):
        assert slots_of(at_once, chamber) == slots_of(in_parts, chamber)
        assert at_once.chambers[chamber].seq == in_parts.chambers[chamber].seq
    assert rebuild.reports == 6
    assert in_parts.arena.partitions[1] == WHOLE


def test_what_came_before_a_gap_in_a_chambers_rows_is_forgotten() -> None:
    """The store keeps the last D reports: where some are missing, the earlier ones are not among them."""
    rows = stored(*[("X", seq, "a" if seq < 3 else "b") for seq in range(1, 9)])
    anew, over_gap = (Cache(arena(9, 4), NAMES, Specs(), 0, DEPTH) for _ in range(2))
    Rebuild(anew, 1).take(rows[4:])
    rebuild = Rebuild(over_gap, 1)
    rebuild.take(rows[:3])
    rebuild.take(rows[4:])
    assert slots_of(anew, "X") == slots_of(over_gap, "X")
    assert set(over_gap.chambers["X"].slots) == {"b"}


def test_a_copy_evicts_nobody_and_live_chambers_evict_it() -> None:
    """What finds no room, or has to leave, is not there afterwards; its partition is then not whole."""
    judge = judge_over(arena(slots=4, rows=4))
    known(judge, "A")
    land(judge, report(1, "A", "a"))
    rebuild = Rebuild(judge.cache, 1)
    rows = stored(("X", 1, "ab"), ("Y", 2, "abcd"), ("X", 3, "ab"))
    rebuild.take(rows[:2])
    assert set(judge.cache.chambers) == {"A", "X"}
    assert judge.cache.evictions == 0
    land(judge, report(4, "A", "a", "b", "c", "d"))
    assert set(judge.cache.chambers) == {"A"}
    rebuild.take(rows[2:])
    rebuild.finish()
    assert set(judge.cache.chambers) == {"A"}
    assert judge.cache.arena.partitions.tolist() == [WHOLE, PARTLY]
