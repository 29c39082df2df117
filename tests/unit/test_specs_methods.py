"""Limits, rules, small shifts and alarms in a spec: what is read, refused, compiled and stored of them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from kernels import design, state
from runtime import specs_methods as methods
from runtime.specs import (
    BUILT_IN,
    Alarm,
    Baseline,
    ChartSpec,
    Cusum,
    Ewma,
    Limits,
    RuleSet,
    Specs,
    SpecsError,
    Start,
    compile,
    decode,
    designed,
    designs_of,
    encode,
)
from runtime.specs_adopt import Frozen, adopt
from runtime.specs_designs import DESIGN_POINTS
from runtime.specs_methods import Mode, Severity
from runtime.specs_text import parse, to_yaml

DOCUMENT = """\
charts:
  - chamber: ETCH-*
    start: predict
    limits: laney
    sigma_z_floor: 1
    screen_ranges: true
    rules: western_electric
    counts: {2: 7, 5: 3}
    cusum: {ratio: 2, head_start: 0}
    ewma: {}
    alarm: {again_after_reports: 20, again_after_s: 60.5, end_after: 5, fdr: 0.05, severity: {9: info}}
  - chamber: LITHO-1
    baseline: given
    centre: 0.25
    limits: laney
    sigma_z: 1.4
    ewma: {weight: 0.1, arl0: 500}
    alarm: {mode: every, fdr: none}
  - {chart: rare, limits: exact, alpha: 1e-3, rules: none, sigma_z_floor: none, cusum: none}
  - {chart: some, baseline: moving, limits: auto, k: 2.5, rules: minitab, counts: {3: 7, 4: 15}}
"""


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of ``kernels.design.table``, which answers with numbers that tell what it was asked."""
    calls: list[dict[str, Any]] = []

    def table(
        *, ratio: float | None, head_start: float, ewma_weight: float | None, arl0: float
    ) -> np.ndarray[Any, Any]:
        calls.append({"ratio": ratio, "head_start": head_start, "ewma_weight": ewma_weight, "arl0": arl0})
        rows = np.full((3, len(state.DESIGN_MEANS)), 1 / 3)
        rows[:2] *= 0.0 if ratio is None else ratio * arl0
        rows[2] *= 0.0 if ewma_weight is None else ewma_weight * arl0
        return rows

    monkeypatch.setattr(design, "table", table)
    return calls


def test_a_document_is_read_with_all_the_methods_that_it_asks_for() -> None:
    etch, litho, rare, some = parse(DOCUMENT).charts
    assert (etch.start, etch.limits, etch.sigma_z_floor, etch.screen_ranges) == (
        Start.PREDICT, Limits.LANEY, 1.0, True,
    )  # fmt: skip
    assert etch.cusum == Cusum(ratio=2.0, arl0=370.0, head_start=0.0)
    assert etch.ewma == Ewma(weight=0.2, arl0=370.0)
    assert etch.alarm == Alarm(Mode.EPISODE, 20, 60.5, 5, 0.05, {9: Severity.INFO})
    assert (litho.sigma_z, litho.alarm) == (1.4, Alarm(mode=Mode.EVERY))
    assert (rare.alpha, rare.sigma_z_floor, rare.cusum, rare.rules_in_force) == (1e-3, None, None, ())
    assert (some.k, some.rules) == (2.5, RuleSet.MINITAB)


def test_a_document_comes_back_from_the_bucket_and_from_what_people_see_of_it_as_it_was() -> None:
    specs = parse(DOCUMENT)
    assert decode(encode(specs)) == specs
    assert parse(to_yaml(specs)) == specs
    assert "rules: western_electric" in to_yaml(specs), "a set keeps its name"


def test_a_document_of_an_older_version_means_what_it_meant() -> None:
    old = b'{"charts":[{"chamber":"E-*","k":2.5,"rules":[1,2]}],"default":{"baseline":"moving","minimum":8}}'
    specs = decode(old)
    assert specs.charts == (ChartSpec("E-*", k=2.5, rules=(1, 2)),)
    compiled = compile(specs)[0]
    row = state.spec_row(**compiled)
    plain = state.spec_row(
        state.Baseline.FROZEN, k=2.5, rules=3, phase_one=25, minimum=10, basis=compiled["basis"]
    )
    names = [name for name in state.SPEC.names or () if name not in ("again_ns", "end_after")]
    ours, theirs = np.array([row], state.SPEC), np.array([plain], state.SPEC)
    for name in names:
        assert np.array_equal(ours[name], theirs[name]), name


