"""Published data sets, published as reports through a running defender: the published limits and flags.

Each set is a chamber. Its samples are published twice over, each report with one chart a way of judging:
`given` the published centre line, `frozen` after one pass, `wide` (frozen, with limits so far out that phase
I excludes nothing).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from fleet import settings_for

from bench.lab.pods import Pod, brisk
from runtime.config import Settings
from runtime.embedded import NatsServer
from runtime.specs import Baseline, ChartSpec, Specs
from runtime.wire import Verdict, decode_verdict
from tests.load import Fleet, fleet

FOLDER = Path(__file__).parent.parent / "reference"
SETS: dict[str, dict[str, Any]] = {
    path.stem: content
    for path in sorted(FOLDER.glob("*.json"))
    if "nelson_standardised" in (content := json.loads(path.read_text()))
}
WHOLE = [name for name, published in SETS.items() if published["baseline"] is None and not published["u0"]]
"""Sets whose centre line is that of all their samples."""
CLEAN = [name for name in WHOLE if not SETS[name]["beyond_limits"]]
NEAR = [name for name in WHOLE if max(map(abs, SETS[name]["z"])) < 10]
"""Of these, the ones without a sample beyond 10 sigma, which phase I would exclude."""
MONTGOMERY = "montgomery_circuit_phase2"
RULES = (1, 2, 3, 4)
REACH = 14
"""Rule 4 looks at so many points: from there on in the second pass no run reaches back into the first."""


def specs() -> Specs:
    charts = [
        ChartSpec(chamber=MONTGOMERY, chart="frozen", phase_one=26, minimum=2),
        *(
            ChartSpec(chamber=name, chart="given", baseline=Baseline.GIVEN, centre=float(published["ubar"]))
            for name, published in SETS.items()
        ),
    ]
    for name, published in SETS.items():
        size = len(published["counts"])
        charts.append(ChartSpec(chamber=name, chart="frozen", phase_one=size, minimum=1))
        charts.append(ChartSpec(chamber=name, chart="wide", phase_one=size, minimum=1, k=10.0))
    return Specs(charts=tuple(charts))


async def publish_twice(outside: Fleet) -> None:
    """Each chamber's reports in order; the chambers' mixed."""
    replies = []
    for turn in range(2):
        for index in range(max(len(published["counts"]) for published in SETS.values())):
            for name, published in SETS.items():
                if index < len(published["counts"]):
                    count, units = published["counts"][index], published["sizes"][index]
                    report = {
                        "run": f"{turn}-{index}",
                        "charts": ["given", "frozen", "wide"],
                        "counts": [count] * 3,
                        "units": [units] * 3,
                    }
                    subject = outside.settings.names.sample(name)
                    replies.append(outside.connection.ask(subject, json.dumps(report).encode()))
    await asyncio.gather(*replies)


async def judged(settings: Settings) -> dict[str, list[Verdict]]:
    """Every verdict by chamber, in order."""
    async with fleet(settings, specs()) as outside:
        with Pod(settings) as pod:
            await publish_twice(outside)
            await pod.wait_serving()
            streams = await outside.audit()
    verdicts: dict[str, list[Verdict]] = {}
    for message in streams.verdicts:
        verdict = decode_verdict(message.payload)
        verdicts.setdefault(verdict.chamber, []).append(verdict)
    return verdicts


@pytest.fixture(scope="module")
def verdicts(nats_server: NatsServer) -> Iterator[dict[str, list[Verdict]]]:
    """The verdicts of one run, of all sets."""
    settings = settings_for(nats_server, **brisk(window=512))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner.run(judged(settings))


class Column:
    """One chart of a chamber's verdicts: lists over the reports."""

    def __init__(self, verdicts: list[Verdict], chart: str) -> None:
        at = [(verdict, verdict.charts.index(chart)) for verdict in verdicts]
        self.centre = [verdict.centre[i] for verdict, i in at]
        self.lcl = [verdict.lcl[i] for verdict, i in at]
        self.ucl = [verdict.ucl[i] for verdict, i in at]
        self.phase = [verdict.phase[i] for verdict, i in at]
        self._flags = [verdict.flags[i] for verdict, i in at]

    def flagged(self, rule: int, first: int, last: int, offset: int = 0) -> list[int]:
        """Indices in [first, last) that a rule flags, less *offset*."""
        return [i - offset for i in range(first, last) if self._flags[i] >> (rule - 1) & 1]


