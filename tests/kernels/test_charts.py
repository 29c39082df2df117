"""Many charts as columns: ``kernels.Charts`` judges as the kernels do, however the samples come."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.charts import SETTLED, Charts, Judged, Spec
from kernels.state import COUNT_MAX, DIAGNOSE_EVERY, UNITS_MAX, Phase, RuleCounts
from tests.kernels.arena import Arena, Event
from tests.kernels.oracle import Spec as NaiveSpec
from tests.kernels.streams import EXAMPLES, with_basis

COLUMNS = ("u", "centre", "lcl", "ucl", "flags", "phase", "stage")
ARRAYS = ("state", "sums", "carried", "window", "spec_of")
MINITAB = RuleCounts(side=7, trend=7, alternating=15, beyond_2=3, beyond_1=5, inside=9, outside=4)


def memory(charts: Charts) -> list[bytes]:
    """Every byte of the charts."""
    return [getattr(charts, name).tobytes() for name in ARRAYS]


def same(one: Judged, other: Judged) -> dict[str, bool]:
    """Which columns are, bit by bit, the same."""
    return {name: getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in COLUMNS}


def all_same(one: Judged, other: Judged) -> bool:
    return all(same(one, other).values())


def by_column(charts: Charts, counts: npt.NDArray[Any], units: npt.NDArray[Any]) -> Judged:
    """A matrix judged by ``update``, column by column."""
    every = np.arange(len(charts))
    found = [charts.update(every, counts[:, t], units[:, t]) for t in range(counts.shape[1])]
    return Judged(*(np.stack([getattr(judged, name) for judged in found], axis=1) for name in COLUMNS))


def random_spec(rng: random.Random, window: int, *, swept: bool) -> Spec:
    """Any spec, or one whose charts are judged 64 samples at once."""
    spec = Spec(
        baseline=rng.choice(["given", "frozen"] if swept else ["given", "frozen", "moving"]),
        limits=rng.choice(["three_sigma", "laney"] + ([] if swept else ["exact", "auto"])),
        k=rng.choice([3.0, 3.0, 2.0, 0.7]),
        rules=rng.choice([tuple(range(1, 9)), (1, 2, 3, 4), (1, 5, 6, 7, 8), (2, 7), ()]),
        counts=rng.choice([RuleCounts(), MINITAB, RuleCounts(3, 3, 3, 2, 2, 2, 2)]),
        centre=rng.choice([0.2, 0.2, 0.25, 0.0, 3.0]),
        phase_one=rng.randint(1, min(30, window)),
        minimum=rng.randint(1, 15),
        sigma_z=rng.choice([1.0, 1.7]),
        sigma_z_floor=rng.choice([0.0, 1.0]),
        screen_ranges=rng.random() < 0.3,
    )
    if swept:
        return spec
    return replace(
        spec,
        predict=rng.random() < 0.4,
        p_values=rng.random() < 0.3,
        cusum_ratio=rng.choice([1.0, 1.0, 1.5]),
        ewma_weight=rng.choice([0.0, 0.0, 0.2]),
    )


def random_matrix(rng: random.Random, charts: int, samples: int) -> tuple[Any, Any]:
    """Poisson counts with stretches that are shifted, constant, rising, zero or scattered wide."""
    draw = np.random.default_rng(rng.randrange(2**32))
    units = (
        draw.uniform(5.0, 40.0, (charts, samples)) if rng.random() < 0.7 else np.full((charts, samples), 20.0)
    )
    counts = draw.poisson(0.2 * units).astype(np.float64)
    for _ in range(rng.randint(0, 6)):
        row, first = rng.randrange(charts), rng.randrange(samples)
        last = min(samples, first + rng.randint(1, 80))
        stretch = counts[row, first:last]
        match rng.randrange(5):
            case 0:
                stretch *= 3.0
            case 1:
                stretch[:] = rng.choice([0.0, 4.0])
            case 2:
                stretch[:] = np.arange(len(stretch))
            case 3:
                stretch[::2] *= 5.0
            case _:
                stretch[:] = draw.choice([0.0, float(COUNT_MAX - 1), 1.0], len(stretch))
    return np.minimum(counts, float(COUNT_MAX - 1)), units


def lived(rng: random.Random, charts: Charts, twin: Charts) -> None:
    """Give both the same past: none, one of equal length, or one of its own for each chart."""
    n = len(charts)
    for _ in range(rng.choice([0, 1, 1, 3])):
        if rng.random() < 0.6:
            slots = np.repeat(np.arange(n), rng.choice([1, 15, 40, 100]))
        else:
            slots = np.array([rng.randrange(n) for _ in range(rng.randint(1, 40 * n))])
        counts, units = random_matrix(rng, 1, len(slots))
        resets = np.flatnonzero([rng.random() < 0.3 for _ in range(n)]) if rng.random() < 0.3 else []
        for each in (charts, twin):
            each.update(slots, counts[0], units[0])
            if len(resets):
                each.reset(resets)
        if rng.random() < 0.3:
            spec_of = [rng.randrange(len(charts.specs)) for _ in range(n)]
            charts.spec_of[:] = twin.spec_of[:] = spec_of


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_a_replay_is_the_updates_column_by_column(seed: int, swept: bool) -> None:
    """Verdicts and all of memory, bit by bit, for any mix of specs, from any point of the charts' lives."""
    rng = random.Random(seed)
    count, window = rng.randint(1, 5), rng.choice([13, 14, 15, 16, 40, 64, 100, 300])
    depth = window + rng.choice([0, 5, 400])
    specs = [random_spec(rng, window, swept=swept) for _ in range(rng.randint(1, 3))]
    one, other = (Charts(count, specs, window=window, depth=depth) for _ in range(2))
    one.spec_of[:] = other.spec_of[:] = [rng.randrange(len(specs)) for _ in range(count)]
    lived(rng, one, other)
    for _ in range(rng.choice([1, 1, 2])):
        counts, units = random_matrix(rng, count, rng.choice([1, 14, 63, 64, 65, 200, 700]))
        replayed, updated = one.replay(counts, units), by_column(other, counts, units)
        assert all_same(replayed, updated), same(replayed, updated)
        assert memory(one) == memory(other)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_limits_are_those_of_the_next_samples_and_asking_changes_nothing(seed: int, swept: bool) -> None:
    """Centre and limits, bit by bit, of every kind of chart, wherever it is in its life."""
    rng = random.Random(seed)
    count, window = rng.randint(1, 5), rng.choice([15, 40, 300])
    specs = [random_spec(rng, window, swept=swept) for _ in range(rng.randint(1, 3))]
    charts, twin = Charts(count, specs, window=window), Charts(count, specs, window=window)
    lived(rng, charts, twin)
    for _ in range(5):
        counts, units = random_matrix(rng, count, 1)
        before = memory(charts)
        asked = charts.limits(units[:, 0])
        assert memory(charts) == before
        every = np.arange(count)
        met = charts.update(every, counts[:, 0], units[:, 0])
        assert [a.tobytes() for a in asked] == [met.centre.tobytes(), met.lcl.tobytes(), met.ucl.tobytes()]
        assert all_same(met, twin.update(every, counts[:, 0], units[:, 0]))
        assert memory(charts) == memory(twin)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**32))
