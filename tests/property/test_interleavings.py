"""Whatever comes between: the verdicts are the oracle's, which judges every report once and in order."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.specs import Baseline, ChartSpec, Specs
from tests.property.world import World

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
SMOOTH = ("publish", "deliver", "launch", "launch", "store", "land", "land", "read")
ROUGH = ("break", "refuse", "die in kernel", "die in confirmation", "restart", "specs")

steps = st.lists(
    st.tuples(st.one_of(*[st.sampled_from(SMOOTH)] * 5, st.sampled_from(ROUGH)), st.integers(1, 12)),
    max_size=120,
)


def act(world: World, step: str, size: int) -> None:
    match step:
        case "publish":
            world.publish(size)
        case "deliver":
            world.deliver(size)
        case "launch":
            world.launch(size)
        case "store":
            world.store(size)
        case "refuse":
            world.store(size, refusals=0.3)
        case "land":
            world.land()
        case "read":
            world.read_chamber()
        case "break":
            world.break_session(stored=size - 1)
        case "die in kernel":
            world.die_in_kernel(size)
        case "die in confirmation":
            world.die_in_confirmation()
        case "restart":
            world.break_session(stored=size - 1)
            world.start_pod()
        case "specs":
            world.change_specs()


def assert_as_the_oracle(world: World, program: list[tuple[str, int]]) -> None:
    try:
        for step, size in program:
            act(world, step, size)
        world.finish()
        differences = world.differences()
        assert not differences, "\n".join(differences[:8])
    finally:
        world.close()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=steps, seed=st.integers(0, 2**32 - 1), slots=st.sampled_from([4, 9, 40]))
def test_any_interleaving_gives_the_verdicts_of_the_oracle(
    program: list[tuple[str, int]], seed: int, slots: int
) -> None:
    """Samples, repeats, resets, bad reports, new specs, deaths, restarts, evictions, in any order."""
    rows = {4: 1, 9: 4, 40: 8}[slots]
    assert_as_the_oracle(World(random.Random(seed), SPECS, slots=slots, rows=rows), program)


@pytest.mark.parametrize("seed", range(12))
def test_long_runs_give_the_verdicts_of_the_oracle(seed: int) -> None:
    """Hundreds of reports through every kind of fault, drawn by a seed."""
    rng = random.Random(seed)
    program = [(rng.choice(ROUGH if rng.random() < 0.06 else SMOOTH), rng.randint(1, 12)) for _ in range(600)]
    slots, rows = rng.choice([(4, 2), (9, 4), (40, 8)])
    assert_as_the_oracle(World(rng, SPECS, slots=slots, rows=rows), program)
