"""A pod's start, its recovery from a worker's death, its memory, and the rebuild of its cache.

Seen from outside: the stable IDs' bucket, /readyz, the stream of verdicts, /proc.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import time
from random import Random
from typing import Any

import msgspec
import uvloop
from figures import QUICK, figure
from fleet import connected, settings_for, until
from rig import SEED, descendants, fill_history, pss_mb, reports

from bench.lab.pods import Pod
from runtime.bucket import Bucket
from runtime.bus import Connection, frame_pub
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.resources import ensure

CHARTS = 150
ROUNDS = 1 if QUICK else 7


async def claimed_and_ready_s(server: NatsServer) -> tuple[float, float]:
    """Seconds from exec to a claim in the bucket, and to all workers serving."""
    settings = settings_for(server)
    async with connected(settings) as connection:
        await ensure(connection, settings)
        bucket = Bucket(connection, settings.nats_kv_stable_ids, random=Random(SEED))
        claimed: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        await bucket.watch(lambda _: claimed.done() or claimed.set_result(time.monotonic()))
        with Pod(settings) as pod:
            claim_s = await claimed - pod.started_s
            await pod.wait_serving()
            return claim_s, time.monotonic() - pod.started_s


def test_start(benchmark: Any) -> None:
    """An ID within half a second of exec; serving within three."""
    rounds: list[tuple[float, float]] = []
    with NatsServer() as server:
        benchmark.pedantic(
            lambda: rounds.append(uvloop.run(claimed_and_ready_s(server))), rounds=ROUNDS, warmup_rounds=1
        )
    claim_s, ready_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    spread = f"worst of {len(rounds)}: {max(c for c, _ in rounds):.2f} s, {max(r for _, r in rounds):.2f} s"
    figure("exec to a claimed ID", f"{claim_s:.2f} s", target="≤ 0.5 s", baseline=spread, met=claim_s <= 0.5)
    figure("exec to Ready", f"{ready_s:.2f} s", target="≤ 3 s", baseline=spread, met=ready_s <= 3)


async def recovery_ms(server: NatsServer, kills: int) -> list[float]:
    """Milliseconds from kill -9 of a worker to the next verdict of its partitions, under 1,000 reports/s."""
    settings = settings_for(server, workers=2, worker_restarts_max=100)
    names, took = settings.names, []
    heard: dict[int, float] = {}

    def arrived(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        heard[int(subject.split(b".")[2])] = time.monotonic()

    async with connected(settings) as connection, connected(settings) as subscriber:
        await ensure(connection, settings)
        with Pod(settings) as pod:
            await pod.wait_serving()
            await subscriber.tap(names.verdict(0).replace(".0.", ".*."), arrived)
            load = asyncio.create_task(_steady_load(connection, settings, 1_000))
            for kill in range(kills):
                await asyncio.sleep(1.5)  # longer than QUICK_DEATH_S between two deaths of one worker
                worker = kill % 2
                mine = range(worker, settings.partitions, 2)
                begun = time.monotonic()
                dead = pod.workers[worker]
                os.kill(dead, signal.SIGKILL)
                # what it had sent before it died arrives within milliseconds; a successor takes longer
                await until(lambda at=worker, pid=dead: pod.workers[at] != pid, what="a successor")
                served = time.monotonic()
                await until(
                    lambda at=served, partitions=mine: any(heard.get(p, 0.0) >= at for p in partitions),
                    deadline_s=10,
                )
                took.append((min(heard[p] for p in mine if heard.get(p, 0.0) >= served) - begun) * 1e3)
            load.cancel()
    return took


async def _steady_load(connection: Connection, settings: Settings, rate: int) -> None:
    begun, made = time.monotonic(), reports(1_000_000, 1)
    for i, (chamber, payload) in enumerate(made):
        while (wait := begun + i / rate - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        connection.write(frame_pub(settings.names.sample(chamber).encode(), payload))


def test_recovery(benchmark: Any) -> None:
    """A worker's death costs its partitions a fifth of a second."""
    kills = 2 if QUICK else 8
    with NatsServer() as server:
        took = benchmark.pedantic(lambda: uvloop.run(recovery_ms(server, kills)), rounds=1)
    median = statistics.median(took)
    figure(
        "a worker's death to its next verdict",
        f"{median:.0f} ms",
        target="≤ 200 ms",
        baseline=f"{kills} kills, worst {max(took):.0f} ms",
        met=median <= 200,
    )


