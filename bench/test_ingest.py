"""Reports a second of a whole defender with one worker, against a bare loop over the same messages.

The stream is filled first; the rate is that at which the server's stream of verdicts grows. The bare loop
(bench/bare.py) pulls, publishes one message of a verdict's size and acks, with the same connection and
batches. Rounds alternate, and the ratio is that of the medians: the machine is noisy.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from typing import Any

import msgspec
import pytest
import uvloop
from figures import QUICK, figure
from fleet import connected, settings_for
from rig import SEED, fill_samples, rate_of, reports

from bench.lab.pods import Pod
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.resources import ensure

ROUNDS = 1 if QUICK else 5
CHAMBERS = {1: 2_000, 50: 200}
"""By charts a report: 2,000 or 10,000 charts, a tenth to two thirds of the worker's cache. One report of a
chamber is judged at a time, so very few chambers are slower; 20 of them are measured too."""


def settings_of(server: NatsServer) -> Settings:
    return settings_for(server, partitions=16, workers=1)


async def defender_round(
    server: NatsServer, count: int, charts: int, chambers: int
) -> tuple[float, float, int]:
    """(reports/s, bytes of a verdict, checksum of the reports)."""
    settings = settings_of(server)
    async with connected(settings) as connection:
        await ensure(connection, settings)
        checksum = await fill_samples(connection, settings, reports(count, charts, chambers=chambers))
        with Pod(settings) as pod:
            rate = await rate_of(connection, settings.stream_verdicts, count)
            size = pod.metric("defender_published_bytes_total") / max(
                1, pod.metric("defender_verdicts_total")
            )
        return rate, size, checksum


async def bare_round(server: NatsServer, count: int, charts: int, chambers: int, size: int) -> float:
    """Messages/s of the bare loop over the same reports."""
    settings = settings_of(server)
    async with connected(settings) as connection:
        await ensure(connection, settings)
        await fill_samples(connection, settings, reports(count, charts, chambers=chambers))
        arguments = ["ingest", msgspec.json.encode(settings).decode(), str(count), str(size)]
        bare = await asyncio.create_subprocess_exec(
            sys.executable, "bench/bare.py", *arguments, stdout=asyncio.subprocess.PIPE
        )
        rate = await rate_of(connection, settings.stream_verdicts, count)
        output, _ = await bare.communicate()
        assert json.loads(output.splitlines()[-1])["seconds"] > 0
        return rate


@pytest.mark.parametrize(("charts", "count"), [(1, 60_000), (50, 12_000)])
def test_ingest(benchmark: Any, charts: int, count: int) -> None:
    """One worker takes what a bare loop takes, nearly."""
    if QUICK:
        count //= 4
    rates: list[float] = []
    bare: list[float] = []

    async def both() -> int:
        rate, size, checksum = await defender_round(server, count, charts, CHAMBERS[charts])
        rates.append(rate)
        bare.append(await bare_round(server, count, charts, CHAMBERS[charts], int(size)))
        return checksum

    with NatsServer() as server:
        checksum = benchmark.pedantic(lambda: uvloop.run(both()), rounds=ROUNDS)
    rate, baseline = statistics.median(rates), statistics.median(bare)
    ratio = rate / baseline
    benchmark.extra_info.update(
        reports_per_s=rate, samples_per_s=rate * charts, ratio=ratio, seed=SEED, checksum=f"{checksum:08x}"
    )
    note = f"bare loop {baseline:,.0f}/s, seed {SEED}, checksum {checksum:08x}"
    if charts == 1:
        shown = f"{ratio:.0%} of the bare loop ({rate:,.0f} reports/s)"
        figure(
            "ingest, 1 sample a report",
            shown,
            target="≥ 60 %",
            baseline=note,
            met=ratio >= 0.6,
            is_ratio=True,
        )
    else:
        per_s = rate * charts
        figure(
            f"ingest, {charts} samples a report",
            f"{per_s:,.0f} samples/s ({ratio:.0%} of the bare loop)",
            target="≥ 300,000 samples/s",
            baseline=note,
            met=per_s >= 300_000,
        )


def test_ingest_of_few_chambers(benchmark: Any) -> None:
    """What it costs that one report of a chamber is judged at a time, where chambers are few."""
    count, rates = (5_000 if QUICK else 20_000), []

    async def one() -> None:
        rates.append((await defender_round(server, count, 1, 20))[0])

    with NatsServer() as server:
        benchmark.pedantic(lambda: uvloop.run(one()), rounds=1 if QUICK else 3)
    figure("ingest, 1 sample a report, 20 chambers", f"{statistics.median(rates):,.0f} reports/s")
