"""A Cassandra that refuses: overloaded, with tiny limits, with a clock that is days off, with a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cassandra_server import CassandraServer
from fleet import settings_for, until
from on_cassandra import running, with_cassandra

from bench.lab.pods import Pod, brisk
from runtime.config import Settings
from runtime.embedded import NatsServer
from tests.cassandra_audit import HEALS_S, audit_table, comes_back, cql, is_ready, is_told, left, rebuilt
from tests.load import Fleet, Publisher, fleet

SEED = random.SystemRandom().randrange(10**6)
CLOCK_SOURCE = Path(__file__).parents[1] / "fleets" / "clock_shift.c"
DAY_S = 86_400
DISK_MIB = 160
STALLS_MAX = 50
"""Of a node; a stall makes a write time out only if it hits one on its way."""
TINY = {
    "native_transport_rate_limiting_enabled": True,
    "native_transport_max_requests_per_second": 40,
    "write_request_timeout": "10ms",
    "batch_size_warn_threshold": "1KiB",
    "batch_size_fail_threshold": "2KiB",
}


class Clock:
    """The wall clock of a server that is started with ``environment``: off by what `jump` says."""

    def __init__(self, folder: Path) -> None:
        self._file, library = folder / "shift", folder / "clock_shift.so"
        self.jump(0)
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(CLOCK_SOURCE)], check=True)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT_FILE": str(self._file)}

    def jump(self, seconds: int) -> None:
        with open(self._file, "r+b" if self._file.exists() else "w+b") as file:  # in place: it is mapped
            file.write(struct.pack("l", seconds))


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return Clock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def node(clock: Clock) -> Iterator[CassandraServer]:
    """One Cassandra for the tests of this module, on *clock*."""
    with running(environment=clock.environment) as server:
        yield server


def settings_on(nats: NatsServer, cassandra: CassandraServer, **changes: Any) -> Settings:
    return with_cassandra(settings_for(nats, **brisk(**changes)), cassandra)


async def end(outside: Fleet, publisher: Publisher, pod: Pod) -> None:
    """Some more load; then streams are right, and the table too when a pod has read its history anew."""
    await publisher.more(200)
    await publisher.finish()
    streams = await outside.audit(deadline_s=HEALS_S)
    await left(pod)
    await rebuilt(pod.start(), streams.verdicts)
    await audit_table(outside.settings, streams.verdicts)


@pytest.mark.limit_s(150)
async def test_a_node_whose_clock_is_days_ahead_and_then_days_behind_keeps_rows_and_index_right(
    own_server: NatsServer, node: CassandraServer, clock: Clock
) -> None:
    """Two days ahead, killed, two days behind, while reports are stored again and a block ends."""
    clock.jump(2 * DAY_S)
    settings = settings_on(own_server, node)
    assert await days_off(settings) == pytest.approx(2.0, abs=0.1)
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            publisher = outside.publisher(seed=SEED, rate=250, chambers=2)
            publisher.begin()
            await publisher.more(800)
            pod.kill_worker(0)
            node.kill()
            clock.jump(-2 * DAY_S)
            await comes_back(node)
            await is_ready(pod)
            assert await days_off(settings) == pytest.approx(-2.0, abs=0.1)
            pod.kill_worker(1)
            await publisher.more(100)
            await is_ready(pod)
            await end(outside, publisher, pod)
    clock.jump(0)


async def days_off(settings: Settings) -> float:
    """By how much the node's clock is ahead of ours."""
    ((at_ms,),) = await cql(settings, "SELECT toUnixTimestamp(now()) FROM system.local")
    return float(at_ms / 1000 - time.time()) / DAY_S


@pytest.mark.limit_s(150)
async def test_overload_write_timeouts_and_batches_too_large_lose_nothing(
    own_server: NatsServer, node: CassandraServer
) -> None:
    """The node takes 40 requests a second and no batch above 2 KiB, and stalls for longer than it lets a
    write take: what it refuses is sent again, in smaller batches."""
    settings = settings_on(own_server, node, log_level="debug")
    meta = f"{settings.cassandra_keyspace}/meta-*/*-Data.db"
    await until(lambda: any((node.folder / "data").glob(meta)), what="the version is on disk")
    node.kill()
    node.options = TINY
    node.start()
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            publisher = outside.publisher(seed=SEED, rate=200)
            publisher.begin()
            for stall in range(STALLS_MAX):
                await publisher.more(40)
                node.freeze()
                await asyncio.sleep(0.05)
                node.thaw()
                told = " ".join(line["cause"] for line in pod.lines("sent again"))
                if stall >= 10 and "code=1100" in told:
                    break
            else:
                pytest.fail(f"no write timed out in {STALLS_MAX} stalls; sent again because of: {told}")
            await publisher.finish()
            await outside.settled(deadline_s=HEALS_S)
            assert pod.metric("defender_history_retries_total") > 0
            assert pod.said("triggered backpressure"), "the server did not mind the load"
            assert pod.said("Cassandra refuses batches of this size")
            assert not pod.lines("worker died")
            assert not pod.lines("session ended")
            streams = await outside.audit()
            await audit_table(settings, streams.verdicts)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own, of DISK_MIB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "defender-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system of its own can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.limit_s(150)
async def test_a_full_disk_of_cassandra_makes_reports_wait_and_with_room_again_all_are_judged(
    own_server: NatsServer, small_disk: Path
) -> None:
    """The node stops or dies with a full disk; with room again it is started anew, and nothing is lost."""
    with running(data=small_disk / "cassandra") as node:
        settings = settings_on(own_server, node)
        async with fleet(settings) as outside:
            with Pod(settings) as pod:
                await pod.wait_serving()
                publisher = outside.publisher(seed=SEED, rate=200)
                publisher.begin()
                await publisher.more(300)
                ballast = fill(small_disk)
                await is_told(pod, node)
                node.kill()
                ballast.unlink()
                await comes_back(node)
                await is_ready(pod)
                await end(outside, publisher, pod)


def fill(folder: Path) -> Path:
    """A file that leaves no room."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65_536))
    return ballast
