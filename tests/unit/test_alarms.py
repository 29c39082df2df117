"""Which samples signal, which are alarms, and what an alarm says."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from kernels.state import DETAIL, PART_P, Event
from runtime.alarms import AlarmRules, adjusted, alarm_of, charts_told, encode_alarm
from runtime.specs import Alarm, ChartSpec, Specs
from runtime.specs_methods import Mode, Severity
from runtime.wire import EVENTS, SEVERITIES, ChartAlarm, Verdict


def verdict(**fields: Any) -> Verdict:
    """Of three charts; the last one learns."""
    usual: dict[str, Any] = {
        "at": 1_700_000_000_123_456_789,
        "charts": ["a", "b", "c"],
        "counts": [30, 0, 2],
        "units": [10.0, 2.5, 1 / 3],
        "u": [3.0, 0.0, 6.0],
        "centre": [0.3, 0.3, None],
        "lcl": [0.0, 0.1, None],
        "ucl": [0.8, 0.5, None],
        "flags": [0, 0, 0],
        "phase": [2, 2, 0],
        "basis": [5, 5, 5],
        "stage": [1, 1, 3],
    }
    return Verdict("ETCH-01", 7, ordinal=20, epoch=2, spec=4, **usual | fields)


def entries(**fields: Any) -> list[ChartAlarm]:
    alarm = alarm_of(verdict(**fields))
    return [] if alarm is None else alarm.charts


def told(**fields: Any) -> list[tuple[str, str, str, int]]:
    """(chart, event, severity, since) of each chart in the alarm."""
    return [(one.chart, one.event, one.severity, one.since) for one in entries(**fields)]


def text(flags: int, **fields: Any) -> str:
    (one,) = entries(flags=[flags, 0, 0], severity=["warning", "", ""], **fields)
    return one.text


def test_a_verdict_without_signals_and_events_makes_no_alarm() -> None:
    assert encode_alarm(verdict()) is None


def test_an_alarm_has_the_charts_whose_episode_begins_goes_on_or_ends() -> None:
    events = {"event": [1, 2, 3], "episode": [20, 12, 15], "severity": ["critical", "warning", ""]}
    assert told(flags=[1, 2, 0], **events) == [
        ("a", "begin", "critical", 20),
        ("b", "again", "warning", 12),
        ("c", "end", "info", 15),
    ]
    alarm = alarm_of(verdict(flags=[1, 2, 0], **events))
    assert alarm is not None
    assert alarm.severity == "critical"
    assert told(flags=[1, 2, 0], **events | {"event": [0, 0, 0]}) == [], "an open one says nothing"


def test_a_signal_of_no_episode_is_an_alarm_where_every_signal_is_one() -> None:
    """Its severity says so; a signal without one was let pass by the false discovery rate."""
    assert told(flags=[1, 1, 0], severity=["critical", "", ""]) == [("a", "", "critical", 0)]
    assert charts_told(verdict(flags=[1, 0, 0], severity=["", "", ""], p=[0.9, 1.0, None])) == []


def test_the_end_by_a_reset_has_no_sample() -> None:
    columns = ("counts", "units", "u", "centre", "lcl", "ucl", "flags", "phase", "stage")
    empty: dict[str, Any] = {name: [] for name in columns}
    (one,) = entries(**empty, charts=["a", "b"], reset="pump changed", event=[0, 3], episode=[0, 9])
    assert (one.chart, one.units, one.phase, one.rules) == ("b", 0.0, 0, [])
    assert one.text == "b: alarm since report 9 is over: reset (pump changed)"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"quiet": [3, 0, 0]}, "quiet for 3 reports"),
        ({"quiet": [1, 0, 0]}, "quiet for 1 report"),
        ({}, "quiet"),
        ({"stage": [20, 1, 1], "quiet": [1, 0, 0]}, "a new stage began"),
    ],
)
def test_an_end_says_why(fields: dict[str, Any], why: str) -> None:
    (one,) = entries(event=[3, 0, 0], episode=[9, 0, 0], **fields)
    assert one.text == f"a: alarm since report 9 is over: {why}"


def test_an_alarm_says_what_each_rule_saw() -> None:
    assert text(1) == "a: u 3 is above UCL 0.8"
    assert text(1, phase=[1, 2, 0]) == "a: u 3 is above UCL 0.8 (trial limits)"
    assert text(1, phase=[3, 2, 0]) == "a: u 3 is above UCL 0.8 (predicted limits)"
    assert text(1, u=[0.0, 0.0, 0.0], lcl=[0.1, 0.1, None]) == "a: u 0 is below LCL 0.1"
    assert text(0b110) == (
        "a: a run of points on one side of the centre line; a run of points steadily rising or falling"
    )
    nelson = [text(1 << bit) for bit in range(1, 8)]
    assert len(set(nelson)) == 7
    assert not any("rule" in one for one in nelson)
    sums = {"cusum_up": [5.25, None, None], "cusum_limit_up": [4.5, None, None]}
    assert text(1 << 8, **sums) == "a: CUSUM 5.25 of rises has reached 4.5"
    sums = {"cusum_down": [5.25, None, None], "cusum_limit_down": [4.5, None, None]}
    assert text(1 << 9, **sums) == "a: CUSUM 5.25 of falls has reached 4.5"
    mean = {"ewma": [1.5, None, None], "ewma_lcl": [1.6, None, None], "ewma_ucl": [1.4, None, None]}
    assert text(1 << 10, **mean) == "a: EWMA 1.5 is above its limit 1.4"
    assert text(1 << 11, **mean) == "a: EWMA 1.5 is below its limit 1.6"
    assert text(1 << 13) == "a: rule 14", "of a later release"
    again = text(1, event=[2, 0, 0], episode=[12, 0, 0])
    assert again == "a: u 3 is above UCL 0.8 (alarm since report 12)"


# --- the false discovery rate --------------------------------------------------------------------


def rejected(p: list[float], q: float) -> list[bool]:
    """Benjamini and Hochberg's procedure as they wrote it: all up to the largest k with p(k) <= k q / m."""
    ordered = sorted(p)
    k = max((k for k, value in enumerate(ordered, 1) if value <= k * q / len(p)), default=0)
    return [value <= ordered[k - 1] if k else False for value in p]


