"""What a drawing of a control chart is made of: points, steps, breaks, alarms, labels."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from runtime.control_chart import (
    U_RULES,
    Axis,
    Break,
    ControlChart,
    Episode,
    Label,
    Point,
    Segment,
    control_chart,
    edges,
    facts,
    labels,
    remark,
    runs,
    signals,
    u_range,
)
from runtime.wire import Verdict

DAY_NS = 86_400_000_000_000


def point(ordinal: int, **fields: Any) -> Point:
    usual: dict[str, Any] = {
        "ordinal": ordinal,
        "seq": ordinal,
        "at": ordinal * DAY_NS,
        "run": "",
        "spec": 1,
        "count": 2,
        "units": 1.0,
        "u": 2.0,
        "centre": 1.5,
        "lcl": 0.0,
        "ucl": 4.0,
        "flags": 0,
        "phase": 2,
        "basis": 7,
        "stage": 1,
    }
    return Point(**(usual | fields))


def chart_of(*points: Point, breaks: tuple[Break, ...] = ()) -> ControlChart:
    return ControlChart("C", "p", list(points), list(breaks))


def verdict(ordinal: int, **fields: Any) -> Verdict:
    usual: dict[str, Any] = {
        "charts": ["q", "p"],
        "counts": [0, ordinal],
        "units": [1.0, 2.0],
        "u": [0.0, ordinal / 2],
        "centre": [None, 1.0],
        "lcl": [None, 0.0],
        "ucl": [None, 3.0],
        "flags": [0, 0],
        "phase": [0, 2],
        "basis": [7, 7],
        "stage": [1, 1],
    }
    return Verdict("C", ordinal, ordinal, 1, 1, at=ordinal * DAY_NS, **(usual | fields))


def reset(ordinal: int, reason: str, *charts: str) -> Verdict:
    return Verdict("C", ordinal, ordinal, 1, 1, at=ordinal * DAY_NS, reset=reason, charts=list(charts))


def test_the_points_of_one_chart_come_in_the_order_of_the_reports_each_once() -> None:
    other = replace(verdict(5), charts=["q", "r"])
    found = control_chart([verdict(3), verdict(2), other, verdict(3)], "C", "p")
    assert [(one.ordinal, one.count, one.u, one.ucl) for one in found.points] == [
        (2, 2, 1, 3),
        (3, 3, 1.5, 3),
    ]
    assert control_chart([verdict(2)], "C", "q").points[0].centre is None


def test_fields_that_only_some_verdicts_have_are_empty_in_the_others() -> None:
    later = replace(verdict(2), sigma_z=[None, 1.5], mark=[0, 1], ewma=[None, 0.5], episode=[0, 2])
    plain, full = control_chart([verdict(1), later], "C", "p").points
    assert (plain.sigma_z, plain.mark, plain.ewma, plain.episode) == (None, 0, None, 0)
    assert (full.sigma_z, full.mark, full.ewma, full.episode) == (1.5, 1, 0.5, 2)


def test_samples_left_out_of_the_baseline_are_marked_by_the_verdict_that_ends_phase_one() -> None:
    rows = [verdict(n) for n in range(1, 5)]
    rows.append(replace(verdict(5), excluded={"p": [2, 4], "q": [3]}))
    left_out = [one.ordinal for one in control_chart(rows, "C", "p").points if one.left_out]
    assert left_out == [2, 4]
    assert [one.ordinal for one in control_chart(rows, "C", "p", last=3).points] == [3, 4, 5]


def test_a_stage_breaks_at_its_reset_with_the_reason() -> None:
    rows = [verdict(1), reset(2, "clean"), reset(3, "other", "q"), replace(verdict(4), stage=[1, 4])]
    assert control_chart(rows, "C", "p").breaks == [Break(2, 2 * DAY_NS, "reset: clean")]
    assert control_chart(rows[:1] + rows[2:3], "C", "p").breaks == [], "a reset of another chart"
    assert control_chart(rows[:2], "C", "p").breaks[0].text == "reset: clean", "no sample came after it yet"
    assert control_chart(rows, "C", "p", last=1).breaks == [], "before what is shown"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"stage": [1, 9], "basis": [7, 8]}, "new specs, revision 1"),
        ({"stage": [1, 9]}, "absent for 7 reports"),
    ],
)
def test_a_stage_without_a_reset_breaks_half_way_with_its_reason(fields: dict[str, Any], text: str) -> None:
    found = control_chart([verdict(1), replace(verdict(9), **fields)], "C", "p").breaks
    assert found == [Break(5.0, 5 * DAY_NS, text)]


def test_steps_meet_half_way_between_samples_and_are_as_wide_as_usual_at_the_ends() -> None:
    assert edges([1.0, 2.0, 3.0, 7.0]) == [0.5, 1.5, 2.5, 5.0, 7.5]
    assert edges([4.0]) == [3.5, 4.5]
    assert edges([4.0, 4.0]) == [3.5, 4.0, 4.5], "samples of one time have some width"
    assert edges([]) == []


def test_a_segment_is_of_one_stage_and_one_phase() -> None:
    points = [
        point(1, phase=0),
        point(2, phase=1),
        point(3, phase=1),
        point(4),
        point(5, stage=5),
    ]
    assert chart_of(*points).segments(Axis.REPORT) == [
        Segment(0, 0, 0, [0.5, 1.5]),
        Segment(1, 2, 1, [1.5, 2.5, 3.5]),
        Segment(3, 3, 2, [3.5, 4.5]),
        Segment(4, 4, 2, [4.5, 5.5]),
    ]


def test_in_time_a_sample_is_never_before_the_one_judged_before_it() -> None:
    assert chart_of(point(1, at=5 * DAY_NS), point(2), point(7)).places(Axis.TIME) == [5.0, 5.0, 7.0]


def test_an_alarm_spans_the_samples_of_its_episode_and_is_as_severe_as_the_worst_of_them() -> None:
    points = [
        point(1),
        point(2, episode=2, event=1, severity="warning"),
        point(3, episode=2, severity="critical"),
        point(4, episode=2, event=3),
        point(5, episode=5, event=1, severity="info"),
    ]
    assert chart_of(*points).episodes() == [Episode(1, 3, "critical", True), Episode(4, 4, "info", False)]
    ended = chart_of(*points, breaks=(Break(6, 0, "reset: clean"),)).episodes()
    assert ended[1].ended, "a reset ends it"


def test_a_run_of_points_with_the_same_rules_on_one_side_has_one_label() -> None:
    flags = [0, 1, 2, 2, 2, 3, 0b100000010]
    points = [point(n, flags=bits) for n, bits in enumerate(flags)]
    points.append(replace(points[1], u=1.0))
    assert labels(points, U_RULES) == [
        Label(1, "1", True),
        Label(2, "2 ×3", True),
        Label(5, "1,2", True),
        Label(6, "2", True),
        Label(7, "1", False),
    ]
    assert labels(points, range(9, 10)) == [Label(6, "9", True)]


def test_few_points_far_away_do_not_squeeze_the_others() -> None:
    usual = [point(n) for n in range(30)]
    low, high = u_range([*usual, point(30, u=400.0)])
    assert low == 0.0
    assert 4.0 < high < 10.0
    assert u_range([*usual, point(30, u=5.0)])[1] > 5.0


def test_values_far_from_zero_have_an_axis_without_zero_and_any_chart_has_one() -> None:
    low, high = u_range([point(1, u=1000.0, lcl=990.0, ucl=1010.0)])
    assert 900 < low < 990
    assert 1010 < high < 1100
    assert u_range([]) == (0.0, 1.0)
    assert u_range([point(1, u=2.0, lcl=0.5, ucl=4.0)])[0] == 0.0, "not far from zero"
    assert u_range([point(1, u=0.3, lcl=None, ucl=None)])[0] == 0.0, "a single sample"
    low, high = u_range([point(1, u=0.0, lcl=0.0, ucl=0.0)])
    assert low < high


def test_signals_are_told_by_rule_with_runs_of_reports_in_short() -> None:
    assert runs([1, 3, 4, 5, 9]) == "1, 3–5, 9"
    assert signals(chart_of(point(1, flags=1), point(2, flags=3), point(4, flags=1))) == {1: "1–2, 4", 2: "2"}


def test_the_baseline_is_named_with_what_was_left_out_of_it() -> None:
    phase_one = [point(n, phase=1, left_out=n == 2) for n in range(1, 5)]
    assert "baseline: reports 1–4 without 2" in facts(chart_of(*phase_one, point(5)))
    assert "baseline" not in " ".join(facts(chart_of(*phase_one[1:], point(5)))), "its beginning is not shown"
    assert "no centre line yet" in facts(chart_of(point(1, centre=None)))
    assert facts(chart_of(point(1, spec=0)))[0] == "built-in specs"


def test_a_mark_is_told_in_words_and_an_unknown_one_as_it_is() -> None:
    assert remark(chart_of(point(1, mark=1))).startswith("overdispersed")
    assert remark(chart_of(point(1, mark=9))) == "mark 9"
    assert remark(chart_of(point(1))) == ""


def test_columns_that_no_point_has_anything_in_are_left_out() -> None:
    columns = chart_of(point(1, p=0.5), point(2, flags=5)).columns()
    assert columns["p"] == [0.5, None]
    assert columns["rules"] == [[], [1, 3]]
    assert columns["counts"] == [2, 2]
    assert not {"ewma", "left_out", "episode"} & set(columns)
