"""Partitions come to running workers and leave them, under load, on a real nats-server."""

from __future__ import annotations

import random

from fleet import settings_for, until
from runtime import pipes
from runtime import specs as chart_specs
from runtime.embedded import NatsServer
from tests.load import SPECS, fleet
from tests.pods import brisk
from tests.pools import Crew, crews

SEED = random.SystemRandom().randrange(10**6)


def with_specs(outside, *pools: Crew) -> None:
    revision = max(outside.specs)
    for crew in pools:
        crew.pool.use_specs(pipes.Specs(revision, chart_specs.encode(SPECS)))


async def test_partitions_that_move_to_and_fro_under_load_are_judged_once_and_in_order(
    nats_server: NatsServer,
) -> None:
    """Copied ahead, yielded, taken on: every report has its one verdict; the gap is some milliseconds."""
    settings = settings_for(nats_server, **brisk(workers=1))
    everything = set(range(settings.partitions))
    async with fleet(settings) as outside, crews(settings, outside.connection, "a", "b") as (a, b):
        with_specs(outside, a, b)
        await a.serve(everything)
        await a.serving(everything)
        publisher = outside.publisher(seed=SEED, rate=1500)
        publisher.begin()
        await publisher.more(500)
        gaps = []
        for turn in range(30):
            partition = random.Random(SEED + turn).choice(sorted(everything))
            giver, taker = (a, b) if partition in a.handle.serving else (b, a)
            gaps.append(await giver.hand_over(partition, taker))
            print(f"{partition} {gaps[-1] * 1e3:.1f} ms")
        await publisher.finish()
        streams = await outside.audit()
        assert len(streams.verdicts) > 1000
        gaps.sort()
        print(f"gap: median {gaps[15] * 1e3:.1f} ms, worst {gaps[-1] * 1e3:.1f} ms of {len(gaps)}")
        assert gaps[-1] < 0.25
