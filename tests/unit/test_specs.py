"""Chart specs: which entry matches, what a stage rests on, what is refused and how it is said."""

from __future__ import annotations

import fnmatch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.state import KIND_MASK, SPEC, spec_row
from runtime import specs as specs_module
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
    basis,
    compile,
    decode,
    encode,
)
from runtime.specs_adopt import Frozen, adopt
from runtime.specs_methods import Mode
from runtime.specs_text import parse, to_yaml

DOCUMENT = """\
# what the fab's engineers wrote
charts:
  - name: etchers
    chamber: "ETCH-*"
    chart: particles
    baseline: frozen
    phase_one: 30
    minimum: 8
  - chamber: "CVD-0?"
    baseline: moving
    k: 3.5
    rules: [1, 2]
  - {chamber: LITHO-1, chart: defects, baseline: given, centre: 0.25}
default:
  minimum: 12
"""


def test_a_document_is_read_with_all_its_fields() -> None:
    specs = parse(DOCUMENT)
    assert [spec.baseline for spec in specs.charts] == [Baseline.FROZEN, Baseline.MOVING, Baseline.GIVEN]
    assert specs.charts[0] == ChartSpec("ETCH-*", "particles", "etchers", phase_one=30, minimum=8)
    assert specs.charts[1].rules == (1, 2)
    assert specs.charts[2].centre == 0.25
    assert specs.default.minimum == 12


def test_json_is_read_like_yaml() -> None:
    assert parse('{"charts": [{"chamber": "E*", "k": 2}], "default": {}}').charts == (ChartSpec("E*", k=2.0),)


@pytest.mark.parametrize("text", ["", "charts:\n", "default:\n", "{}"])
def test_an_empty_document_is_the_built_in_default(text: str) -> None:
    assert parse(text) == BUILT_IN


@pytest.mark.parametrize(
    ("chamber", "chart", "index"),
    [
        ("ETCH-07", "particles", 0),
        ("ETCH-07", "scratches", 3),
        ("etch-07", "particles", 3),
        ("CVD-01", "anything", 1),
        ("CVD-010", "anything", 3),
        ("LITHO-1", "defects", 2),
        ("LITHO-1", "particles", 3),
    ],
)
def test_the_first_entry_that_matches_decides_and_the_default_ends_the_list(
    chamber: str, chart: str, index: int
) -> None:
    specs = parse(DOCUMENT)
    for _ in range(2):  # the second time from the cache
        found, spec = specs.match(chamber, chart)
        assert (found, spec) == (index, specs[index])
    steps = specs.explain(chamber, chart)
    assert [step.matched for step in steps] == [False] * index + [True]
    assert steps[-1].index == index


_NAME = st.text("aB[]?-", min_size=1, max_size=4)
_GLOB = st.text("aB[]?*-", min_size=1, max_size=4)


@given(
    st.lists(st.tuples(_GLOB, _GLOB), max_size=6), st.lists(st.tuples(_NAME, _NAME), min_size=1, max_size=6)
)
def test_match_agrees_with_a_plain_walk_over_fnmatch(
    globs: list[tuple[str, str]], charts: list[tuple[str, str]]
) -> None:
    specs = Specs(charts=tuple(ChartSpec(chamber, chart) for chamber, chart in globs))
    for chamber, chart in charts:
        walk = (
            index
            for index, (a, b) in enumerate(globs)
            if fnmatch.fnmatchcase(chamber, a) and fnmatch.fnmatchcase(chart, b)
        )
        assert specs.match(chamber, chart)[0] == next(walk, len(globs))
        assert specs.explain(chamber, chart)[-1].index == specs.match(chamber, chart)[0]


def test_the_cache_of_matches_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs_module, "MATCH_CACHE_MAX", 10)
    specs = parse(DOCUMENT)
    for number in range(100):
        specs.match(f"ETCH-{number}", "particles")
        assert len(specs._matches) <= 10


def test_compiled_specs_are_in_the_document_order_with_the_default_last() -> None:
    specs = parse(DOCUMENT)
    compiled = compile(specs)
    assert [entry["kind"] for entry in compiled] == [1, 2, 0, 1]
    moving = {"kind": 2, "k": 3.5, "rules": 0b11, "phase_one": 25, "minimum": 10, "centre": 0.0}
    assert compiled[1].items() >= {**moving, "basis": basis(specs.charts[1])}.items()
    assert compiled[2]["centre"] == 0.25
    assert (compiled[3]["rules"], compiled[3]["minimum"]) == (0b1111, 12)


