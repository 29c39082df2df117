"""Published data sets, through ``u_chart`` and through the stream of kernels (see tests/reference).

Centre, limits and z agree to 1e-12, p-values and sigma_z to 1e-9, flags and exact limits exactly. Where an
implementation differs by convention, the difference is listed here, index by index, and its cause shown.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import kernels
from kernels.state import ALPHA
from tests.kernels.arena import Arena, Event
from tests.kernels.oracle import Counts, Spec, Verdict
from tests.kernels.streams import with_basis

FOLDER = Path(__file__).parent.parent / "reference"
SETS = {
    path.stem: content
    for path in sorted(FOLDER.glob("*.json"))
    if "nelson_standardised" in (content := json.loads(path.read_text()))
}
TOLERANCE = 1e-12
NELSON = range(1, 9)
OF_WESTERN_ELECTRIC = {1: "1", 5: "2", 6: "3", 2: "4"}
"""Nelson's number of each of Western Electric's rules."""


def approximately(expected: Any, tolerance: float = TOLERANCE) -> Any:
    """Equal to within *tolerance*, relative and absolute."""
    return pytest.approx(expected, rel=tolerance, abs=tolerance)


def chart(name: str, **options: Any) -> kernels.UChart:
    """The data set judged as published: its baseline, what it excludes, its given centre line."""
    published = SETS[name]
    excluded = published["excluded"] or []
    baseline = published["baseline"]
    return kernels.u_chart(
        published["counts"],
        published["sizes"],
        baseline=None if baseline is None else sorted([*baseline, *excluded]),
        exclude=excluded,
        centre=published["u0"],
        **options,
    )


def signals(judged: kernels.UChart) -> dict[int, list[int]]:
    """Flagged indices by rule."""
    return {rule: found.tolist() for rule, found in judged.signals.items()}


def test_all_data_sets_are_here() -> None:
    """Fourteen data sets have the results that the tests below compare."""
    assert len(SETS) == 14


@pytest.mark.parametrize("name", SETS)
def test_centre_limits_and_z_are_the_published_ones(name: str) -> None:
    """R qcc's centre line and three-sigma limits and the standardised points, to 1e-12; rule 1 exactly."""
    published = SETS[name]
    judged = chart(name)
    assert judged.centre == approximately(published["ubar"])
    assert judged.ucl == approximately(published["ucl"])
    assert judged.lcl == approximately(published["lcl"])
    assert judged.z == approximately(published["z"])
    assert judged.signals[1].tolist() == published["beyond_limits"]
    assert judged.excluded.tolist() == (published["excluded"] or [])


@pytest.mark.parametrize("name", SETS)
def test_nelsons_rules_flag_the_published_samples(name: str) -> None:
    """Rules 1 to 8 on standardised points, exactly; Minitab's set is the same eight tests."""
    expected = {rule: SETS[name]["nelson_standardised"][str(rule)] for rule in NELSON}
    assert signals(chart(name)) == expected
    assert signals(chart(name, rules="minitab")) == expected


@pytest.mark.parametrize("name", SETS)
def test_p_values_are_the_published_ones(name: str) -> None:
    """P(X >= c) and P(X <= c) to 1e-9 of themselves, down to 1e-27."""
    published = SETS[name]
    judged = chart(name)
    assert judged.p_upper == pytest.approx(published["p_upper"], rel=1e-9, abs=0.0)
    assert judged.p_lower == pytest.approx(published["p_lower"], rel=1e-9, abs=0.0)


@pytest.mark.parametrize("name", SETS)
def test_laneys_limits_are_the_published_ones(name: str) -> None:
    """sigma_z of qicharts2, plain and with screened ranges, to 1e-9; U' limits to 1e-12; rule 1 exactly."""
    laney = SETS[name]["laney"]
    judged = chart(name, limits="laney")
    assert judged.sigma_z == approximately(laney["sigma_z"], 1e-9)
    assert judged.ucl == approximately(laney["ucl"])
    assert judged.lcl == approximately(laney["lcl"])
    assert judged.signals[1].tolist() == laney["beyond_limits"]
    screened = chart(name, limits="laney", screen_ranges=True)
    assert screened.sigma_z == approximately(laney["sigma_z_screened_mr"], 1e-9)