def close(expected: Any) -> Any:
    return pytest.approx(expected, abs=1e-12, rel=1e-12)


def test_all_data_sets_are_here() -> None:
    """Fourteen sets; for three kinds of baseline there are some each."""
    assert len(SETS) == 14
    assert len(WHOLE) > len(NEAR) > len(CLEAN) > 3


@pytest.mark.parametrize("name", SETS)
def test_given_the_published_centre_the_limits_and_flags_are_the_published_ones(
    verdicts: dict[str, list[Verdict]], name: str
) -> None:
    """First pass: limits to 1e-12, rules 1-4 exactly."""
    published, size = SETS[name], len(SETS[name]["counts"])
    column = Column(verdicts[name], "given")
    assert column.centre[:size] == close([published["ubar"]] * size)
    assert column.lcl[:size] == close(published["lcl"])
    assert column.ucl[:size] == close(published["ucl"])
    assert column.flagged(1, 0, size) == published["beyond_limits"]
    for rule in RULES:
        assert column.flagged(rule, 0, size) == published["nelson_standardised"][str(rule)], f"rule {rule}"


@pytest.mark.parametrize("name", CLEAN)
def test_frozen_after_one_pass_the_second_has_the_published_limits_and_flags(
    verdicts: dict[str, list[Verdict]], name: str
) -> None:
    """Second pass: limits to 1e-12, rule 1 everywhere, runs from where none reaches back."""
    published, size = SETS[name], len(SETS[name]["counts"])
    column = Column(verdicts[name], "frozen")
    assert column.phase[size:] == [2] * size
    assert column.centre[size:] == close([published["ubar"]] * size)
    assert column.lcl[size:] == close(published["lcl"])
    assert column.ucl[size:] == close(published["ucl"])
    for rule in RULES:
        reach = 0 if rule == 1 else REACH
        expected = [i for i in published["nelson_standardised"][str(rule)] if i >= reach]
        assert column.flagged(rule, size + reach, 2 * size, size) == expected, f"rule {rule}"


@pytest.mark.parametrize("name", NEAR)
def test_frozen_with_nothing_excluded_the_centre_is_the_published_one(
    verdicts: dict[str, list[Verdict]], name: str
) -> None:
    """Phase I over the whole set, with k = 10."""
    published, size = SETS[name], len(SETS[name]["counts"])
    assert Column(verdicts[name], "wide").centre[size:] == close([published["ubar"]] * size)


def test_phase_one_of_montgomerys_circuit_boards_excludes_what_the_book_excludes(
    verdicts: dict[str, list[Verdict]],
) -> None:
    """After 26 samples the centre is 0.196666…: limits and flags of phase II are the published ones."""
    published, size = SETS[MONTGOMERY], len(SETS[MONTGOMERY]["counts"])
    column = Column(verdicts[MONTGOMERY], "frozen")
    assert column.phase[25:27] == [1, 2]
    assert column.centre[26] == close(0.19666666666666666)
    assert column.centre[26:size] == close([published["ubar"]] * (size - 26))
    assert column.lcl[26:size] == close(published["lcl"][26:])
    assert column.ucl[26:size] == close(published["ucl"][26:])
    for rule in RULES:
        expected = [i for i in published["nelson_standardised"][str(rule)] if i >= 26]
        assert column.flagged(rule, 26, size) == expected, f"rule {rule}"
