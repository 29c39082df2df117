"""The kernel and the naive chart give the same verdicts, to the last bit."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.state import COUNT_MAX, DESIGN_MEANS, DIAGNOSE_EVERY, UNITS_MAX, UNITS_MIN
from tests.kernels.arena import Arena, Event, NaiveArena, agree, bits, tracks
from tests.kernels.oracle import LEARNING, PHASE_TWO, SELF_STARTING, Counts, Detail, Spec, Verdict, limits
from tests.kernels.streams import ALL_RULES, EXAMPLES, arenas, random_events, with_basis


def cut(rng: random.Random, length: int) -> list[tuple[int, int]]:
    """Cut 0..length into batches."""
    cuts = sorted({0, length, *(rng.randint(0, length) for _ in range(rng.randint(0, 6)))})
    return list(itertools.pairwise(cuts))


@settings(max_examples=EXAMPLES, deadline=None)
@given(arenas(), st.integers(0, 255))
def test_verdicts_are_the_naive_charts_whatever_comes(
    arena: tuple[random.Random, int, int], garbage: int
) -> None:
    """Any mix of specs, gaps, resets, spec changes, extremes and batch cuts: bit by bit the same."""
    rng, window, depth = arena
    events = random_events(rng, slots=4, window=window, depth=depth, length=400)
    kernel = Arena(4, window, depth, garbage=garbage)
    expected = NaiveArena(4, window, depth).judge(events)
    got = []
    for first, last in cut(rng, len(events)):
        got += kernel.judge(events[first:last], keeps_journal=rng.random() < 0.8)
    for event, ours, theirs in zip(events, got, expected, strict=True):
        assert agree(event, ours, theirs), (event, ours, theirs)


def assert_defined(event: Event, verdict: Verdict) -> None:
    """Numbers where there are limits, all in their ranges."""
    spec = event.spec
    assert spec is not None
    detail = verdict.detail
    assert 0.0 <= verdict.u < math.inf
    assert verdict.flags & ~sum(1 << (rule - 1) for rule in spec.rules) == 0
    assert verdict.stage <= event.ordinal
    if verdict.phase == LEARNING:
        assert math.isnan(verdict.centre)
        assert math.isnan(verdict.lcl)
        assert math.isnan(verdict.ucl)
        assert verdict.flags == 0
    else:
        assert 0.0 <= verdict.centre < math.inf
        assert 0.0 <= verdict.lcl <= verdict.ucl
        assert verdict.ucl < math.inf
    if detail.p is not None:
        assert 0.0 <= detail.p <= 1.0
        assert verdict.phase != LEARNING
    for value in (*(getattr(detail, name) for name in NOT_NEGATIVE), detail.typical_units):
        assert value is None or 0.0 <= value < math.inf, detail
    assert detail.typical_units is None or detail.typical_units >= UNITS_MIN
    assert (detail.cusum_up is not None or detail.ewma is not None) == (
        verdict.phase == PHASE_TWO and tracks(spec)
    )
    assert (detail.ewma_lcl is None) or detail.ewma_lcl <= detail.ewma_ucl
    assert detail.mark in (0, 1, 2)
    assert detail.mark == 0 or spec.limits != "laney"


NOT_NEGATIVE = (
    *("sigma_z", "cusum_up", "cusum_down", "cusum_limit_up", "cusum_limit_down"),
    *("ewma", "ewma_variance", "ewma_lcl", "ewma_ucl"),
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(arenas(), st.integers(0, 255))
def test_every_verdict_is_defined(arena: tuple[random.Random, int, int], garbage: int) -> None:
    """Whatever comes: no NaN beside limits, nothing negative or infinite, flags of rules in force only."""
    rng, window, depth = arena
    events = random_events(rng, slots=4, window=window, depth=depth, length=400, wild=True)
    for event, verdict in zip(events, Arena(4, window, depth, garbage=garbage).judge(events), strict=True):
        if event.spec is not None:
            assert_defined(event, verdict)
        else:
            assert bits(verdict) == bits(Verdict(math.nan, math.nan, math.nan, math.nan, 0, 0, 0))


EVERYTHING = Spec(
    "given",
    rules=ALL_RULES,
    predicts=True,
    tests=True,
    cusum_ratio=1.5,
    ewma_weight=0.2,
    design=((4.0,) * len(DESIGN_MEANS),) * 3,
)
CORNERS = {
    "largest counts": [(float(COUNT_MAX - 1), 1.0)],
    "fewest units": [(0.0, UNITS_MIN), (1.0, UNITS_MIN), (float(COUNT_MAX), UNITS_MIN)],
    "most units": [(float(COUNT_MAX), UNITS_MAX), (0.0, UNITS_MAX), (1.0, UNITS_MAX)],
    "all zero": [(0.0, 1.0), (0.0, 3.0)],
    "zero, then not": [(0.0, 1.0)] * 9 + [(1.0, 1.0)],
    "both ends": [(float(COUNT_MAX), UNITS_MIN), (0.0, UNITS_MAX), (float(COUNT_MAX), UNITS_MAX)],
}


@pytest.mark.parametrize("limits", ["three_sigma", "laney", "exact", "auto"])
@pytest.mark.parametrize("baseline", ["given", "frozen", "moving"])
@pytest.mark.parametrize("name", CORNERS)
def test_the_corners_are_defined(name: str, baseline: str, limits: str) -> None:
    """Counts and units at their ends, zeros, one subgroup: numbers as the naive chart's come out."""
    centres = [0.0, 1e-280, 2.0**-20, 4.0, 2.0**73] if baseline == "given" else [0.0]
    rows = list(itertools.islice(itertools.cycle(CORNERS[name]), 40))
    for centre in centres:
        for phase_one in (1, 25):
            spec = replace(EVERYTHING, baseline=baseline, limits=limits, centre=centre, phase_one=phase_one)
            spec = with_basis(replace(spec, minimum=5))
            events = [Event(0, t, spec, c, n) for t, (c, n) in enumerate(rows)]
            for event, verdict in zip(events, Arena(1, 32, 64).judge(events), strict=True):
                assert_defined(event, verdict)
            quiet = [replace(event, spec=replace(spec, predicts=False)) for event in events]
            expected = NaiveArena(1, 32, 64).judge(quiet)
            for event, ours, theirs in zip(quiet, Arena(1, 32, 64).judge(quiet), expected, strict=True):
                assert agree(event, ours, theirs), (event, ours, theirs)


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


