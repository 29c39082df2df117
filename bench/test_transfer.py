"""A copy ahead from the owner's memory against one from the history: time and CPU, and what the owner feels.

Two pods with one worker each; the first serves partitions with large windows beside a trickle of reports. The
copies of either kind alternate, of the same partitions, and the ratios are of the sums of a round.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from statistics import median, quantiles
from typing import Any

import msgspec
import uvloop
from figures import QUICK, figure
from fleet import settings_for
from load import fleet
from pools import Crew, crews
from rig import SEED

from bench.lab.pods import brisk
from runtime import pipes
from runtime import specs as chart_specs
from runtime.config import Settings
from runtime.connection import Connection
from runtime.counters import Counter
from runtime.embedded import NatsServer
from runtime.frames import frame_pub

CHAMBERS, CHARTS, REPORTS = (40, 50, 40) if QUICK else (100, 100, 100)
"""100 charts of 100 samples: 0.25 MB a chamber, 25 MB of slots."""
ROUNDS = 2 if QUICK else 4
LIVE_S = 1.0


def cpu_s(crew: Crew) -> float:
    """Of the worker, so far."""
    process = crew.handle.process
    assert process is not None
    with open(f"/proc/{process.pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def filled(outside: Any, settings: Settings) -> int:
    """Publishes what fills the windows; a checksum over it."""
    names, crc = [f"chart-{i}" for i in range(CHARTS)], 0
    for number in range(REPORTS):
        counts = [(number * 7 + i) % 9 for i in range(CHARTS)]
        wide = {"run": f"r{number}", "charts": names, "counts": counts, "units": [2.0] * CHARTS}
        payload = msgspec.msgpack.encode(wide)
        crc = zlib.crc32(payload, crc)
        await outside.publish([(f"chamber-{i}".encode(), payload) for i in range(CHAMBERS)])
    await outside.settled(120.0)
    return crc


async def live_ms(
    settings: Settings, connection: Connection, chambers: list[str], goes_on: asyncio.Task[Any] | None
) -> list[float]:
    """From publishing a report to its verdict, of one report every 5 ms."""
    sent: dict[str, float] = {}
    took: list[float] = []

    def arrived(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        run = msgspec.msgpack.decode(payload)["run"]
        if run in sent:
            took.append((time.monotonic() - sent.pop(run)) * 1e3)

    sid = await connection.tap(f"{settings.subject_root}.verdict.>", arrived)
    end, number = time.monotonic() + LIVE_S, 0
    while time.monotonic() < end if goes_on is None else not goes_on.done():
        run = f"probe-{time.monotonic_ns()}"
        payload = msgspec.json.encode({"run": run, "charts": ["a"], "counts": [3], "units": [10.0]})
        sent[run] = time.monotonic()
        connection.write(frame_pub(settings.names.sample(chambers[number % len(chambers)]).encode(), payload))
        number += 1
        await asyncio.sleep(0.005)
    async with asyncio.timeout(10.0):
        while sent:
            await asyncio.sleep(0.005)
    await connection.untap(sid)
    return took


async def copies(
    owner: Crew, other: Crew, partitions: list[int], *, from_memory: bool
) -> tuple[float, float]:
    """Copies these one after another: (s, s of both workers' CPU)."""
    begun, spent = time.monotonic(), cpu_s(owner) + cpu_s(other)
    for partition in partitions:
        await other.copied(partition, source=owner if from_memory else None)
    took = time.monotonic() - begun, cpu_s(owner) + cpu_s(other) - spent
    other.handle.forget(partitions)
    return took


def test_a_copy_from_the_owners_memory_against_one_from_the_history(benchmark: Any) -> None:
    """Of some 25 MB: a fraction of the time and CPU, and the owner's live verdicts keep their time."""
    took: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    live: dict[bool | None, list[float]] = {True: [], False: [], None: []}
    checksum = chambers = 0

    async def rounds(server: NatsServer) -> None:
        nonlocal checksum, chambers
        settings = settings_for(server, **brisk(workers=1, partitions=8, cache_mb=100))
        partitions = list(range(settings.partitions))
        async with fleet(settings) as outside, crews(settings, outside.connection, "a", "b") as (a, b):
            revision = max(outside.specs)
            for crew in (a, b):
                crew.pool.use_specs(pipes.Specs(revision, chart_specs.encode(outside.specs[revision])))
            await a.serve(partitions)
            await a.serving(partitions)
            checksum = await filled(outside, settings)
            probes = [f"chamber-{i}" for i in range(CHAMBERS)]
            await live_ms(settings, outside.connection, [f"P-{i}" for i in range(10)], None)
            for _ in range(ROUNDS):
                for from_memory in (True, False):
                    took[from_memory].append(await copies(a, b, partitions, from_memory=from_memory))
                    at_it = asyncio.create_task(copies(a, b, partitions, from_memory=from_memory))
                    probes = [f"P-{i}" for i in range(10)]
                    live[from_memory] += await live_ms(settings, outside.connection, probes, at_it)
                live[None] += await live_ms(settings, outside.connection, probes, None)
            await asyncio.sleep(0.3)
            chambers = b.board.worker(0).get(Counter.TRANSFERRED)
            assert b.board.worker(0).get(Counter.TRANSFERS_FAILED) == 0

    with NatsServer() as server:
        benchmark.pedantic(lambda: uvloop.run(rounds(server)), rounds=1)
    assert chambers >= 2 * ROUNDS * CHAMBERS
    seconds = {way: median(one[0] for one in took[way]) for way in took}
    cpu = {way: sum(one[1] for one in took[way]) / ROUNDS for way in took}
    p99 = {way: quantiles(live[way], n=100)[98] for way in live}
    note = f"seed {SEED}, checksum {checksum:08x}"
    benchmark.extra_info.update(seconds=str(seconds), cpu=str(cpu), p99=str(p99), checksum=f"{checksum:08x}")
    figure(
        "copy from the owner's memory, time",
        f"{seconds[True] / seconds[False]:.0%} of the history's ({seconds[True] * 1e3:,.0f} ms)",
        target="< 50 %",
        baseline=f"history {seconds[False] * 1e3:,.0f} ms, {note}",
        met=seconds[True] < 0.5 * seconds[False],
        is_ratio=True,
    )
    figure(
        "copy from the owner's memory, CPU of both workers",
        f"{cpu[True] / max(0.01, cpu[False]):.0%} of the history's ({cpu[True] * 1e3:,.0f} ms)",
        target="< 50 %",
        baseline=f"history {cpu[False] * 1e3:,.0f} ms",
        met=cpu[True] < 0.5 * cpu[False],
        is_ratio=True,
    )
    figure(
        "live verdicts of an owner that gives, p99",
        f"{p99[True]:.1f} ms",
        baseline=f"without {p99[None]:.1f} ms, copied from the history {p99[False]:.1f} ms",
    )