@pytest.mark.parametrize("name", SETS)
def test_sigma_z_with_the_exact_d2_differs_by_its_rounding_alone(name: str) -> None:
    """Laney and qicharts2 divide by 1.128, and so do we; 2/sqrt(pi) would be 0.03 % more."""
    with_exact_d2 = chart(name, limits="laney").sigma_z * 1.128 / (2.0 / np.sqrt(np.pi))
    assert with_exact_d2 == approximately(SETS[name]["laney"]["sigma_z_exact_d2"], 1e-9)


@pytest.mark.parametrize("name", SETS)
def test_exact_limits_are_the_published_quantiles(name: str) -> None:
    """R's qpois at 0.9973002 (its tail and ours differ by 2e-9): the same counts, exactly; rule 1 too.

    The file has quantile / n in 15 digits; ours is the quotient itself.
    """
    published, sizes = SETS[name]["poisson_limits"], np.array(SETS[name]["sizes"])
    for alpha in (ALPHA, (1.0 - published["conf"]) / 2.0):
        judged = chart(name, limits="exact", alpha=alpha)
        for ours, theirs in ((judged.lcl, published["lcl"]), (judged.ucl, published["ucl"])):
            assert ours.tolist() == (np.rint(np.array(theirs) * sizes) / sizes).tolist()
            assert ours == pytest.approx(theirs, rel=1e-14, abs=0.0)
        assert judged.signals[1].tolist() == published["beyond_limits"]


@pytest.mark.parametrize("name", SETS)
def test_automatic_limits_are_exact_below_an_expected_count_of_10(name: str) -> None:
    """Sample by sample one of the two, its rule 1 with it."""
    auto, exact, plain = (chart(name, limits=limits) for limits in ("auto", "exact", "three_sigma"))
    low = auto.centre * auto.units < 10.0
    assert auto.ucl.tolist() == np.where(low, exact.ucl, plain.ucl).tolist()
    assert auto.lcl.tolist() == np.where(low, exact.lcl, plain.lcl).tolist()
    flagged = [i for i in range(len(low)) if i in (exact if low[i] else plain).signals[1]]
    assert auto.signals[1].tolist() == flagged


ZONES = {
    5: ([20, 26, 39, 62, 91, 144, 182, 186], [30, 38, 76, 111, 181]),
    6: ([31, 138, 140], [97]),
}
"""In synthetic_negbin_overdispersed, where n varies fourfold: samples that only our rules 5 and 6 flag, and
those that only qcc 3.0 flags. It holds a whole window against the zone lines of the newest sample; here each
sample is held against its own (z). In the other data sets the flags are the same."""


def differences(name: str, ours: list[int], theirs: list[int], rule: int) -> None:
    """Ours and qcc 3.0's flags differ by ``ZONES`` and nothing else."""
    only_ours, only_theirs = (
        ZONES.get(rule, ([], [])) if name == "synthetic_negbin_overdispersed" else ([], [])
    )
    assert sorted(set(ours) - set(theirs)) == only_ours, f"rule {rule}"
    assert sorted(set(theirs) - set(ours)) == only_theirs, f"rule {rule}"


@pytest.mark.parametrize("name", SETS)
def test_qcc_3_differs_in_rules_5_and_6_where_n_varies(name: str) -> None:
    """Nelson's rules as qcc 3.0 runs them, but for the zones of the newest sample (``ZONES``)."""
    for rule, ours in signals(chart(name)).items():
        differences(name, ours, SETS[name]["nelson_qcc30"][str(rule)], rule)


@pytest.mark.parametrize("name", SETS)
def test_western_electrics_rules_flag_the_published_samples(name: str) -> None:
    """Rules 1 to 4 of qcc 3.0, under Nelson's numbers; rules 2 and 3 but for its zones (``ZONES``)."""
    judged = signals(chart(name, rules="western_electric"))
    assert list(judged) == [1, 2, 5, 6]
    for rule, number in OF_WESTERN_ELECTRIC.items():
        differences(name, judged[rule], SETS[name]["western_electric"][number], rule)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("rule", "beyond", "points"), [(5, 2.0, 2), (6, 1.0, 4)])
