"""Time from a report's publication to its verdict's arrival at a subscriber, both outside of the defender.

Open loop: reports are sent when they are due, whether or not verdicts come, so that a stall shows.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import uvloop
from figures import QUICK, figure
from fleet import connected, settings_for
from rig import SEED, reports

from bench.lab.pods import Pod
from runtime.bus import frame_pub
from runtime.embedded import NatsServer
from runtime.resources import ensure
from runtime.wire import decode_verdict

RATE = 1_000
SECONDS = 3 if QUICK else 15
WARM_S = 1


async def latencies_ms(server: NatsServer) -> list[float]:
    """Of every report but those of the first second."""
    settings = settings_for(server, workers=2)
    names, sent, took = settings.names, {}, {}

    def arrived(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        now = time.perf_counter()
        run = decode_verdict(payload).run
        took[run] = (now - sent[run]) * 1e3

    async with connected(settings) as publisher, connected(settings) as subscriber:
        await ensure(publisher, settings)
        async with asyncio.timeout(SECONDS + 60):
            with Pod(settings) as pod:
                await pod.wait_serving()
                await subscriber.tap(names.verdict(0).replace(".0.", ".*."), arrived)
                begun = time.perf_counter()
                for i, (chamber, payload) in enumerate(reports(RATE * SECONDS, 1)):
                    due = begun + i / RATE
                    while (wait := due - time.perf_counter()) > 0:
                        await asyncio.sleep(wait)
                    sent[f"r{i}"] = time.perf_counter()
                    publisher.write(frame_pub(names.sample(chamber).encode(), payload))
                while len(took) < RATE * SECONDS:
                    await asyncio.sleep(0.01)
    return [took[f"r{i}"] for i in range(RATE * WARM_S, RATE * SECONDS)]


def test_latency(benchmark: Any) -> None:
    """At 1,000 reports/s a verdict is there in milliseconds."""
    with NatsServer() as server:
        took = benchmark.pedantic(lambda: uvloop.run(latencies_ms(server)), rounds=1)
    cuts = statistics.quantiles(took, n=100)
    p50, p99 = cuts[49], cuts[98]
    benchmark.extra_info.update(p50_ms=p50, p99_ms=p99, seed=SEED)
    figure(
        f"latency at {RATE:,} reports/s",
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms",
        target="p50 ≤ 3 ms, p99 ≤ 25 ms (quiet machine)",
        baseline=f"max {max(took):.0f} ms, seed {SEED}",
        met=p50 <= 3 and p99 <= 25,
    )