async def rebuild_s(settings: Settings, charts: int) -> tuple[float, dict[str, float]]:
    """Seconds that two workers take to rebuild; memory of the processes after it, in MB (PSS)."""
    with Pod(settings) as pod:
        await pod.wait_serving(60)
        seconds = pod.metric("defender_rebuild_seconds")

        # a gauge, refreshed four times a second
        def used() -> float:
            return pod.metric("defender_cache_slots", state="used")

        await until(lambda: used() == charts, deadline_s=3, what=f"{charts} charts are back")
        workers = list(pod.workers.values())
        fork_server = [pid for pid in descendants(pod.pid) if pid not in workers]
        memory = {
            "workers": sum(pss_mb(pid) for pid in workers),
            "supervisor": pss_mb(pod.pid) + sum(pss_mb(pid) for pid in fork_server),
            "cache": used(),
        }
        return seconds, memory


async def bare_read_s(settings: Settings) -> tuple[int, float]:
    """(messages, seconds) of two processes that read the same messages and drop them."""
    readers = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "bench/bare.py",
            "read",
            msgspec.json.encode(settings).decode(),
            str(first),
            "2",
            stdout=asyncio.subprocess.PIPE,
        )
        for first in range(2)
    ]
    outputs = await asyncio.gather(*(reader.communicate() for reader in readers))
    found = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    return sum(one["messages"] for one in found), max(one["seconds"] for one in found)


def test_rebuild_and_memory(benchmark: Any) -> None:
    """A full cache of 100 MB from JetStream with two workers, against readers that drop what they read."""
    chambers = 10 if QUICK else 100
    times: list[float] = []
    bare: list[float] = []
    memories: list[dict[str, float]] = []
    read: list[int] = []

    async def fill(server: NatsServer) -> tuple[Settings, int]:
        settings = settings_for(server, workers=2)
        async with connected(settings) as connection:
            await ensure(connection, settings)
            return settings, await fill_history(connection, settings, chambers, CHARTS)

    async def both(settings: Settings) -> None:
        seconds, memory = await rebuild_s(settings, chambers * CHARTS)
        messages, bare_s = await bare_read_s(settings)
        times.append(seconds)
        bare.append(bare_s)
        memories.append(memory)
        read.append(messages)

    with NatsServer() as server:
        settings, size = uvloop.run(fill(server))
        benchmark.pedantic(lambda: uvloop.run(both(settings)), rounds=1 if QUICK else 3)
    seconds, bare_s = statistics.median(times), statistics.median(bare)
    slots = memories[0]["cache"]
    assert read[0] == chambers * settings.history_depth
    what = f"{read[0]:,} messages, {size / 1e6:.0f} MB, {int(slots):,} charts of 256"
    figure("rebuild of a full cache", f"{seconds:.2f} s", target="≤ 4 s", baseline=what, met=seconds <= 4)
    ratio = bare_s / seconds
    figure(
        "rebuild, of a bare reader's speed",
        f"{ratio:.0%}",
        target="≥ 50 %",
        baseline=f"bare readers {bare_s:.2f} s",
        met=ratio >= 0.5,
        is_ratio=True,
    )
    memory = memories[0]
    cache_mb = settings.cache_mb * slots / 15_600
    worker_mb = (memory["workers"] - cache_mb) / 2
    figure(
        "memory (PSS): supervisor and fork server; a worker without its cache",
        f"{memory['supervisor']:.0f} MB; {worker_mb:.0f} MB",
        target="≤ 120 MB; ≤ 150 MB",
        baseline=f"cache {cache_mb:.0f} MB, all {memory['supervisor'] + memory['workers']:.0f} MB",
        met=memory["supervisor"] <= 120 and worker_mb <= 150,
    )