def test_with_the_zones_of_the_newest_sample_qccs_flags_come_out(
    name: str, rule: int, beyond: float, points: int
) -> None:
    """The cause of ``ZONES``: rules 5 and 6 counted with the newest sample's sigma are qcc 3.0's, exactly."""
    judged = chart(name)
    sigma = np.sqrt(judged.centre / judged.units)
    flagged = []
    for i in range(points, len(sigma)):
        zones = (judged.u[i - points : i + 1] - judged.centre) / sigma[i]
        if any(s[-1] > beyond and (s > beyond).sum() >= points for s in (zones, -zones)):
            flagged.append(i)
    assert flagged == SETS[name]["nelson_qcc30"][str(rule)]


@pytest.mark.parametrize("name", SETS)
def test_rules_2_to_4_of_rspc_come_out_with_its_counts(name: str) -> None:
    """JMP's counts (6 rising, 14 alternating) are the default; Minitab's older 7 and 15 are settable."""
    rspc = SETS[name]["rspc"]
    default = signals(chart(name, rules=(2, 3, 4)))
    assert default == {2: rspc["rule2_9"], 3: rspc["rule3_jmp6"], 4: rspc["rule4_jmp14"]}
    longer = signals(chart(name, rules=(3, 4), points={3: 7, 4: 15}))
    assert longer == {3: rspc["rule3_minitab7"], 4: rspc["rule4_minitab15"]}


@pytest.mark.parametrize("name", SETS)
def test_runs_of_7_are_those_of_qcc_2(name: str) -> None:
    """qcc 2.7's violating runs are rule 2 of seven samples."""
    assert signals(chart(name, rules=[2], points={2: 7}))[2] == SETS[name]["violating_runs"]


@pytest.mark.parametrize("name", SETS)
def test_variants_of_rules_5_6_and_8_differ_as_listed(name: str) -> None:
    """Judging rules 5 and 6 before their windows are full would flag one sample more, of one data set."""
    judged = signals(chart(name))
    variant = SETS[name]["rule5_6_partial_window"]
    only_theirs = {("qicharts2_hospital_CDI", 6): [3]}
    for rule in (5, 6):
        assert set(judged[rule]) <= set(variant[str(rule)])
        extra = sorted(set(variant[str(rule)]) - set(judged[rule]))
        assert extra == only_theirs.get((name, rule), [])
    assert judged[8] == SETS[name]["rule8_either_side"]


PRINTED: dict[str, dict[str, tuple[Any, float]]] = {
    "montgomery_pcmanufact": {"ubar": (1.93, 0.005), "ucl": (3.79, 0.005), "lcl": (0.07, 0.005)},
    "montgomery_dyedcloth": {
        "ubar": (1.42, 0.005),
        # Cut off, not rounded: 2.5550 is printed as 2.55.
        "ucl": ([2.55, 2.69, 2.42, 2.55, 2.58, 2.55, 2.46, 2.53, 2.46, 2.44], 0.0051),
    },
    "montgomery_ex7_5_dyedcloth_m2": {
        "ubar": (1.423256, 5e-7),
        "ucl": (
            [
                2.555038,
                2.688626,
                2.415894,
                2.555038,
                2.58444,
                2.555038,
                2.456427,
                2.527762,
                2.456427,
                2.435552,
            ],
            5e-7,
        ),
        "lcl": (
            [
                *(0.2914739, 0.1578852, 0.4306174, 0.2914739, 0.2620721),
                *(0.2914739, 0.390085, 0.3187498, 0.390085, 0.4109593),
            ],
            5e-8,
        ),
    },
    "montgomery_circuit_phase2": {"c_bar": (19.67, 0.005), "c_ucl": (32.97, 0.005), "c_lcl": (6.36, 0.005)},
    # The book draws the limits from the rounded 19.85.
    "montgomery_circuit_all26_phase1": {
        "c_bar": (19.85, 0.005),
        "c_ucl": (33.22, 0.01),
        "c_lcl": (6.48, 0.005),
    },
    "sas_fabric_n30": {"ubar": (0.30333, 5e-6), "ucl": (0.605, 5e-6), "lcl": (0.001671271, 5e-10)},
    "sas_fabric_u0_0325": {"ubar": (0.325, 0.0)},
    "sas_fabrics2_variable_n": {"ubar": (0.28805, 5e-6)},
    "qicharts2_hospital_BAC": {
        "ubar": (0.000812768569030364, 5e-19),
        "ucl_mean": (0.00108452176303496, 5e-18),
        "lcl_mean": (0.000541015375025772, 5e-19),
    },
    "qicharts2_hospital_CDI": {
        "ubar": (0.000612173677669668, 5e-19),
        "ucl_mean": (0.000856125373473676, 5e-19),
        "lcl_mean": (0.000368221981865659, 5e-19),
    },
}
"""What textbooks and manuals print, and half a unit of its last place unless a comment says otherwise."""