def test_a_batch_is_its_samples_one_by_one(seed: int) -> None:
    """Charts in any order, several times in a batch, as the kernel judges them with ordinals of their own."""
    rng = random.Random(seed)
    specs = [random_spec(rng, 40, swept=False) for _ in range(2)]
    one, other = Charts(3, specs, window=40), Charts(3, specs, window=40)
    slots = np.array([rng.randrange(3) for _ in range(60)])
    counts, units = random_matrix(rng, 1, 60)
    batch = one.update(slots, counts[0], units[0])
    for i, slot in enumerate(slots):
        single = other.update(slot, counts[0, i], units[0, i])
        assert all(
            getattr(single, name).tobytes() == getattr(batch, name)[i : i + 1].tobytes() for name in COLUMNS
        )
    assert memory(one) == memory(other)


def test_the_charts_are_those_of_the_kernel() -> None:
    """``update`` gives what ``judge`` gives for the same samples, p-values among it."""
    counts = [3.0, 9.0, 4.0, 30.0, 0.0]
    charts = Charts(1, [Spec(baseline="given", centre=4.0, rules=(1,), limits="exact")], window=32)
    judged = charts.update([0] * 5, counts, 1.0)
    naive = with_basis(NaiveSpec("given", centre=4.0, rules=frozenset({1}), limits="exact"))
    verdicts = Arena(1, 32, 32).judge([Event(0, i + 1, naive, c) for i, c in enumerate(counts)])
    assert judged.flags.tolist() == [v.flags for v in verdicts] == [0, 0, 0, 1, 0]
    assert judged.ucl.tolist() == [v.ucl for v in verdicts]
    assert judged.details is not None
    assert judged.details["p"].tolist() == [v.detail.p for v in verdicts]
    assert judged.signals(1).tolist() == [3]


