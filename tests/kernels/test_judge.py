"""The kernel and the naive chart give the same verdicts, to the last bit."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.state import COUNT_MAX, UNITS_MAX, UNITS_MIN
from tests.kernels.arena import Arena, Event, NaiveArena, bits
from tests.kernels.oracle import Spec, limits
from tests.kernels.streams import EXAMPLES, arenas, random_events, with_basis


def cut(rng: random.Random, length: int) -> list[tuple[int, int]]:
    """Cut 0..length into batches."""
    cuts = sorted({0, length, *(rng.randint(0, length) for _ in range(rng.randint(0, 6)))})
    return list(itertools.pairwise(cuts))


@settings(max_examples=EXAMPLES, deadline=None)
@given(arenas(), st.integers(0, 255))
def test_verdicts_are_the_naive_charts_whatever_comes(
    arena: tuple[random.Random, int, int], garbage: int
) -> None:
    """Any mix of baselines, gaps, resets, spec changes, extremes and batch cuts: bit by bit the same."""
    rng, window, depth = arena
    events = random_events(rng, slots=4, window=window, depth=depth, length=400)
    kernel = Arena(4, window, depth, garbage=garbage)
    expected = NaiveArena(4, window, depth).judge(events)
    got = []
    for first, last in cut(rng, len(events)):
        got += kernel.judge(events[first:last])
    for event, ours, theirs in zip(events, got, expected, strict=True):
        assert bits(ours) == bits(theirs), event


def judged(spec: Spec, rows: list[tuple[float, float]], window: int = 32, depth: int = 64) -> list[int]:
    """Flags of one chart's samples."""
    events = [Event(0, t, with_basis(spec), c, n) for t, (c, n) in enumerate(rows)]
    return [verdict.flags for verdict in Arena(1, window, depth).judge(events)]


def test_a_zero_baseline_signals_the_first_count_above_zero() -> None:
    """Centre 0 has limits 0 and 0: no count is quiet, any count signals, no NaN comes out."""
    spec = Spec("moving", minimum=3, rules=frozenset({1, 2, 3, 4}))
    events = [Event(0, t, with_basis(spec), float(t == 9), 1.0) for t in range(12)]
    verdicts = Arena(1, 16, 16).judge(events)
    assert [v.flags for v in verdicts] == [0] * 9 + [1, 0, 0]
    assert all(v.centre == v.lcl == v.ucl == 0.0 for v in verdicts[3:])


def test_a_sample_on_a_limit_does_not_signal() -> None:
    """Rule 1 is strict: u equal to the UCL is inside."""
    assert judged(Spec("given", centre=4.0), [(10.0, 1.0), (11.0, 1.0)]) == [0, 1]


def test_a_tie_with_the_centre_line_breaks_a_run_of_nine() -> None:
    """Eight above, one on the centre line, eight above: no signal; the ninth above signals."""
    rows = [(5.0, 1.0)] * 8 + [(4.0, 1.0)] + [(5.0, 1.0)] * 9
    assert judged(Spec("given", centre=4.0), rows) == [0] * 17 + [2]


def test_a_reset_forgets_runs_and_baseline() -> None:
    """After a reset a run starts from nothing, and a frozen chart learns anew."""
    spec = with_basis(Spec("frozen", phase_one=3, minimum=2))
    events = [Event(0, t, spec, 4.0, 1.0) for t in range(5)]
    events += [Event(0, 5)]
    events += [Event(0, t, spec, 40.0, 1.0) for t in range(6, 10)]
    phases = [v.phase for v in Arena(1, 8, 8).judge(events)]
    assert phases == [0, 0, 1, 2, 2, 0, 0, 0, 1, 2]


@pytest.mark.parametrize("absent", [7, 8])
def test_a_chart_absent_from_the_last_reports_starts_a_new_stage(absent: int) -> None:
    """With a depth of 8 the newest sample is remembered 8 reports later, and not 9."""
    spec = with_basis(Spec("given", centre=4.0))
    verdicts = Arena(1, 8, 8).judge([Event(0, 10, spec, 4.0), Event(0, 11 + absent, spec, 4.0)])
    assert verdicts[1].stage == (10 if absent == 7 else 19)


def test_forgotten_samples_complete_no_run() -> None:
    """Nine above in a row signal only while the first of them is within the depth."""
    spec = with_basis(Spec("given", centre=4.0))
    events = [Event(0, t, spec, 5.0) for t in (0, 10, 11, 12, 13, 14, 15, 16, 20, 21)]
    assert [v.flags for v in Arena(1, 16, 20).judge(events)] == [0] * 8 + [2, 2]
    assert [v.flags for v in Arena(1, 16, 19).judge(events)] == [0] * 9 + [2]


def test_extremes_give_finite_limits() -> None:
    """The largest counts over the smallest and the largest units overflow nothing."""
    rows = [(float(COUNT_MAX), UNITS_MIN), (0.0, UNITS_MAX), (float(COUNT_MAX), UNITS_MAX)] * 400
    spec = with_basis(Spec("moving", k=1e6, minimum=1, rules=frozenset({1})))
    events = [Event(0, t, spec, c, n) for t, (c, n) in enumerate(rows)]
    got = Arena(1, 1023, 1023).judge(events)
    expected = NaiveArena(1, 1023, 1023).judge(events)
    assert [bits(v) for v in got] == [bits(v) for v in expected]


def frozen(counts: list[float], k: float) -> tuple[float, list[int]]:
    """The frozen centre of a phase I over ``counts``, and which of them it left out."""
    n = len(counts)
    spec = with_basis(Spec("frozen", k=k, phase_one=n, minimum=n))
    arena = Arena(1, n + 1, n + 1)
    verdicts = arena.judge([Event(0, t, spec, c) for t, c in enumerate([*counts, 0.0])])
    return verdicts[-1].centre, [i for i in range(n) if not arena.window[0, i]["usable"]]


def test_freezing_leaves_out_a_third_of_phase_one_and_no_more() -> None:
    """Two of six are left out; where a third one would follow, none is."""
    assert frozen([4.0, 4.0, 4.0, 4.0, 5.0, 3.0], k=0.4) == (4.0, [4, 5])
    assert frozen([4.0, 4.0, 4.0, 5.0, 5.0, 2.0], k=0.4) == (4.0, [])


def masked_outliers(k: float, quiet: int, outliers: int) -> list[float]:
    """Phase I whose outliers show one a round: each, while it is in, lifts the limits over the one before."""
    counts = [4.0] * quiet
    for _ in range(outliers):
        previous = counts[-1]
        upper, candidate = 0.0, previous + 1.0
        while upper < previous or upper >= candidate:
            candidate = float(int(candidate * 1.02) + 1)
            upper = limits(sum([*counts, candidate]) / (len(counts) + 1), 1.0, k)[1]
        counts.append(candidate)
    return counts


def test_freezing_screens_ten_rounds() -> None:
    """Nine masked outliers are all left out; of twelve the ten largest."""
    counts = masked_outliers(k=1000.0, quiet=60, outliers=12)
    assert frozen(counts[:69], k=1000.0) == (4.0, list(range(60, 69)))
    assert frozen(counts, k=1000.0)[1] == list(range(62, 72))


def test_a_run_goes_on_through_the_freeze() -> None:
    """Thirteen alternating samples of phase I: the first of phase II completes rule 4."""
    rows = [(float(2 * t + 5 * (t % 2)), 1.0) for t in range(14)]
    spec = Spec("frozen", k=100.0, phase_one=13, minimum=13, rules=frozenset({4}))
    assert judged(spec, rows) == [0] * 13 + [8]