NOT_OURS = {"where", "beyond_limits", "note_ucl", "runs_signal", "longest_run", "n_crossings"}
"""Words, rule 1 (compared everywhere) and Anhoej's runs tests, which are no part of a u-chart here."""


@pytest.mark.parametrize("name", SETS)
def test_the_figures_that_are_printed_come_out_within_their_rounding(name: str) -> None:
    """Centre lines and limits of textbooks and manuals, and their samples beyond the limits."""
    published = SETS[name]["published"]
    judged = chart(name)
    found = {
        "ubar": judged.centre,
        "ucl": judged.ucl,
        "lcl": judged.lcl,
        "c_bar": judged.centre * 100.0,
        "c_ucl": judged.ucl * 100.0,
        "c_lcl": judged.lcl * 100.0,
        "ucl_mean": judged.ucl.mean(),
        "lcl_mean": judged.lcl.mean(),
    }
    # SAS also prints the chance of a signal, by a continuous extension of the Poisson distribution (a gamma
    # distribution's), which no count has: nothing here is that number.
    printed = PRINTED.get(name, {})
    assert set(published) - NOT_OURS - {"alpha_of_3sigma_limits"} == set(printed)
    for figure, (value, rounding) in printed.items():
        assert value == published[figure]
        # Twice float64's own error for the figures that are printed in full.
        assert np.abs(found[figure] - np.array(value)).max() <= rounding + 4e-16 * np.max(value), figure
    assert judged.signals[1].tolist() == published.get("beyond_limits", judged.signals[1].tolist())


def test_screening_leaves_out_montgomerys_circuit_boards() -> None:
    """Phase I of 26 boards leaves out the 6th and the 20th by itself, and ends at the book's centre line."""
    published = SETS["montgomery_circuit_phase2"]
    judged = kernels.u_chart(published["counts"], published["sizes"], baseline=26, screen=True)
    assert judged.excluded.tolist() == published["excluded"] == [5, 19]
    assert judged.baseline.tolist() == published["baseline"]
    assert judged.centre == approximately(published["ubar"])


@pytest.mark.parametrize("row", json.loads((FOLDER / "u_chart_arl0_by_mean_count.json").read_text()))
def test_the_published_run_lengths_in_control_come_out(row: dict[str, Any]) -> None:
    """Which counts rule 1 flags, weighed with their probabilities, give the published mean run length."""
    mean = row["mean_count"]
    counts = np.arange(np.ceil(mean + 12.0 * np.sqrt(mean) + 20.0))
    plain = kernels.u_chart(counts, 1.0, centre=mean, rules=[1])
    exact = kernels.u_chart(counts, 1.0, centre=mean, rules=[1], limits="exact")
    for judged, key in ((plain, "three_sigma"), (exact, "exact_00135")):
        flagged = judged.signals[1]
        chance = stats.poisson.pmf(counts[flagged], mean)
        assert 1.0 / chance.sum() == pytest.approx(row[key]["arl0"], rel=1e-9)
        assert chance[counts[flagged] > mean].sum() == pytest.approx(row[key]["p_up"], rel=1e-9)


