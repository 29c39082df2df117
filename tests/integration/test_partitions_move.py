"""Partitions come to running workers and leave them, under load, on a real nats-server."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from statistics import median, quantiles

import msgspec
from fleet import connected, settings_for, until

from bench.lab.pods import brisk
from runtime import pipes
from runtime import specs as chart_specs
from runtime.bus import Connection, frame_pub
from runtime.config import Settings
from runtime.counters import Counter
from runtime.embedded import NatsServer
from tests.load import Fleet, fleet
from tests.pools import Crew, crews

SEED = random.SystemRandom().randrange(10**6)


@asynccontextmanager
async def two(settings: Settings) -> AsyncIterator[tuple[Fleet, Crew, Crew]]:
    """A fleet with two pods: the first serves everything, the second nothing yet."""
    everything = range(settings.partitions)
    async with fleet(settings) as outside, crews(settings, outside.connection, "a", "b") as (a, b):
        revision = max(outside.specs)
        for crew in (a, b):
            crew.pool.use_specs(pipes.Specs(revision, chart_specs.encode(outside.specs[revision])))
        await a.serve(everything)
        await a.serving(everything)
        yield outside, a, b


async def test_partitions_that_move_to_and_fro_under_load_are_judged_once_and_in_order(
    nats_server: NatsServer,
) -> None:
    """Copied ahead, yielded, taken on: every report has its one verdict; the gap is some milliseconds."""
    settings = settings_for(nats_server, **brisk(workers=1))
    async with two(settings) as (outside, a, b):
        publisher = outside.publisher(seed=SEED, rate=1000)
        publisher.begin()
        await publisher.more(500)
        gaps = []
        for turn in range(30):
            partition = random.Random(SEED + turn).randrange(settings.partitions)
            giver, taker = (a, b) if partition in a.handle.serving else (b, a)
            gaps.append(await giver.hand_over(partition, taker, from_memory=turn % 3 > 0))
        await publisher.finish()
        streams = await outside.audit()
        assert len(streams.verdicts) > 500
        print(f"gap of {len(gaps)} moves: median {median(gaps) * 1e3:.1f} ms, worst {max(gaps) * 1e3:.1f} ms")
        owned = {**a.board.partitions_owned(), **b.board.partitions_owned()}
        assert len(owned) == settings.partitions
        assert not set(a.board.partitions_owned()) & set(b.board.partitions_owned())


async def test_a_copy_comes_from_the_owners_memory_and_from_the_history_where_that_is_not_to_be_used(
    nats_server: NatsServer,
) -> None:
    """Not from one that is not there, does not serve it, or has another epoch; nor after an overtaking."""
    settings = settings_for(nats_server, **brisk(workers=1))
    async with two(settings) as (outside, a, b):
        publisher = outside.publisher(seed=SEED, rate=1000)
        publisher.begin()
        await publisher.more(1500)
        counters = b.board.worker(0)
        here, failed = (
            partial(counters.get, Counter.TRANSFERRED),
            partial(counters.get, Counter.TRANSFERS_FAILED),
        )
        for partition in range(6):
            await a.hand_over(partition, b, from_memory=True)
        await until(lambda: here() > 0, what="chambers came from memory")
        assert failed() == 0
        # Of two copies the first comes from the owner; the other has an epoch that was never.
        await b.copied(6, source=a)
        sources = {
            7: pipes.Source("uid-a", 0, 10**9),
            8: pipes.Source("uid-a", 5, a.ownership.held[8].acquired.epoch),
            9: pipes.Source("uid-nobody", 0, 1),
        }
        seen = len(b.words)
        b.handle.copy(sources, sources)
        for partition in sources:
            await b.word(pipes.Copied, seen, lambda word, p=partition: word.partition == p)
        await until(lambda: failed() == 3, what="three copies were read from the history")
        # The owner's session breaks: its epochs are others, and what was copied is read anew.
        assert a.handle.process is not None
        os.kill(a.handle.process.pid or 0, signal.SIGKILL)
        everything = set(range(6, settings.partitions))
        await until(lambda: len(a.gone) == 1)
        await a.serving(everything)
        read = counters.get(Counter.REBUILT_REPORTS)
        positions = await a.given_back([6, 7])
        for partition in (6, 7):
            released = await a.ownership.release(partition, positions[partition], "b")
            await b.serve([partition], released=released)
        await b.serving([6, 7])
        assert counters.get(Counter.REBUILT_REPORTS) > read
        await publisher.finish()
        await outside.audit()


async def test_a_worker_that_yielded_everything_holds_nothing_and_is_ready_for_more(
    nats_server: NatsServer,
) -> None:
    """No chamber and no chart stays in memory; the worker and its session live on."""
    settings = settings_for(nats_server, **brisk(workers=1))
    async with two(settings) as (outside, a, _):
        publisher = outside.publisher(seed=SEED, rate=2000)
        publisher.begin()
        await publisher.more(1000)
        await publisher.finish()
        await outside.settled()
        session = a.handle.session
        everything = set(range(settings.partitions))
        positions = await a.given_back(everything)
        samples = await outside.messages(settings.stream_samples)
        assert max(positions.values()) == samples, "the last report belongs to some partition"
        counters = a.board.worker(0)
        await until(lambda: counters.get(Counter.SLOTS_USED) == counters.get(Counter.CHAMBERS) == 0)
        assert a.board.partitions_owned() == {}
        for partition, position in positions.items():
            await a.ownership.release(partition, position)
        await a.serve(everything)
        await a.serving(everything)
        assert a.handle.session == session
        assert counters.get(Counter.REBUILT_REPORTS) > 500, "it read all of it again"
        await outside.audit()


async def test_a_worker_that_dies_or_loses_its_connection_goes_on_from_memory_unless_another_served_since(
    nats_server: NatsServer,
) -> None:
    """By the epoch that was replaced: its own, nothing is read; another's, the partition is read anew."""
    settings = settings_for(nats_server, **brisk(workers=1))
    async with two(settings) as (outside, a, b):
        publisher = outside.publisher(seed=SEED, rate=1000)
        publisher.begin()
        await publisher.more(500)
        counters, seen = a.board.worker(0), len(a.words)
        read = counters.get(Counter.REBUILT_REPORTS)
        first = a.handle.session
        assert a.handle.process is not None
        os.kill(a.handle.process.pid or 0, signal.SIGKILL)
        await until(lambda: len(a.gone) == 1, what="its death is noticed")
        assert a.handle.serving == set()
        everything = set(range(settings.partitions))
        await a.serving(everything)
        assert a.handle.session not in (None, first)
        assert counters.get(Counter.REBUILT_REPORTS) == read, "memory outlives the worker"
        words = [word for _, word in a.words[seen:] if isinstance(word, pipes.Serving)]
        assert sum(word.reports for word in words) == 0
        # Another takes one by force: the session ends, and what it still owns comes again.
        seen = len(a.words)
        a.wanted[0].discard(3)
        await b.serve([3])
        await b.serving([3])
        await a.word(pipes.Ended, seen)
        await a.serving(everything - {3})
        await publisher.more(200)
        seen = len(a.words)
        await b.hand_over(3, a)
        taken = await a.word(pipes.Serving, seen, lambda word: 3 in word.partitions)
        assert counters.get(Counter.REBUILT_REPORTS) > read, f"{taken}: what memory had was not used"
        await publisher.finish()
        await outside.audit()


