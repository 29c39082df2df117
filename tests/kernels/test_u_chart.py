"""``kernels.u_chart``: against a naive reading of the rules, on what is odd, and on what it refuses."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.jit import config
from kernels.state import COUNT_MAX, UNITS_MAX, UNITS_MIN

EXAMPLES = int(os.environ.get("KERNEL_EXAMPLES", "100"))
"""Charts a property test; fewer where the jit is off."""

ARRAYS = ("u", "lcl", "ucl", "z", "p_upper", "p_lower", "p")
LIMITS = ("three_sigma", "laney", "exact", "auto")
LONGEST = 15
"""Samples before the newest that a rule can look at, with any counts of points."""


def naive(rule: int, z: list[float], m: int) -> bool:
    """Whether a rule flags the last of *z*, read word by word."""
    steps = list(itertools.pairwise(z))
    match rule:
        case 2:
            return len(z) >= m and (all(v > 0 for v in z[-m:]) or all(v < 0 for v in z[-m:]))
        case 3:
            trend = steps[-(m - 1) :]
            return len(z) >= m and (all(a < b for a, b in trend) or all(a > b for a, b in trend))
        case 4:
            triples = list(zip(z, z[1:], z[2:], strict=False))[-(m - 2) :]
            return len(z) >= m and all(a < b > c or a > b < c for a, b, c in triples)
        case 5 | 6:
            zone = 7 - rule
            window = z[-(m + 1) :]
            return len(z) > m and any(
                side[-1] > zone and sum(v > zone for v in side) >= m
                for side in (window, [-v for v in window])
            )
        case 7:
            return len(z) >= m and all(abs(v) <= 1 for v in z[-m:])
        case _:
            window = z[-m:]
            return len(z) >= m and all(abs(v) > 1 for v in window) and min(window) < 0 < max(window)


def never_nan(judged: kernels.UChart) -> None:
    """All results are defined."""
    for name in ARRAYS:
        assert not np.isnan(getattr(judged, name)).any(), name
    assert math.isfinite(judged.centre)
    assert math.isfinite(judged.sigma_z)
    assert np.isfinite(judged.ucl).all()
    assert (judged.lcl >= 0.0).all()
    assert (judged.lcl <= judged.ucl).all()
    assert ((judged.p >= 0.0) & (judged.p <= 1.0)).all()


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    units=st.lists(st.sampled_from([1.0, 1.0, 2.5, 0.3]), min_size=60, max_size=60),
    points=st.fixed_dictionaries(
        {
            r: st.sampled_from([m, least, 15 - (r in (5, 6))])
            for r, m, least in [(2, 9, 2), (3, 6, 3), (4, 14, 3), (5, 2, 2), (6, 4, 2), (7, 15, 2), (8, 8, 2)]
        }
    ),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_rules_2_to_8_are_what_they_say(
    counts: list[int], units: list[float], points: dict[int, int]
) -> None:
    """Any counts of points, samples with many ties: each one's flags are those of the naive reading."""
    judged = kernels.u_chart(counts, units[: len(counts)], centre=4.0, points=points)
    z = judged.z.tolist()
    for rule, m in points.items():
        expected = [i for i in range(len(z)) if naive(rule, z[max(0, i - LONGEST) : i + 1], m)]
        assert judged.signals[rule].tolist() == expected, f"rule {rule}"


@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 9), st.integers(0, COUNT_MAX)),
            st.one_of(st.just(1.0), st.floats(UNITS_MIN, UNITS_MAX)),
        ),
        min_size=1,
        max_size=30,
    ),
    limits=st.sampled_from(LIMITS),
    centre=st.one_of(st.none(), st.just(0.0), st.floats(2.0**-200, 2.0**73)),
    screen=st.booleans(),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_results_are_defined_for_any_counts_and_units(
    rows: list[tuple[int, float]], limits: Any, centre: float | None, screen: bool
) -> None:
    """From 0 to 2^53 counts and from 2^-20 to 2^40 units: no NaN, limits finite and in order."""
    counts, units = zip(*rows, strict=True)
    never_nan(kernels.u_chart(counts, units, limits=limits, centre=centre, screen=screen and centre is None))


