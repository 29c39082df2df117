"""A history in Cassandra that is read back under faults: by pods that die in the midst of it, from a table
that lost rows, without VERDICTS, with a schema or a row of another version."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from cassandra_server import CassandraServer
from fleet import settings_for, until
from on_cassandra import on_cassandra, with_cassandra

from bench.lab.pods import Pod, brisk, environment
from runtime.config import Settings
from runtime.embedded import NatsServer
from tests.cassandra_audit import HEALS_S, audit_table, cql, is_ready, left, rebuilt
from tests.load import DIFFERENCES_SHOWN, Fleet, fleet
from tests.oracle import Streams

SEED = random.SystemRandom().randrange(10**6)
MANY_CHAMBERS = 300


def settings_on(nats: NatsServer, cassandra: CassandraServer | str, **changes: Any) -> Settings:
    return with_cassandra(settings_for(nats, **brisk(**changes)), cassandra)


async def judged(outside: Fleet, reports: int, *, seed: int, **load: Any) -> Streams:
    """That many reports, published, judged, and found right."""
    publisher = outside.publisher(seed=seed, **load)
    publisher.begin()
    await publisher.more(reports, deadline_s=HEALS_S)
    await publisher.finish()
    return await outside.audit(deadline_s=HEALS_S)


async def is_rebuilding(pod: Pod) -> None:
    """Until it says that chambers are still to be read."""
    await until(
        lambda: pod.metric("defender_rebuild_chambers_left") > 0,
        deadline_s=HEALS_S,
        what="a rebuild under way",
    )


async def test_a_worker_and_the_pod_killed_in_the_midst_of_their_rebuild_lose_and_double_nothing(
    own_server: NatsServer, cassandra_server: CassandraServer
) -> None:
    """kill -9 of a worker while chambers are to be read, and of the whole pod, under load."""
    settings = settings_on(own_server, cassandra_server)
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            await judged(outside, 1500, seed=SEED, rate=1000, chambers=MANY_CHAMBERS)
            await left(pod)
            publisher = outside.publisher(seed=SEED + 1, rate=200, chambers=MANY_CHAMBERS)
            publisher.begin()
            pod.start()
            await is_rebuilding(pod)
            dead = pod.kill_worker(0)
            await until(lambda: pod.workers[0] != dead, what="a successor")
            await is_rebuilding(pod)
            pod.kill()
            pod.start()
            await publisher.more(100)
            await publisher.finish()
            streams = await outside.audit(deadline_s=HEALS_S)
            await audit_table(settings, streams.verdicts)


async def test_rows_that_the_table_lost_are_read_from_verdicts_and_stored_again(
    own_server: NatsServer, cassandra_server: CassandraServer
) -> None:
    """Acknowledged rows vanish from the middle, the end and the whole of chambers' histories."""
    settings = settings_on(own_server, cassandra_server)
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            streams = await judged(outside, 700, seed=SEED, rate=500)
            await left(pod)
            by_chamber: dict[str, list[int]] = {}
            for message in streams.verdicts:
                seq = msgspec.msgpack.decode(message.payload)["seq"]
                by_chamber.setdefault(message.chamber, []).append(seq)
            middle, end, both, newest = list(by_chamber)[:4]
            lost = [(middle, seq) for seq in by_chamber[middle][3:6]]
            lost += [(end, seq) for seq in by_chamber[end][-4:]]
            lost += [(both, seq) for seq in [*by_chamber[both][5:9:2], *by_chamber[both][-2:]]]
            lost += [(newest, by_chamber[newest][-1])]
            delete = "DELETE FROM reports WHERE chamber = '{}' AND block = 0 AND seq = {}"
            await cql(settings, *(delete.format(*row) for row in lost))
            await rebuilt(pod.start(), streams.verdicts)
            await audit_table(settings, streams.verdicts)
            repaired = pod.metric("defender_history_repaired_total")
            assert repaired == len(lost) - 3, "a chamber's newest verdict may only have been on its way"
            streams = await judged(outside, 300, seed=SEED + 1, rate=500)
            await audit_table(settings, streams.verdicts)


