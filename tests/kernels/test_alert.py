"""Alarm episodes: one message a signal that lasts, again after a while, one at the end."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings

from tests.kernels.arena import Arena, Event, NaiveArena, agree
from tests.kernels.oracle import AGAIN, BEGIN, END, NO_EVENT, Detail, Spec
from tests.kernels.streams import EXAMPLES, SECOND_NS, arenas, random_events, reports, with_basis

QUIET, SIGNAL = 4.0, 40.0
SPEC = with_basis(Spec("given", centre=4.0, rules=frozenset({1})))


@settings(max_examples=EXAMPLES, deadline=None)
@given(arenas())
def test_alarms_are_the_naive_charts_whatever_comes(arena: tuple[random.Random, int, int]) -> None:
    """Report by report, with resets, absences and changes of the spec: bit by bit the same."""
    rng, window, depth = arena
    events = random_events(rng, slots=4, window=window, depth=depth, length=300)
    kernel, naive = Arena(4, window, depth, garbage=rng.randint(0, 255)), NaiveArena(4, window, depth)
    at = rng.choice([0, 1_700_000_000 * SECOND_NS])
    for report in reports(events):
        at += rng.choice([1, SECOND_NS, 3 * SECOND_NS])
        rows = zip(report, kernel.report(report, at), naive.report(report, at), strict=True)
        for event, ours, theirs in rows:
            assert agree(event, ours, theirs), (event, ours, theirs)


@settings(max_examples=EXAMPLES, deadline=None)
@given(arenas())
def test_what_is_a_signal_is_the_callers_to_say(arena: tuple[random.Random, int, int]) -> None:
    """Signals that are no flags, as where a report's p-values are weighed together."""
    rng, window, depth = arena
    events = random_events(rng, slots=4, window=window, depth=depth, length=200)
    kernel, naive = Arena(4, window, depth), NaiveArena(4, window, depth)
    for report in reports(events):
        signals = [event.spec is not None and rng.random() < 0.4 for event in report]
        at = report[0].ordinal * SECOND_NS
        kernel.judge(report)
        naive.judge(report)
        alerted = kernel.alert(signals, at)
        for event, signal, ours in zip(report, signals, alerted, strict=True):
            theirs = naive.charts[event.slot].alert(event.spec, signal, event.ordinal, at)
            assert episode(ours.detail) == episode(theirs), event


def episode(detail: Detail) -> tuple[object, ...]:
    """What a detail says of the alarm."""
    return detail.event, detail.quiet, detail.episode, detail.alerted, detail.alerted_at


def alarms(
    spec: Spec, counts: list[float | None], *, first: int = 10, step: int = 1, every_ns: int = SECOND_NS
) -> list[Detail]:
    """Details of one chart's samples, ``step`` reports apart; None is a reset."""
    kernel = Arena(1, 32, 64)
    found = []
    for i, count in enumerate(counts):
        event = Event(0, first + i * step) if count is None else Event(0, first + i * step, spec, count)
        found += [verdict.detail for verdict in kernel.report([event], i * every_ns)]
    return found


def events_of(spec: Spec, counts: list[float | None], **settings: int) -> list[int]:
    """Events of one chart's samples."""
    return [detail.event for detail in alarms(spec, counts, **settings)]


def test_a_quiet_chart_has_no_alarm() -> None:
    """Without a signal a verdict says nothing of alarms."""
    assert [episode(d) for d in alarms(SPEC, [QUIET] * 3)] == [(NO_EVENT, None, None, None, None)] * 3


def test_an_alarm_begins_with_the_signal_and_is_said_once() -> None:
    """Signals that follow belong to the same episode, whose ordinal and time each verdict repeats."""
    found = alarms(SPEC, [QUIET, SIGNAL, SIGNAL, SIGNAL])
    assert [d.event for d in found] == [NO_EVENT, BEGIN, NO_EVENT, NO_EVENT]
    assert {episode(d)[1:] for d in found[1:]} == {(0, 11, 11, SECOND_NS)}


