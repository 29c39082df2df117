"""A partition from one worker's memory to another's: the receiver's charts are the owner's, bit by bit."""

from __future__ import annotations

import asyncio
import os
import random
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from kernels.state import ENTRY, SLOT, SUMS
from runtime.arena import PARTLY, UNREAD, WHOLE, Arena, Shape
from runtime.bus import Reply
from runtime.cache import Cache
from runtime.examine import Limits
from runtime.flight import FlightLog
from runtime.judge import Judge, Sample
from runtime.names import Names
from runtime.rebuild import Rebuild
from runtime.specs import Baseline, ChartSpec, Design, Ewma, Specs
from runtime.specs import Limits as SpecLimits
from runtime.stored import decode_stored
from runtime.transfer import (
    OVERHEAD_BYTES,
    Ask,
    Page,
    Refused,
    TransferFailed,
    fetch,
    fingerprint,
    give,
    names_of,
    page_from,
    take,
)

DEPTH, WINDOW, EPOCH = 12, 5, 7
NAMES = Names(partitions=2)
MINE = [name for i in range(60) if NAMES.partition_of(name := f"C{i}") == 0][:12]
CHARTS = ("given_a", "moving_b", "frozen_c", "ärger")
EWMA = Ewma(weight=0.3, arl0=200.0)
SPECS = Specs(
    charts=(
        ChartSpec(chart="given_*", baseline=Baseline.GIVEN, centre=2.0, limits=SpecLimits.EXACT, ewma=EWMA),
        ChartSpec(chart="moving_*", baseline=Baseline.MOVING, minimum=3, limits=SpecLimits.LANEY),
        ChartSpec(chart="frozen_*", phase_one=4, minimum=2, limits=SpecLimits.LANEY, ewma=EWMA),
    ),
    default=ChartSpec(phase_one=4, minimum=2, k=2.0),
    designs=(Design(1.0, 0.0, 0.3, 200.0, rows=((0.0,) * 33, (0.0,) * 33, (2.0,) * 33)),),
)
MARK = fingerprint(WINDOW, DEPTH)


def worker(slots: int = 100, rows: int = 30, window: int = WINDOW) -> Judge:
    shape = Shape(2, slots, rows, window, flights=2, reports=64, samples=512)
    cache = Cache(Arena(os.memfd_create("test"), shape), NAMES, SPECS, 1, DEPTH)
    judge = Judge(cache, FlightLog(cache.arena), Limits(10_000, 1e9, 1e9), "defender-0")
    judge.epochs[0], judge.positions[0] = EPOCH, 0
    return judge


def report(rng: random.Random, seq: int, chamber: str) -> Sample:
    charts = [chart for chart in CHARTS if rng.random() < 0.8] or ["moving_b"]
    payload = {
        "charts": charts,
        "counts": [rng.choice([0, 1, 2, 2, 3, 12]) for _ in charts],
        "units": [rng.choice([1.0, 2.0, 0.7]) for _ in charts],
    }
    if rng.random() < 0.05:
        payload = {"charts": charts[:1], "reset": "maintenance"}
    return Sample(chamber, 0, seq, 0, msgspec.json.encode(payload))


def an_owner(rng: random.Random, chambers: list[str], reports: int = 300) -> Judge:
    """Serves partition 0, whole, with reports of these chambers."""
    judge = worker()
    arena = judge.cache.arena
    arena.partitions[0], arena.epochs[0] = WHOLE, EPOCH
    for name in chambers:
        judge.cache.loaded([judge.cache.add(name, 0)])
    for seq in range(1, reports + 1):
        judged(judge, report(rng, seq, rng.choice(chambers)))
    return judge


def judged(judge: Judge, sample: Sample) -> list[bytes]:
    batch = judge.judge([sample])
    if batch.flight is not None:
        judge.flights.confirm(batch.flight)
    return [message[2] for message in batch.verdicts]


def given(owner: Judge, ask: Ask, bytes_max: int) -> Page | Refused:
    return give(owner.cache, ask, sorted(ask.names) or names_of(owner.cache, 0), bytes_max)


def from_memory(owner: Judge, bytes_max: int = 10**6) -> Callable[[Ask], Awaitable[Page]]:
    async def page_of(ask: Ask) -> Page:
        answer = given(owner, ask, bytes_max)
        assert isinstance(answer, Page), answer
        copied: Page = msgspec.msgpack.decode(msgspec.msgpack.encode(answer), type=Page)
        return copied

    return page_of


async def no_rest(worked_s: float) -> None:
    return


def copied(owner: Judge, to: Judge, bytes_max: int = 10**6) -> tuple[int, list[str], Rebuild]:
    rebuild = Rebuild(to.cache, 0)
    pages = from_memory(owner, bytes_max)
    taken, left_out = asyncio.run(fetch(pages, 0, EPOCH, to.cache, rebuild, no_rest))
    return taken, left_out, rebuild