def test_the_numbers_of_the_words_and_the_ranges_are_those_of_the_kernels() -> None:
    assert {limits.name: number for limits, number in methods.LIMITS.items()} == {
        limits.name: limits.value for limits in state.Limits
    }
    assert {kind.name: number for kind, number in methods.KINDS.items()} == {
        kind.name: kind.value for kind in state.Baseline
    }
    assert [count.usual for count in methods.COUNTS.values()] == list(state.RuleCounts())
    assert [count.least for count in methods.COUNTS.values()] == list(state.COUNTS_MIN)
    assert [count.most for count in methods.COUNTS.values()] == list(state.COUNTS_MAX)
    assert methods.ALPHA == state.ALPHA
    assert len(state.DESIGN_MEANS) == DESIGN_POINTS
    assert methods.CUSUM_RULES == (state.CUSUM_ABOVE, state.CUSUM_BELOW)
    assert methods.EWMA_RULES == (state.EWMA_ABOVE, state.EWMA_BELOW)


def test_compiled_specs_hold_every_setting_for_the_kernels() -> None:
    rows = np.array([state.spec_row(**entry) for entry in compile(parse(DOCUMENT))], dtype=state.SPEC)
    columns: dict[str, list[Any]] = {
        "limits": [1, 1, 2, 3, 0],
        "rules": [0b1111_0011_0011, 0b1100_0000_1111, 0, 0b1111_1111, 0b1111],
        "k": [3.0, 3.0, 3.0, 2.5, 3.0],
        "alpha": [state.ALPHA, state.ALPHA, 1e-3, state.ALPHA, state.ALPHA],
        "sigma_z": [1.0, 1.4, 1.0, 1.0, 1.0],
        "sigma_z_floor": [1.0, 0.0, 0.0, 0.0, 0.0],
        "screens": [1, 0, 0, 0, 0],
        "predicts": [1, 0, 0, 0, 0],
        "tests": [1, 0, 0, 0, 0],
        "side": [7, 9, 9, 9, 9],
        "trend": [6, 6, 6, 7, 6],
        "alternating": [14, 14, 14, 15, 14],
        "beyond_2": [3, 2, 2, 2, 2],
        "cusum_log_ratio": [float(np.log(2)), 0.0, 0.0, 0.0, 0.0],
        "cusum_head_start": [0.0, 0.5, 0.5, 0.5, 0.5],
        "ewma_weight": [0.2, 0.1, 0.0, 0.0, 0.0],
        "design": [0, 1, -1, -1, -1],
        "again_reports": [20, 0, 0, 0, 0],
        "again_ns": [60_500_000_000, *[3600 * 10**9] * 4],
        "end_after": [5, 3, 3, 3, 3],
    }
    assert {name: rows[name].tolist() for name in columns} == columns


def test_the_western_electric_set_takes_eight_points_on_one_side_and_counts_can_be_set_one_by_one() -> None:
    assert ChartSpec(rules=RuleSet.WESTERN_ELECTRIC).rule_counts == (8, 6, 14, 2, 4, 15, 8)
    assert ChartSpec(rules=RuleSet.NELSON).rule_counts == ChartSpec(rules=RuleSet.MINITAB).rule_counts
    assert ChartSpec(counts={4: 15, 2: 7}).rule_counts == (7, 6, 15, 2, 4, 15, 8)
    assert ChartSpec(rules=RuleSet.NELSON).rules_mask == 0xFF
    assert ChartSpec(rules=(), cusum=Cusum()).rules_in_force == (9, 10)


def test_the_highest_severity_of_the_rules_that_signal_counts() -> None:
    alarm = Alarm(severity={2: Severity.INFO, 9: Severity.CRITICAL})
    assert [alarm.severity_of(flags) for flags in (0, 0b1, 0b10, 0b110, 1 << 8, 0b11)] == [
        "", "critical", "info", "warning", "critical", "critical",
    ]  # fmt: skip
    assert Alarm(severity={1: Severity.INFO}).severity_of(0b1) == "info"