def test_an_alarm_is_said_again_after_so_many_reports() -> None:
    """Reports are counted from the newest message, by ordinals, so one without the chart counts too."""
    spec = replace(SPEC, again_reports=2)
    assert events_of(spec, [SIGNAL] * 6) == [BEGIN, NO_EVENT, AGAIN, NO_EVENT, AGAIN, NO_EVENT]
    assert events_of(spec, [SIGNAL] * 3, step=2) == [BEGIN, AGAIN, AGAIN]
    found = alarms(spec, [SIGNAL] * 3)[2]
    assert episode(found) == (AGAIN, 0, 10, 12, 2 * SECOND_NS)


def test_an_alarm_is_said_again_after_so_long() -> None:
    """At the time itself, not only after it."""
    spec = replace(SPEC, again_ns=3 * SECOND_NS)
    assert events_of(spec, [SIGNAL] * 5) == [BEGIN, NO_EVENT, NO_EVENT, AGAIN, NO_EVENT]
    assert events_of(spec, [SIGNAL] * 3, every_ns=3 * SECOND_NS - 1) == [BEGIN, NO_EVENT, AGAIN]


def test_an_alarm_is_said_again_by_what_comes_first() -> None:
    """By count and by time at once, each from the newest message."""
    spec = replace(SPEC, again_reports=3, again_ns=2 * SECOND_NS)
    assert events_of(spec, [SIGNAL] * 5) == [BEGIN, NO_EVENT, AGAIN, NO_EVENT, AGAIN]
    assert events_of(spec, [SIGNAL] * 5, every_ns=1) == [BEGIN, NO_EVENT, NO_EVENT, AGAIN, NO_EVENT]


def test_a_quiet_sample_says_nothing_again() -> None:
    """Again is for a signal; the one after the pause says it."""
    spec = replace(SPEC, again_reports=2, end_after=9)
    counts: list[float | None] = [SIGNAL, QUIET, QUIET, QUIET, SIGNAL]
    found = alarms(spec, counts)
    assert [d.event for d in found] == [BEGIN, NO_EVENT, NO_EVENT, NO_EVENT, AGAIN]
    assert [d.quiet for d in found] == [0, 1, 2, 3, 0]


def test_an_alarm_ends_after_so_many_quiet_samples() -> None:
    """The sample that ends it still shows the episode; the next shows none, and the next signal begins."""
    spec = replace(SPEC, end_after=2)
    counts: list[float | None] = [SIGNAL, QUIET, SIGNAL, QUIET, QUIET, QUIET, SIGNAL]
    found = alarms(spec, counts)
    assert [d.event for d in found] == [BEGIN, NO_EVENT, NO_EVENT, NO_EVENT, END, NO_EVENT, BEGIN]
    assert [d.episode for d in found] == [10, 10, 10, 10, 10, None, 16]


def test_a_reset_ends_the_alarm() -> None:
    """The reset's own row says so; a signal after it begins a new episode."""
    counts: list[float | None] = [SIGNAL, None, SIGNAL, None, None, QUIET]
    found = alarms(replace(SPEC, end_after=5), counts)
    assert [d.event for d in found] == [BEGIN, END, BEGIN, END, NO_EVENT, NO_EVENT]
    assert [d.episode for d in found] == [10, 10, 12, 12, None, None]


def test_a_new_stage_ends_the_alarm_unless_its_first_sample_signals() -> None:
    """Another centre: the open alarm of the old one ends, or makes way for a new one."""
    other = with_basis(replace(SPEC, centre=5.0, end_after=5))
    for count, event in ((QUIET, END), (SIGNAL, BEGIN)):
        kernel = Arena(1, 32, 64)
        kernel.report([Event(0, 10, replace(SPEC, end_after=5), SIGNAL)], 0)
        found = kernel.report([Event(0, 11, other, count)], SECOND_NS)[0].detail
        assert (found.event, found.episode) == (event, 10 if event == END else 11)
        after = kernel.report([Event(0, 12, other, QUIET)], 2 * SECOND_NS)[0].detail
        assert after.quiet == (None if event == END else 1)
