"""History in Cassandra: rebuild, ingest and appends against bare loops over the same driver, in one run.

One real node on the same machine takes its share of the cores; a report costs it about what it costs us.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import uvloop
from cassandra_server import CassandraServer
from figures import QUICK, figure
from fleet import connected, settings_for, until
from on_cassandra import running, with_cassandra
from rig import fill_history, fill_samples, rate_of, reports, rows_to_append

from bench.lab.pods import Pod
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.history.jetstream import JetStreamHistory
from runtime.history.rows import pack
from runtime.history.tables import Tables
from runtime.resources import ensure

CHARTS = 150
ROUNDS = 1 if QUICK else 3
WARMING = 1 if QUICK else 4
"""Readings before the first measured one."""


@pytest.fixture(scope="module")
def node() -> Iterator[CassandraServer | str]:
    """The cluster that CASSANDRA_CONTACT_POINTS names, else a node of our own."""
    points = os.environ.get("CASSANDRA_CONTACT_POINTS", "")
    if points:
        yield points
    else:
        with running() as server:
            yield server


async def fill(server: NatsServer, node: CassandraServer | str, chambers: int) -> tuple[Settings, int]:
    """A full history in both stores; the size of its rows."""
    settings = with_cassandra(settings_for(server, workers=2), node)
    async with connected(settings) as connection:
        await ensure(connection, settings)
        await fill_history(connection, settings, chambers, CHARTS)
        stream = JetStreamHistory(connection, settings.names, settings.history_depth, 5.0)
        tables, size = Tables(settings), 0
        for partition in range(settings.partitions):
            for chamber in await stream.chambers(partition):
                rows = [pack(payload) for payload in await stream.messages_of(partition, chamber)]
                size += sum(len(row.charts) + len(row.samples) + len(row.shown) for row in rows)
                await tables.append(rows)
        await tables.close()
    return settings, size


async def rebuild_s(settings: Settings, charts: int) -> float:
    """Seconds from the first partition's acquisition until all chambers are in memory."""
    with Pod(settings) as pod:
        await pod.wait_serving(60)

        def is_rebuilt() -> bool:
            return (
                len(pod.lines("rebuilt")) == settings.workers
                and pod.metric("defender_cache_slots", state="used") == charts
            )

        await until(is_rebuilt, deadline_s=60, what=f"{charts} charts are back")
        return max(float(line["took_s"]) for line in pod.lines("rebuilt"))


async def bare(settings: Settings, *arguments: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "bench/bare_cassandra.py", arguments[0]),
        *(msgspec.json.encode(settings).decode(), *arguments[1:]),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def test_rebuild(benchmark: Any, node: CassandraServer | str) -> None:
    """A full cache of 100 MB with two workers, against two bare readers of the same rows."""
    chambers = 10 if QUICK else 100
    times: list[float] = []
    bare_times: list[float] = []

    async def both(settings: Settings) -> None:
        times.append(await rebuild_s(settings, chambers * CHARTS))
        found = await asyncio.gather(*(bare(settings, "read", str(first), "2") for first in range(2)))
        assert sum(one["rows"] for one in found) == chambers * settings.history_depth
        bare_times.append(max(one["seconds"] for one in found))

    async def warm(settings: Settings) -> None:
        """The server compiles as it is asked: whoever asks first would pay for it."""
        for _ in range(WARMING):
            await asyncio.gather(*(bare(settings, "read", str(first), "2") for first in range(2)))

    with NatsServer() as server:
        settings, size = uvloop.run(fill(server, node, chambers))
        uvloop.run(warm(settings))
        benchmark.pedantic(lambda: uvloop.run(both(settings)), rounds=ROUNDS)
    seconds, bare_s = statistics.median(times), statistics.median(bare_times)
    rows = chambers * settings.history_depth
    what = f"{rows:,} rows, {size / 1e6:.0f} MB, {chambers * CHARTS:,} charts of 256"
    figure(
        "rebuild of a full cache from Cassandra",
        f"{seconds:.2f} s",
        target="≤ 5 s",
        baseline=what,
        met=seconds <= 5,
    )
    figure(
        "rebuild from Cassandra, of a bare driver's rows/s",
        f"{bare_s / seconds:.0%} ({rows / seconds:,.0f} rows/s)",
        target="≥ 60 %",
        baseline=f"bare readers {bare_s:.2f} s",
        met=bare_s / seconds >= 0.6,
        is_ratio=True,
    )


def test_ingest(benchmark: Any, node: CassandraServer | str) -> None:
    """Reports/s of two workers at 50 samples a report, with Cassandra and with JetStream as history."""
    count = 4_000 if QUICK else 24_000
    rates: dict[str, list[float]] = {"jetstream": [], "cassandra": []}

    async def one(settings: Settings) -> float:
        async with connected(settings) as connection:
            await ensure(connection, settings)
            await fill_samples(connection, settings, reports(count, 50, chambers=200))
            with Pod(settings):
                return await rate_of(connection, settings.stream_verdicts, count)

    async def both() -> None:
        plain = settings_for(server, partitions=16, workers=2)
        rates["jetstream"].append(await one(plain))
        with_it = with_cassandra(settings_for(server, partitions=16, workers=2), node)
        rates["cassandra"].append(await one(with_it))

    with NatsServer() as server:
        benchmark.pedantic(lambda: uvloop.run(both()), rounds=ROUNDS)
    with_it, without = (statistics.median(rates[store]) for store in ("cassandra", "jetstream"))
    figure(
        "ingest with Cassandra, 50 samples a report",
        f"{with_it / without:.0%} of JetStream's ({with_it:,.0f} reports/s)",
        target="≥ 70 %",
        baseline=f"JetStream {without:,.0f} reports/s",
        met=with_it / without >= 0.7,
        is_ratio=True,
    )


def test_append(benchmark: Any, node: CassandraServer | str) -> None:
    """Rows/s of appends as a worker makes them, 200 rows a batch, two batches at a time."""
    count = 2_000 if QUICK else 20_000
    rates: dict[str, list[float]] = {"ours": [], "bare": []}

    async def ours(settings: Settings) -> float:
        tables = Tables(settings)
        await tables.open()
        rows = rows_to_append(count)
        batches = iter([rows[first : first + 200] for first in range(0, count, 200)])

        async def work() -> None:
            for batch in batches:
                await tables.append(batch)

        began_s = time.perf_counter()
        await asyncio.gather(work(), work())
        took_s = time.perf_counter() - began_s
        await tables.close()
        return count / took_s

    async def both() -> None:
        settings = with_cassandra(Settings(), node)
        found = await bare(settings, "append", str(count))
        rates["bare"].append(count / found["seconds"])
        rates["ours"].append(await ours(with_cassandra(Settings(), node)))

    benchmark.pedantic(lambda: uvloop.run(both()), rounds=ROUNDS)
    rate, baseline = statistics.median(rates["ours"]), statistics.median(rates["bare"])
    figure(
        "appends to Cassandra, of a bare execute_concurrent",
        f"{rate / baseline:.0%} ({rate:,.0f} rows/s)",
        target="≥ 60 %",
        baseline=f"bare loop {baseline:,.0f} rows/s",
        met=rate / baseline >= 0.6,
        is_ratio=True,
    )