async def test_a_copy_that_is_not_wanted_any_more_leaves_nothing_and_a_partition_can_be_yielded_at_any_time(
    nats_server: NatsServer,
) -> None:
    """Words that cross: forget what is being copied, yield what is being read, and what was never served."""
    settings = settings_for(nats_server, **brisk(workers=1))
    async with two(settings) as (outside, a, b):
        publisher = outside.publisher(seed=SEED, rate=2000)
        publisher.begin()
        await publisher.more(1000)
        everything = list(range(settings.partitions))
        counters = b.board.worker(0)
        for partition in everything[:4]:
            await b.copied(partition)
        await until(lambda: counters.get(Counter.CHAMBERS) > 0)
        b.handle.copy(everything)
        b.handle.forget(everything)
        await until(lambda: counters.get(Counter.CHAMBERS) == 0, what="nothing is left of the copies")
        assert await b.given_back([5]) == {5: 0}
        b.handle.copy([6])
        await b.serve([6])
        positions = await b.given_back([6])
        await b.ownership.release(6, positions[6])
        b.handle.send(pipes.Assign(10**9, [pipes.Assignment(7, 1, "nobody", 0)]))  # of no session
        await a.serve([6])  # its session ended, or is about to: it was overtaken
        await a.serving(everything)
        await publisher.finish()
        await outside.audit()
        assert 7 not in b.handle.serving


