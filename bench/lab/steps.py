"""What a scenario's steps do to a fleet, by the rules of what keeps its pods.

Each waits until the fleet is as it should be again: every partition owned as the ring wants, every pod Ready.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from bench.lab.controllers import Controller, Deployment, StatefulSet
from bench.lab.pods import Pod
from bench.lab.scenario import Step
from bench.lab.stage import Stage
from bench.lab.waiting import until
from runtime.config import Identity, RingJoin

NEXT_REVISION: Final = "8d4b"
CANARY_REVISION: Final = "5f6d"
BETWEEN_S: Final = 1.0
"""Of quiet between two victims: the second one's cost is its own."""
COMES_BACK_S: Final = 10.0
"""In which a pod that was away finds out that it lost its ID."""
CANARY_SERVES_S: Final = 5.0
RAMP_RATES_MAX: Final = 24
LATE_MS_MAX: Final = 1_000.0
"""Producers that were later than this did not keep the rate."""
RAMP_WAITING_S: Final = 0.5
"""A rate is not sustained when the reports of so long wait at its end, and more than at its begin."""


def _number(value: int | str) -> int:
    """A count, which `bench.lab.scenario_file.sized` has made a number."""
    return int(value)


async def rolling_update(stage: Stage, step: Step) -> None:
    """Replaces every pod: a Deployment with surge, a StatefulSet from its highest ordinal down."""
    main, replicas = stage.main, stage.main.replicas
    what = f"rolling update of {replicas}, surge {step.surge}, unavailable {step.unavailable}"
    if isinstance(main, StatefulSet):
        what = f"rolling update of {replicas}, one after the other"
    async with stage.mark(what):
        if isinstance(main, Deployment):
            surge, unavailable = _number(step.surge), _number(step.unavailable)
            await main.rolling_update(NEXT_REVISION, surge=surge, unavailable=unavailable)
        elif isinstance(main, StatefulSet):
            await main.rolling_update(NEXT_REVISION)
        await stage.steady()


async def scale(stage: Stage, step: Step) -> None:
    """To another number of pods, all at once."""
    before, after = stage.main.replicas, _number(step.to)
    if after < before:
        await stage.costs_told()  # which of them go is the pods' word: the highest IDs
    async with stage.mark(f"{before} → {after}"):
        await stage.main.scale(after)
        await stage.steady(after)


async def crash(stage: Stage, step: Step) -> None:
    """SIGKILL to a worker, a container's first process, or a whole pod, which is then replaced."""
    for _ in range(_number(step.count)):
        victim = await _victim(stage, step)
        async with stage.mark(f"{step.victim} of {victim.settings.pod_name} dies"):
            if step.victim == "worker":
                await _kill_worker(victim)
            elif step.victim == "container":
                await _keeper(stage, victim).restart(victim)
            else:
                victim.kill()
                await _keeper(stage, victim).replace(victim)
            await stage.steady()
        await asyncio.sleep(BETWEEN_S)


async def _kill_worker(victim: Pod) -> None:
    index = min(victim.workers)
    before = victim.kill_worker(index)
    await until(
        lambda: victim.workers[index] != before, deadline_s=30.0, what=lambda: "the worker has a successor"
    )


async def _victim(stage: Stage, step: Step) -> Pod:
    if step.victim == "leader":
        uid = await stage.leader()
        return next(pod for pod in stage.living if pod.settings.pod_uid == uid)
    owners = {stage.observer.record(p).pod_uid for p in range(stage.settings.partitions)}
    serving = [pod for pod in stage.living if pod.settings.pod_uid in owners]
    return stage.random.choice(serving)


def _keeper(stage: Stage, pod: Pod) -> Controller:
    return next(one for one in stage.controllers if pod in one.pods)


async def zombie(stage: Stage, step: Step) -> None:
    """A pod's processes are stopped (SIGSTOP) for a while, and go on when another has its work."""
    for _ in range(_number(step.count)):
        victim = await _victim(stage, step)
        uid, name, restarts = victim.settings.pod_uid, victim.settings.pod_name, victim.restarts
        async with stage.mark(f"{name} is frozen for {step.seconds:g} s, then goes on"):
            with stage.absent([uid]):
                victim.freeze()
                try:
                    await asyncio.sleep(step.seconds)
                finally:
                    victim.thaw()
            await _comes_back(stage, victim, restarts)
            await stage.steady()


async def _comes_back(stage: Stage, victim: Pod, restarts: int) -> None:
    """A pod that lost its ID leaves with 76, and the kubelet starts its container again; one that kept its ID
    stays. Returns when either is seen."""
    end_s = time.monotonic() + COMES_BACK_S
    while time.monotonic() < end_s and victim.restarts == restarts:
        await asyncio.sleep(0.1)
    if victim.restarts > restarts:
        code = victim.lives[-2].exit_code
        stage.notes.append(f"{victim.settings.pod_name} left with {code}, and the kubelet started it again")