def shift_spec(**settings: object) -> Spec:
    """A given centre of 4 with flat designs: h of 5 for both sums, L of 2.7."""
    g = math.log(1.5)
    design = tuple((value,) * len(DESIGN_MEANS) for value in (5.0 * g, 5.0 * g, 2.7))
    spec = Spec("given", centre=4.0, cusum_ratio=1.5, rules=frozenset({9, 10, 11, 12}), design=design)
    return with_basis(replace(spec, **settings))


def details(spec: Spec, rows: list[tuple[float, float]]) -> list[Detail]:
    """Details of one chart's samples."""
    events = [Event(0, t, spec, c, n) for t, (c, n) in enumerate(rows)]
    return [verdict.detail for verdict in Arena(1, 32, 64).judge(events)]


def test_a_cusum_starts_at_its_head_start_and_again_after_its_own_signal() -> None:
    """The verdict that signals carries the sum that did; the next starts at half of h."""
    kappa = 4.0 * 0.5 / math.log(1.5)
    found = details(shift_spec(), [(8.0, 1.0)] * 3)
    first = 0.5 * found[0].cusum_limit_up + 8.0 - kappa
    assert found[0].cusum_limit_up == pytest.approx(5.0)
    assert [d.cusum_up for d in found] == pytest.approx([first] * 3)
    assert first >= 5.0
    quiet = details(shift_spec(cusum_head_start=0.0), [(5.0, 1.0)] * 3)
    assert [d.cusum_up for d in quiet] == pytest.approx([5.0 - kappa, 2 * (5.0 - kappa), 3 * (5.0 - kappa)])


def test_an_ewma_starts_at_the_centre_with_its_lasting_variance() -> None:
    """With constant units the limits are constant: centre and L sqrt(centre w / (2 - w)) on both sides."""
    found = details(shift_spec(cusum_ratio=1.0, ewma_weight=0.2), [(4.0, 1.0), (9.0, 1.0), (4.0, 1.0)])
    assert [d.ewma for d in found] == pytest.approx([4.0, 5.0, 4.8])
    half = 2.7 * math.sqrt(4.0 * 0.2 / 1.8)
    assert [d.ewma_ucl for d in found] == pytest.approx([4.0 + half] * 3)
    assert [d.ewma_lcl for d in found] == pytest.approx([4.0 - half] * 3)


def test_a_chart_that_predicts_judges_its_second_sample() -> None:
    """After 4 in one unit, the next count of one unit is binomial given the sum: 19 is beyond, 18 is not."""
    spec = with_basis(Spec("frozen", phase_one=20, minimum=10, predicts=True))
    for count, flags in ((18.0, 0), (19.0, 1), (0.0, 0)):
        first, second = Arena(1, 32, 64).judge([Event(0, 0, spec, 4.0), Event(0, 1, spec, count)])
        assert (first.phase, second.phase) == (LEARNING, SELF_STARTING)
        assert (second.flags, second.centre, second.lcl, second.ucl) == (flags, 4.0, 0.0, 18.0)


def test_rules_five_to_eight_take_their_counts_from_the_spec() -> None:
    """The newest of the points beyond is flagged, and only whole windows are looked at."""
    low, high, far = (2.5, 1.0), (7.0, 1.0), (8.5, 1.0)
    spec = Spec("given", centre=4.0, rules=frozenset({5, 6, 7, 8}))
    assert judged(spec, [far, far, far, (4.0, 1.0), far]) == [0, 0, 16, 0, 16 | 32]
    assert judged(spec, [high, high, (4.0, 1.0), high, high]) == [0, 0, 0, 0, 32]
    assert judged(spec, [low] * 16) == [0] * 14 + [64] * 2
    assert judged(replace(spec, counts=Counts(inside=3)), [low] * 4) == [0, 0, 64, 64]
    swing = [high, (1.0, 1.0)] * 4
    assert judged(spec, swing) == [0] * 7 + [128]
    assert judged(replace(spec, counts=Counts(outside=3)), swing[:4]) == [0, 0, 128, 128]


def test_the_marks_of_a_chart_stay_until_the_next_look_and_end_with_laney() -> None:
    """A given centre is looked at now and then; Laney's limits need no mark."""
    spec, look = with_basis(Spec("given", k=30.0, centre=4.0)), DIAGNOSE_EVERY
    events = [Event(0, t, spec, 20.0 * (t % 2)) for t in range(look - 28, look + 12)]
    verdicts = Arena(1, 64, 64).judge(events)
    assert [v.detail.mark for v in verdicts] == [0] * 28 + [1] * 12
    laney = with_basis(replace(spec, limits="laney"))
    events += [Event(0, look + 12, laney, 4.0), Event(0, look + 13, spec, 4.0)]
    last = Arena(1, 64, 64).judge(events)[-2:]
    assert [(v.detail.mark, v.detail.sigma_z) for v in last] == [(0, 1.0), (0, None)]