@pytest.mark.parametrize("limits", LIMITS)
def test_a_baseline_without_nonconformities_has_limits_0_and_flags_every_count(limits: Any) -> None:
    """Centre 0: z is 0 for no count and infinite for one, P(X >= c) is 0, sigma_z 1."""
    judged = kernels.u_chart([0, 0, 0, 1], 2.0, baseline=3, limits=limits)
    never_nan(judged)
    assert (judged.centre, judged.sigma_z) == (0.0, 1.0)
    assert judged.ucl.tolist() == judged.lcl.tolist() == [0.0] * 4
    assert judged.z.tolist() == [0.0, 0.0, 0.0, math.inf]
    assert judged.p_upper.tolist() == [1.0, 1.0, 1.0, 0.0]
    assert judged.p_lower.tolist() == [1.0] * 4
    assert judged.signals[1].tolist() == [3]


@pytest.mark.parametrize("limits", LIMITS)
def test_one_sample_is_a_chart(limits: Any) -> None:
    """Its own u is the centre line, z is 0, sigma_z 1, nothing signals."""
    judged = kernels.u_chart([5], [2.0], limits=limits)
    never_nan(judged)
    assert (judged.centre, judged.sigma_z, judged.z.tolist()) == (2.5, 1.0, [0.0])
    assert all(found.dtype == np.int64 and not len(found) for found in judged.signals.values())
    assert list(judged.signals) == list(range(1, 9))


def test_without_scatter_laneys_limits_are_the_centre_line() -> None:
    """All z alike: sigma_z is 0 and anything but the centre is beyond; a floor of 1 puts Poisson's back."""
    judged = kernels.u_chart([4, 4, 4, 5, 3], 1.0, baseline=3, limits="laney")
    never_nan(judged)
    assert (judged.sigma_z, judged.ucl.tolist()) == (0.0, [4.0] * 5)
    assert judged.z.tolist() == [0.0, 0.0, 0.0, math.inf, -math.inf]
    assert judged.signals[1].tolist() == [3, 4]
    floored = kernels.u_chart([4, 4, 4, 5], 1.0, baseline=3, limits="laney", sigma_z_floor=1)
    assert (floored.sigma_z, floored.ucl[0], floored.signals[1].tolist()) == (1.0, 10.0, [])


def test_the_floor_does_not_lower_sigma_z() -> None:
    """A chart that scatters more than the floor keeps its sigma_z."""
    counts = [0, 20, 1, 18, 2, 22]
    plain = kernels.u_chart(counts, 1.0, limits="laney")
    assert plain.sigma_z > 1.0
    assert kernels.u_chart(counts, 1.0, limits="laney", sigma_z_floor=1.0).sigma_z == plain.sigma_z


def test_sigma_z_by_hand() -> None:
    """z of 1, 9, 4, 4 about 4 is -1.5, 2.5, 0, 0: moving ranges 4, 2.5, 0; the excluded has no part."""
    judged = kernels.u_chart([1, 9, 30, 4, 4], 1.0, exclude=[2], centre=4.0)
    assert judged.sigma_z == pytest.approx((4.0 + 2.5 + 0.0) / 3 / 1.128, rel=1e-15)
    assert judged.excluded.tolist() == [2]


def test_a_screen_leaves_out_at_most_a_third() -> None:
    """A round that would leave out more than a third in all is not taken: the limits are in doubt."""
    two_of_six = kernels.u_chart([10, 10, 10, 10, 60, 60], 1.0, k=1.0, screen=True)
    assert two_of_six.excluded.tolist() == []  # all six are beyond one sigma of 26.7
    one_of_nine = kernels.u_chart([10] * 8 + [60], 1.0, screen=True)
    assert (one_of_nine.excluded.tolist(), one_of_nine.centre) == ([8], 10.0)
    assert one_of_nine.signals[1].tolist() == [8]