_REFUSED = [
    ("limits: lany", "limits 'lany' is none of three_sigma, laney, exact, auto; did you mean 'laney'?"),
    ("alpha: 0.01", "alpha 0.01 is only for limits exact or auto (or start predict), not for three_sigma"),
    ("{limits: auto, alpha: 0.2}", "alpha 0.2 must be in 1e-09 ... 0.1"),
    ("{limits: exact, alpha: 1e-10}", "alpha 1e-10 must be in 1e-09 ... 0.1"),
    ("{limits: exact, k: 2}", "k 2.0 has no meaning with limits exact: leave it out, and set alpha"),
    ("screen_ranges: true", "screen_ranges true is only for limits laney, not for three_sigma"),
    ("{limits: auto, sigma_z_floor: 1}", "sigma_z_floor 1.0 is only for limits laney, not for auto"),
    ("{limits: laney, sigma_z_floor: -1}", "sigma_z_floor -1.0 must be above 0"),
    (
        "{limits: laney, sigma_z: 1}",
        "sigma_z 1.0 is only for baseline given with limits laney, not for frozen",
    ),
    ("{baseline: given, centre: 1, limits: laney}", "sigma_z is missing: limits laney with baseline given"),
    ("{baseline: given, centre: 1, limits: laney, sigma_z: 0}", "sigma_z 0.0 must be above 0"),
    (
        "{baseline: given, centre: 1, limits: laney, sigma_z: 1, sigma_z_floor: 1}",
        "sigma_z_floor 1.0 has no meaning with baseline given",
    ),
    ("{baseline: given, centre: 1, start: predict}", "start is only for baseline frozen or moving"),
    ("{start: predict, minimum: 1}", "minimum 1 leaves nothing to predict"),
    (
        "rules: nelsn",
        "rules 'nelsn' is none of nelson, western_electric, minitab, none; did you mean 'nelson'",
    ),
    (
        "rules: 5",
        "rules 5: Expected `str | array`, got `int`; write a list of numbers, as [1, 2], or the name",
    ),
    ("rules: [1, 9]", "rules [9] come with cusum (9, 10) and ewma (11, 12)"),
    ("{baseline: moving, rules: none}", "baseline moving needs rule 1"),
    ("counts: {2: 16}", "counts {2: 16}: rule 2 cannot be 16 points, but 2 to 15 (9 is usual)"),
    ("counts: {3: 2}", "counts {3: 2}: rule 3 cannot be 2 points, but 3 to 15 (6 is usual)"),
    (
        "{rules: nelson, counts: {5: 15}}",
        "counts {5: 15}: rule 5 cannot be 15 of 16 points, but 2 to 14 (2 is usual)",
    ),
    ("counts: {7: 12}", "counts {7: 12}: rule 7 is not in rules"),
    ("counts: {1: 2}", "counts {1: 2}: only rules 2 to 8 count points"),
    ("counts: [8]", "counts [8]: Expected `object`, got `array`; write how many points make a rule"),
    ("{cusum:}", "cusum is empty: write its fields below it, or {} for the usual values"),
    ("cusum: 1.5", "cusum 1.5: write its fields below it"),
    ("cusum: {rate: 2}", "field 'cusum.rate' is unknown; did you mean 'ratio'?"),
    ("cusum: {ratio: 1}", "cusum.ratio 1.0 must be in 1.05 ... 10"),
    ("cusum: {ratio: .inf}", "cusum.ratio inf is not a finite number"),
    ("cusum: {head_start: 1}", "cusum.head_start 1.0 must be in 0 ... 0.5"),
    ("cusum: {arl0: 5}", "cusum.arl0 5.0 must be in 20 ... 100000"),
    ("ewma: {weight: 0}", "ewma.weight 0.0 must be in 0.01 ... 1"),
    ("ewma: {arl0: 1e6}", "ewma.arl0 1000000.0 must be in 20 ... 100000"),
    ("alarm: {mode: evry}", "alarm.mode 'evry' is none of episode, every; did you mean 'every'?"),
    ("alarm: {fdr: 1}", "alarm.fdr 1.0 must be above 0 and below 1"),
    ("{rules: [2], alarm: {fdr: 0.1}}", "alarm.fdr 0.1 needs rule 1"),
    ("alarm: {again_after_s: -1}", "alarm.again_after_s -1.0 must be 0 (never) to"),
    ("alarm: {again_after_reports: -1}", "alarm.again_after_reports -1 must be 0 (never) to"),
    ("alarm: {end_after: 0}", "alarm.end_after 0 must be 1 to 65535"),
    ("alarm: {mode: every, end_after: 2}", "alarm.end_after is only for mode episode, not for every"),
    ("alarm: {severity: {1: bad}}", "alarm.severity 'bad' is none of info, warning, critical"),
    ("alarm: {severity: {13: info}}", "alarm.severity names rules [13]: there are rules 1 to 12"),
]


@pytest.mark.parametrize(("spec", "message"), _REFUSED)
def test_what_cannot_hold_is_refused_with_its_value_and_remedy(spec: str, message: str) -> None:
    with pytest.raises(SpecsError) as refusal:
        parse(f"default:\n  {spec}")
    assert message in str(refusal.value)


def test_a_problem_of_a_field_within_a_field_has_its_line() -> None:
    with pytest.raises(SpecsError) as refusal:
        parse("default:\n  alarm:\n    end_after: 3\n    fdr: 7\n  cusum:\n    ratoi: 1\n")
    assert refusal.value.problems[0].startswith("line 6: default: field 'cusum.ratoi'")
    with pytest.raises(SpecsError) as refusal:
        parse("default:\n  alarm:\n    end_after: 3\n    fdr: 7\n")
    assert refusal.value.problems[0].startswith("line 4: default: alarm.fdr 7.0")