def test_a_replay_says_where_a_rule_signals_by_chart_and_sample() -> None:
    """Rows of (chart, sample)."""
    charts = Charts(2, [Spec(baseline="given", centre=4.0)])
    counts = np.full((2, 12), 4.0)
    counts[1, 7] = 40.0
    assert charts.replay(counts, 1.0).signals(1).tolist() == [[1, 7]]


def test_a_reset_begins_a_new_stage_of_the_charts_named() -> None:
    """The others go on."""
    charts = Charts(2, [Spec(phase_one=3, minimum=2)])
    charts.replay(np.full((2, 5), 4.0), 1.0)
    charts.reset(1)
    judged = charts.update([0, 1], [4, 4], 1.0)
    assert judged.phase.tolist() == [Phase.PHASE_TWO, Phase.LEARNING]
    assert judged.stage.tolist() == [1, 7]


def test_a_replay_of_fixed_charts_goes_through_the_slow_kernel_only_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some columns until the registers are full, and those where the scatter of a given centre is
    looked at."""
    columns = []
    judge = kernels.judge.judge

    def counted(*arguments: Any) -> None:
        columns.append(len(arguments[0]))
        judge(*arguments)

    monkeypatch.setattr(kernels.judge, "judge", counted)
    charts = Charts(3, [Spec(baseline="given", centre=0.2)])
    counts, units = random_matrix(random.Random(1), 3, 2 * DIAGNOSE_EVERY)
    counts = np.minimum(counts, 12.0)
    charts.replay(counts, units)
    assert columns == [3] * (SETTLED + 2)


def test_a_matrix_without_samples_or_with_one_is_a_matrix() -> None:
    """Shapes are kept."""
    charts = Charts(3)
    assert charts.replay(np.zeros((3, 0)), 1.0).flags.shape == (3, 0)
    assert charts.replay(np.zeros((3, 1)), np.ones((3, 1))).flags.shape == (3, 1)
    assert charts.update(np.zeros(0, int), [], []).flags.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count 0 must be at least 1"),
        ({"count": 1, "window": 0}, r"window 0 in 1 \.\.\. 1023"),
        ({"count": 1, "window": 1024}, r"window 1024 in 1 \.\.\. 1023"),
        ({"count": 1, "specs": ()}, "specs is empty: give one Spec at least"),
        ({"count": 1, "window": 20, "depth": 19}, "depth 19 is below the window 20"),
        (
            {"count": 1, "window": 20, "specs": [Spec(phase_one=20), Spec(phase_one=21)]},
            r"specs\[1\]: phase_one 21 is above the window 20",
        ),
    ],
)
def test_charts_that_cannot_be_say_why(arguments: dict[str, Any], message: str) -> None:
    """The argument and its value."""
    with pytest.raises(ValueError, match=message):
        Charts(**arguments)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("baseline", "still", "baseline is 'still': it is one of given, frozen, moving"),
        ("limits", "six_sigma", "limits is 'six_sigma': it is one of three_sigma, laney, exact, auto"),
        ("k", 0.0, r"k is 0.0: it is "),
        ("k", float("nan"), r"k is nan: it is "),
        ("alpha", 0.5, r"alpha is 0.5: it is .* \.\.\. 0.5"),
        ("centre", -0.25, r"centre is -0.25: it is 0 \.\.\. "),
        ("phase_one", 0, r"phase_one is 0: it is 1 \.\.\. 1023"),
        ("minimum", 0, r"minimum is 0: it is 1 \.\.\. 1023"),
        ("sigma_z", 0.0, "sigma_z is 0.0: it is "),
        ("sigma_z_floor", -1.0, r"sigma_z_floor is -1.0: it is 0 \.\.\. "),
        ("cusum_ratio", 0.9, r"cusum_ratio is 0.9: it is 1 \.\.\. "),
        ("head_start", 0.75, r"head_start is 0.75: it is 0 \.\.\. 0.5"),
        ("ewma_weight", 1.5, r"ewma_weight is 1.5: it is 0 \.\.\. 1"),
        ("arl0", 1.0, r"arl0 is 1.0: it is 1 \.\.\. 1e\+09"),
        ("rules", (1, 9), r"rules is \(1, 9\): numbers of Nelson's rules, 1 \.\.\. 8"),
        ("counts", RuleCounts(trend=16), r"counts.trend is 16: it is 3 \.\.\. 15 points"),
        ("counts", RuleCounts(beyond_2=1), r"counts.beyond_2 is 1: it is 2 \.\.\. 14 points"),
    ],
)
def test_a_spec_that_cannot_be_says_why(field: str, value: Any, message: str) -> None:
    """The field, its value and what it may be."""
    with pytest.raises(ValueError, match=message):
        Spec(**{field: value})


BAD_SAMPLES = [
    ([0, 2], [1, 1], [1, 1], r"chart\[1\] is 2; charts are 0 \.\.\. 1"),
    ([-1], [1], [1], r"chart\[0\] is -1; charts are 0 \.\.\. 1"),
    ([0.5], [1], [1], "chart is one whole number a sample"),
    ([0, 1], [1, 1, 1], 1.0, r"counts has shape \(3,\), chart \(2,\)"),
    ([0, 1], [1, 1], [1, 1, 1], r"units has shape \(3,\), counts \(2,\)"),
    ([0, 1], [1, -1], 1.0, r"counts\[1\] is -1.0: a count is a whole number, 0 \.\.\. 2\^53 - 1"),
    ([0, 1], [1.5, 1], 1.0, r"counts\[0\] is 1.5: a count"),
    ([0, 1], [1, float("nan")], 1.0, r"counts\[1\] is nan: a count"),
    ([0], [float(COUNT_MAX)], 1.0, r"counts\[0\] is 9007199254740992.0: a count"),
    ([0, 1], [1, 1], [1, 0.0], r"units\[1\] is 0.0: units are 2\^-20 \.\.\. 2\^40"),
    ([0, 1], [1, 1], [1, 2 * UNITS_MAX], r"units\[1\] is 2199023255552.0: units"),
    ([0, 1], [1, 1], [float("inf"), 1], r"units\[0\] is inf: units"),
]


@pytest.mark.parametrize(("chart", "counts", "units", "message"), BAD_SAMPLES)
def test_a_sample_that_cannot_be_judged_is_named_and_nothing_is_judged(
    chart: Any, counts: Any, units: Any, message: str
) -> None:
    """The column, the index and the value; memory stays as it was."""
    charts = Charts(2)
    charts.update([0, 1], [3, 4], 1.0)
    before = memory(charts)
    with pytest.raises(ValueError, match=message):
        charts.update(chart, counts, units)
    assert memory(charts) == before
    assert charts.update([0, 1], [3, 4], 1.0).stage.tolist() == [1, 1]


def test_a_matrix_that_does_not_fit_is_named() -> None:
    """Its shape, or the row and the column of the value."""
    charts = Charts(2)
    with pytest.raises(ValueError, match=r"counts has shape \(3, 4\); there are 2 charts, a row each"):
        charts.replay(np.zeros((3, 4)), 1.0)
    with pytest.raises(ValueError, match=r"counts has shape \(4,\); there are 2 charts"):
        charts.replay(np.zeros(4), 1.0)
    with pytest.raises(ValueError, match=r"units has shape \(4,\), counts \(2, 4\)"):
        charts.replay(np.zeros((2, 4)), np.ones(4))
    counts = np.zeros((2, 4))
    counts[1, 2] = 0.5
    with pytest.raises(ValueError, match=r"counts\[1, 2\] is 0.5: a count"):
        charts.replay(counts, 1.0)
    with pytest.raises(ValueError, match=r"chart\[0\] is 2; charts are 0 \.\.\. 1"):
        charts.reset(2)
