"""What one producer of the lab can publish: the harness must not be the limit."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import uvloop
from figures import QUICK, figure
from fleet import connected, settings_for, until

from bench.lab.load import Producers
from bench.lab.scenario import LoadOf
from runtime.embedded import NatsServer
from runtime.resources import ensure

SECONDS = 2.0 if QUICK else 6.0
WANTED = 20_000
BEYOND = 200_000
"""More than any server here takes."""


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def published(rate: float) -> tuple[float, float, float]:
    """(stored reports/s, the producer's cores, by how much it was late itself in ms)."""
    with NatsServer() as server:
        settings = settings_for(server)
        async with connected(settings) as connection:
            await ensure(connection, settings)
            load = LoadOf(reports_per_s=rate, samples=10, encoding="mixed")
            async with Producers(settings, load) as producers:
                await until(lambda: producers.progress().stored > WANTED / 2, what="under way")
                begun, begun_cpu_s = producers.progress(), cpu_s(producers.pids[0])
                await asyncio.sleep(SECONDS)
                now, used_s = producers.progress(), cpu_s(producers.pids[0]) - begun_cpu_s
                took_s = now.seconds - begun.seconds
                produced = await producers.finish(20.0)
            info = await connection.api(f"STREAM.INFO.{settings.stream_samples}")
            assert produced.stored == produced.published == info["state"]["messages"]
    return (now.stored - begun.stored) / took_s, used_s / took_s, now.late_ms_max


@pytest.mark.parametrize("rate", [WANTED, BEYOND])
def test_lab_load(benchmark: Any, rate: float) -> None:
    """One producer keeps 20,000 reports/s of 10 samples, at a part of a core."""
    found: list[tuple[float, float, float]] = []

    def run() -> None:
        found.append(uvloop.run(published(rate)))

    benchmark.pedantic(run, rounds=1, iterations=1)
    per_s, cores, late_ms = found[0]
    asked = f"{rate:,} wanted" if rate == WANTED else "as many as the server takes"
    figure(
        f"lab: one producer, reports of 10 samples, {asked}",
        f"{per_s:,.0f}/s stored, {cores:.2f} cores, late by {late_ms:.0f} ms at most",
        target=f">= {0.99 * WANTED:,.0f}/s",
        met=per_s >= 0.99 * WANTED,
    )