def test_designs_are_computed_once_for_equal_settings_and_kept_in_the_document(
    tables: list[dict[str, Any]],
) -> None:
    entries = (
        ChartSpec("A", cusum=Cusum(2.0), ewma=Ewma(0.1)),
        ChartSpec("B"),
        ChartSpec("C", ewma=Ewma(0.3)),
        ChartSpec("D", cusum=Cusum(2.0), ewma=Ewma(0.1)),
    )
    specs = designed(Specs(charts=entries))
    assert [entry["design"] for entry in compile(specs)] == [0, -1, 1, 0, -1]
    assert tables == [
        {"ratio": 2.0, "head_start": 0.5, "ewma_weight": 0.1, "arl0": 370.0},
        {"ratio": None, "head_start": 0.0, "ewma_weight": 0.3, "arl0": 370.0},
    ]
    stored = decode(encode(specs))
    rows = designs_of(stored)
    firsts = np.array([[row[0] for row in of] for of in rows])
    assert np.allclose(firsts, [[740 / 3, 740 / 3, 37 / 3], [0.0, 0.0, 37.0]])
    assert all(len(row) == DESIGN_POINTS for of in rows for row in of)
    assert len(tables) == 2, "nothing is computed where the document has it"
    assert designed(stored) == stored
    again = parse(to_yaml(stored))
    assert again.designs == ()
    assert designed(again, stored.designs) == stored
    assert len(tables) == 2, "what was stored stays in force for the same settings"


def test_where_cusum_and_ewma_have_run_lengths_of_their_own_each_has_its_design(
    tables: list[dict[str, Any]],
) -> None:
    specs = Specs(default=ChartSpec(cusum=Cusum(2.0, arl0=600.0), ewma=Ewma(0.5, arl0=300.0)))
    ((up, down, ewma),) = designs_of(specs)
    assert [call["arl0"] for call in tables] == [600.0, 300.0]
    assert [tables[0]["ewma_weight"], tables[1]["ratio"]] == [None, None]
    assert (up[0], down[-1], ewma[0]) == (400.0, 400.0, 50.0)


def test_designs_of_another_shape_are_computed_again_and_those_not_needed_are_dropped(
    tables: list[dict[str, Any]],
) -> None:
    specs = designed(Specs(default=ChartSpec(ewma=Ewma())))
    short = msgspec.structs.replace(specs.designs[0], rows=((1.0,), (1.0,), (1.0,)))
    assert designed(msgspec.structs.replace(specs, designs=(short,))) == specs
    assert len(tables) == 2
    assert designed(msgspec.structs.replace(specs, default=ChartSpec())) == BUILT_IN


def test_a_real_design_round_trips_bit_by_bit_and_is_what_the_kernels_expect() -> None:
    specs = designed(Specs(default=ChartSpec(ewma=Ewma(weight=0.5, arl0=100.0))))
    tabled = design.table(ratio=None, head_start=0.0, ewma_weight=0.5, arl0=100.0)
    stored = np.array(designs_of(decode(encode(specs))))
    assert stored.shape == (1, 3, len(state.DESIGN_MEANS))
    assert stored[0].tolist() == np.asarray(tabled).tolist()
    assert (stored[0, state.DESIGN_EWMA] > 0).all()


def test_designs_are_not_for_people_to_write() -> None:
    with pytest.raises(SpecsError, match="'designs' is computed when a document is applied: leave it out"):
        parse("designs: []")


def test_an_adopted_chart_keeps_its_methods_and_laney_limits_their_sigma_z() -> None:
    specs = Specs(
        charts=(
            ChartSpec("L", limits=Limits.LANEY, sigma_z_floor=1.0, screen_ranges=True, start=Start.PREDICT),
            ChartSpec(
                "E", limits=Limits.EXACT, alpha=0.01, phase_one=40, cusum=Cusum(), alarm=Alarm(fdr=0.1)
            ),
        )
    )
    adopted = adopt(specs, [Frozen("L", "p", 0.5, 1.3), Frozen("E", "p", 0.2)])
    given: dict[str, Any] = {"chart": "p", "baseline": Baseline.GIVEN}
    assert adopted.match("L", "p")[1] == ChartSpec("L", **given, centre=0.5, limits=Limits.LANEY, sigma_z=1.3)
    assert adopted.match("E", "p")[1] == ChartSpec(
        "E", **given, centre=0.2, limits=Limits.EXACT, alpha=0.01, cusum=Cusum(), alarm=Alarm(fdr=0.1)
    )
    assert parse(to_yaml(adopted)) == adopted


def test_the_known_words_are_told_once() -> None:
    with pytest.raises(SpecsError) as refusal:
        parse("default:\n  limits: poisson\n")
    assert refusal.value.problems[0].endswith("limits 'poisson' is none of three_sigma, laney, exact, auto")
