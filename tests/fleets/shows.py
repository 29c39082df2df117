"""What a fleet is to keep its promises through: each show does one thing to real pods under load.

Each returns what its events cost, after the auditor found every report judged once and rightly. The tests run
them small, the benches at full size.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from runtime.config import RingJoin
from runtime.embedded import NatsServer
from tests.fleets.harness import Fleet, fleet_settings, running
from tests.fleets.observer import Figures


class Size(NamedTuple):
    """Of a show: pods, reports a second, partitions, and how long nothing is done to have a comparison."""

    replicas: int
    rate: int
    partitions: int = 32
    chambers: int = 100
    baseline_s: float = 1.0


SMALL: Final = Size(replicas=3, rate=200)
FULL: Final = Size(replicas=8, rate=1_000, partitions=64, chambers=256, baseline_s=5.0)


async def begin(fleet: Fleet, size: Size) -> None:
    """The load, and a while in which nothing else happens."""
    publisher = fleet.load(rate=size.rate, chambers=size.chambers)
    await publisher.more(size.rate)
    async with fleet.event("nothing"):
        await asyncio.sleep(size.baseline_s)


async def rolling_update(
    server: NatsServer, size: Size, *, surge: int, unavailable: int, **changes: Any
) -> Figures:
    """A Deployment's update: *surge* pods more, or *unavailable* pods fewer, at a time."""
    settings = fleet_settings(server, partitions=size.partitions, **changes)
    async with running(settings) as fleet:
        blue = fleet.deployment(replicas=size.replicas)
        await blue.start()
        await fleet.steady(size.replicas)
        await begin(fleet, size)
        what = f"update of {size.replicas}, surge {surge}, unavailable {unavailable}, by {settings.identity}"
        async with fleet.event(what):
            await blue.rolling_update("8d4b", surge=surge, unavailable=unavailable)
            await fleet.steady(size.replicas)
        return (await fleet.audit())[-1]


async def ordered_update(server: NatsServer, size: Size, *, at_once: int = 1) -> Figures:
    """A StatefulSet's update: from the highest ordinal down, *at_once* pods at a time."""
    settings = fleet_settings(server, partitions=size.partitions)
    async with running(settings) as fleet:
        blue = fleet.stateful_set(replicas=size.replicas)
        await blue.start()
        await fleet.steady(size.replicas)
        await begin(fleet, size)
        async with fleet.event(f"update of {size.replicas}, {at_once} at a time, by ordinal"):
            await blue.rolling_update("8d4b", unavailable=at_once)
            await fleet.steady(size.replicas)
        return (await fleet.audit())[-1]


async def scaling(server: NatsServer, size: Size, *, counts: Sequence[int]) -> list[Figures]:
    """From one number of replicas to the next."""
    settings = fleet_settings(server, partitions=size.partitions)
    async with running(settings) as fleet:
        blue = fleet.deployment(replicas=counts[0])
        await blue.start()
        await fleet.steady(counts[0])
        await begin(fleet, size)
        for before, after in itertools.pairwise(counts):
            async with fleet.event(f"{before} → {after}"):
                await blue.scale(after)
                await fleet.steady(after)
        return (await fleet.audit())[1:]


async def blue_green(server: NatsServer, size: Size) -> list[Figures]:
    """Green pods start outside of the ring, take all over by an operator's word, and give it back."""
    settings = fleet_settings(server, partitions=size.partitions, id_range="0-29", track="blue")
    async with running(settings) as fleet:
        blue = fleet.deployment(replicas=size.replicas)
        await blue.start()
        await fleet.steady(size.replicas)
        await begin(fleet, size)
        green = fleet.deployment(
            replicas=size.replicas, track="green", id_range="30-59", ring_join=RingJoin.MANUAL
        )
        async with fleet.event("green starts"):
            await green.start()
            await fleet.steady(size.replicas)
        for track in ("green", "blue"):
            async with fleet.event(f"cutover {track}") as event:
                event.remarks += (await fleet.command("cutover", track, "--yes")).splitlines()[-1:]
                await fleet.steady(size.replicas)
        async with fleet.event("green ends"):
            await green.scale(0)
            await fleet.steady(size.replicas)
        return (await fleet.audit())[1:]


async def canary(server: NatsServer, size: Size) -> list[Figures]:
    """One pod of a second track joins with an ID of its own, takes its share, and leaves."""
    settings = fleet_settings(server, partitions=size.partitions, id_range="0-29")
    async with running(settings) as fleet:
        stable = fleet.deployment(replicas=size.replicas)
        await stable.start()
        await fleet.steady(size.replicas)
        await begin(fleet, size)
        canary = fleet.deployment(replicas=1, revision="5f6d", track="canary", id_range="60-69")
        async with fleet.event("canary in"):
            await canary.start()
            await fleet.steady(size.replicas + 1)
        async with fleet.event("canary out"):
            await canary.scale(0)
            await fleet.steady(size.replicas)
        return (await fleet.audit())[1:]


def assert_nothing_went_wrong(figures: Figures) -> None:
    """None lost, none doubled, never two owners at a time, and only what the ring's change moves moved."""
    assert not figures.lost
    assert not figures.doubled
    assert not figures.stale
    assert figures.reassigned == figures.must_move
