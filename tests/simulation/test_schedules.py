"""Thousands of schedules of a simulated fleet; what is broken on purpose is found and made small."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import msgspec
import pytest

from runtime import identity
from runtime.identity import Claim, Decision
from simulation import process
from simulation.schedule import Kind, draw
from simulation.shrink import shrink, told
from simulation.world import Outcome, World, simulate

SCHEDULES = int(os.environ.get("SIMULATED_SCHEDULES", "1500"))
SLICE = 100
FAILED_ONCE = (
    *(37763, 37769, 40825, 43183, 44835, 49359, 50233, 53869, 63705, 84383, 87366, 87912, 200328, 201892),
)
"""Seeds among 100,000s that broke an invariant until the protocol, the model or a bound was mended."""


def failures(first: int) -> list[str]:
    """Of one slice of seeds, those that fail, told in full."""
    found = []
    for seed in range(first, first + SLICE):
        outcome = simulate(draw(seed))
        if outcome.violation:
            found.append(f"seed {seed}: {outcome.violation}\nshrunk:\n{told(shrink(outcome))}")
    return found


def first_failure(alter: Callable[[World], None], most: int = 400) -> Outcome:
    for seed in range(most):
        outcome = simulate(draw(seed), alter)
        if outcome.violation:
            return outcome
    raise AssertionError(f"nothing was found in {most} schedules")


def test_no_schedule_of_thousands_loses_doubles_or_leaves_anything() -> None:
    """Whatever befalls the fleet: one valid epoch, each sample judged once, and it settles in time."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = [text for texts in pool.map(failures, range(0, SCHEDULES, SLICE)) for text in texts]
    assert not found, "\n\n".join(found[:3])


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_a_schedule_that_failed_once_holds(seed: int) -> None:
    assert not simulate(draw(seed)).violation


def test_the_same_schedule_takes_the_same_course() -> None:
    one, two = simulate(draw(7)), simulate(draw(7))
    assert one == two
    assert one.log
    assert simulate(draw(7)._replace(seed=8)).events != one.events


def test_schedules_reach_what_they_are_for() -> None:
    """Faults of every kind, zombies, takeovers and moves of partitions occur among the first schedules."""
    schedules = [draw(seed) for seed in range(400)]
    assert {fault.kind for schedule in schedules for fault in schedule.faults} == set(Kind)
    outcomes = [simulate(schedule) for schedule in schedules[:150]]
    assert sum(outcome.moved for outcome in outcomes) > 100
    texts = [text for outcome in outcomes for _, text in outcome.log]
    for word in ("is fenced", "deposes", "passes", "leads", "out with its track"):
        assert any(word in text for text in texts), f"in no schedule {word}"


def leave_older_consumers(world: World) -> None:
    """An owner does not delete its predecessors' consumers."""
    world.server.delete_consumers = lambda partition, epochs: 0  # type: ignore[method-assign]


def count_delivered_as_stored(world: World) -> None:
    """A position is taken that lies beyond what is stored."""
    really = world.server.told

    def told_more(partition: int) -> Any:
        told = really(partition)
        return told._replace(floors={epoch: floor + 1 for epoch, floor in told.floors.items()})

    world.server.told = told_more  # type: ignore[method-assign]


def take_the_epoch_that_was_seen(world: World) -> None:
    """The epoch is the revision that was there before, not the one that our write got."""
    really = world.server.write_owner

    def write_owner(partition: int, record: Any, expected: int) -> Any:
        written = really(partition, record, expected)
        return written and (expected or written[0], written[1])

    world.server.write_owner = write_owner  # type: ignore[method-assign]


def look_at_no_deadline(world: World) -> None:
    """Neither worker nor supervisor looks at the lease's deadline."""
    world.checks_deadline = False


@pytest.mark.parametrize(
    "alter",
    [
        leave_older_consumers,
        count_delivered_as_stored,
        take_the_epoch_that_was_seen,
        look_at_no_deadline,
    ],
    ids=lambda alter: alter.__name__,
)
def test_a_broken_rule_is_found_and_shrinks(alter: Callable[[World], None]) -> None:
    outcome = first_failure(alter)
    small = shrink(outcome, alter)
    assert small.violation
    assert len(small.schedule.faults) <= len(outcome.schedule.faults)
    assert f"seed {small.schedule.seed}" in told(small)
    assert small.violation in told(small)


def test_a_standby_that_enlarges_the_ring_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rolling update then moves partitions, or leaves them unattended."""

    def decide(claims: Mapping[str, Claim], pod: identity.Pod, ids: Any, **rest: Any) -> Decision:
        alike = {key: msgspec.structs.replace(one, revision=pod.revision) for key, one in claims.items()}
        return identity.decide(alike, pod, ids, **rest)

    monkeypatch.setattr(process, "decide", decide)
    outcome = first_failure(lambda world: None)
    assert "though there was only" in outcome.violation or "rolling update" in outcome.violation