def memory_of(judge: Judge, name: str) -> dict[str, tuple[bytes, bytes, bytes, list[bytes]]]:
    """By chart: slot, sums, what its verdicts carry, and what is remembered with its places."""
    arena, chamber = judge.cache.arena, judge.cache.chambers[name]
    found = {}
    for chart, slot in chamber.slots.items():
        head, length = int(arena.state["head"][slot]), int(arena.state["length"][slot])
        places = [(head - 1 - i) % arena.shape.window for i in range(length)]
        entries = [arena.window[slot, place].tobytes() for place in places]
        found[chart] = (
            arena.state[slot].tobytes(),
            arena.sums[slot].tobytes(),
            arena.carried[slot].tobytes(),
            entries,
        )
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("page_bytes", [600, 3_000, 10**6])
def test_every_chart_arrives_bit_by_bit_whatever_the_pages(seed: int, page_bytes: int) -> None:
    owner, other = an_owner(random.Random(seed), MINE), worker()
    rebuild = Rebuild(other.cache, 0)
    pages = from_memory(owner, OVERHEAD_BYTES + page_bytes)
    taken, left_out = asyncio.run(fetch(pages, 0, EPOCH, other.cache, rebuild, no_rest))
    too_large = set(left_out)
    assert taken == len(MINE) - len(too_large)
    assert page_bytes < 3_000 or not too_large
    rebuild.finish()
    assert other.cache.arena.partitions[0] == WHOLE
    for name in set(MINE) - too_large:
        there, here = owner.cache.chambers[name], other.cache.chambers[name]
        assert (there.seq, there.ordinal) == (here.seq, here.ordinal)
        assert memory_of(owner, name) == memory_of(other, name)


@pytest.mark.parametrize("seed", range(10))
def test_the_receiver_judges_on_as_the_owner_would_and_as_one_that_read_the_history(seed: int) -> None:
    """The same verdicts, byte by byte, for hundreds of further reports."""
    rng = random.Random(seed)
    owner, heir, reader = an_owner(rng, MINE, 0), worker(), worker()
    history: dict[str, list[bytes]] = {name: [] for name in MINE}
    for seq in range(1, 400):
        sample = report(rng, seq, rng.choice(MINE))
        history[sample.chamber] += judged(owner, sample)
    early = 250  # rows behind what the owner's memory was copied at
    copied_at = an_owner(random.Random(seed), MINE, 0)
    rng = random.Random(seed)
    for seq in range(1, early):
        judged(copied_at, report(rng, seq, rng.choice(MINE)))
    *_, rebuild = copied(copied_at, heir)
    read = Rebuild(reader.cache, 0)
    for rows in history.values():
        kept = [decode_stored(row) for row in rows[-DEPTH:]]
        rebuild.take(kept)
        read.take(kept)
    rebuild.finish()
    read.finish()
    rng = random.Random(-seed)
    for seq in range(400, 700):
        sample = report(rng, seq, rng.choice(MINE))
        assert judged(owner, sample) == judged(heir, sample) == judged(reader, sample)


def test_a_chamber_in_flight_is_left_out_and_given_when_it_has_landed() -> None:
    rng = random.Random(3)
    owner = an_owner(rng, MINE)
    batch = owner.judge([report(rng, 1000, MINE[2])])
    page = given(owner, Ask(0, EPOCH, MARK), 10**6)
    assert isinstance(page, Page)
    assert page.left_out == [MINE[2]]
    assert sorted(one.name for one in page.chambers) == sorted(set(MINE) - {MINE[2]})
    assert copied(owner, worker())[1] == [MINE[2]]
    assert batch.flight is not None
    owner.flights.confirm(batch.flight)
    page = given(owner, Ask(0, EPOCH, MARK, names=[MINE[2]]), 10**6)
    assert isinstance(page, Page)
    assert [one.name for one in page.chambers] == [MINE[2]]


def test_what_the_owner_has_not_in_memory_makes_the_copy_partial() -> None:
    """One that was asked for by name and is gone meanwhile is told, too."""
    owner, other = an_owner(random.Random(4), MINE), worker()
    owner.cache.drop(owner.cache.chambers[MINE[0]])
    owner.cache.arena.partitions[0] = PARTLY
    *_, rebuild = copied(owner, other)
    rebuild.finish()
    assert other.cache.arena.partitions[0] == PARTLY
    page = given(owner, Ask(0, EPOCH, MARK, names=MINE[:2]), 10**6)
    assert isinstance(page, Page)
    assert page.left_out == [MINE[0]]


def test_a_receiver_without_room_takes_what_fits_and_knows_that_it_is_not_all() -> None:
    owner, other = an_owner(random.Random(5), MINE), worker(slots=17)
    taken, _, rebuild = copied(owner, other)
    assert 0 < taken < len(MINE)
    rebuild.finish()
    assert other.cache.arena.partitions[0] == PARTLY
    for name in other.cache.chambers:
        assert memory_of(owner, name) == memory_of(other, name)


