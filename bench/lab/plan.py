"""A scenario in words: what `defender lab show` says of it before anything is done. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from bench.lab.budget import Limit
from bench.lab.scenario import Scenario, Step
from bench.lab.words import count, number, title, told

_VICTIMS: Final = {
    "worker": "SIGKILL of a worker process",
    "container": "SIGKILL of a container's first process, which starts again in its pod",
    "pod": "SIGKILL of a whole pod, which another replaces",
    "leader": "SIGKILL of the leader's pod, which another replaces",
}


def fleet(scenario: Scenario) -> Iterator[str]:
    """The fleet and its load, a line each."""
    of, load = scenario.fleet, scenario.load
    standbys = f" and {count(of.standbys, 'standby')}" if of.standbys else ""
    yield (
        f"{count(of.defenders, 'defender')}{standbys} of {count(of.workers, 'worker')}, "
        f"{count(of.partitions, 'partition')}, history in {of.history}"
    )
    if of.settings:
        yield "settings: " + ", ".join(f"{name}={value}" for name, value in sorted(of.settings.items()))
    yield (
        f"{number(load.reports_per_s)} reports/s of {count(load.samples, 'sample')} from "
        f"{count(load.chambers, 'chamber')}, {load.encoding}, by {count(load.producers, 'producer')}"
        + (f", skew {load.skew:g}" if load.skew else "")
        + (f", {load.burst} at a time" if load.burst > 1 else "")
        + (f", an excursion every {number(load.excursion_every)} reports" if load.excursion_every else "")
        + f"; seed {load.seed}"
    )


def steps(scenario: Scenario) -> list[str]:
    """What is done, in order; for a sized scenario."""
    settle = f"{scenario.settle_s:g} s of load"
    return [settle, *(_TOLD[step.do](step, scenario.fleet.defenders) for step in scenario.steps), settle]


def promise(limit: Limit) -> str:
    """``partitions reassigned ≤ 0``."""
    most = title(limit.most) if isinstance(limit.most, str) else told(limit.figure, limit.most)
    return f"{title(limit.figure)} ≤ {most}"


def _pods(step: Step) -> str:
    return "a pod" if step.count == 1 else f"{step.count} pods, one after the other,"


def _update(step: Step, defenders: int) -> str:
    return (
        f"all {defenders} pods replaced by a new revision, at most {step.surge} more "
        f"and {step.unavailable} fewer at a time"
    )


def _scale(step: Step, defenders: int) -> str:
    return f"scaled to {step.to}, all at one time"


def _crash(step: Step, defenders: int) -> str:
    times = "" if step.count == 1 else f", {step.count} times, one after the other"
    return f"{_VICTIMS[step.victim]}{times}"


_TOLD: Final[dict[str, Callable[[Step, int], str]]] = {
    "wait": lambda step, _: f"nothing for {step.seconds:g} s",
    "rolling-update": _update,
    "scale": _scale,
    "crash": _crash,
    "zombie": lambda step, _: f"{_pods(step)} stopped for {step.seconds:g} s and woken",
    "nats-restart": lambda step, _: f"nats-server stopped for {step.seconds:g} s and started again",
    "partition": lambda step, _: f"{_pods(step)} cut off from nats-server for {step.seconds:g} s",
    "blue-green": lambda _, defenders: (
        f"{count(defenders, 'pod')} of a second track start outside of the ring; cutover to them, "
        "cutover back, they leave"
    ),
    "canary": lambda step, _: (
        "a pod of the track canary starts, joins the ring"
        + (f", serves for {step.seconds:g} s" if step.seconds else "")
        + ", leaves"
    ),
    "migrate": lambda _, defenders: (
        f"{count(defenders, 'pod')} of a Deployment start beside the StatefulSet; cutover to them, "
        "cutover back, they leave"
    ),
    "ramp": lambda step, _: (
        f"the load rises to {step.factor:g} times every {step.seconds:g} s until the lag grows"
    ),
}
