"""Undoing leaves no trace."""

from __future__ import annotations

import random

from hypothesis import given, settings

from tests.kernels.arena import Arena, Event, bits
from tests.kernels.oracle import Spec
from tests.kernels.streams import EXAMPLES, SECOND_NS, arenas, random_events, reports, with_basis


@settings(max_examples=EXAMPLES, deadline=None)
@given(arenas())
def test_undoing_a_tail_leaves_the_memory_of_before_bit_by_bit(arena: tuple[random.Random, int, int]) -> None:
    """State, sums and window after undoing are those before the undone samples; the rest goes on the same."""
    rng, window, depth = arena
    events = random_events(rng, slots=3, window=window, depth=depth, length=300)
    kernel = Arena(3, window, depth, garbage=rng.randint(0, 255))
    position = 0
    while position < len(events):
        first = min(position + rng.randint(0, 80), len(events))
        last = min(first + rng.randint(1, 80), len(events))
        kernel.judge(events[position:first])
        before = kernel.memory()
        verdicts = kernel.judge(events[first:last])
        after = kernel.memory()
        kernel.undo(0, last - first)
        assert kernel.memory() == before
        again = kernel.judge(events[first:last])
        assert kernel.memory() == after
        assert [bits(v) for v in again] == [bits(v) for v in verdicts]
        position = last


@settings(max_examples=EXAMPLES, deadline=None)
@given(arenas())
def test_undoing_part_of_a_batch_leaves_the_other_slots(arena: tuple[random.Random, int, int]) -> None:
    """A slot that is skipped keeps its samples; the undone slots are as if their tail never came."""
    rng, window, depth = arena
    events = random_events(rng, slots=4, window=window, depth=depth, length=200)
    kernel, expected = Arena(4, window, depth), Arena(4, window, depth)
    middle, first = len(events) // 2, 3 * len(events) // 4
    kernel.judge(events[:middle])
    kernel.judge(events[middle:])
    kept = set(rng.sample(range(4), 2))
    kernel.undo(first - middle, len(events) - middle, [int(e.slot in kept) for e in events[middle:]])
    expected.judge(events[:first] + [e for e in events[first:] if e.slot in kept])
    assert kernel.memory() == expected.memory()


@settings(max_examples=EXAMPLES, deadline=None)
@given(arenas())
def test_undoing_reports_with_alarms_leaves_no_trace(arena: tuple[random.Random, int, int]) -> None:
    """Judged and alerted, undone, and again: every byte of the memory, and every verdict, is the same."""
    rng, window, depth = arena
    events = random_events(rng, slots=3, window=window, depth=depth, length=200)
    kernel = Arena(3, window, depth, garbage=rng.randint(0, 255))
    for report in reports(events):
        at = report[0].ordinal * SECOND_NS
        before = kernel.memory()
        verdicts = kernel.report(report, at)
        after = kernel.memory()
        kernel.undo(0, len(report))
        assert kernel.memory() == before
        if rng.random() < 0.3:
            kernel.judge(report)
            kernel.undo(0, len(report))
            assert kernel.memory() == before
        again = kernel.report(report, at)
        assert kernel.memory() == after
        assert [bits(v) for v in again] == [bits(v) for v in verdicts]


@settings(max_examples=EXAMPLES, deadline=None)
@given(arenas())
def test_undoing_part_of_a_report_with_alarms_leaves_the_other_slots(
    arena: tuple[random.Random, int, int],
) -> None:
    """Charts that are skipped keep sample and alarm; the undone ones are as if the report never came."""
    rng, window, depth = arena
    events = random_events(rng, slots=4, window=window, depth=depth, length=200)
    kernel, expected = Arena(4, window, depth), Arena(4, window, depth)
    kept = set(rng.sample(range(4), 2))
    for report in reports(events):
        at = report[0].ordinal * SECOND_NS
        kernel.report(report, at)
        kernel.undo(0, len(report), [int(event.slot in kept) for event in report])
        expected.report([event for event in report if event.slot in kept], at)
        assert kernel.memory() == expected.memory()


def test_undoing_a_freeze_gives_the_excluded_samples_back() -> None:
    """The sample that freezes phase I clears the marks of what it excludes; undone, they are set again."""
    spec = with_basis(Spec("frozen", phase_one=8, minimum=2))
    events = [Event(0, t, spec, 90.0 if t == 3 else 4.0, 1.0) for t in range(9)]
    kernel = Arena(1, 8, 8)
    kernel.judge(events[:8])
    before = kernel.memory()
    frozen_with = kernel.judge(events[8:])[0].centre
    assert frozen_with == 4.0
    assert kernel.window["usable"].tolist() == [[1, 1, 1, 0, 1, 1, 1, 1]]
    kernel.undo(0, 1)
    assert kernel.memory() == before
