"""What a fleet of eight real defenders costs those who wait for verdicts: updates, handoffs, deaths, idling.

Everything is seen from outside: the server's times of reports and verdicts, the ownership records, /proc. A
gap is the longest time that a report of a partition waited for its verdict; the baseline is the same of the
same run's other partitions, or of a time in which nothing happened to the fleet.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from figures import QUICK, figure
from fleet import until

from bench.lab.controllers import Deployment
from bench.lab.pods import Pod
from runtime.config import Identity
from runtime.embedded import NatsServer
from tests.fleets.harness import Fleet, fleet_settings, running
from tests.fleets.observer import Figures, print_table, quantile
from tests.fleets.shows import (
    FULL,
    SMALL,
    Size,
    begin,
    blue_green,
    canary,
    ordered_update,
    rolling_update,
    scaling,
)

SIZE = SMALL if QUICK else FULL
SURGE = 1 if QUICK else 3
IDLE_S = 4 if QUICK else 20
SHOW_S_MAX = 240.0
TICKS_S = os.sysconf("SC_CLK_TCK")


def played(benchmark: Any, show: Coroutine[Any, Any, Any]) -> Any:
    """What the show returns, played once."""

    async def limited() -> Any:
        async with asyncio.timeout(SHOW_S_MAX):
            return await show

    return benchmark.pedantic(lambda: uvloop.run(limited()), rounds=1)


def spread(gaps_ms: Iterable[float]) -> str:
    ordered = sorted(gaps_ms)
    return "/".join(f"{quantile(ordered, share):.0f}" for share in (0.5, 0.99, 1.0)) + " ms"


def counts(events: Iterable[Figures]) -> str:
    """Reassigned, lost and doubled, over all events."""
    found = list(events)
    numbers = (
        sum(len(e.reassigned) for e in found),
        sum(e.lost for e in found),
        sum(e.doubled for e in found),
    )
    return "{} / {} / {}".format(*numbers)


@pytest.mark.parametrize(("surge", "unavailable"), [(SURGE, 0), (0, 1)])
def test_rolling_update(benchmark: Any, surge: int, unavailable: int) -> None:
    """No partition changes its stable ID, no report is lost, and no partition is long unattended."""
    with NatsServer() as server:
        update = played(benchmark, rolling_update(server, SIZE, surge=surge, unavailable=unavailable))
    what = f"rolling update of {SIZE.replicas}, surge {surge}"
    rate = update.reports / update.duration_s
    figure(
        f"{what}: reassigned / lost / doubled",
        counts([update]),
        target="0 / 0 / 0",
        baseline=f"{update.duration_s:.1f} s at {rate:,.0f} reports/s, {len(update.taken_over)} taken over",
        met=not (update.reassigned or update.lost or update.doubled),
        is_ratio=True,
    )
    p99 = quantile(update.handoff_gaps_ms, 0.99)
    figure(
        f"{what}: gap p50/p99/max",
        spread(update.handoff_gaps_ms),
        target="p99 ≤ 250 ms" if surge else "",
        baseline=f"all partitions in that time {spread(update.gaps_ms.values())}",
        met=p99 <= 250 if surge else None,
    )


def test_identities(benchmark: Any) -> None:
    """The same update by each source of identity, side by side."""

    async def all_three(server: NatsServer) -> list[Figures]:
        return [
            await rolling_update(server, SIZE, surge=SURGE, unavailable=0),
            await ordered_update(server, SIZE),
            await rolling_update(server, SIZE, surge=SURGE, unavailable=0, identity=Identity.POD),
        ]

    with NatsServer() as server:
        found = played(benchmark, all_three(server))
    print_table(found)
    for update in found:
        figure(
            f"{update.event.what}: reassigned / lost / doubled",
            counts([update]),
            baseline=f"{update.duration_s:.1f} s, gap p50/p99/max {spread(update.handoff_gaps_ms)}",
        )
        assert not update.lost
        assert not update.doubled


def test_scaling_cutover_canary(benchmark: Any) -> None:
    """Only what the ring's change moves is moved, each partition once, nothing lost."""
    half = SIZE.replicas // 2
    halved = SIZE._replace(replicas=half)

    async def all_three(server: NatsServer) -> list[list[Figures]]:
        return [
            await scaling(server, SIZE, counts=(half, SIZE.replicas, half + 1)),
            await blue_green(server, halved),
            await canary(server, halved),
        ]

    with NatsServer() as server:
        shows = played(benchmark, all_three(server))
    for show, events in zip(("scaling", "cutover and back", "canary in and out"), shows, strict=True):
        print_table(events)
        gaps = [gap for event in events for gap in event.handoff_gaps_ms]
        must = sum(len(event.must_move) for event in events)
        figure(
            f"{show}: reassigned / lost / doubled",
            counts(events),
            target=f"{must} / 0 / 0",
            baseline=f"gap p50/p99/max {spread(gaps)}",
            met=all(e.reassigned == e.must_move and not e.lost and not e.doubled for e in events),
            is_ratio=True,
        )


async def warm_handoffs(server: NatsServer, size: Size) -> tuple[Figures, Figures]:
    """(nothing, handoffs): one defender after the other is told to leave; standbys are long Ready."""
    settings = fleet_settings(server, partitions=size.partitions, max_defenders=size.replicas)
    async with running(settings) as fleet:
        pods = fleet.deployment(replicas=size.replicas + 3)
        await pods.start()
        await fleet.steady(size.replicas)
        await begin(fleet, size)
        async with fleet.event("handoffs to warm standbys"):
            for _ in range(3):
                await leave(fleet, pods)
                await fleet.steady(size.replicas)
        nothing, handoffs = await fleet.audit()
        return nothing, handoffs