def test_compiled_specs_are_rows_for_the_kernels_which_read_the_kind_from_the_fingerprint() -> None:
    rows = np.array([spec_row(**entry) for entry in compile(parse(DOCUMENT))], dtype=SPEC)
    assert (rows["basis"] & KIND_MASK).tolist() == [1, 2, 0, 1]
    assert (rows["k"] * rows["minimum"]).tolist() == [24.0, 35.0, 30.0, 36.0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ChartSpec(), ChartSpec(phase_one=26)),
        (ChartSpec(), ChartSpec(limits=Limits.LANEY)),
        (ChartSpec(limits=Limits.LANEY), ChartSpec(limits=Limits.LANEY, sigma_z_floor=1.0)),
        (ChartSpec(limits=Limits.LANEY), ChartSpec(limits=Limits.LANEY, screen_ranges=True)),
        (ChartSpec(limits=Limits.EXACT), ChartSpec(limits=Limits.AUTO)),
        (ChartSpec(limits=Limits.EXACT), ChartSpec(limits=Limits.EXACT, alpha=0.005)),
        (ChartSpec(), ChartSpec(k=3.1)),
        (ChartSpec(), ChartSpec(baseline=Baseline.MOVING)),
        (ChartSpec(baseline=Baseline.MOVING), ChartSpec(baseline=Baseline.MOVING, k=2.9)),
        (ChartSpec(baseline=Baseline.GIVEN, centre=1.0), ChartSpec(baseline=Baseline.GIVEN, centre=1.5)),
    ],
)
def test_what_a_stage_rests_on_changes_its_fingerprint(before: ChartSpec, after: ChartSpec) -> None:
    assert basis(before) != basis(after)
    assert 0 < basis(after) < 2**32


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ChartSpec(), ChartSpec("E*", "p*", "a label", rules=(1,), minimum=9)),
        (ChartSpec(baseline=Baseline.MOVING), ChartSpec(baseline=Baseline.MOVING, phase_one=99)),
        (ChartSpec(baseline=Baseline.MOVING), ChartSpec(baseline=Baseline.MOVING, limits=Limits.EXACT)),
        (ChartSpec(), ChartSpec(start=Start.PREDICT, alpha=0.01)),
        (ChartSpec(), ChartSpec(rules=RuleSet.NELSON, counts={3: 7}, cusum=Cusum(), ewma=Ewma())),
        (ChartSpec(), ChartSpec(alarm=Alarm(mode=Mode.EVERY))),
        (
            ChartSpec(baseline=Baseline.GIVEN, centre=1.0),
            ChartSpec(baseline=Baseline.GIVEN, centre=1.0, k=2.0),
        ),
    ],
)
def test_what_a_stage_does_not_rest_on_keeps_its_fingerprint(before: ChartSpec, after: ChartSpec) -> None:
    assert basis(before) == basis(after)


def test_the_fingerprint_is_the_same_in_every_version() -> None:
    """History is read by it: another value would start a new stage of every chart at an update."""
    assert basis(ChartSpec()) == 2708866433
    assert basis(ChartSpec(baseline=Baseline.MOVING, k=3.5)) == 1533037538
    assert basis(ChartSpec(baseline=Baseline.GIVEN, centre=0.25)) == 1168066752


_REFUSED = [
    ("charts:\n  - chambr: E*", "line 2: charts[0]: field 'chambr' is unknown; did you mean 'chamber'?"),
    ("chart: []", "line 1: field 'chart' is unknown; did you mean 'charts'?"),
    ("charts: {a: 1}", "charts must be a list"),
    ("charts: [5]", "line 1: charts[0] is 5; write fields such as chamber and baseline"),
    ("[1, 2]", "the document must have the fields charts"),
    ("charts:\n - {chamber: E*\n", "line 3: neither YAML nor JSON"),
    ("default:\n  k: 0", "line 2: default: k 0.0 must be above 0"),
    ("default:\n  k: .nan", "k nan is not a finite number"),
    ("default:\n  k: wide", "line 2: default: k 'wide': Expected `float`, got `str`"),
    ("default:\n  chamber: E*", "default: chamber 'E*': the default is for every chart"),
    ("charts: [{chamber: 12}]", "chamber 12: Expected `str`, got `int`; put it in quotes"),
    ("charts: [{chamber: ''}]", "chamber is empty: write '*' for all"),
    ("charts: [{chamber: 'A B'}]", "chamber 'A B' can match nothing"),
    ("charts: [{chart: a.b}]", "chart 'a.b' can match nothing"),
    (
        "default: {baseline: forzen}",
        "baseline 'forzen' is none of frozen, moving, given; did you mean 'frozen'?",
    ),
    ("default: {rules: [1, 17]}", "rules [17] are not known: there are Nelson rules 1 to 8"),
    ("default: {baseline: given}", "baseline given needs a centre"),
    ("default: {baseline: given, centre: 0}", "centre 0.0 must be above 0"),
    (
        "default: {baseline: given, centre: 1, phase_one: 9}",
        "phase_one is only for baseline frozen, not for given",
    ),
    ("default: {centre: 1}", "centre is only for baseline given, not for frozen: leave it out"),
    ("default: {baseline: moving, rules: [2]}", "baseline moving needs rule 1"),
    ("default: {phase_one: 300}", "phase_one 300 is above WINDOW 256: lower it, or set WINDOW higher"),
    ("default: {phase_one: 8}", "minimum 10 is above phase_one 8"),
    ("default: {baseline: moving, minimum: 257}", "minimum 257 is above WINDOW 256"),
    ("charts:\n  - k: 2\n  - phase_one: 8\n", "line 3: charts[1]: minimum 10 is above phase_one 8"),
    ("default: {minimum: 0}", "minimum 0 must be at least 1"),
    ("default:\n  k: 3\n  k: 4", "line 3: 'k' is there already, in line 2"),
]


