"""Random streams of events that reach the corners: runs, ties, zeros, extremes, gaps, resets, new specs."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import strategies as st

from kernels.state import COUNT_MAX, DESIGN_MEANS, DIAGNOSE_EVERY, UNITS_MAX, UNITS_MIN
from tests.kernels.arena import Event, tracks
from tests.kernels.oracle import ALPHA, Counts, Design, Spec

EXAMPLES = int(os.environ.get("KERNEL_EXAMPLES", "100"))
"""Streams a property test; fewer where the jit is off."""

BASELINES = ("given", "frozen", "moving")
LIMITS = ("three_sigma", "laney", "exact", "auto")
ALL_RULES = frozenset(range(1, 13))
RULE_SETS = (
    ALL_RULES,
    ALL_RULES,
    {1, 2, 3, 4},
    {1},
    {2, 3, 4},
    {1, 5, 6, 7, 8},
    {1, 9, 10, 11, 12},
    {9, 12},
    set(),
)
CHANGEABLE = (
    *(
        "k",
        "rules",
        "minimum",
        "limits",
        "sigma_z",
        "sigma_z_floor",
        "screens",
        "predicts",
        "tests",
        "counts",
    ),
    *("cusum_ratio", "cusum_head_start", "ewma_weight", "design", "again_reports", "again_ns", "end_after"),
)
"""What may change while a stage goes on (of a frozen baseline not all of it)."""
SECOND_NS = 10**9


def with_basis(spec: Spec) -> Spec:
    """The naive chart's basis: what ``arena.basis`` fingerprints."""
    screened_by = (spec.k, spec.phase_one, spec.limits, spec.alpha, spec.sigma_z_floor, spec.screens)
    rests_on: dict[str, tuple[object, ...]] = {
        "given": (spec.centre,),
        "frozen": (*screened_by, tracks(spec)),
        "moving": (),
    }
    return replace(spec, basis=(spec.baseline, *rests_on[spec.baseline]))


def random_counts(rng: random.Random) -> Counts:
    """Nelson's, or any that the registers hold, mostly few."""
    if rng.random() < 0.4:
        return Counts()
    most = rng.choice([4, 6, 15])
    return Counts(
        side=rng.randint(2, most),
        trend=rng.randint(3, most),
        alternating=rng.randint(3, most),
        beyond_2=rng.randint(2, min(most, 14)),
        beyond_1=rng.randint(2, min(most, 14)),
        inside=rng.randint(2, most),
        outside=rng.randint(2, most),
    )


def random_design(rng: random.Random) -> Design:
    """Made up, at the size of real ones, with more signals."""

    def row(least: float, most: float) -> tuple[float, ...]:
        middle = rng.uniform(least, most)
        return tuple(middle * rng.uniform(0.8, 1.25) for _ in DESIGN_MEANS)

    return row(0.3, 5.0), row(0.3, 5.0), row(0.5, 3.5)