async def nats_restart(stage: Stage, step: Step) -> None:
    """kill -9 of nats-server, which comes back on its store."""
    async with stage.mark(f"nats-server is gone for {step.seconds:g} s"):
        stage.server.kill()
        await asyncio.sleep(step.seconds)
        await stage.server.start_async()
        await stage.steady()


async def partition(stage: Stage, step: Step) -> None:
    """Packets between some pods and nats-server are swallowed for a while."""
    victims = [await _victim(stage, step) for _ in range(_number(step.count))]
    chosen = {pod.settings.pod_uid: pod for pod in victims}
    restarts = {uid: pod.restarts for uid, pod in chosen.items()}
    names = ", ".join(pod.settings.pod_name for pod in chosen.values())
    async with stage.mark(f"{names}: cut off for {step.seconds:g} s"):
        with stage.absent(chosen):
            for uid in chosen:
                stage.proxies[uid].cut()
            try:
                await asyncio.sleep(step.seconds)
            finally:
                for uid in chosen:
                    stage.proxies[uid].mend()
        for uid, pod in chosen.items():
            await _comes_back(stage, pod, restarts[uid])
        await stage.steady()


async def blue_green(stage: Stage, step: Step) -> None:
    """As many green pods start outside of the ring, take all over by an operator's word, and give it back."""
    replicas = stage.main.replicas
    green = stage.controller(replicas, revision=NEXT_REVISION, **_aside(stage, "green"))
    async with stage.mark("green starts"):
        await green.start()
        await stage.steady(replicas)
    for track in ("green", "blue"):
        async with stage.mark(f"cutover to {track}"):
            await stage.command("cutover", track, "--yes")
            await stage.steady(replicas)
    async with stage.mark("green ends"):
        await green.scale(0)
        await stage.steady(replicas)


def _aside(stage: Stage, track: str, join: RingJoin = RingJoin.MANUAL) -> dict[str, object]:
    """Settings of a second track: the IDs behind those of the first."""
    first = max(stage.settings.ids) + 1
    return {"track": track, "id_range": f"{first}-{2 * first - 1}", "ring_join": join}


async def canary(stage: Stage, step: Step) -> None:
    """One pod of a second track joins with an ID of its own, takes its share, and leaves."""
    replicas = stage.main.replicas
    aside = _aside(stage, "canary", RingJoin.AUTO)
    one = stage.controller(1, revision=CANARY_REVISION, **aside)
    async with stage.mark("canary in"):
        await one.start()
        await stage.steady(replicas + 1)
    await asyncio.sleep(step.seconds or CANARY_SERVES_S)
    async with stage.mark("canary out"):
        await one.scale(0)
        await stage.steady(replicas)


async def migrate(stage: Stage, step: Step) -> None:
    """From a StatefulSet to a Deployment that claims its IDs, and back, by cutover."""
    replicas = stage.main.replicas
    settings = _aside(stage, "claimed") | {"identity": Identity.CLAIM}
    claimed = stage.controller(replicas, revision=NEXT_REVISION, **settings)
    async with stage.mark("Deployment starts beside the StatefulSet"):
        await claimed.start()
        await stage.steady(replicas)
    for track, what in (("claimed", "the Deployment"), (stage.settings.track, "the StatefulSet")):
        async with stage.mark(f"cutover to {what}"):
            await stage.command("cutover", track, "--yes")
            await stage.steady(replicas)
    async with stage.mark("Deployment ends"):
        await claimed.scale(0)
        await stage.steady(replicas)


async def wait(stage: Stage, step: Step) -> None:
    """Nothing is done."""
    async with stage.mark(f"nothing for {step.seconds:g} s"):
        await asyncio.sleep(step.seconds)


async def ramp(stage: Stage, step: Step) -> float:
    """Raises the rate until the reports that wait grow; the highest rate at which they did not."""
    rate, sustained = stage.scenario.load.reports_per_s, 0.0
    for _ in range(RAMP_RATES_MAX):
        async with stage.mark(f"{rate:,.0f} reports/s"):
            await stage.producers.set_rate(rate)
            await asyncio.sleep(step.seconds / 2)
            before = stage.following.progress().waiting
            await asyncio.sleep(step.seconds / 2)
            after, late_ms = stage.following.progress().waiting, stage.producers.progress().late_ms_max
        if late_ms > LATE_MS_MAX:
            stage.notes.append(f"the producers could not keep {rate:,.0f} reports/s: the lab was the limit")
            break
        if after > rate * RAMP_WAITING_S and after > before:
            break
        sustained, rate = rate, rate * step.factor
    await stage.producers.set_rate(stage.scenario.load.reports_per_s)
    return sustained


DOES: Final[dict[str, Callable[[Stage, Step], Awaitable[float | None]]]] = {
    "wait": wait,
    "rolling-update": rolling_update,
    "scale": scale,
    "crash": crash,
    "zombie": zombie,
    "nats-restart": nats_restart,
    "partition": partition,
    "blue-green": blue_green,
    "canary": canary,
    "migrate": migrate,
    "ramp": ramp,
}