def test_a_screen_goes_on_while_samples_fall_out() -> None:
    """The sample of 25 hides behind that of 90 in the first round, and falls out in the second."""
    judged = kernels.u_chart([10, 9, 11, 10, 25, 10, 90, 9, 11, 10], 1.0, screen=True)
    assert judged.excluded.tolist() == [4, 6]
    assert judged.centre == 10.0


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        (None, [0, 1, 2, 3, 4]),
        (2, [0, 1]),
        (np.int64(2), [0, 1]),
        (slice(1, 4), [1, 2, 3]),
        (slice(None, -1), [0, 1, 2, 3]),
        ([3, 1], [1, 3]),
        (np.array([3, 1], np.uint8), [1, 3]),
        ([True, False, False, True, True], [0, 3, 4]),
        (range(2), [0, 1]),
    ],
)
def test_a_baseline_is_named_in_any_way(baseline: Any, expected: list[int]) -> None:
    """All, the first m, a slice, indices in any order, or a mask; the others are judged all the same."""
    judged = kernels.u_chart([1, 2, 4, 8, 16], [1, 1, 2, 2, 1], baseline=baseline)
    assert judged.baseline.tolist() == expected
    counts, units = np.array([1, 2, 4, 8, 16])[expected], np.array([1, 1, 2, 2, 1])[expected]
    assert judged.centre == counts.sum() / units.sum()
    assert len(judged.u) == 5


def test_western_electric_counts_eight_on_a_side() -> None:
    """Nelson's rule 2 wants nine; only the rules asked for are in ``signals``, in order."""
    counts = [5] * 8
    assert kernels.u_chart(counts, 1.0, centre=4.0, rules="western_electric").signals[2].tolist() == [7]
    assert kernels.u_chart(counts, 1.0, centre=4.0).signals[2].tolist() == []
    assert list(kernels.u_chart(counts, 1.0, rules={8, 3}).signals) == [3, 8]
    assert kernels.u_chart(counts, 1.0, rules=()).signals == {}


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("counts[1] is -1: a count of nonconformities must not be negative", {"counts": [1, -1]}),
        ("counts[1] is 0.5: a count of nonconformities must be a whole number", {"counts": [1, 0.5]}),
        ("counts[0] is nan: a count of nonconformities must be a finite", {"counts": [math.nan, 1]}),
        ("counts[1] is inf: a count of nonconformities must be a finite", {"counts": [1, math.inf]}),
        ("counts[1] is None: a count of nonconformities must be a finite", {"counts": [1, None]}),
        ("counts[1] is 9007199254740993: above 2^53", {"counts": [1, 2**53 + 1]}),
        ("counts must be numbers, not of dtype <U1", {"counts": ["1", "2"]}),
        ("counts must be numbers", {"counts": [1, 10**400]}),
        ("counts must be one-dimensional", {"counts": [[1, 2]]}),
        ("counts is empty", {"counts": [], "units": []}),
        ("units[1] is 0.0: inspection units must be above 0", {"units": [1.0, 0.0]}),
        ("units[0] is -3: inspection units must be above 0", {"units": [-3, 1]}),
        ("units[1] is nan: inspection units must be a finite number", {"units": [1.0, math.nan]}),
        ("units[1] is 1e-09: inspection units must be from 2^-20 to 2^40", {"units": [1.0, 1e-9]}),
        ("units must be as many as counts, 2, or one number: shape (3,)", {"units": [1, 1, 1]}),
        ("nothing is left in the baseline: it names 1 of 2 samples", {"baseline": 1, "exclude": [0]}),
        ("nothing is left in the baseline: it names 0 of 2 samples", {"baseline": []}),
        ("baseline is 3: the first m samples, m from 1 to 2", {"baseline": 3}),
        ("baseline[1] is 2: indices are from 0 to 1", {"baseline": [0, 2]}),
        ("baseline must be indices or 2 booleans", {"baseline": [True]}),
        ("baseline must be indices or 2 booleans", {"baseline": [0.5]}),
        ("exclude[0] is -1: indices are from 0 to 1", {"exclude": [-1]}),
        ("centre is -1.0: nonconformities a unit", {"centre": -1.0}),
        ("centre is nan: nonconformities a unit", {"centre": math.nan}),
        ("screen=True draws the centre line anew", {"centre": 1.0, "screen": True}),
        ("limits is 'poisson': one of three_sigma, laney, exact, auto", {"limits": "poisson"}),
        ("k is 0: sigmas", {"k": 0}),
        ("alpha is 0.5: the probability beyond one exact limit", {"alpha": 0.5}),
        ("sigma_z_floor is 1, but limits are exact", {"limits": "exact", "sigma_z_floor": 1}),
        ("sigma_z_floor is -1: a finite number", {"limits": "laney", "sigma_z_floor": -1}),
        ("rules is 'westgard': one of nelson, western_electric, minitab", {"rules": "westgard"}),
        ("rules has 9: rules are numbered 1 to 8", {"rules": [1, 9]}),
        ("points has rule 3, which is not one of the rules", {"rules": [1, 2], "points": {3: 7}}),
        ("points has rule 1, which is not one of the rules", {"points": {1: 7}}),
        ("points of rule 3 is 2: a whole number from 3 to 15", {"points": {3: 2}}),
        ("points of rule 5 is 15: a whole number from 2 to 14", {"points": {5: 15}}),
    ],
)
def test_what_makes_no_chart_is_refused_by_name(message: str, options: dict[str, Any]) -> None:
    """ValueError says which argument, which index and which value is wrong."""
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        kernels.u_chart(**{"counts": [1, 2], "units": [1.0, 1.0], **options})