def test_what_the_procedure_of_benjamini_and_hochberg_rejects_is_adjusted_to_at_most_its_rate() -> None:
    rng = random.Random(4)
    for _ in range(2000):
        p = [rng.choice([rng.random(), rng.random() ** 6, 0.01, 0.0]) for _ in range(rng.randint(1, 12))]
        q = rng.choice([0.05, 0.2, rng.random()])
        assert (adjusted(np.array(p)) <= q).tolist() == rejected(p, q), (p, q)


def test_the_example_of_benjamini_and_hochberg_rejects_four_of_fifteen() -> None:
    """Their section 3.2, at 0.05."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
    assert int((adjusted(np.array(p)) <= 0.05).sum()) == 4


def signals(
    specs: Specs, flags: list[int], spec_ids: list[int], lengths: list[int], p: list[float | None]
) -> list[int]:
    details = np.zeros(len(flags), DETAIL)
    details["p"] = [np.nan if value is None else value for value in p]
    parts = np.array([0 if value is None else PART_P for value in p], np.uint8)
    columns = np.array(flags, np.uint16), np.array(spec_ids, np.int32)
    found: list[int] = AlarmRules(specs).signals(*columns, lengths, parts, details).tolist()
    return found


WITH_RATE = Specs(charts=(ChartSpec(alarm=Alarm(fdr=0.1)),), default=ChartSpec())


def test_a_false_discovery_rate_takes_rule_1_back_where_too_many_charts_would_signal_by_chance() -> None:
    assert signals(WITH_RATE, [1, 1, 0], [0, 0, 0], [3], [0.0001, 0.09, 0.5]) == [1, 0, 0]
    assert signals(WITH_RATE, [3, 5, 2], [0, 0, 0], [3], [0.2, 0.3, 0.5]) == [2, 4, 2], "other rules stand"


def test_the_rate_is_of_the_charts_of_one_report_whose_spec_has_it() -> None:
    p = [0.04, 0.9, 0.04, 0.9]
    assert signals(WITH_RATE, [1, 0, 1, 0], [0, 0, 0, 1], [2, 2], p) == [1, 0, 1, 0]
    assert signals(WITH_RATE, [1, 0, 1, 0], [0, 0, 0, 0], [4], p) == [1, 0, 1, 0]
    assert signals(WITH_RATE, [1, 0, 1, 1], [0, 0, 0, 1], [1, 0, 3], [0.11, 0.9, 0.04, 0.9]) == [0, 0, 1, 1]


def test_a_chart_without_a_p_value_signals_by_its_flags() -> None:
    assert signals(WITH_RATE, [1], [0], [1], [None]) == [1]


def test_severity_is_the_highest_of_the_rules_as_the_spec_has_them() -> None:
    spec = ChartSpec(alarm=Alarm(severity={2: Severity.CRITICAL, 1: Severity.INFO}, mode=Mode.EVERY))
    rules = AlarmRules(Specs(charts=(spec,)))
    assert [rules.severity(0, flags) for flags in (0, 1, 2, 4, 5)] == [
        "", "info", "critical", "warning", "warning",
    ]  # fmt: skip
    assert [rules.severity(1, flags) for flags in (1, 2)] == ["critical", "warning"]
    assert rules.episodic.tolist() == [False, True]
    assert tuple(severity.value for severity in Severity) == SEVERITIES
    assert [name.upper() or "NONE" for name in EVENTS] == [event.name for event in Event]
