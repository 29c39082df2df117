"""A failing schedule made small: fewer faults, pods and partitions, shorter, while it still fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from simulation.schedule import Schedule
from simulation.world import Outcome, World, simulate

TRIES_MAX = 400


def shrink(failed: Outcome, alter: Callable[[World], None] = lambda _: None) -> Outcome:
    """The smallest outcome found that violates something of the same kind."""
    kind = _kind(failed)
    tries = 0
    best, goes_on = failed, True
    while goes_on and tries < TRIES_MAX:
        goes_on = False
        for smaller in _smaller(best.schedule):
            tries += 1
            outcome = simulate(smaller, alter)
            if outcome.violation and _kind(outcome) == kind:
                best, goes_on = outcome, True
                break
            if tries >= TRIES_MAX:
                break
    return best


def _kind(outcome: Outcome) -> str:
    """A violation without its numbers and names: its first words."""
    words = [word for word in outcome.violation.split() if word.isalpha()]
    return " ".join(words[:3])


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    """Candidates, the greatest steps first; each also with other delays, for those are drawn anew."""
    faults = schedule.faults
    for seed in (schedule.seed, schedule.seed + 1_000_000, schedule.seed + 2_000_000):
        base = schedule._replace(seed=seed)
        for i in range(len(faults)):
            rest = (*faults[:i], *faults[i + 1 :])
            yield base._replace(faults=rest, until_s=max((f.at_s + f.length_s for f in rest), default=8.0))
        if schedule.replicas > 2:
            yield base._replace(replicas=schedule.replicas - 1)
        if schedule.green > 1:
            yield base._replace(green=schedule.green - 1)
        if schedule.partitions > 2:
            yield base._replace(partitions=schedule.partitions // 2)
        for i, fault in enumerate(faults):
            if fault.length_s > 1.0:
                shorter = fault._replace(length_s=round(fault.length_s / 2, 2))
                yield base._replace(faults=(*faults[:i], shorter, *faults[i + 1 :]))


def told(outcome: Outcome) -> str:
    """A schedule, what it did, and what it violated, to be read by people."""
    lines = [outcome.schedule.told(), "what happened:"]
    lines += [f"  {at_s:8.3f} s  {text}" for at_s, text in outcome.log]
    end = f"VIOLATED: {outcome.violation}" if outcome.violation else "everything held"
    return "\n".join([*lines, end])
