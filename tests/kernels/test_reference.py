"""Published data sets: the limits to 1e-12, the flags of rules 1 to 4 exactly (see tests/reference)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.arena import Arena, Event
from tests.kernels.oracle import Spec, Verdict
from tests.kernels.streams import with_basis

FOLDER = Path(__file__).parent.parent / "reference"
SETS = {
    path.stem: content
    for path in sorted(FOLDER.glob("*.json"))
    if "nelson_standardised" in (content := json.loads(path.read_text()))
}
TOLERANCE = 1e-12


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
    assert [v.centre for v in judged[first:]] == pytest.approx(
        [published["ubar"]] * (len(judged) - first), abs=TOLERANCE, rel=TOLERANCE
    )
    assert [v.ucl for v in judged[first:]] == pytest.approx(
        published["ucl"][first:], abs=TOLERANCE, rel=TOLERANCE
    )
    assert [v.lcl for v in judged[first:]] == pytest.approx(
        published["lcl"][first:], abs=TOLERANCE, rel=TOLERANCE
    )


def test_all_data_sets_are_here() -> None:
    """Fourteen data sets have the results that the tests below compare."""
    assert len(SETS) == 14


@pytest.mark.parametrize("name", SETS)
def test_given_the_published_centre_limits_and_flags_are_the_published_ones(name: str) -> None:
    """Limits, rule 1 and the standardised Nelson rules 2 to 4."""
    published = SETS[name]
    judged = verdicts(Spec("given", centre=published["ubar"]), rows_of(published))
    assert_limits(judged, published)
    assert flagged(judged, 1) == published["beyond_limits"]
    for rule in (1, 2, 3, 4):
        assert flagged(judged, rule) == published["nelson_standardised"][str(rule)], f"rule {rule}"


@pytest.mark.parametrize(
    "name", [name for name in SETS if SETS[name]["baseline"] is None and not SETS[name]["u0"]]
)
def test_a_phase_one_over_all_samples_finds_the_published_centre(name: str) -> None:
    """With nothing excluded (k of a thousand) the frozen centre is the published one."""
    published = SETS[name]
    rows = rows_of(published)
    judged = verdicts(Spec("frozen", k=1000.0, phase_one=len(rows), minimum=1), [*rows, rows[0]])
    assert judged[-1].phase == 2
    assert judged[-1].centre == pytest.approx(published["ubar"], abs=TOLERANCE, rel=TOLERANCE)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in SETS
        if SETS[name]["baseline"] is None and not SETS[name]["beyond_limits"] and not SETS[name]["u0"]
    ],
)
def test_a_second_pass_after_freezing_gives_the_published_limits_and_flags(name: str) -> None:
    """Phase I over the set, then the set again: from where no run reaches back, all flags agree."""
    published = SETS[name]
    rows = rows_of(published)
    judged = verdicts(Spec("frozen", phase_one=len(rows), minimum=1), [*rows, *rows])[len(rows) :]
    assert_limits(judged, published)
    for rule in (1, 2, 3, 4):
        expected = published["nelson_standardised"][str(rule)]
        reach = 0 if rule == 1 else 13
        assert [i for i in flagged(judged, rule) if i >= reach] == [i for i in expected if i >= reach]


def test_phase_one_of_montgomerys_circuit_boards_leaves_out_the_published_samples() -> None:
    """26 samples, of which the freeze excludes the 6th and the 20th; limits and flags of phase II follow."""
    published = SETS["montgomery_circuit_phase2"]
    rows = rows_of(published)
    arena = Arena(1, 60, 60)
    spec = with_basis(Spec("frozen", phase_one=26, minimum=2))
    judged = arena.judge([Event(0, t, spec, c, n) for t, (c, n) in enumerate(rows)])
    assert [i for i in range(26) if not arena.window[0, i]["usable"]] == published["excluded"] == [5, 19]
    assert [v.phase for v in judged[25:27]] == [1, 2]
    assert_limits(judged, published, first=26)
    for rule in (1, 2, 3, 4):
        expected = published["nelson_standardised"][str(rule)]
        assert [i for i in flagged(judged, rule) if i >= 26] == [i for i in expected if i >= 26]