def test_an_owner_gives_nothing_of_another_epoch_layout_or_partition() -> None:
    owner = an_owner(random.Random(6), MINE)
    for ask in (
        Ask(0, EPOCH + 1, MARK),
        Ask(1, EPOCH, MARK),
        Ask(99, EPOCH, MARK),
        Ask(-1, EPOCH, MARK),
        Ask(0, EPOCH, fingerprint(WINDOW + 1, DEPTH)),
        Ask(0, EPOCH, fingerprint(WINDOW, DEPTH + 1)),
    ):
        assert isinstance(given(owner, ask, 10**6), Refused), ask
    owner.cache.arena.partitions[0] = UNREAD
    assert isinstance(given(owner, Ask(0, EPOCH, MARK), 10**6), Refused)


def test_a_page_that_cannot_be_is_refused_and_leaves_no_trace() -> None:
    owner, other = an_owner(random.Random(7), MINE), worker()
    page = given(owner, Ask(0, EPOCH, MARK), 10**6)
    assert isinstance(page, Page)
    first, *rest = page.chambers
    full = np.frombuffer(page.state, dtype=owner.cache.arena.state.dtype).copy()
    full["length"][0], full["length"][1] = WINDOW + 1, full["length"][0] + full["length"][1] - WINDOW - 1
    change = msgspec.structs.replace
    foreign = next(name for i in range(60) if NAMES.partition_of(name := f"C{i}") == 1)
    twice = [first.charts[0]] * len(first.charts)
    broken = {
        "cut in a slot": change(page, state=page.state[:-1]),
        "a slot less": change(page, state=page.state[:-64]),
        "sums less": change(page, sums=page.sums[:-32]),
        "less of what is carried": change(page, carried=page.carried[:-64]),
        "a sample less": change(page, entries=page.entries[:-24]),
        "more than the window": change(page, state=full.tobytes()),
        "another partition's": change(page, chambers=[change(first, name=foreign), *rest]),
        "no name": change(page, chambers=[change(first, name="two words"), *rest]),
        "no report": change(page, chambers=[change(first, seq=0), *rest]),
        "a chart twice": change(page, chambers=[change(first, charts=twice), *rest]),
    }  # fmt: skip
    for what, one in broken.items():
        with pytest.raises(TransferFailed):
            print(what, take(one, Rebuild(other.cache, 0), other.cache, 0))
    assert not other.cache.chambers


def test_an_owner_of_a_former_release_or_a_receiver_of_one_is_refused_and_the_history_is_read() -> None:
    """Its slots mean something else: fingerprints differ, and its pages do not have what is carried."""
    owner, other = an_owner(random.Random(7), MINE), worker()
    former = zlib.crc32(repr((2, SLOT.descr, SUMS.descr, ENTRY.descr, WINDOW, DEPTH)).encode())
    assert isinstance(given(owner, Ask(0, EPOCH, former), 10**6), Refused)
    page = given(owner, Ask(0, EPOCH, MARK), 10**6)
    fields = msgspec.to_builtins(page)
    del fields["carried"]

    class Owner:
        async def ask(self, subject: str, payload: bytes) -> Reply:
            return Reply(msgspec.msgpack.encode(fields), b"")

    with pytest.raises(TransferFailed, match="no page"):
        asyncio.run(page_from(cast(Any, Owner()), "owner", Ask(0, EPOCH, MARK)))
    assert not other.cache.chambers


def test_pages_that_do_not_advance_end_the_transfer() -> None:
    owner, other = an_owner(random.Random(8), MINE), worker()
    page = given(owner, Ask(0, EPOCH, MARK), 10**6)
    assert isinstance(page, Page)

    async def again(ask: Ask) -> Page:
        assert isinstance(page, Page)
        return msgspec.structs.replace(page, more=True)

    with pytest.raises(TransferFailed, match="ends with"):
        asyncio.run(fetch(again, 0, EPOCH, other.cache, Rebuild(other.cache, 0), no_rest))


@pytest.mark.parametrize("known", [True, False])
def test_a_chamber_whose_rows_since_the_copy_do_not_follow_on_stays_out(known: bool) -> None:
    """Rows that are not given may count: one that the owner had not in memory, or another's late verdict."""
    rng = random.Random(9)
    owner, other = an_owner(rng, MINE), worker()
    if not known:
        owner.cache.drop(owner.cache.chambers[MINE[0]])
    *_, rebuild = copied(owner, other)
    rebuild.follow()
    source = an_owner(random.Random(9), MINE)
    rows = [row for seq in range(1001, 1004) for row in judged(source, report(rng, seq, MINE[0]))]
    rebuild.take([decode_stored(row) for row in rows[1:]])
    rebuild.finish()
    assert MINE[0] not in other.cache.chambers
    assert other.cache.arena.partitions[0] == PARTLY
