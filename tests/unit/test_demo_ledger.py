"""The accounts of a show, on made-up events: what is lost, what comes twice, what was planted and found."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec
import pytest

from runtime.demo import plan as plans
from runtime.demo.checks import BookCheck, Outage
from runtime.demo.ledger import Ledger
from runtime.demo.outcome import Outcome, faults
from runtime.demo.plan import Stored, environment, messages, planned
from runtime.errors import InputError
from runtime.fab import Excursion, Expect, published_set
from runtime.wire import Alarm, ChartAlarm, Reason, Verdict

MS = 1_000_000


def stored(seq: int, expect: Expect = Expect.VERDICT, samples: int = 2, **more: object) -> Stored:
    fields = {"seq": seq, "chamber": "ETCH-01", "run": f"R{seq}", "sent_ns": seq * MS, "expect": expect}
    return msgspec.convert({**fields, "type": "Stored", "samples": samples, **more}, Stored)


def verdict(seq: int, flags: tuple[int, ...] = (0, 0), chamber: str = "ETCH-01", **more: object) -> Verdict:
    charts = ["particles", "scratches", "pits"][: len(flags)]
    fields = {"counts": [1] * len(flags), "charts": charts, "flags": list(flags), **more}
    return Verdict(chamber, seq, ordinal=seq, epoch=1, spec=1, run=f"R{seq}", **fields)  # type: ignore[arg-type]


def alarm(seq: int, **rules: list[int]) -> Alarm:
    charts = [ChartAlarm(name, 9, 1.0, 9.0, 1.0, 0.0, 4.0, which, 2, "") for name, which in rules.items()]
    return Alarm("ETCH-01", f"R{seq}", datetime.now(UTC), seq, 1, 1, "defender-0", charts)


def spike(number: int, chart: str = "particles") -> dict[str, Any]:
    return {"planted": ((number, Excursion.SPIKE, chart),)}


def test_reports_with_one_verdict_of_all_samples_are_neither_lost_nor_duplicated() -> None:
    ledger = Ledger()
    for seq in range(1, 101):
        ledger.stored(stored(seq))
        ledger.verdict(verdict(seq), (seq + 3) * MS)
    assert (ledger.reports, ledger.verdicts, ledger.samples) == (100, 100, 200)
    assert (ledger.unsettled, ledger.lost, ledger.duplicated, ledger.unexpected) == (0, 0, 0, 0)
    assert ledger.latency_ms(0.5, 0.99, 1.0) == [3.0, 3.0, 3.0]
    assert ledger.examples() == []


def test_a_report_without_a_verdict_is_lost_and_named() -> None:
    ledger = Ledger()
    ledger.stored(stored(7))
    ledger.stored(stored(8))
    ledger.verdict(verdict(8), 9 * MS)
    assert (ledger.unsettled, ledger.lost) == (1, 1)
    assert "sequence 7 (ETCH-01 R7" in ledger.examples()[0]


@pytest.mark.parametrize(
    "came",
    [
        verdict(1, flags=(0,)),
        verdict(1, chamber="ETCH-02"),
        verdict(1, flags=(0, 1)),
    ],
    ids=["a sample is missing", "of another chamber", "its alarm is missing"],
)
def test_a_verdict_that_is_not_whole_leaves_its_report_lost(came: Verdict) -> None:
    ledger = Ledger()
    ledger.stored(stored(1))
    ledger.verdict(came, 2 * MS)
    assert ledger.lost == 1


def test_what_comes_twice_is_counted_once_for_each_repeat() -> None:
    ledger = Ledger()
    ledger.stored(stored(1, Expect.PARTLY, reason="count_negative"))
    for _ in range(3):
        ledger.verdict(verdict(1, flags=(1, 0)), 2 * MS)
    for _ in range(2):
        ledger.alarm(alarm(1, particles=[1]))
        ledger.rejection(1, "count_negative")
    assert ledger.duplicated == 2 + 1 + 1
    assert (ledger.lost, ledger.samples) == (0, 2), "a repeat is not judged again"


def episodes(seq: int, flags: tuple[int, ...], episode: tuple[int, ...], event: tuple[int, ...]) -> Verdict:
    severity = ["critical" if each & 1 else "" for each in flags]
    return verdict(seq, flags, episode=list(episode), event=list(event), severity=severity)


def test_an_excursion_is_found_when_each_of_its_points_is_beyond_the_limits_and_an_alarm_stands() -> None:
    """One alarm tells of a whole episode: its later points have none of their own."""
    ledger = Ledger()
    for seq, number in ((1, 0), (2, 1), (3, 1), (4, 2), (5, 3)):
        ledger.stored(stored(seq, **spike(number)))
    ledger.verdict(episodes(1, (1, 0), (1, 0), (1, 0)), MS)
    ledger.alarm(alarm(1, particles=[1]))
    ledger.verdict(episodes(2, (1, 0), (1, 0), (0, 0)), MS)
    assert (ledger.planted, ledger.planted_found) == (4, 1), "the second one's other point is missing"
    ledger.verdict(episodes(3, (1, 0), (1, 0), (0, 0)), MS)
    assert ledger.planted_found == 2
    ledger.verdict(episodes(4, (2, 1), (1, 4), (0, 1)), MS)
    ledger.alarm(alarm(4, scratches=[1]))
    assert ledger.planted_found == 2, "rule 1 of another chart, and another rule, are not it"
    ledger.verdict(verdict(5, (1, 0), severity=["", ""], p=[0.9, None]), MS)
    assert ledger.planted_found == 2, "a signal that is no alarm finds nothing"
    assert (ledger.chance_alarms, ledger.lost) == (1, 0)


def test_an_excursion_is_found_where_every_signal_is_an_alarm() -> None:
    ledger = Ledger()
    for seq, number in ((1, 0), (2, 1), (3, 1), (4, 2)):
        ledger.stored(stored(seq, **spike(number)))
        ledger.verdict(verdict(seq, flags=(1, 0)), seq * MS)
    ledger.alarm(alarm(1, particles=[1]))
    ledger.alarm(alarm(2, particles=[1, 2]))
    assert (ledger.planted, ledger.planted_found) == (3, 1), "the second one's other point is missing"
    ledger.alarm(alarm(3, particles=[1]))
    assert ledger.planted_found == 2
    ledger.alarm(alarm(4, particles=[2], scratches=[1]))
    assert ledger.planted_found == 2, "rule 1 of another chart, and another rule, are not it"
    assert (ledger.chance_alarms, ledger.is_planted(1, "particles"), ledger.is_planted(1, "pits")) == (
        2,
        True,
        False,
    )


def test_a_broken_message_must_be_in_rejected_for_its_own_reason() -> None:
    ledger = Ledger()
    ledger.stored(stored(1, Expect.REJECTED, 0, reason="empty"))
    ledger.stored(stored(2, Expect.REJECTED, 0, reason="undecodable"))
    ledger.stored(stored(3, Expect.PARTLY, 1, reason="not_finite"))
    assert (ledger.broken, ledger.unsettled) == ((3, 0), 3)
    ledger.rejection(1, "empty")
    ledger.rejection(2, "wrong_type")
    ledger.rejection(3, "not_finite")
    assert (ledger.broken, ledger.unsettled) == ((3, 2), 2)
    ledger.verdict(verdict(3, flags=(0,)), 4 * MS)
    assert (ledger.unsettled, ledger.lost) == (1, 0)


@pytest.mark.parametrize(
    "feed",
    [
        lambda ledger: ledger.verdict(verdict(99), 1),
        lambda ledger: ledger.rejection(1, "empty"),
        lambda ledger: ledger.alarm(alarm(1, particles=[1])),
        lambda ledger: ledger.verdict(verdict(2), 1),
        lambda ledger: ledger.verdict(verdict(3), 1),
    ],
    ids=["nobody sent it", "a sound one rejected", "no signal", "a broken one judged", "no reset"],
)
def test_what_should_not_have_come_is_unexpected(feed: Callable[[Ledger], None]) -> None:
    ledger = Ledger()
    ledger.stored(stored(1))
    ledger.stored(stored(2, Expect.REJECTED, 0, reason="empty"))
    ledger.stored(stored(3, Expect.RESET, 0))
    ledger.verdict(verdict(1), 1)
    feed(ledger)
    assert ledger.unexpected == 1


def test_the_balance_is_the_same_in_whatever_order_the_two_sides_come() -> None:
    events: list[Callable[[Ledger], None]] = []
    for seq in range(1, 41):
        flags = (1, 0) if seq % 4 == 0 else (0, 0)
        sent = stored(seq, **(spike(seq) if seq % 4 == 0 else {}))
        events.append(lambda ledger, sent=sent: ledger.stored(sent))  # type: ignore[misc]
        if seq != 13:
            came = verdict(seq, flags=flags)
            events.append(lambda ledger, came=came: ledger.verdict(came, 2 * came.seq * MS))  # type: ignore[misc]
        if seq % 4 == 0 and seq != 20:
            events.append(lambda ledger, seq=seq: ledger.alarm(alarm(seq, particles=[1])))  # type: ignore[misc]
    for seed in range(20):
        random.Random(seed).shuffle(events)
        ledger = Ledger()
        for event in events:
            event(ledger)
        assert (ledger.lost, ledger.unsettled, ledger.duplicated, ledger.unexpected) == (2, 2, 0, 0)
        assert (ledger.planted, ledger.planted_found, ledger.chance_alarms) == (10, 9, 0)
        assert ledger.latency_ms(0.0, 0.5, 1.0) == [1.0, 21.0, 40.0], (
            "milliseconds as the sequence, without 13"
        )


def test_recovery_is_the_first_verdict_with_a_new_epoch_not_one_that_was_still_under_way() -> None:
    outage = Outage()
    outage.verdict(3, 10, 1 * MS)
    outage.verdict(4, 11, 1 * MS)
    outage.kill(100 * MS)
    outage.verdict(3, 10, 101 * MS)
    outage.verdict(4, 11, 102 * MS)
    assert outage.recovery_ms is None
    outage.verdict(3, 75, 150 * MS)
    outage.verdict(3, 75, 160 * MS)
    assert outage.recovery_ms == pytest.approx(50.0)
    assert outage.taken_over == {3}


def book_verdict(index: int, **more: object) -> Verdict:
    book = published_set()
    limits = {"centre": [book.centre], "lcl": [book.lcl], "ucl": [book.ucl], "u": [0.2], "phase": [2], **more}
    run = f"sample-{index + 1}"
    return msgspec.structs.replace(verdict(index, flags=(0,), chamber=book.chamber), run=run, **limits)


@pytest.mark.parametrize(
    ("change", "agrees"),
    [
        ({}, True),
        ({"ucl": [published_set().ucl * (1 + 1e-11)]}, False),
        ({"lcl": [None], "phase": [0]}, False),
        ({"flags": [1]}, False),
        ({"flags": [2]}, True),
    ],
)
def test_a_data_set_agrees_when_every_limit_of_phase_two_and_every_signal_is_the_book_s(
    change: dict[str, object], agrees: bool
) -> None:
    book = published_set()
    check = BookCheck(book)
    for index in range(len(book.counts)):
        assert not check.agrees, "not before every point has come"
        check.verdict(book_verdict(index, **(change if index == 40 else {})))
    check.verdict(verdict(1))
    assert check.agrees is agrees


GOOD = Outcome(
    reports=9,
    verdicts=9,
    alarms=2,
    rejected=1,
    lost=0,
    duplicated=0,
    planted=2,
    planted_found=2,
    chance_alarms=0,
    samples_per_s=1.0,
    latency_ms_p50=1.0,
    latency_ms_p99=1.0,
    latency_ms_max=1.0,
    cache_hit_rate=1.0,
    samples=9,
    resets=0,
    broken=1,
    broken_rejected=1,
    unexpected=0,
    unacknowledged=0,
    missed=0,
    recovery_ms=50.0,
    partitions_recovered=3,
    book_points=46,
    book_deviation=0.0,
    book_agrees=True,
    reports_per_s=1.0,
    publisher_behind_ms_max=0.0,
    seconds=9.0,
    ready_s=1.0,
    leave_s=0.1,
    leave_code=0,
    chambers=4,
    workers=2,
    seed=0,
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lost": 1}, "1 of 9 reports lost"),
        ({"duplicated": 2}, "2 verdicts, alarms or rejections came twice"),
        ({"unexpected": 1}, "should not have"),
        ({"planted_found": 1}, "1 of 2 planted excursions not found"),
        ({"planted": 0, "planted_found": 0}, "nothing was planted"),
        ({"broken_rejected": 0}, "1 of 1 broken messages not in REJECTED"),
        ({"unacknowledged": 3}, "3 reports were not acknowledged"),
        ({"missed": 1}, "missed 1 messages"),
        ({"recovery_ms": None}, "killed worker"),
        ({"book_agrees": False}, "not the book's"),
        ({"leave_code": 70}, "code 70"),
    ],
)
def test_each_promise_that_is_not_kept_is_named_by_itself(change: dict[str, object], said: str) -> None:
    assert faults(GOOD) == []
    (fault,) = faults(msgspec.structs.replace(GOOD, **change))
    assert said in fault


def test_a_show_too_short_for_its_charts_to_learn_is_refused_with_the_numbers_that_would_do() -> None:
    with pytest.raises(InputError, match=r"--seconds 5 at --rate 100 is 500 reports"):
        planned(5, 100, None, 0, 2)
    with pytest.raises(InputError, match=r"--chambers 90 .* at most 80"):
        planned(12, 1000, 90, 0, 2)


@pytest.mark.parametrize(("seconds", "rate"), [(12, 1000), (20, 1000), (5, 200)])
def test_the_planned_messages_have_excursions_breakages_resets_and_the_whole_data_set(
    seconds: float, rate: float
) -> None:
    plan = planned(seconds, rate, None, 0, 2)
    sent = list(messages(plan, 1_760_000_000_000_000_000))
    assert len(sent) == plan.reports == seconds * rate
    from_set = [number for number, message in enumerate(sent) if message.chamber == published_set().chamber]
    assert len(from_set) == 46
    assert from_set[22] < len(sent) / 2 < from_set[-1], "the kill comes in the midst of it"
    excursions = {plant.number for message in sent for plant in message.planted}
    assert len(excursions) >= plan.chambers
    assert {message.reason for message in sent if message.reason} == set(Reason)
    assert any(message.expect is Expect.RESET for message in sent)
    assert list(islice(messages(plan, 1_760_000_000_000_000_000), 300)) == sent[:300]


def test_the_shows_processes_do_not_take_over_settings_that_are_meant_for_another_fleet() -> None:
    found = environment(
        {"PATH": "/bin", "NATS_SERVERS": "nats://production:4222", "NUMBA_CACHE_DIR": "/k"}, {"WORKERS": "2"}
    )
    assert found["PATH"] == "/bin"
    assert found["NUMBA_CACHE_DIR"] == "/k"
    assert found["WORKERS"] == "2"
    assert "NATS_SERVERS" not in found


def test_the_latency_of_no_verdict_is_zero_and_finite() -> None:
    assert all(math.isfinite(value) for value in Ledger().latency_ms(0.5, 1.0))
    assert plans.specs().charts[0].chamber == published_set().chamber