def random_spec(
    rng: random.Random, window: int, baseline: str | None = None, *, predicts: bool = True
) -> Spec:
    """A spec whose phase I fits the window; if told, one that may predict."""
    spec = Spec(
        baseline=baseline or rng.choice(BASELINES),
        k=rng.choice([3.0, 3.0, 1.0, 0.5]),
        rules=frozenset(rng.choice(RULE_SETS)),
        centre=rng.choice([0.0, 0.25, 1.0, 4.0, 4.0, 1e-9, 3e7]),
        phase_one=rng.randint(1, window),
        minimum=rng.randint(1, max(1, window // 2)),
        limits=rng.choice(LIMITS),
        alpha=rng.choice([ALPHA, ALPHA, 0.05, 1e-5]),
        sigma_z=rng.choice([1.0, 0.7, 2.5]),
        sigma_z_floor=rng.choice([0.0, 0.0, 1.0, 1.3]),
        screens=rng.random() < 0.5,
        predicts=predicts and rng.random() < 0.7,
        tests=rng.random() < 0.3,
        counts=random_counts(rng),
        cusum_ratio=rng.choice([1.0, 1.2, 1.5, 2.0, 3.0]),
        cusum_head_start=rng.choice([0.0, 0.5, 0.5, 0.9]),
        ewma_weight=rng.choice([0.0, 0.1, 0.27, 1.0]),
        again_reports=rng.choice([0, 0, 1, 3, 10]),
        again_ns=rng.choice([0, 0, SECOND_NS, 5 * SECOND_NS]),
        end_after=rng.choice([1, 1, 2, 5]),
    )
    return with_basis(replace(spec, design=random_design(rng)) if tracks(spec) else spec)


def changed(rng: random.Random, spec: Spec, window: int, *, predicts: bool = True) -> Spec:
    """The spec with some of what may change within a stage changed."""
    other = random_spec(rng, window, spec.baseline, predicts=predicts)
    names = rng.sample(CHANGEABLE, rng.randint(1, 5))
    new = replace(spec, **{name: getattr(other, name) for name in names})
    if tracks(new) and new.design is None:
        new = replace(new, design=random_design(rng))
    return with_basis(new)


MANNERS = (
    "low",
    "same",
    "zero",
    "up",
    "down",
    "zigzag",
    "mixed",
    "extreme",
    "fine",
    "poisson",
    "steady",
    "steady",
    "calm",
)


def samples(rng: random.Random) -> Iterator[tuple[float, float]]:
    """(count, units) without end, in stretches that each have a manner of their own."""
    while True:
        manner = rng.choice(MANNERS)
        level = rng.choice([1, 4, 4, 4, 6, 20])
        for j in range(rng.randint(30, 90) if manner == "calm" else rng.randint(1, 30)):
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
                case "calm":
                    yield float(rng.choice([20, 20, 21])), 1.0
                case "zigzag":
                    yield float(4 + (-1) ** j * rng.choice([1, 1, 1, 3])), 1.0
                case "poisson" | "steady":
                    units = 1.0 if manner == "steady" else rng.choice([0.5, 1.0, 2.0, 3.25])
                    yield float(sum(rng.random() < level * units / 100 for _ in range(100))), units
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


def tame(count: float, units: float) -> tuple[float, float]:
    """A sample for charts that predict: SciPy's tails have too few digits for counts that are huge."""
    return min(count, 1e4), min(max(units, 2.0**-8), 2.0**8)


def random_events(
    rng: random.Random, *, slots: int, window: int, depth: int, length: int, wild: bool = False
) -> list[Event]:
    """Reports of one chamber, a slot a chart: some charts are absent at times, some are reset.

    Every other chart may predict, and has no extremes unless ``wild``.
    """
    specs = [random_spec(rng, window, predicts=s % 2 == 0) for s in range(slots)]
    sources = [samples(rng) for _ in range(slots)]
    presence = rng.choice([1.0, 0.7, 0.2])
    events: list[Event] = []
    look = DIAGNOSE_EVERY * rng.randint(1, 1000) - rng.randint(15, 60)
    ordinal = rng.choice([0, 1, look, look, 2**32 - 1 - 8 * depth - 8 * length])
    while len(events) < length:
        ordinal += 1 if rng.random() < 0.98 else rng.randint(1, 2 * depth)
        if ordinal > 2**32 - 1:
            break
        dice = rng.random()
        if dice < 0.01:
            events += [Event(s, ordinal) for s in range(slots) if rng.random() < 0.7]
            continue
        if dice < 0.02:
            s = rng.randrange(slots)
            specs[s] = random_spec(rng, window, predicts=s % 2 == 0)
        elif dice < 0.05:
            s = rng.randrange(slots)
            specs[s] = changed(rng, specs[s], window, predicts=s % 2 == 0)
        for s in range(slots):
            count, units = next(sources[s])
            if s % 2 == 0 and not wild:
                count, units = tame(count, units)
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


def reports(events: list[Event]) -> list[list[Event]]:
    """The events of each report: a slot at most once."""
    return [list(report) for _, report in itertools.groupby(events, key=lambda event: event.ordinal)]