# The stream


def verdicts(spec: Spec, rows: list[tuple[float, float]]) -> list[Verdict]:
    """Judge one chart's (count, units) in a window that holds them all."""
    events = [Event(0, t, with_basis(spec), c, n) for t, (c, n) in enumerate(rows)]
    return Arena(1, 1000, 1000).judge(events)


def rows_of(published: dict[str, Any]) -> list[tuple[float, float]]:
    """(count, units) in time order."""
    return list(zip(published["counts"], published["sizes"], strict=True))


def flagged(judged: list[Verdict], rule: int) -> list[int]:
    """Indices where a rule signals."""
    return [i for i, verdict in enumerate(judged) if verdict.flags & 1 << (rule - 1)]


def assert_limits(judged: list[Verdict], published: dict[str, Any], first: int = 0) -> None:
    """Centre and limits from ``first`` on agree to 1e-12."""
    assert [v.centre for v in judged[first:]] == approximately([published["ubar"]] * (len(judged) - first))
    assert [v.ucl for v in judged[first:]] == approximately(published["ucl"][first:])
    assert [v.lcl for v in judged[first:]] == approximately(published["lcl"][first:])


@pytest.mark.parametrize("name", SETS)
def test_given_the_published_centre_limits_and_flags_are_the_published_ones(name: str) -> None:
    """Limits, and rules 1 to 8 on standardised points."""
    published = SETS[name]
    judged = verdicts(Spec("given", centre=published["ubar"], rules=frozenset(NELSON)), rows_of(published))
    assert_limits(judged, published)
    assert flagged(judged, 1) == published["beyond_limits"]
    for rule in NELSON:
        assert flagged(judged, rule) == published["nelson_standardised"][str(rule)], f"rule {rule}"


@pytest.mark.parametrize("limits", ["three_sigma", "laney", "exact", "auto"])
@pytest.mark.parametrize("name", SETS)
def test_a_stream_against_a_given_centre_gives_the_bits_of_u_chart(name: str, limits: Any) -> None:
    """All limits and all rules, sample by sample: the same float64 limits, the same flags."""
    whole = chart(name, limits=limits)
    spec = Spec(
        "given",
        centre=whole.centre,
        limits=limits,
        sigma_z=whole.sigma_z,
        rules=frozenset(NELSON),
        tests=True,
    )
    judged = verdicts(spec, rows_of(SETS[name]))
    assert [v.u for v in judged] == whole.u.tolist()
    assert [v.ucl for v in judged] == whole.ucl.tolist()
    assert [v.lcl for v in judged] == whole.lcl.tolist()
    assert {rule: flagged(judged, rule) for rule in NELSON} == signals(whole)
    assert [v.detail.p for v in judged] == pytest.approx(whole.p.tolist(), rel=1e-9, abs=0.0)


@pytest.mark.parametrize("name", SETS)
def test_western_electric_and_the_counts_of_rspc_in_the_stream(name: str) -> None:
    """Counts set rule by rule flag the published samples; Western Electric's but for ``ZONES``."""
    rows = rows_of(SETS[name])
    spec = Spec("given", centre=chart(name).centre, rules=frozenset(NELSON))
    western = verdicts(replace(spec, counts=Counts(side=8)), rows)
    for rule, number in OF_WESTERN_ELECTRIC.items():
        differences(name, flagged(western, rule), SETS[name]["western_electric"][number], rule)
    longer = verdicts(replace(spec, counts=Counts(trend=7, alternating=15)), rows)
    rspc = SETS[name]["rspc"]
    assert flagged(longer, 2) == rspc["rule2_9"]
    assert flagged(longer, 3) == rspc["rule3_minitab7"]
    assert flagged(longer, 4) == rspc["rule4_minitab15"]


WHOLE = [name for name in SETS if SETS[name]["baseline"] is None and not SETS[name]["u0"]]