async def test_with_a_filled_table_and_empty_verdicts_a_defender_judges_on_as_if_it_had_never_stopped(
    own_server: NatsServer, cassandra_server: CassandraServer
) -> None:
    """VERDICTS is purged while no pod runs; chambers have more reports than one block of the table."""
    settings = settings_on(own_server, cassandra_server)
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            before = await judged(outside, 1700, seed=SEED, rate=400, chambers=3)
            await left(pod)
            answer = await outside.connection.api(f"STREAM.PURGE.{settings.stream_verdicts}")
            assert answer["purged"] == len(before.verdicts)
            assert not (await outside.read()).verdicts
            pod.start()
            await pod.wait_serving()
            publisher = outside.publisher(seed=SEED + 1, rate=200, chambers=5)
            publisher.begin()
            await publisher.more(300)
            await publisher.finish()
            await outside.settled()
            streams = await outside.read()
            assert len(streams.verdicts) >= 250
            streams.verdicts = before.verdicts + streams.verdicts
            differences = outside.differences(streams)
            assert not differences, "\n".join(differences[:DIFFERENCES_SHOWN])
            await audit_table(settings, streams.verdicts)


@pytest.mark.limit_s(120)
async def test_a_schema_or_a_row_of_another_version_keeps_a_pod_from_serving_until_it_is_put_right(
    own_server: NatsServer, cassandra_server: CassandraServer
) -> None:
    """No keyspace, version 2, other PARTITIONS, a row of layout 2: each is named with its remedy, no report
    is lost, and the pod heals by itself."""
    settings = on_cassandra(settings_for(own_server, **brisk()), cassandra_server)
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await says(pod, f"no keyspace '{settings.cassandra_keyspace}'", "run: defender init")
            await asyncio.to_thread(initialise, settings)
            await is_ready(pod)
            publisher = outside.publisher(seed=SEED, rate=150)
            publisher.begin()
            await publisher.more(300)
            for key, value, own in (("schema", "2", "1"), ("partitions", "7", str(settings.partitions))):
                await cql(settings, f"UPDATE meta SET value = '{value}' WHERE key = '{key}'")
                pod.kill_worker(0)
                why = f"PARTITIONS is {own}" if key == "partitions" else "has version 2"
                await says(pod, why, "CASSANDRA_KEYSPACE" if key == "partitions" else "run a newer defender")
                await cql(settings, f"UPDATE meta SET value = '{own}' WHERE key = '{key}'")
                await is_ready(pod)
            await publisher.more(50)
            (chamber, seq), *_ = await cql(
                settings, "SELECT chamber, min(seq) FROM reports GROUP BY chamber, block"
            )
            of_row = f"WHERE chamber = '{chamber}' AND block = 0 AND seq = {seq}"
            await cql(settings, f"UPDATE reports SET layout = 2 {of_row}")
            pod.kill()  # a worker's memory would outlive it
            pod.start()
            await says(pod, f"report {seq} of chamber '{chamber}' has layout 2", "a newer one")
            await cql(settings, f"DELETE FROM reports {of_row}")
            await is_ready(pod)
            await publisher.more(50)
            await publisher.finish()
            streams = await outside.audit(deadline_s=HEALS_S)
            await audit_table(settings, streams.verdicts)


async def says(pod: Pod, why: str, remedy: str) -> None:
    """Until the pod is not ready and its log says why, and what to do."""

    def is_said() -> bool:
        causes = [str(line.get("cause", "")) for line in pod.lines()]
        return bool(pod.not_ready()) and any(why in cause and remedy in cause for cause in causes)

    await until(is_said, deadline_s=20.0, what=f"{why!r} and {remedy!r} in the log")
    assert pod.exit_code is None


def initialise(settings: Settings) -> None:
    """As an operator does it: `defender init`."""
    command = [sys.executable, "-m", "runtime", "init"]
    subprocess.run(command, env=environment(settings), check=True, capture_output=True, timeout=60)
