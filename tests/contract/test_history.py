"""What every history keeps: the promises of `runtime.history.History`, for each store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, Protocol

import msgspec
import pytest
from fleet import connected, settings_for
from on_cassandra import with_cassandra

from runtime.bus import within
from runtime.frames import Message
from runtime.history import History, Rest
from runtime.history.stores import Stores
from runtime.names import Names
from runtime.resources import ensure
from runtime.stored import StoredVerdict, split
from runtime.wire import Verdict
from tests.fleets.cluster import nats_cluster
from tests.memory_history import MemoryHistory

DEPTH = 16
PARTITIONS = 4


class Store(NamedTuple):
    """A history, and how its verdicts get into it: published, then appended."""

    history: History
    names: Names
    publish: Callable[[Sequence[Message]], object]


class Opened(Protocol):
    def __call__(self) -> AbstractAsyncContextManager[Store]: ...


@pytest.fixture(scope="module")
def nats_cluster_url() -> Iterator[str]:
    """Three servers, whose streams have three replicas: any of them may answer, also one that lags."""
    with asyncio.Runner() as runner:
        cluster = nats_cluster()
        url = runner.run(cluster.__aenter__()).url
        yield url
        runner.run(cluster.__aexit__(None, None, None))


@pytest.fixture(params=["memory", "jetstream", "jetstream with three replicas", "cassandra"])
def opened(request: pytest.FixtureRequest) -> Opened:
    """Opens an empty store of each kind."""
    shape: dict[str, Any] = {"history_depth": DEPTH, "window": DEPTH, "partitions": PARTITIONS}
    if request.param == "jetstream":
        settings = settings_for(request.getfixturevalue("nats_server"), **shape)
    elif request.param == "cassandra":
        own = settings_for(request.getfixturevalue("nats_server"), **shape)
        settings = with_cassandra(own, request.getfixturevalue("cassandra_server"))
    elif request.param != "memory":
        settings = settings_for(request.getfixturevalue("nats_cluster_url"), stream_replicas=3, **shape)

    @asynccontextmanager
    async def memory() -> AsyncIterator[Store]:
        names = Names(partitions=PARTITIONS)
        history = MemoryHistory(names, DEPTH)

        async def publish(messages: Sequence[Message]) -> None:
            for message in messages:
                history.stream.store(message)
            await history.append(messages)

        yield Store(history, names, publish)

    @asynccontextmanager
    async def real() -> AsyncIterator[Store]:
        async with connected(settings) as connection:
            await ensure(connection, settings)
            stores = Stores(settings)
            history = await stores.over(connection)

            async def publish(messages: Sequence[Message]) -> None:
                await within(connection.start_all(list(messages), repeats=True), 20.0, "publishing")
                await history.append(messages)

            yield Store(history, settings.names, publish)
            await stores.close()

    return memory if request.param == "memory" else real


def verdict(names: Names, chamber: str, seq: int, **fields: object) -> Message:
    """A verdict's message; its ordinal is its sequence."""
    made = Verdict(chamber=chamber, seq=seq, ordinal=seq, epoch=1, spec=3, **fields)  # type: ignore[arg-type]
    subject = names.verdict(names.partition_of(chamber), chamber)
    return subject, f"{chamber}:{seq}", msgspec.msgpack.encode(made)


def judged_columns(n: int, units: float) -> dict[str, list[Any]]:
    """Columns of *n* charts that are learning."""
    whole = {name: [0] * n for name in ("counts", "flags", "phase", "basis", "stage")}
    return {
        **whole,
        "units": [units] * n,
        "u": [0.0] * n,
        **{k: [None] * n for k in ("centre", "lcl", "ucl")},
    }


def chambers_of(names: Names, partition: int, count: int) -> list[str]:
    found = (f"C{n}" for n in range(10_000))
    return [
        name
        for name, _ in zip(
            (n for n in found if names.partition_of(n) == partition), range(count), strict=False
        )
    ]


async def rows_of(store: Store, partition: int, after: int | None = None) -> list[StoredVerdict]:
    return (await read(store, partition, after))[0]


async def read(
    store: Store, partition: int, after: int | None = None, rest: Rest | None = None
) -> tuple[list[StoredVerdict], int]:
    """The rows of a partition, and the store's position behind them."""
    rows: list[StoredVerdict] = []

    def take(some: list[StoredVerdict]) -> bool:
        rows.extend(some)
        return True

    loaded = await store.history.load_partition(partition, take, after=after, rest=rest)
    assert loaded.reports == len(rows)
    return rows, loaded.last