def test_inputs_are_not_changed_and_not_shared() -> None:
    """The chart holds copies."""
    counts, units = np.array([1.0, -0.0, 3.0]), np.array([1.0, 2.0, 1.0])
    judged = kernels.u_chart(counts, units)
    counts[:] = 99.0
    units[:] = 99.0
    assert judged.counts.tolist() == [1.0, 0.0, 3.0]
    assert math.copysign(1.0, judged.u[1]) == 1.0
    assert judged.units.tolist() == [1.0, 2.0, 1.0]


def test_a_notebook_sees_what_matters() -> None:
    """``repr``: samples, baseline, centre line, limits and which rules signal where."""
    judged = kernels.u_chart([10] * 8 + [60], 1.0, screen=True, rules=[1, 2])
    assert repr(judged) == (
        "UChart: 9 samples, 8 in the baseline, 1 left out: 8\n"
        "  centre 10, sigma_z 0\n"
        "  limits three_sigma: lcl 0.513167, ucl 19.4868\n"
        "  signals: rule 1: 8; none by 2"
    )
    many = repr(kernels.u_chart([50] * 12, [1.0, 2.0] * 6, centre=1.0, rules=[1]))
    assert "rule 1: 0, 1, 2, 3, 4, 5, 6, 7 and 4 more" in many
    assert "ucl 3.12132 to 4" in many


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="the tails are compiled")
def test_a_million_samples_take_less_than_a_second() -> None:
    """All eight rules, Laney's limits and both tails; a notebook does not wait."""
    rng = np.random.default_rng(7)
    units = rng.uniform(0.5, 2.0, 1_000_000)
    counts = rng.poisson(4.0 * units)
    started = time.process_time()
    judged = kernels.u_chart(counts, units, limits="laney")
    assert time.process_time() - started < 1.0
    assert abs(judged.sigma_z - 1.0) < 0.01


def test_the_package_alone_compiles_nothing() -> None:
    """``import kernels.state`` loads no numba; the names of the package load it at first use."""
    program = (
        "import sys, kernels, kernels.state\n"
        "assert 'numba' not in sys.modules and 'kernels.one_chart' not in sys.modules\n"
        "assert 'u_chart' in dir(kernels)\n"
        "assert not hasattr(kernels, 'v_chart')\n"
        "from kernels import u_chart\n"
        "import kernels.one_chart\n"
        "assert kernels.u_chart is u_chart is kernels.one_chart.u_chart\n"
        "assert isinstance(u_chart([1], [1]), kernels.UChart)\n"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}  # compiling is not what is looked at here
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=environment)
