"""What a specs document means for the charts that there are, in lines for people."""

from __future__ import annotations

from runtime import specs
from runtime.cli.specs import ENTRIES_SHOWN, ChartSeen, described, frozen_centres, trial
from runtime.specs import Baseline, ChartSpec, Specs

FROZEN = specs.basis(ChartSpec())
SEEN = [ChartSeen(f"C{n}", "p", 2, 0.5 + n, FROZEN) for n in range(40)]


def test_a_document_with_many_entries_is_shown_in_few_lines_that_count_every_chart() -> None:
    adopted = specs.adopt(Specs(), frozen_centres(Specs(), SEEN[:35]))
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
    assert frozen_centres(document, seen) == [("A", "p", 0.5)]