async def test_a_chamber_is_its_last_d_reports_oldest_first(opened: Opened) -> None:
    """Of more than D reports the oldest are gone."""
    async with opened() as store:
        await store.publish([verdict(store.names, "C1", seq) for seq in range(1, DEPTH + 6)])
        rows = await store.history.load_chamber(store.names.partition_of("C1"), "C1")
        assert [row.seq for row in rows] == list(range(6, DEPTH + 6))
        assert [row.ordinal for row in rows] == list(range(6, DEPTH + 6))


async def test_a_chamber_that_was_never_judged_has_no_reports(opened: Opened) -> None:
    """Nothing to read is no error."""
    async with opened() as store:
        assert await store.history.load_chamber(1, "nobody") == []
        assert await rows_of(store, 1) == []


async def test_a_partition_gives_each_of_its_chambers_oldest_first_and_no_other(opened: Opened) -> None:
    """Chambers may be mixed; each one's reports are in order."""
    async with opened() as store:
        names = store.names
        ours, others = chambers_of(names, 2, 5), chambers_of(names, 3, 3)
        await store.publish(
            [verdict(names, name, seq) for seq in range(1, DEPTH + 3) for name in [*ours, *others]]
        )
        rows = await rows_of(store, 2)
        assert {row.chamber for row in rows} == set(ours)
        for name in ours:
            assert [row.seq for row in rows if row.chamber == name] == list(range(3, DEPTH + 3))


async def test_a_large_partition_is_read_whole(opened: Opened) -> None:
    """More messages than one pull asks for, and more bytes than one may bring."""
    async with opened() as store:
        names = store.names
        ours = chambers_of(names, 0, 50)
        names_of_charts = [f"chart-{i}" for i in range(400)]
        wide: dict[str, object] = {"charts": names_of_charts, **judged_columns(400, units=1.0)}
        messages = [verdict(names, name, seq, **wide) for seq in range(1, 15) for name in ours]
        await store.publish(messages)
        rows = await rows_of(store, 0)
        assert len(rows) == 700
        assert sum(len(message[2]) for message in messages) > 4_500_000
        for name in ours:
            assert [row.seq for row in rows if row.chamber == name] == list(range(1, 15))


async def test_reading_a_partition_ends_when_no_more_is_taken(opened: Opened) -> None:
    """A full cache takes no further rows; the store can be read again afterwards."""
    async with opened() as store:
        names = store.names
        ours = chambers_of(names, 0, 60)
        await store.publish([verdict(names, name, seq) for seq in range(1, 12) for name in ours])
        calls: list[int] = []

        def take(some: list[StoredVerdict]) -> bool:
            calls.append(len(some))
            return False

        assert (await store.history.load_partition(0, take)).reports == sum(calls)
        assert len(calls) == 1
        assert len(await rows_of(store, 0)) == 660


async def test_a_second_reading_gives_what_was_stored_since_the_first(opened: Opened) -> None:
    """Of known chambers and of new ones; nothing when nothing came; then all that came, in pages."""
    async with opened() as store:
        names = store.names
        ours, others = chambers_of(names, 2, 90), chambers_of(names, 3, 2)
        first, last = await read(store, 2)
        assert first == []
        await store.publish([verdict(names, name, 1) for name in [*ours[:5], *others]])
        rows, last = await read(store, 2, last)
        assert sorted(row.chamber for row in rows) == sorted(ours[:5])
        rows, again = await read(store, 2, last)
        assert (rows, again) == ([], last)
        await store.publish([verdict(names, name, seq) for seq in range(2, 10) for name in [*ours, *others]])
        rows, last = await read(store, 2, last)
        assert len(rows) == 8 * 90
        for name in ours:
            assert [row.seq for row in rows if row.chamber == name] == list(range(2, 10))
        assert await rows_of(store, 2, last) == []
        assert len(await rows_of(store, 2)) == 8 * 90 + 5


async def test_from_a_position_on_everything_is_given_that_was_stored_since(opened: Opened) -> None:
    """Of an empty store, too; others' verdicts in between change nothing."""
    async with opened() as store:
        names = store.names
        ours, others = chambers_of(names, 2, 3), chambers_of(names, 3, 2)
        begin = await store.history.position(2)
        await store.publish([verdict(names, name, 1) for name in [*ours, *others]])
        middle = await store.history.position(2)
        await store.publish([verdict(names, name, 2) for name in [*others, *ours]])
        assert sorted(row.seq for row in await rows_of(store, 2, begin)) == [1, 1, 1, 2, 2, 2]
        assert {row.chamber for row in await rows_of(store, 2, middle) if row.seq == 2} == set(ours)
        assert await rows_of(store, 2, await store.history.position(2)) == []


