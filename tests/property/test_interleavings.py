"""Whatever comes between: the verdicts are the oracle's, which judges every report once and in order."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.specs import Alarm, Baseline, ChartSpec, Cusum, Design, Ewma, Limits, RuleSet, Specs, Start
from runtime.specs_methods import Mode, Severity
from tests.property.world import LONG, SHORT, Memory, Pair, Worker, World

SPECS = {
    revision: Specs(
        charts=(
            ChartSpec(chart="given_*", baseline=Baseline.GIVEN, centre=centre),
            ChartSpec(chart="moving_*", baseline=Baseline.MOVING, minimum=minimum),
        ),
        default=ChartSpec(phase_one=phase_one, minimum=2, k=k),
    )
    for revision, centre, minimum, phase_one, k in [
        (3, 2.0, 3, 4, 3.0),
        (4, 2.0, 3, 4, 2.0),
        (5, 1.5, 2, 5, 2.0),
    ]
}
POINTS = 33
RISING = tuple(0.4 + 0.1 * i for i in range(POINTS))
DESIGNS = (
    Design(1.5, 0.5, 0.0, 370.0, rows=(RISING, RISING, (0.0,) * POINTS)),
    Design(2.0, 0.0, 0.3, 200.0, rows=(RISING, tuple(0.5 * h for h in RISING), (2.0,) * POINTS)),
)
"""Tight limits, so that CUSUM and EWMA signal now and then among a few samples."""
CUSUM = Cusum(ratio=1.5, arl0=370.0, head_start=0.5)
BOTH = {"cusum": Cusum(ratio=2.0, arl0=200.0, head_start=0.0), "ewma": Ewma(weight=0.3, arl0=200.0)}
SHORTLY = Alarm(again_after_reports=2, end_after=1)
BY_TIME = Alarm(again_after_s=20.0, end_after=2, severity={1: Severity.WARNING, 9: Severity.CRITICAL})
BY_RATE = Alarm(fdr=0.05, end_after=2)
PREDICT = Start.PREDICT
EVERY = Alarm(mode=Mode.EVERY, fdr=0.2)


def rich(given: dict[str, Any], moving: dict[str, Any], frozen: dict[str, Any]) -> Specs:
    return Specs(
        charts=(
            ChartSpec(chart="given_*", baseline=Baseline.GIVEN, **given),
            ChartSpec(chart="moving_*", baseline=Baseline.MOVING, minimum=3, **moving),
        ),
        default=ChartSpec(minimum=2, **frozen),
        designs=DESIGNS,
    )


def methods(phase_one: int) -> dict[int, Specs]:
    """Every kind of limits, shifts and alarms. All change from revision to revision, within a stage too, but
    for CUSUM and EWMA, which of a fixed centre change with the stage."""
    frozen: dict[str, Any] = {"phase_one": phase_one, "k": 2.0}
    laney = {"limits": Limits.LANEY, "sigma_z_floor": 0.7, "screen_ranges": True}
    return {
        3: rich(
            {"centre": 2.0, "limits": Limits.EXACT, "alpha": 0.05, "cusum": CUSUM, "alarm": BY_RATE},
            {"limits": Limits.AUTO, "alpha": 0.01, "rules": RuleSet.WESTERN_ELECTRIC, "alarm": BY_RATE},
            {**frozen, "limits": Limits.AUTO, "alpha": 0.02, "alarm": BY_TIME, **BOTH},
        ),
        4: rich(
            {"centre": 1.75, "limits": Limits.LANEY, "sigma_z": 1.3, "alarm": EVERY, **BOTH},
            {**laney, "start": PREDICT, "alarm": BY_TIME, **BOTH},
            {**frozen, **laney, "cusum": CUSUM, "rules": RuleSet.NELSON, "counts": {2: 3}, "alarm": EVERY},
        ),
        5: rich(
            {"centre": 1.75, "rules": (1, 2, 3), "counts": {2: 3, 3: 3}, "alarm": SHORTLY, **BOTH},
            {**laney, "rules": (1, 4), "counts": {4: 3}, "alarm": Alarm(end_after=4, fdr=0.1), **BOTH},
            {
                **frozen,
                **(laney if phase_one < 20 else {}),
                "cusum": CUSUM,
                "start": PREDICT,
                "alarm": SHORTLY,
            },
        ),
    }


METHODS, LONG_METHODS = methods(4), methods(15)
SMOOTH = ("publish", "deliver", "launch", "launch", "store", "land", "land", "read")
ROUGH = ("break", "refuse", "die in kernel", "die in confirmation", "restart", "specs")

MOVES = ("copy", "copy", "copy", "yield", "yielded", "take")
ROUGH_MOVES = ("overtake", "overtake", "forget")

steps = st.lists(
    st.tuples(st.one_of(*[st.sampled_from(SMOOTH)] * 5, st.sampled_from(ROUGH)), st.integers(1, 12)),
    max_size=120,
)


def act(world: World | Pair, worker: Worker, step: str, size: int) -> None:
    match step:
        case "publish":
            world.publish(size)
        case "deliver":
            worker.deliver(size)
        case "launch":
            worker.launch(size)
        case "store":
            worker.store(size)
        case "refuse":
            worker.store(size, refusals=0.3)
        case "land":
            worker.land()
        case "read":
            worker.read_chamber()
        case "break":
            worker.break_session(stored=size - 1)
        case "die in kernel":
            worker.die_in_kernel(size)
        case "die in confirmation":
            worker.die_in_confirmation()
        case "restart":
            worker.break_session(stored=size - 1)
            worker.start_pod()
        case "specs":
            world.change_specs()


def move(world: Pair, worker: Worker, step: str, partition: int, size: int) -> None:
    """What the two workers of a pair do besides. Most moves are planned: a copy, then the owner is asked."""
    owner = world.records[partition].owner
    match step:
        case "copy":
            worker.copy(partition)
        case "forget":
            worker.forget_copy(partition)
        case "yield":
            copies = [one.copies[partition] for one in world.workers if partition in one.copies]
            if any(copy.pages is None for copy in copies) or size == 1:
                for one in world.workers:
                    one.stop_serving(partition)
        case "yielded":
            worker.give_back()
        case "take":
            other = next(one for one in world.workers if one is not worker)
            if owner is None and (partition not in other.copies or size == 1):
                worker.take_on(partition)
        case "overtake":
            if partition not in worker.intakes:
                worker.take_on(partition)


def assert_as_the_oracle(world: World, program: list[tuple[str, int]]) -> None:
    try:
        for step, size in program:
            act(world, world.worker, step, size)
        world.finish()
        differences = world.differences()
        assert not differences, "\n".join(differences[:8])
    finally:
        world.close()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=steps, seed=st.integers(0, 2**32 - 1), slots=st.sampled_from([4, 9, 40]), plain=st.booleans())
def test_any_interleaving_gives_the_verdicts_of_the_oracle(
    program: list[tuple[str, int]], seed: int, slots: int, plain: bool
) -> None:
    """Samples, repeats, resets, bad reports, new specs, deaths, restarts, evictions, in any order."""
    rows = {4: 1, 9: 4, 40: 8}[slots]
    specs = SPECS if plain else METHODS
    assert_as_the_oracle(World(random.Random(seed), specs, slots=slots, rows=rows), program)


KINDS = [(SPECS, SHORT), (METHODS, SHORT), (LONG_METHODS, LONG)]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("specs", "memory"), KINDS, ids=["plain", "methods", "long"])
def test_long_runs_give_the_verdicts_of_the_oracle(
    specs: dict[int, Specs], memory: Memory, seed: int
) -> None:
    """Hundreds of reports through every kind of fault, drawn by a seed."""
    rng = random.Random(seed)
    program = [(rng.choice(ROUGH if rng.random() < 0.06 else SMOOTH), rng.randint(1, 12)) for _ in range(600)]
    slots, rows = rng.choice([(4, 2), (9, 4), (40, 8)])
    assert_as_the_oracle(World(rng, specs, slots=slots, rows=rows, memory=memory), program)


def assert_a_pair_as_the_oracle(world: Pair, program: list[tuple[str, int]]) -> None:
    try:
        for step, size in program:
            worker = world.workers[world.rng.randrange(2)]
            if step in MOVES or step in ROUGH_MOVES:
                move(world, worker, step, world.rng.randrange(len(world.records)), size)
            else:
                act(world, worker, step, size)
        world.finish()
        differences = world.differences()
        assert not differences, "\n".join(differences[:8])
    finally:
        world.close()


moves = st.lists(
    st.tuples(
        st.one_of(
            *[st.sampled_from(SMOOTH)] * 8,
            *[st.sampled_from(MOVES)] * 4,
            st.sampled_from(ROUGH_MOVES),
            st.sampled_from(ROUGH),
        ),
        st.integers(1, 12),
    ),
    max_size=160,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=moves, seed=st.integers(0, 2**32 - 1), slots=st.sampled_from([4, 9, 40]), plain=st.booleans())
def test_partitions_may_move_between_workers_at_any_moment(
    program: list[tuple[str, int]], seed: int, slots: int, plain: bool
) -> None:
    """Copied ahead or not, asked for or overtaken, with zombies whose verdicts land late."""
    rows = {4: 1, 9: 4, 40: 8}[slots]
    specs = SPECS if plain else METHODS
    assert_a_pair_as_the_oracle(Pair(random.Random(seed), specs, slots=slots, rows=rows), program)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("specs", "memory"), KINDS[:2], ids=["plain", "methods"])
def test_long_runs_of_two_workers_give_the_verdicts_of_the_oracle(
    specs: dict[int, Specs], memory: Memory, seed: int
) -> None:
    """Hundreds of reports, dozens of moves, every kind of fault, drawn by a seed."""
    rng = random.Random(seed)
    # Of three, one is without copies: partitions change hands by force alone, and come back to stale memory.
    moves, often, roughly = (MOVES, 0.25, 0.03) if seed % 3 else (("overtake",), 0.012, 0.004)

    def step() -> str:
        if rng.random() < roughly:
            return rng.choice(ROUGH + ROUGH_MOVES)
        return rng.choice(moves if rng.random() < often else SMOOTH)

    program = [(step(), rng.randint(1, 12)) for _ in range(900)]
    slots, rows = rng.choice([(4, 2), (9, 4), (40, 8)] if seed % 3 else [(40, 8)])
    assert_a_pair_as_the_oracle(Pair(rng, specs, slots=slots, rows=rows, memory=memory), program)


@pytest.mark.parametrize("seed", range(8))
def test_copies_from_the_owners_memory_are_as_good_as_the_history(seed: int) -> None:
    """Dozens of moves, each after a copy that is made page by page between the steps of a live owner, now and
    then with an overtaking, a broken session or a death in between."""
    rng = random.Random(seed)
    slots, rows = rng.choice([(9, 4), (40, 8), (40, 8), (40, 8)])
    world = Pair(rng, METHODS if seed % 2 else SPECS, slots=slots, rows=rows)
    smooth = [*SMOOTH, "publish", "deliver"]
    try:
        for _ in range(40):
            partition = rng.randrange(len(world.records))
            owner = world.records[partition].owner
            assert isinstance(owner, Worker | None)
            copier = next(one for one in world.workers if one is not owner)
            for _ in range(rng.randrange(40)):
                act(world, rng.choice(world.workers), rng.choice(smooth), rng.randint(1, 8))
                if rng.random() < 0.3:
                    copier.copy(partition)
                if rng.random() < 0.15:  # a few reports from delivery to acknowledgement, between two pages
                    world.publish(3)
                    for _ in range(5):
                        world.workers[0].act()
                        world.workers[1].act()
                if rng.random() < 0.004:
                    act(world, rng.choice(world.workers), rng.choice(ROUGH), rng.randint(1, 12))
                if rng.random() < 0.003:
                    move(world, rng.choice(world.workers), "overtake", partition, 1)
            by_force = rng.random() < 0.3
            if not by_force:
                for one in world.workers:
                    one.stop_serving(partition)
            for _ in range(0 if by_force else 60):
                if world.records[partition].owner is None:
                    break
                for one in world.workers:
                    one.act()
            if (by_force or world.records[partition].owner is None) and partition not in copier.intakes:
                copier.take_on(partition)
        assert world.transferred > 10 or world.refused > 10
        world.finish()
        differences = world.differences()
        assert not differences, "\n".join(differences[:8])
    finally:
        world.close()
