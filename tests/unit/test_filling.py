"""Chambers of a partition that is served are read beside its reports, and never come back as they were."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import msgspec
import pytest
from fleet import until

from runtime import filling
from runtime.arena import PARTLY, WHOLE, Arena, Shape
from runtime.cache import Cache
from runtime.counters import Board, Counter, WorkerCounters
from runtime.examine import Limits
from runtime.filling import CHAMBERS_AT_ONCE, Filler
from runtime.flight import FlightLog
from runtime.judge import Judge, Sample
from runtime.names import Names
from runtime.rebuild import restore_chamber
from runtime.specs import Specs
from runtime.stored import StoredVerdict, decode_stored

NAMES = Names(partitions=2)


def cache_of(chambers: int) -> Cache:
    """A cache with room for so many chambers of one chart."""
    arena = Arena(os.memfd_create("test"), Shape(2, chambers, chambers, 4, flights=2, reports=8, samples=64))
    arena.partitions[0] = PARTLY
    return Cache(arena, NAMES, Specs(), 0, 4)


def rows_of(chamber: str, reports: int) -> list[StoredVerdict]:
    """What the history has of a chamber after so many reports."""
    cache = cache_of(1)
    judge = Judge(cache, FlightLog(cache.arena), Limits(10_000, 1e9, 1e9), "defender-0")
    judge.epochs[0], judge.positions[0] = 1, 0
    cache.loaded([cache.add(chamber, 0)])
    rows = []
    for seq in range(1, reports + 1):
        payload = msgspec.json.encode({"charts": ["chart"], "counts": [1], "units": [2.0]})
        batch = judge.judge([Sample(chamber, 0, seq, 0, payload)])
        assert batch.flight is not None
        judge.flights.confirm(batch.flight)
        rows.append(decode_stored(batch.verdicts[0][2]))
    return rows


class Slow:
    """A history that gives a chamber when it is told to: *given* of it; `asked` in this order."""

    def __init__(self, *chambers: str) -> None:
        self.names, self.asked = list(chambers), list[str]()
        self.rows = {name: rows_of(name, 3) for name in chambers}
        self.may_give = {name: asyncio.Event() for name in chambers}

    async def chambers(self, partition: int) -> list[str]:
        return self.names

    async def load_chamber(self, partition: int, chamber: str) -> list[StoredVerdict]:
        rows = self.rows[chamber]
        self.asked.append(chamber)
        await self.may_give[chamber].wait()
        return rows

    def give(self, *chambers: str) -> None:
        for chamber in chambers or self.names:
            self.may_give[chamber].set()


@pytest.fixture
def counters() -> Iterator[WorkerCounters]:
    board = Board.create(1, 2)
    yield board.worker(0)
    board.close()


def filler_over(cache: Cache, history: Slow, counters: WorkerCounters) -> Filler:
    return Filler(cache, history, counters)  # type: ignore[arg-type]


async def test_a_partition_is_read_some_chambers_at_a_time_in_the_order_of_its_history(
    counters: WorkerCounters,
) -> None:
    """The one judged last first; it counts how many are left, and the partition is whole at the end."""
    cache, history = cache_of(10), Slow(*"ABCDEFG")
    filler = filler_over(cache, history, counters)
    filled = asyncio.create_task(filler.fill(0))
    await until(lambda: len(history.asked) == CHAMBERS_AT_ONCE, what="the first ones are read")
    assert history.asked == list("ABCDEFG")[:CHAMBERS_AT_ONCE]
    assert counters.get(Counter.REBUILD_LEFT) == 7
    assert cache.arena.partitions[0] == PARTLY
    history.give()
    await filled
    assert history.asked == list("ABCDEFG")
    assert counters.get(Counter.REBUILD_LEFT) == 0
    assert counters.get(Counter.REBUILT_REPORTS) == 21
    assert cache.arena.partitions[0] == WHOLE
    assert {name: cache.get(name).seq for name in "ABCDEFG"} == dict.fromkeys("ABCDEFG", 3)  # type: ignore[union-attr]


async def test_a_chamber_that_a_report_asks_for_meanwhile_is_left_to_whoever_reads_it(
    counters: WorkerCounters,
) -> None:
    """Judged and evicted again before our read of it ends, it would come back without its last report."""
    cache, history = cache_of(4), Slow("A", "B")
    filler = filler_over(cache, history, counters)
    filled = asyncio.create_task(filler.fill(0))
    await until(lambda: len(history.asked) == 2, what="both are read")
    filler.leave("A")
    others = restore_chamber(cache, "A", 0, history.rows["A"])
    others.seq, others.ordinal = 4, 4
    cache.drop(others)
    history.give("A")
    for _ in range(10):  # turns of the loop, until its read has ended
        await asyncio.sleep(0)
    assert cache.get("A") is None
    newer = restore_chamber(cache, "A", 0, rows_of("A", 4))
    history.give("B")
    await filled
    assert cache.get("A") is newer
    assert cache.arena.partitions[0] == WHOLE


async def test_a_chamber_that_was_asked_for_before_its_turn_came_is_not_read_here(
    counters: WorkerCounters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads it may judge it and evict it while a read that began here is under way."""
    monkeypatch.setattr(filling, "OTHERS_S", 0.05)
    cache, history = cache_of(4), Slow("A", "B")
    filler = filler_over(cache, history, counters)
    filler.leave("B")
    history.give()
    await filler.fill(0)
    assert history.asked == ["A"]
    assert cache.arena.partitions[0] == PARTLY, "B is not there"
    await filler.fill(0)
    assert history.asked == ["A", "B"], "a later filling has it"
    assert cache.arena.partitions[0] == WHOLE


async def test_chambers_that_do_not_fit_stay_out_and_drive_nobody_away(counters: WorkerCounters) -> None:
    cache, history = cache_of(3), Slow(*"ABCDE")
    history.give()
    live = restore_chamber(cache, "live", 1, rows_of("live", 2))
    await filler_over(cache, history, counters).fill(0)
    assert cache.get("live") is live
    assert sum(cache.get(name) is not None for name in "ABCDE") == 2
    assert cache.arena.partitions[0] == PARTLY
    assert counters.get(Counter.REBUILD_LEFT) == 0


async def test_a_filling_that_is_cancelled_or_fails_leaves_nothing_behind(counters: WorkerCounters) -> None:
    """Nothing is counted as left, and the partition can be filled again."""
    cache, history = cache_of(4), Slow("A", "B")
    filler = filler_over(cache, history, counters)
    filled = asyncio.create_task(filler.fill(0))
    await until(lambda: len(history.asked) == 2, what="both are read")
    filled.cancel()
    await asyncio.gather(filled, return_exceptions=True)
    await until(lambda: counters.get(Counter.REBUILD_LEFT) == 0, what="nothing is left")
    rows = history.rows.pop("B")
    history.give()
    with pytest.raises(KeyError):
        await filler.fill(0)
    await until(lambda: counters.get(Counter.REBUILD_LEFT) == 0, what="nothing is left")
    history.rows["B"] = rows
    await filler.fill(0)
    assert cache.arena.partitions[0] == WHOLE
