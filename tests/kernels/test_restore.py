"""A chart put back from its history goes on as one that never left memory."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings

from tests.kernels.arena import Arena, Event, Judged, bits, record
from tests.kernels.oracle import Spec, Verdict
from tests.kernels.streams import (
    ALL_RULES,
    EXAMPLES,
    SECOND_NS,
    arenas,
    random_design,
    random_events,
    reports,
    with_basis,
)

SLOTS = 3


def last_reports(history: list[Judged], depth: int, ordinal: int) -> list[Judged]:
    """What a history of ``depth`` reports still has when the chamber's newest is ``ordinal``."""
    return [row for row in history if row.event.ordinal > ordinal - depth]


def judged(arena: Arena, events: list[Event]) -> list[Verdict]:
    """Verdicts with alarms, report by report."""
    return [v for report in reports(events) for v in arena.report(report, report[0].ordinal * SECOND_NS)]


@settings(max_examples=EXAMPLES, deadline=None)
@given(arenas())
def test_a_restored_chart_gives_the_verdicts_of_one_that_never_left(
    arena: tuple[random.Random, int, int],
) -> None:
    """Cut between any two reports, with the last D of them or more as history: bit by bit the same."""
    rng, window, depth = arena
    events = random_events(rng, slots=SLOTS, window=window, depth=depth, length=300)
    lasting = Arena(SLOTS, window, depth, garbage=rng.randint(0, 255))
    verdicts = judged(lasting, events)
    starts = [i for i in range(1, len(events)) if events[i - 1].ordinal < events[i].ordinal]
    for cut in [0, *rng.sample(starts, 5)]:
        history = record(events[:cut], verdicts[:cut])
        if cut and rng.random() < 0.8:
            # The chamber's last report may be one without these charts.
            latest = rng.randint(events[cut - 1].ordinal, events[cut].ordinal - 1)
            history = last_reports(history, depth, latest)
        restored = Arena(SLOTS, window, depth, garbage=rng.randint(0, 255))
        middle = rng.randint(0, len(history))
        restored.restore(history[:middle])
        restored.restore(history[middle:])
        rest = [i for i in range(cut, len(events)) if events[i].ordinal < events[cut].ordinal + 40]
        got = judged(restored, [events[i] for i in rest])
        for i, ours in zip(rest, got, strict=True):
            assert bits(ours) == bits(verdicts[i]), (cut, events[i])


def restored_verdicts(events: list[Event], cut: int, window: int, depth: int, latest: int) -> list[bytes]:
    """Verdicts after a restart at ``cut``, when the chamber's newest report was ``latest``."""
    verdicts = judged(Arena(1, window, depth), events[:cut])
    arena = Arena(1, window, depth)
    arena.restore(last_reports(record(events[:cut], verdicts), depth, latest))
    return [bits(v) for v in judged(arena, events[cut:])]


def test_phase_one_that_is_complete_but_partly_forgotten_goes_on_learning_in_both() -> None:
    """Absent until phase I's first samples are forgotten: no freeze, in memory or after a restart."""
    spec = with_basis(Spec("frozen", phase_one=6, minimum=2))
    events = [Event(0, t, spec, float(3 + t % 3)) for t in range(6)]
    events += [Event(0, t, spec, 4.0) for t in range(10, 20)]
    expected = judged(Arena(1, 8, 8), events)
    assert expected[6].phase == 1
    assert restored_verdicts(events, 6, 8, 8, latest=9) == [bits(v) for v in expected[6:]]


def test_phase_one_that_is_just_complete_freezes_after_a_restart() -> None:
    """The sample that completes phase I is the newest in the history: the next one is judged frozen."""
    spec = with_basis(Spec("frozen", phase_one=6, minimum=2))
    events = [Event(0, t, spec, 40.0 if t == 2 else 4.0) for t in range(9)]
    expected = judged(Arena(1, 8, 8), events)
    assert (expected[5].phase, expected[6].phase, expected[6].centre) == (1, 2, 4.0)
    assert restored_verdicts(events, 6, 8, 8, latest=5) == [bits(v) for v in expected[6:]]


def test_a_frozen_centre_outlives_its_samples_by_way_of_the_verdicts() -> None:
    """Phase I has left the history; the centre that later verdicts carry goes on."""
    spec = with_basis(Spec("frozen", phase_one=3, minimum=2))
    events = [Event(0, t, spec, float(3 + t % 3)) for t in range(60)]
    expected = judged(Arena(1, 8, 8), events)
    assert restored_verdicts(events, 50, 8, 8, latest=events[49].ordinal) == [bits(v) for v in expected[50:]]


def test_a_spec_that_changes_and_changes_back_while_no_sample_comes_ends_no_stage() -> None:
    """The slot keeps the basis that its samples were judged with, in memory and after a restart."""
    spec = with_basis(Spec("moving", minimum=2))
    events = [Event(0, t, spec, 4.0) for t in range(10)]
    expected = judged(Arena(1, 8, 8), events)
    assert restored_verdicts(events, 5, 8, 8, latest=4) == [bits(v) for v in expected[5:]]


@pytest.mark.parametrize("baseline", ["given", "frozen", "moving"])
@pytest.mark.parametrize("limits", ["three_sigma", "laney", "exact"])
def test_a_restart_at_any_report_keeps_sums_scatter_and_alarms(baseline: str, limits: str) -> None:
    """CUSUM, EWMA, sigma_z, the mark and the open alarm go on from what the verdicts carry."""
    rng = random.Random(f"{baseline} {limits}")
    spec = with_basis(
        Spec(
            baseline,
            centre=5.0,
            phase_one=25,
            minimum=10,
            limits=limits,
            sigma_z=1.3,
            rules=ALL_RULES,
            cusum_ratio=1.5,
            ewma_weight=0.2,
            design=random_design(rng),
            again_reports=4,
            end_after=3,
        )
    )
    rows = [(float(rng.choice([0, 2, 4, 5, 6, 15])), rng.choice([0.5, 1.0, 1.5])) for _ in range(80)]
    events = [Event(0, t, spec, c, n) for t, (c, n) in enumerate(rows, start=100)]
    expected = [bits(v) for v in judged(Arena(1, 40, 64), events)]
    for cut in range(1, 80):
        latest = events[cut - 1].ordinal
        assert restored_verdicts(events, cut, 40, 64, latest) == expected[cut:], cut
