"""What the benches of a whole defender share: reports, a filled stream, a filled history, a watched pod.

All load is made outside of the defender, from SEED; what is measured is what the server has, or what a
subscriber outside received.
"""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec
import numpy as np

from runtime.arena import Arena
from runtime.bus import Connection, frame_pub
from runtime.cache import Cache
from runtime.config import Settings
from runtime.examine import Limits
from runtime.flight import FlightLog
from runtime.history.rows import LAYOUT, SAMPLE_BYTES, Row
from runtime.judge import Judge, Sample
from runtime.specs import Specs
from runtime.worker import shape_of

SEED = 20240611
CHAMBERS = 200


def reports(
    count: int, charts: int, *, chambers: int = CHAMBERS, seed: int = SEED
) -> Iterator[tuple[str, bytes]]:
    """(chamber, report) *count* times: JSON, in-control counts with a mean of 6."""
    rng = np.random.default_rng(seed)
    names = [f"chart-{i}" for i in range(charts)]
    units = rng.uniform(20.0, 40.0, charts).round(1)
    counts = rng.poisson(0.2 * units, (count, charts))
    for i in range(count):
        report = {"run": f"r{i}", "charts": names, "counts": counts[i].tolist(), "units": units.tolist()}
        yield f"chamber-{i % chambers}", msgspec.json.encode(report)


async def last_seq(connection: Connection, stream: str) -> int:
    """The sequence of a stream's newest message."""
    return int((await connection.api(f"STREAM.INFO.{stream}"))["state"]["last_seq"])


async def fill_samples(connection: Connection, settings: Settings, made: Iterator[tuple[str, bytes]]) -> int:
    """Publishes reports and waits until the stream has them; a checksum over them."""
    before, names = await last_seq(connection, settings.stream_samples), settings.names
    frames: list[bytes] = []
    count = crc = 0
    for chamber, payload in made:
        frames.append(frame_pub(names.sample(chamber).encode(), payload))
        crc = zlib.crc32(payload, crc)
        count += 1
        if len(frames) == 256:
            connection.write(b"".join(frames))
            frames.clear()
            await connection.flush()
    connection.write(b"".join(frames))
    while await last_seq(connection, settings.stream_samples) < before + count:
        await asyncio.sleep(0.02)
    return crc


async def rate_of(connection: Connection, stream: str, count: int, *, deadline_s: float = 120.0) -> float:
    """Messages/s at which *stream* grows by *count*, between its first and its last tenth."""
    begin = await last_seq(connection, stream)
    started: tuple[float, int] | None = None
    end = time.perf_counter() + deadline_s
    while time.perf_counter() < end:
        seq, now = await last_seq(connection, stream) - begin, time.perf_counter()
        if started is None and seq >= count // 10:
            started = now, seq
        if started is not None and seq >= count - count // 10:
            return (seq - started[1]) / (now - started[0])
        await asyncio.sleep(0.002)
    raise AssertionError(f"{stream} did not grow by {count} within {deadline_s:g} s")


async def fill_history(connection: Connection, settings: Settings, chambers: int, charts: int) -> int:
    """Stores *history_depth* verdicts of each chamber, as a defender would; their bytes."""
    roomy = msgspec.structs.replace(settings, workers=1, cache_mb=4 * settings.cache_mb)
    cache = Cache(
        Arena(os.memfd_create("fill"), shape_of(roomy)), settings.names, Specs(), 0, settings.history_depth
    )
    judge = Judge(cache, FlightLog(cache.arena), Limits(1 << 20, 1e9, 1e9), "defender-0")
    for partition in range(settings.partitions):
        judge.epochs[partition], judge.positions[partition] = 1, 0
    names = settings.names
    count = chambers * settings.history_depth
    total = 0
    batch: list[Sample] = []
    sent: list[asyncio.Future[None]] = []
    for seq, (chamber, payload) in enumerate(reports(count, charts, chambers=chambers), start=1):
        partition = names.partition_of(chamber)
        if cache.get(chamber) is None:
            cache.loaded([cache.add(chamber, partition)])
        batch.append(Sample(chamber, partition, seq, time.time_ns(), payload))
        while len(batch) * charts > 8_000 or (batch and seq == count):
            judged = judge.judge(batch)
            batch = judged.left
            while sent:
                await sent.pop()
            sent.append(connection.start_all(judged.verdicts))
            total += sum(len(message[2]) for message in judged.verdicts)
            assert judged.flight is not None
            judge.flights.confirm(judged.flight)
    while sent:
        await sent.pop()
    return total


def rows_to_append(count: int, chambers: int = 100) -> list[Row]:
    """Rows of 50 samples as a defender stores them."""
    rng = Random(SEED)
    charts = msgspec.msgpack.encode([f"chart_{i:02}" for i in range(50)])
    return [
        Row(
            *(
                f"C{i % chambers:03}",
                i + 1,
                LAYOUT,
                1 + i // chambers,
                1,
                10**18 + i,
                f"run-{i}",
                None,
                charts,
            ),
            *(rng.randbytes(50 * SAMPLE_BYTES), None, rng.randbytes(50 * 28)),
        )
        for i in range(count)
    ]


def pss_mb(pid: int) -> float:
    """Proportional set size of a process: shared pages are divided among those who share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1000
    raise AssertionError(f"no Pss of {pid}")


def children(pid: int) -> list[int]:
    """The child processes of a process, of all of its threads."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """A process's children, their children, and so on."""
    found = children(pid)
    return found + [below for child in found for below in descendants(child)]
