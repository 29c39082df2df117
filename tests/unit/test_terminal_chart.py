"""A control chart as lines of text."""

from __future__ import annotations

import drawn
import pytest

from runtime.control_chart import Axis, ControlChart, control_chart
from runtime.terminal_chart import Canvas, Line, room, round_numbers, terminal_chart


@pytest.fixture(scope="module")
def scenes() -> dict[str, ControlChart]:
    return {
        name: control_chart(made().verdicts, drawn.CHAMBER, drawn.CHART)
        for name, made in drawn.SCENES.items()
    }


def texts(lines: list[Line]) -> list[str]:
    return ["".join(run.text for run in line).rstrip() for line in lines]


@pytest.mark.parametrize("width", [40, 80, 133])
@pytest.mark.parametrize("axis", Axis)
def test_no_line_is_wider_than_it_may_be(scenes: dict[str, ControlChart], width: int, axis: Axis) -> None:
    for name, chart in scenes.items():
        lines = texts(terminal_chart(chart, ["t" * 200, "small print " * 20], axis, width, 12))
        assert max(map(len, lines)) <= width, name
        assert sum("│" in line[:8] or "┤" in line[:8] for line in lines) >= 12


def test_one_sample_of_a_chart_that_learns_can_be_drawn(scenes: dict[str, ControlChart]) -> None:
    one = control_chart(drawn.two_phases().verdicts[:1], drawn.CHAMBER, drawn.CHART)
    for axis in Axis:
        lines = texts(terminal_chart(one, ["t"], axis, 80, 12))
        assert sum("•" in line for line in lines) == 2, "the sample, and the legend"


def test_each_signal_has_its_sign_and_its_report_is_named(scenes: dict[str, ControlChart]) -> None:
    lines = texts(terminal_chart(scenes["two_phases"], ["t"], Axis.REPORT, 140, 18))
    (legend,) = [line for line in lines if "• sample" in line]
    panel = "".join(line for line in lines if line[:7].strip(" │┤") != line[:7] and line is not legend)
    assert panel.count("■") == 8, "nine signals of rule 1, of which one was left out of the baseline"
    assert panel.count("×") >= 2
    assert panel.count("◆") == 2
    assert "rule 1: reports 22, 32, 67, 73–78" in lines
    assert "reset: wet clean, new liner (WO 48213)" in "".join(lines)


def test_a_point_above_the_chart_is_at_its_edge(scenes: dict[str, ControlChart]) -> None:
    lines = texts(terminal_chart(scenes["full_history"], ["t"], Axis.REPORT, 140, 18))
    (first,) = [line for line in lines if line.startswith("u ")]
    assert "▲" in first


def test_cusum_and_ewma_have_panels_only_where_the_chart_has_them(scenes: dict[str, ControlChart]) -> None:
    for name, has in (("varying_units", True), ("clustered", False)):
        lines = texts(terminal_chart(scenes[name], ["t"], Axis.REPORT, 100, 12))
        assert any(line.startswith("CUSUM") for line in lines) is has
        assert any(line.startswith("EWMA") for line in lines) is has


def test_limits_are_level_with_the_points_at_their_value() -> None:
    """A limit of 10 on the top row of an axis, a point of 10 on the same row."""
    chamber = drawn.Chamber(drawn.ChartSpec(baseline=drawn.Baseline.GIVEN, centre=5.0))
    for count in (5, 11, 5):
        chamber.count(count, 1.0)
    chart = control_chart(chamber.verdicts, drawn.CHAMBER, drawn.CHART)
    lines = texts(terminal_chart(chart, ["t"], Axis.REPORT, 80, 18))
    (limit,) = [n for n, line in enumerate(lines) if "UCL 11.7" in line]
    (point,) = [n for n, line in enumerate(lines) if "•" in line and n < limit + 4]
    assert limit < point <= limit + 2, "11 is just below 11.7"


def test_a_report_has_a_column_of_its_own_as_far_as_there_is_room() -> None:
    assert room(80) == 59
    assert room(10) == room(40)


def test_signs_are_not_covered_by_dots_and_what_does_not_fit_is_not_drawn() -> None:
    canvas = Canvas(3, 1)
    canvas.dot(0, 0, "")
    canvas.dot(1, 3, "")
    canvas.sign(1, 0, "x", "red")
    canvas.dot(2, 1, "blue")
    canvas.dot(99, 0, "")
    canvas.sign(2, 0, "yz", "")
    assert "".join(run.text for run in canvas.line(0)) == "\u2881xy"
    assert canvas.is_free(0, 0, 1)
    assert not canvas.is_free(0, 0, 2)
    assert not canvas.is_free(2, 0, 2)


@pytest.mark.parametrize(
    ("low", "high", "most", "numbers"),
    [(0, 1, 5, [0, 0.5, 1]), (0, 256, 6, [0, 50, 100, 150, 200, 250]), (-7, 7, 4, [-5, 0, 5])],
)
def test_ticks_are_round_numbers(low: float, high: float, most: int, numbers: list[float]) -> None:
    assert round_numbers(low, high, most) == pytest.approx(numbers)