@pytest.mark.parametrize(("text", "message"), _REFUSED)
def test_what_cannot_hold_is_refused_with_its_line_value_and_remedy(text: str, message: str) -> None:
    with pytest.raises(SpecsError) as refusal:
        parse(text, window=256)
    assert message in str(refusal.value)


def test_all_problems_of_a_document_are_named_at_once() -> None:
    with pytest.raises(SpecsError) as refusal:
        parse("charts:\n  - {chamber: E*, k: -1}\n  - {kay: 2}\ndefault: {rules: [9]}\n")
    assert [problem.split(":")[0] for problem in refusal.value.problems] == ["line 2", "line 3", "line 4"]


def test_a_document_comes_back_from_the_bucket_as_it_was_stored() -> None:
    specs = parse(DOCUMENT)
    assert decode(encode(specs)) == specs
    assert parse(to_yaml(specs)) == specs


def test_a_document_for_a_larger_window_is_refused_by_a_defender_with_a_smaller_one() -> None:
    with pytest.raises(SpecsError, match="above WINDOW 16"):
        decode(encode(BUILT_IN), window=16)


def test_a_stored_document_with_unknown_fields_is_refused_and_not_half_obeyed() -> None:
    with pytest.raises(SpecsError, match="unknown field `warp`"):
        decode(b'{"default": {"warp": "laney"}}')


def test_a_document_too_large_for_a_message_is_refused() -> None:
    many = tuple(
        ChartSpec(f"CHAMBER-{n:06}", "particles", baseline=Baseline.GIVEN, centre=1.0) for n in range(20_000)
    )
    with pytest.raises(SpecsError, match="20000 entries"):
        encode(Specs(charts=many))


def test_an_adopted_chart_gets_its_centre_and_every_other_chart_keeps_its_entry() -> None:
    specs = parse(DOCUMENT)
    adopted = adopt(
        specs,
        [Frozen("ETCH-07", "particles", 1.5), Frozen("LITHO-1", "defects", 0.3), Frozen("odd[1]", "p?", 2.0)],
    )
    _, etch = adopted.match("ETCH-07", "particles")
    assert (etch.baseline, etch.centre, etch.name, etch.k) == (Baseline.GIVEN, 1.5, "etchers", 3.0)
    assert adopted.match("LITHO-1", "defects")[1].centre == 0.3
    assert adopted.match("odd[1]", "p?")[1].centre == 2.0
    _, moving = adopt(specs, [Frozen("CVD-01", "x", 1.0)]).match("CVD-01", "x")
    assert (moving.k, moving.rules, moving.baseline) == (3.5, (1, 2), Baseline.GIVEN)
    assert adopted.match("odd1", "pp")[1] == specs.default
    assert len(adopted.charts) == len(specs.charts) + 2, "the entry of LITHO-1 is replaced, not shadowed"
    for chamber, chart in [("ETCH-08", "particles"), ("CVD-01", "x"), ("ETCH-07", "scratches")]:
        assert adopted.match(chamber, chart)[1] == specs.match(chamber, chart)[1]
    assert parse(to_yaml(adopted)) == adopted


def test_adopting_twice_keeps_one_entry_a_chart() -> None:
    once = adopt(BUILT_IN, [Frozen("A", "p", 1.0)])
    assert adopt(once, [Frozen("A", "p", 2.0)]).charts == (
        ChartSpec("A", "p", baseline=Baseline.GIVEN, centre=2.0),
    )