async def test_drain_gives_the_positions_of_everything_and_leaves(nats_server: NatsServer) -> None:
    """Also while a copy is under way; what was not judged comes to the next owner."""
    settings = settings_for(nats_server, **brisk(workers=1))
    async with two(settings) as (outside, a, b):
        publisher = outside.publisher(seed=SEED, rate=2000)
        publisher.begin()
        await publisher.more(500)
        await a.hand_over(2, b)
        b.handle.copy(range(8))
        a.handle.copy([2])
        positions = await a.pool.drain(time.monotonic() + 5)
        assert set(positions) == set(range(settings.partitions)) - {2}
        assert len(a.gone) == 1
        await a.ownership.release_all(positions)
        await b.serve(positions)
        await b.serving(range(settings.partitions))
        await publisher.finish()
        await outside.audit()


async def latencies_ms(
    settings: Settings, connection: Connection, chambers: list[str], seconds: float
) -> list[float]:
    """From publishing a report to its verdict, of a report every 5 ms."""
    sent: dict[str, float] = {}
    took: list[float] = []

    def arrived(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        run = msgspec.msgpack.decode(payload)["run"]
        if run in sent:
            took.append((time.monotonic() - sent.pop(run)) * 1e3)

    sid = await connection.tap(f"{settings.subject_root}.verdict.>", arrived)
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        run = f"probe-{number}"
        payload = msgspec.json.encode({"run": run, "charts": ["a"], "counts": [3], "units": [10.0]})
        sent[run] = time.monotonic()
        chamber = chambers[number % len(chambers)]
        connection.write(frame_pub(settings.names.sample(chamber).encode(), payload))
        number += 1
        await asyncio.sleep(0.005)
    await until(lambda: not sent, what="every probe has its verdict")
    await connection.untap(sid)
    return took


async def test_copies_ahead_leave_live_verdicts_their_time(nats_server: NatsServer) -> None:
    """Large histories are copied again and again beside a trickle of reports; p50 and p99 are printed."""
    settings = settings_for(nats_server, **brisk(workers=1))
    names = settings.names
    live, heavy = 0, [p for p in range(settings.partitions) if p]
    charts = [f"chart-{i}" for i in range(100)]
    wide = {"run": "w", "charts": charts, "counts": [2] * 100, "units": [10.0] * 100}
    wide_payload = msgspec.msgpack.encode(wide)
    chambers = [f"H-{i}" for i in range(60)]
    probes = [name for i in range(400) if names.partition_of(name := f"P-{i}") == live][:10]
    async with two(settings) as (outside, a, b), connected(settings) as connection:
        for _ in range(40):
            await outside.publish([(name.encode(), wide_payload) for name in chambers])
        await outside.settled()
        await a.hand_over(live, b)
        await latencies_ms(settings, connection, probes, 0.5)
        counters = b.board.worker(0)
        without, beside = [], []
        for _ in range(2):
            without += await latencies_ms(settings, connection, probes, 2.0)
            read = counters.get(Counter.REBUILT_REPORTS)
            copying = asyncio.create_task(copy_again(b, heavy))
            beside += await latencies_ms(settings, connection, probes, 2.0)
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
            assert counters.get(Counter.REBUILT_REPORTS) > read + 100
            b.handle.forget(heavy)
        for what, took in (("without a copy", without), ("beside copies", beside)):
            print(f"{what}: p50 {median(took):.2f} ms, p99 {quantiles(took, n=100)[98]:.2f} ms")
        assert quantiles(beside, n=100)[98] < quantiles(without, n=100)[98] + 60.0


async def copy_again(crew: Crew, partitions: list[int]) -> None:
    while True:
        for partition in partitions:
            await crew.copied(partition)
        crew.handle.forget(partitions)
