"""What a specs document means for the charts that there are, in lines for people."""

from __future__ import annotations

from runtime import specs
from runtime.cli.specs import ENTRIES_SHOWN, ChartSeen, described, frozen_centres, trial
from runtime.specs import Alarm, Baseline, ChartSpec, Cusum, Ewma, Limits, RuleSet, Specs, Start
from runtime.specs_adopt import Frozen, adopt
from runtime.specs_methods import Mode

FROZEN = specs.basis(ChartSpec())
SEEN = [ChartSeen(f"C{n}", "p", 2, 0.5 + n, FROZEN) for n in range(40)]


def test_a_document_with_many_entries_is_shown_in_few_lines_that_count_every_chart() -> None:
    adopted = adopt(Specs(), frozen_centres(Specs(), SEEN[:35]))
    lines = trial(adopted, SEEN)
    assert len(lines) == ENTRIES_SHOWN + 3
    assert lines[-3].strip() == "15 charts  in 15 more entries"
    assert lines[-2].strip().startswith("5 charts  default: frozen after 25")
    assert lines[-1].strip() == "35 of 40 charts seen would start a new stage"


def test_each_baseline_is_described_with_what_belongs_to_it() -> None:
    assert described(ChartSpec()) == (
        "frozen after 25 usable subgroups, trial limits from 10; 3 sigma; rules 1, 2, 3, 4"
    )
    moving = ChartSpec(baseline=Baseline.MOVING, k=2.5, rules=(1,))
    assert described(moving) == "moving, limits from 10 usable subgroups; 2.5 sigma; rules 1"
    given = ChartSpec(baseline=Baseline.GIVEN, centre=0.25, rules=())
    assert described(given) == "given centre 0.25; 3 sigma; rules none"


def test_limits_counts_and_small_shifts_are_described_where_they_are_not_the_usual_ones() -> None:
    spec = ChartSpec(limits=Limits.EXACT, start=Start.PREDICT, rules=RuleSet.NELSON, counts={3: 7, 2: 8})
    assert described(spec) == (
        "frozen after 25 usable subgroups, trial limits from 10; prediction limits until then; "
        "exact, alpha 0.0013499; rules nelson with counts 2: 8, 3: 7"
    )
    shifts = ChartSpec(limits=Limits.LANEY, cusum=Cusum(), ewma=Ewma(), alarm=Alarm(mode=Mode.EVERY, fdr=0.1))
    assert described(shifts).split("; ")[1:] == [
        "laney, 3 sigma",
        "rules 1, 2, 3, 4",
        "CUSUM for a ratio of 1.5, ARL0 370",
        "EWMA with weight 0.2, ARL0 370",
        "an alarm for each signal",
        "alarms at a false discovery rate of 0.1",
    ]
    auto = ChartSpec(limits=Limits.AUTO)
    assert "exact, alpha 0.0013499, below an expected count of 10, else 3 sigma" in described(auto)


def test_only_frozen_charts_in_phase_two_of_the_present_stage_have_a_centre_to_adopt() -> None:
    seen = [
        ChartSeen("A", "p", 2, 0.5, FROZEN),
        ChartSeen("A", "trial", 1, 0.5, FROZEN),
        ChartSeen("A", "learning", 0, None, FROZEN),
        ChartSeen("A", "zero", 2, 0.0, FROZEN),
        ChartSeen("A", "other-stage", 2, 0.5, FROZEN + 4),
        ChartSeen("M", "p", 2, 0.5, specs.basis(ChartSpec(baseline=Baseline.MOVING))),
    ]
    document = Specs(charts=(ChartSpec("M", baseline=Baseline.MOVING),))
    assert frozen_centres(document, seen) == [Frozen("A", "p", 0.5)]


def test_a_chart_with_laney_limits_is_adopted_with_its_sigma_z_and_not_at_all_without() -> None:
    spec = ChartSpec(limits=Limits.LANEY)
    basis = specs.basis(spec)
    seen = [
        ChartSeen("A", "p", 2, 0.5, basis, 1.25),
        ChartSeen("A", "unsaid", 2, 0.5, basis),
        ChartSeen("A", "constant", 2, 0.5, basis, 0.0),
    ]
    assert frozen_centres(Specs(default=spec), seen) == [Frozen("A", "p", 0.5, 1.25)]