@pytest.mark.parametrize("name", WHOLE)
def test_a_phase_one_over_all_samples_finds_the_published_centre(name: str) -> None:
    """With nothing excluded (k of a thousand) the frozen centre is the published one."""
    published = SETS[name]
    rows = rows_of(published)
    judged = verdicts(Spec("frozen", k=1000.0, phase_one=len(rows), minimum=1), [*rows, rows[0]])
    assert judged[-1].phase == 2
    assert judged[-1].centre == approximately(published["ubar"])


@pytest.mark.parametrize("screens", [False, True])
@pytest.mark.parametrize("name", WHOLE)
def test_a_phase_one_over_all_samples_finds_the_published_sigma_z(name: str, screens: bool) -> None:
    """Of Laney's limits, plain and with screened ranges; the bits of ``u_chart``."""
    published = SETS[name]
    rows = rows_of(published)
    spec = Spec("frozen", k=1000.0, phase_one=len(rows), limits="laney", screens=screens)
    newest = verdicts(spec, [*rows, rows[0]])[-1]
    key = "sigma_z_screened_mr" if screens else "sigma_z"
    assert newest.detail.sigma_z == approximately(published["laney"][key], 1e-9)
    whole = chart(name, limits="laney", k=1000.0, screen_ranges=screens)
    assert (newest.detail.sigma_z, newest.ucl) == (whole.sigma_z, whole.ucl[0])


@pytest.mark.parametrize("name", [name for name in WHOLE if not SETS[name]["beyond_limits"]])
def test_a_second_pass_after_freezing_gives_the_published_limits_and_flags(name: str) -> None:
    """Phase I over the set, then the set again: from where no run reaches back, all flags agree."""
    published = SETS[name]
    rows = rows_of(published)
    spec = Spec("frozen", phase_one=len(rows), minimum=1, rules=frozenset(NELSON))
    judged = verdicts(spec, [*rows, *rows])[len(rows) :]
    assert_limits(judged, published)
    for rule in NELSON:
        expected = published["nelson_standardised"][str(rule)]
        reach = 0 if rule == 1 else 14
        assert [i for i in flagged(judged, rule) if i >= reach] == [i for i in expected if i >= reach]


def test_phase_one_of_montgomerys_circuit_boards_leaves_out_the_published_samples() -> None:
    """26 samples, of which the freeze excludes the 6th and the 20th; limits and flags of phase II follow."""
    published = SETS["montgomery_circuit_phase2"]
    rows = rows_of(published)
    arena = Arena(1, 60, 60)
    spec = with_basis(Spec("frozen", phase_one=26, minimum=2, rules=frozenset(NELSON)))
    judged = arena.judge([Event(0, t, spec, c, n) for t, (c, n) in enumerate(rows)])
    assert [i for i in range(26) if not arena.window[0, i]["usable"]] == published["excluded"] == [5, 19]
    assert [v.phase for v in judged[25:27]] == [1, 2]
    assert judged[26].detail.froze
    assert_limits(judged, published, first=26)
    for rule in NELSON:
        expected = published["nelson_standardised"][str(rule)]
        assert [i for i in flagged(judged, rule) if i >= 26] == [i for i in expected if i >= 26]


@pytest.mark.parametrize("limits", ["three_sigma", "laney", "exact", "auto"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_phase_one_excludes_what_u_chart_screens(name: str, limits: Any) -> None:
    """Both leave out the same samples, whatever the limits, and end at the same bits."""
    rows = rows_of(SETS[name])
    whole = chart(name, limits=limits, screen=True)
    arena = Arena(1, len(rows) + 1, 1000)
    spec = with_basis(Spec("frozen", phase_one=len(rows), limits=limits))
    judged = arena.judge([Event(0, t, spec, c, n) for t, (c, n) in enumerate([*rows, rows[0]])])
    assert [i for i in range(len(rows)) if not arena.window[0, i]["usable"]] == whole.excluded.tolist()
    newest = judged[-1]
    assert (newest.centre, newest.lcl, newest.ucl) == (whole.centre, whole.lcl[0], whole.ucl[0])
