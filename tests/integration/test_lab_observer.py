"""The follower and the observer see what real pods do, over a real server's restart."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest
from fleet import connected, settings_for, until
from load import fleet

from bench.lab import gaps
from bench.lab.errors import LabError, NotInTime
from bench.lab.follower import Following
from bench.lab.observer import Observer
from bench.lab.pods import Pod, another, brisk
from runtime import ownership_record
from runtime.bucket import Bucket
from runtime.bus import TRANSIENT
from runtime.config import Settings
from runtime.connection import Connection
from runtime.embedded import NatsServer
from runtime.resources import ensure


@asynccontextmanager
async def following(settings: Settings) -> AsyncIterator[Following]:
    """A follower for a block, ended whatever comes."""
    one = Following(settings)
    try:
        yield await one.start()
    finally:
        await one.stop()


async def publish(connection: Connection, settings: Settings, chamber: str, count: int) -> list[int]:
    """Stores so many bodies as reports of a chamber; their sequences."""
    subject = settings.names.sample(chamber)
    return [(await connection.store(subject, b"head only"))[0] for _ in range(count)]


async def judge(connection: Connection, settings: Settings, chamber: str, seq: int, **fields: int) -> None:
    """Stores a verdict as a pod would, due 5 ms ago."""
    at = time.time_ns() - 5_000_000
    payload = msgspec.msgpack.encode({"chamber": chamber, "seq": seq, "epoch": 1, "at": at, **fields})
    partition = settings.names.partition_of(chamber)
    await connection.store(settings.names.verdict(partition, chamber), payload)


async def judge_all(connection: Connection, settings: Settings, chamber: str, seqs: list[int]) -> None:
    for seq in seqs:
        await judge(connection, settings, chamber, seq)


async def test_every_report_of_a_real_pod_is_followed_to_its_verdict_or_rejection(
    nats_server: NatsServer,
) -> None:
    """And the observer saw who owned what; the bad reports of the load are rejected, some in part."""
    settings = settings_for(nats_server, **brisk(partitions=8))
    async with (
        fleet(settings) as outside,
        following(settings) as follower,
        connected(settings) as connection,
    ):
        observer = await Observer(connection, settings).start()
        publisher = outside.publisher(seed=5, rate=400)
        with Pod(another(settings, "one")) as pod:
            await pod.wait_serving()
            uid, begin_ns = pod.settings.pod_uid, time.time_ns()
            await until(lambda: not observer.unsettled({uid}), what="all is owned")
            publisher.begin()
            await publisher.more(800)
            stored = await publisher.finish()
            waits = await follower.finish(20.0)
            end_ns = time.time_ns()
        await observer.stop()
    counts = waits.counts
    assert (counts.reports, counts.waiting, counts.behind, counts.missed) == (stored, 0, 0, 0)
    assert counts.rejected
    assert counts.verdicts == len(waits.wait_ms) == len(waits.latency) > 0.98 * stored - counts.rejected
    assert (counts.doubled, counts.stale, counts.out_of_order, counts.unreadable) == (0, 0, 0, 0)
    assert waits.notes == []
    assert 0 < waits.wait_ms.max() < 5_000
    assert waits.latency.quantiles_ms([1.0]) == pytest.approx([waits.wait_ms.max()], rel=2e-3)
    seconds = gaps.timeline(waits, begin_ns, end_ns)
    assert sum(second.reports for second in seconds) == stored
    assert sum(second.verdicts for second in seconds) == counts.verdicts

    assert observer.identities[uid][0] == "defender-0"
    assert observer.unowned_ms(begin_ns, end_ns, lambda uid, at_ns: True) == dict.fromkeys(range(8), 0.0)
    owned = observer.owned(end_ns, {uid: "pod-one"})
    assert {(one.partition, one.stable_id, one.pod) for one in owned} == {
        (partition, "defender-0", "pod-one") for partition in range(8)
    }
    assert observer.doubles() == []


async def test_faults_in_the_streams_are_counted_while_they_come(nats_server: NatsServer) -> None:
    """Doubled, stale, out of order, and what waits; of two shards."""
    settings = settings_for(nats_server, partitions=8)
    async with connected(settings) as connection:
        await ensure(connection, settings)
        async with following(settings) as follower:
            seqs = await publish(connection, settings, "C-1", 6)
            for seq in (seqs[0], seqs[2], seqs[1], seqs[1]):
                await judge(connection, settings, "C-1", seq, epoch=9)
            await judge(connection, settings, "C-1", seqs[3], epoch=8)
            await until(lambda: follower.progress().verdicts == 5, what="all verdicts are seen")
            await until(lambda: follower.progress().reports == 6, what="all reports are seen")
            followed = follower.progress()
            assert (followed.waiting, followed.doubled) == (2, 1)
            assert (followed.out_of_order, followed.stale) == (1, 1)
            assert 5 <= followed.latency_ms_p99 < 5_000
            with pytest.raises(NotInTime, match="2 reports wait"):
                await follower.finish(0.3)
            await judge(connection, settings, "C-1", seqs[4], epoch=9)
            waits = await follower.finish(0.0, until_settled=False)
            assert (waits.counts.waiting, waits.counts.reports) in ((1, 6), (2, 6))


async def test_a_follower_goes_on_where_it_was_when_the_server_comes_back(own_server: NatsServer) -> None:
    """Killed with its consumers in memory: nothing is missed, nothing is counted twice."""
    settings = settings_for(own_server, partitions=8)
    async with connected(settings) as connection:
        await ensure(connection, settings)
        async with following(settings) as follower:
            seqs = await publish(connection, settings, "C-1", 40)
            await judge_all(connection, settings, "C-1", seqs)
            await until(lambda: follower.progress().verdicts == 40)
            own_server.stop()
            own_server.start()

            async def serves() -> bool:
                try:
                    return bool(await connection.api(f"STREAM.INFO.{settings.stream_samples}"))
                except TRANSIENT:
                    return False

            await until(serves, what="the server serves again")
            seqs = await publish(connection, settings, "C-2", 25)
            await judge_all(connection, settings, "C-2", seqs)
            waits = await follower.finish(20.0)
    counts = waits.counts
    assert (counts.reports, counts.verdicts, counts.waiting) == (65, 65, 0)
    assert (counts.missed, counts.doubled, counts.out_of_order, counts.behind) == (0, 0, 0, 0)
    assert counts.resumed >= 2, "both streams' consumers were gone; that of REJECTED may have nothing to tell"


async def test_an_observer_goes_on_when_the_server_comes_back(own_server: NatsServer) -> None:
    """What was written meanwhile and what is written after is seen."""
    settings = settings_for(own_server, partitions=8)
    owner = ownership_record.Owner("defender-0", "a")
    record = ownership_record.acquire(ownership_record.Record(), owner)
    async with connected(settings) as connection:
        await ensure(connection, settings)
        observer = await Observer(connection, settings).start()
        async with connected(settings) as other:
            bucket = Bucket(other, settings.nats_kv_assignments, random=random.Random(1))
            await bucket.put("partition.1", msgspec.json.encode(record))
            await until(lambda: observer.record(1).pod_uid == "a")
            own_server.restart()

            async def written() -> bool:
                try:
                    return bool(await bucket.put("partition.2", msgspec.json.encode(record)))
                except TRANSIENT:
                    return False

            await until(written, what="the server serves again")
            await until(lambda: observer.record(2).pod_uid == "a", what="the record is seen")
        assert len(observer.history[1]) == 1
        await observer.stop()


async def test_a_sharded_fleet_is_followed_whole() -> None:
    """Reports of both shards, whose streams have the same sequences."""
    settings = settings_for("nats://127.0.0.1:9", partitions=128)
    names = settings.names
    chambers = [
        next(name for name in map("C-{}".format, range(999)) if names.partition_of(name) // 64 == shard)
        for shard in (0, 1)
    ]
    with NatsServer(names=names) as server:
        settings = msgspec.structs.replace(settings, nats_servers=server.url)
        async with connected(settings) as connection:
            await ensure(connection, settings)
            async with following(settings) as follower:
                for chamber in chambers:
                    seqs = await publish(connection, settings, chamber, 5)
                    await judge_all(connection, settings, chamber, seqs)
                waits = await follower.finish(10.0)
    assert (waits.counts.reports, waits.counts.verdicts, waits.counts.doubled) == (10, 10, 0)
    assert sorted(set(waits.partition.tolist())) == sorted(names.partition_of(one) for one in chambers)


async def test_without_streams_or_server_it_says_what_to_do(nats_server: NatsServer) -> None:
    """And no process is left."""
    settings = settings_for(nats_server)
    with pytest.raises(LabError, match="defender init"):
        await Following(settings).start()
    nowhere = msgspec.structs.replace(settings, nats_servers="nats://127.0.0.1:9")
    with pytest.raises(LabError, match="no NATS server answered"):
        await Following(nowhere).start()
    with pytest.raises(LabError, match="start"):
        Following(settings).progress()


async def test_a_follower_that_was_killed_is_told_of(nats_server: NatsServer) -> None:
    """Rather than figures that stand still."""
    settings = settings_for(nats_server, partitions=8)
    async with connected(settings) as connection:
        await ensure(connection, settings)
        async with following(settings) as follower:
            os.kill(follower.pid, signal.SIGKILL)

            def is_told() -> bool:
                try:
                    return follower.progress() is None
                except LabError as error:
                    return "left with code -9" in str(error)

            await until(is_told)
            with pytest.raises(LabError, match="left with code -9"):
                await follower.finish(1.0)


PARENT = """
import asyncio, sys
import msgspec
from bench.lab.follower import Following
from runtime.config import Settings

async def main():
    following = await Following(msgspec.json.decode(sys.argv[1], type=Settings)).start()
    print(following.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@contextmanager
def parent(settings: Settings) -> Iterator[tuple[int, int]]:
    """Pids of a process that has a follower, and of that follower."""
    read_fd, write_fd = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", PARENT, msgspec.json.encode(settings).decode()],
        {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        file_actions=[(os.POSIX_SPAWN_DUP2, write_fd, 1)],
    )
    os.close(write_fd)
    try:
        with os.fdopen(read_fd) as said:
            yield pid, int(said.readline())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


async def test_a_follower_dies_with_its_parent(nats_server: NatsServer) -> None:
    """Though that was killed, and the follower does nothing by itself."""
    settings = settings_for(nats_server, partitions=8)
    async with connected(settings) as connection:
        await ensure(connection, settings)
    with parent(settings) as (_, follower_pid):
        assert Path(f"/proc/{follower_pid}").exists()
        os.kill(follower_pid, signal.SIGSTOP)

    def is_gone() -> bool:
        status = Path(f"/proc/{follower_pid}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX"

    try:
        await until(is_gone)
    finally:
        if not is_gone():
            os.kill(follower_pid, signal.SIGKILL)
