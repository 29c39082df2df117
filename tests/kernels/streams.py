"""Random streams of events that reach the corners: runs, ties, zeros, extremes, gaps, resets, new specs."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import strategies as st

from kernels.state import COUNT_MAX, UNITS_MAX, UNITS_MIN
from tests.kernels.arena import Event
from tests.kernels.oracle import Spec

EXAMPLES = int(os.environ.get("KERNEL_EXAMPLES", "100"))
"""Streams a property test; fewer where the jit is off."""

BASELINES = ("given", "frozen", "moving")


def with_basis(spec: Spec) -> Spec:
    """The naive chart's basis: what ``basis_of`` fingerprints."""
    rests_on = {
        "given": (spec.centre,),
        "frozen": (spec.k, spec.phase_one),
        "moving": (),
    }[spec.baseline]
    return replace(spec, basis=(spec.baseline, *rests_on))


def random_spec(rng: random.Random, window: int, baseline: str | None = None) -> Spec:
    """A spec whose phase I fits the window."""
    return with_basis(
        Spec(
            baseline=baseline or rng.choice(BASELINES),
            k=rng.choice([3.0, 3.0, 1.0, 0.5]),
            rules=frozenset(rng.choice([{1, 2, 3, 4}, {1, 2, 3, 4}, {1}, {2, 3, 4}, {2, 4}])),
            centre=rng.choice([0.0, 0.25, 1.0, 4.0, 1e-9, 3e7]),
            phase_one=rng.randint(1, window),
            minimum=rng.randint(1, max(1, window // 2)),
        )
    )


def samples(rng: random.Random) -> Iterator[tuple[float, float]]:
    """(count, units) without end, in stretches that each have a manner of their own."""
    while True:
        manner = rng.choice(["low", "same", "zero", "up", "down", "zigzag", "mixed", "extreme", "fine"])
        for j in range(rng.randint(1, 30)):
            match manner:
                case "low":
                    yield float(rng.choice([0, 0, 1, 1, 2, 3, 4, 9])), 1.0
                case "same":
                    yield 4.0, 1.0
                case "zero":
                    yield 0.0, rng.choice([1.0, 2.5])
                case "up":
                    yield float(j), 2.0
                case "down":
                    yield float(60 - j), 8.0
                case "zigzag":
                    yield float(4 + (-1) ** j * rng.choice([1, 1, 1, 3])), 1.0
                case "mixed":
                    yield float(rng.randint(0, 200)), rng.uniform(0.1, 50.0)
                case "extreme":
                    yield (
                        float(rng.choice([0, 1, COUNT_MAX, COUNT_MAX - 1])),
                        rng.choice(
                            [UNITS_MIN, UNITS_MIN * (1 + 2**-52), 1.0, UNITS_MAX, UNITS_MAX * (1 - 2**-53)]
                        ),
                    )
                case _:
                    yield float(rng.randint(0, 5)), rng.choice([0.1, 0.3, 1 / 3, 0.7])


def random_events(rng: random.Random, *, slots: int, window: int, depth: int, length: int) -> list[Event]:
    """Reports of one chamber, a slot a chart: some charts are absent at times, some are reset."""
    specs = [random_spec(rng, window) for _ in range(slots)]
    sources = [samples(rng) for _ in range(slots)]
    presence = rng.choice([1.0, 0.7, 0.2])
    events: list[Event] = []
    ordinal = rng.choice([0, 1, 1000, 2**32 - 1 - 8 * depth - 8 * length])
    while len(events) < length:
        ordinal += 1 if rng.random() < 0.98 else rng.randint(1, 2 * depth)
        if ordinal > 2**32 - 1:
            break
        dice = rng.random()
        if dice < 0.01:
            events += [Event(s, ordinal) for s in range(slots) if rng.random() < 0.7]
            continue
        if dice < 0.02:
            specs[rng.randrange(slots)] = random_spec(rng, window)
        elif dice < 0.04:
            s = rng.randrange(slots)
            specs[s] = with_basis(replace(specs[s], rules=frozenset({1, 2}), minimum=1))
        for s in range(slots):
            count, units = next(sources[s])
            if rng.random() < presence:
                events.append(Event(s, ordinal, specs[s], count, units))
    return events


@st.composite
def arenas(draw: st.DrawFn) -> tuple[random.Random, int, int]:
    """A seeded generator, a window and a depth."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    window = draw(st.sampled_from([1, 2, 3, 8, 13, 14, 20, 40]))
    depth = window + draw(st.sampled_from([0, 1, 7, 60]))
    return rng, window, depth