async def test_a_reading_that_ended_early_goes_on_behind_what_it_gave(opened: Opened) -> None:
    """Its position is that of the last row that was given."""
    async with opened() as store:
        names = store.names
        ours = chambers_of(names, 1, 40)
        await store.publish([verdict(names, name, seq) for seq in range(1, 12) for name in ours])
        rows: list[StoredVerdict] = []

        def take(some: list[StoredVerdict]) -> bool:
            rows.extend(some)
            return False

        loaded = await store.history.load_partition(1, take, rest=_no_rest)
        assert 0 < loaded.reports < 440
        rows += await rows_of(store, 1, loaded.last)
        for name in ours:  # one that cannot tell where it ended gives rows again
            assert sorted({row.seq for row in rows if row.chamber == name}) == list(range(1, 12))


async def _no_rest(worked_s: float) -> None:
    return


async def test_reading_in_the_background_rests_between_portions_and_gives_the_same(opened: Opened) -> None:
    """The rests are told how long the work before them took."""
    async with opened() as store:
        names = store.names
        ours = chambers_of(names, 1, 30)
        await store.publish([verdict(names, name, seq) for seq in range(1, 15) for name in ours])
        worked: list[float] = []

        async def rest(worked_s: float) -> None:
            worked.append(worked_s)

        rows, _ = await read(store, 1, rest=rest)
        assert len(worked) > 3
        assert max(worked) < 0.5
        for name in ours:
            assert [row.seq for row in rows if row.chamber == name] == list(range(1, 15))


async def test_storing_a_verdict_again_changes_nothing(opened: Opened) -> None:
    """As after a failure between the verdict and its acknowledgement."""
    async with opened() as store:
        messages = [verdict(store.names, "C1", seq) for seq in (1, 2, 3)]
        await store.publish(messages)
        await store.publish(messages[1:])
        rows = await store.history.load_chamber(store.names.partition_of("C1"), "C1")
        assert [row.seq for row in rows] == [1, 2, 3]


async def test_the_last_sequence_of_each_chamber_is_known_and_0_without_one(opened: Opened) -> None:
    """Of more chambers than one request asks for."""
    async with opened() as store:
        names = store.names
        many = {f"C{n}": names.partition_of(f"C{n}") for n in range(600)}
        await store.publish([verdict(names, name, 7 + n) for n, name in enumerate(many)])
        await store.publish([verdict(names, "C5", 9000)])
        asked = {**many, "nobody": 1}
        last = await store.history.last_stored(asked)
        stored = {**{f"C{n}": 7 + n for n in range(600)}, "C5": 9000}
        assert last == {**{name: (seq, 1) for name, seq in stored.items()}, "nobody": (0, 0)}
        assert await store.history.last_stored({}) == {}


async def test_verdicts_of_samples_come_back_whole_as_far_as_they_are_kept(opened: Opened) -> None:
    """All fields, the limits too; samples that the depth has pushed out are not there."""
    async with opened() as store:
        names = store.names
        judged: dict[str, Any] = {
            **{key: [1] for key in ("counts", "flags", "phase", "basis", "stage")},
            **{key: [1 / 3] for key in ("u", "units", "centre", "lcl", "ucl")},
            "charts": ["a"],
            "run": "R",
            "at": 77,
            "position": 2,
        }
        await store.publish([verdict(names, "C1", seq, **judged) for seq in range(1, DEPTH + 3)])
        assert await store.history.verdicts_after(names.partition_of("C1"), "C1", DEPTH + 2) == []
        found = await store.history.verdicts_after(names.partition_of("C1"), "C1", 4)
        assert [one.seq for one in found] == list(range(5, DEPTH + 3))
        assert found[0] == Verdict(chamber="C1", seq=5, ordinal=5, epoch=1, spec=3, **judged)


async def test_what_a_rebuild_needs_comes_back_bit_by_bit(opened: Opened) -> None:
    """Resets, charts without limits yet, and every bit of a frozen centre."""
    async with opened() as store:
        names = store.names
        centre = 0.1 + 0.2
        await store.publish(
            [
                verdict(names, "C1", 1, charts=["a", "b"], counts=[3, 0], units=[1 / 3, 2.0], flags=[0, 0],
                        centre=[None, centre], phase=[0, 2], basis=[6, 2**32 - 1], stage=[1, 1]),
                verdict(names, "C1", 2, charts=["a"], reset="maintenance"),
            ]
        )  # fmt: skip
        first, second = await store.history.load_chamber(names.partition_of("C1"), "C1")
        counts, units, centres, basis, stage, flags, phase = map(list, split(first.samples))
        assert (counts, units, centres) == ([3.0, 0.0], [1 / 3, 2.0], [0.0, centre])
        assert (basis, stage, flags, phase) == ([6, 2**32 - 1], [1, 1], [0, 0], [0, 2])
        assert first.reset is None
        assert msgspec.msgpack.decode(second.charts) == ["a"]
        assert second.reset == "maintenance"