async def leave(fleet: Fleet, pods: Deployment) -> None:
    """A pod that holds an ID leaves."""
    holders = {held.pod_uid for held in fleet.observer.claims.values()}
    await pods.terminate(next(pod for pod in pods.pods if pod.settings.pod_uid in holders))


def test_warm_handoff(benchmark: Any) -> None:
    """A planned handoff leaves no partition unattended for long. No pod starts meanwhile."""
    with NatsServer() as server:
        nothing, handoffs = played(benchmark, warm_handoffs(server, SIZE))
    assert not handoffs.lost
    assert not handoffs.doubled
    figure(
        f"warm handoff at {SIZE.rate:,} reports/s, {SIZE.replicas} defenders: gap p50/p99/max",
        spread(handoffs.handoff_gaps_ms),
        target="p99 ≤ 250 ms",
        baseline=f"{len(handoffs.changes)} handoffs; without any {spread(nothing.gaps_ms.values())}",
        met=quantile(handoffs.handoff_gaps_ms, 0.99) <= 250,
    )


async def deaths(server: NatsServer, size: Size) -> list[list[float]]:
    """Gaps of the partitions of a pod that dies, of the leader's when it dies, of a restarted container's."""
    settings = fleet_settings(server, partitions=size.partitions, max_defenders=size.replicas)
    async with running(settings) as fleet:
        pods = fleet.deployment(replicas=size.replicas + 2)
        await pods.start()
        await fleet.steady(size.replicas)
        await begin(fleet, size)
        affected = []
        for what, leads in (("kill -9 of a pod", False), ("kill -9 of the leader's pod", True)):
            async with fleet.event(what):
                victim, owned = await holder(fleet, pods, leads=leads)
                pods.pods.remove(victim)
                victim.kill()
                await fleet.steady(size.replicas)
            affected.append(owned)
        async with fleet.event("kill -9 of a supervisor"):
            victim, owned = await holder(fleet, pods, leads=False)
            seen = {p: len(fleet.observer.history[p]) for p in owned}
            await pods.restart(victim)
            await until(lambda: all(len(fleet.observer.history[p]) > n for p, n in seen.items()))
            await fleet.steady(size.replicas)
        affected.append(owned)
        events = (await fleet.audit())[1:]
        assert not any(event.reassigned for event in events)
        assert not events[-1].taken_over, "the restarted container lost its ID"
        return [gaps_of(event, owned) for event, owned in zip(events, affected, strict=True)]


async def holder(fleet: Fleet, pods: Deployment, *, leads: bool) -> tuple[Pod, list[int]]:
    """A pod that owns partitions, and which; the leader, or another."""
    observer, leader = fleet.observer, await fleet.leader()
    owned: dict[str, list[int]] = defaultdict(list)
    for partition in range(fleet.settings.partitions):
        owned[observer.record(partition).pod_uid].append(partition)
    holders = [pod for pod in pods.pods if pod.settings.pod_uid in owned]
    # a standby may lead: then any holder is as good
    found = sorted(holders, key=lambda pod: (pod.settings.pod_uid == leader) is not leads)[0]
    return found, owned[found.settings.pod_uid]


def gaps_of(figures: Figures, partitions: Iterable[int]) -> list[float]:
    return [figures.gaps_ms[p] for p in partitions if p in figures.gaps_ms]


def test_deaths(benchmark: Any) -> None:
    """A dead pod's chambers have verdicts again within 8 s, a restarted container's within 3 s."""
    size = SIZE._replace(replicas=max(2, SIZE.replicas // 2))
    with NatsServer() as server:
        death, leaders_death, restart = played(benchmark, deaths(server, size))
    for what, gaps, target_s in (
        ("a pod's death, standby at hand", death, 8),
        ("the leader's death, standby at hand", leaders_death, 8),
        ("a container's restart", restart, 3),
    ):
        figure(
            f"{what}: longest wait for a verdict",
            f"{max(gaps) / 1e3:.2f} s",
            target=f"≤ {target_s} s",
            baseline=f"{len(gaps)} partitions, p50/p99/max {spread(gaps)}",
            met=max(gaps) <= target_s * 1e3,
        )


def cpu_s(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S


async def idle_shares(server: NatsServer, size: Size) -> list[float]:
    """The share of a core that each supervisor of a fleet without any load uses."""
    async with running(fleet_settings(server, partitions=size.partitions)) as fleet:
        pods = fleet.deployment(replicas=size.replicas)
        await pods.start()
        await fleet.steady(size.replicas)
        await asyncio.sleep(3)  # the fleet's start is no idling
        begun, before = time.monotonic(), [cpu_s(pod.pid) for pod in pods.pods]
        await asyncio.sleep(IDLE_S)
        took_s = time.monotonic() - begun
        after = [cpu_s(pod.pid) for pod in pods.pods]
        return [(end - start) / took_s for start, end in zip(before, after, strict=True)]


def test_idle(benchmark: Any) -> None:
    """A supervisor that has nothing to do uses a hundredth of a core."""
    with NatsServer() as server:
        shares = played(benchmark, idle_shares(server, SIZE))
    mean = sum(shares) / len(shares)
    figure(
        f"an idle supervisor's CPU, {SIZE.replicas} defenders, {SIZE.partitions} partitions",
        f"{mean:.1%} of a core",
        target="≤ 1 %",
        baseline=f"the busiest of them {max(shares):.1%}",
        met=mean <= 0.01,
    )
