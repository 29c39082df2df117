"""A partition's intake: how far is acknowledged, and how much is asked for."""

from __future__ import annotations

from runtime.intake import Intake


def intake(position: int = 0, window: int = 64) -> Intake:
    made = Intake(3, "SAMPLES", "p3-e9", position, window, 30.0)
    made.inbox = b"_INBOX.x.3"
    return made


def deliver(found: Intake, *seqs: int) -> None:
    for consumer_seq, seq in enumerate(seqs, start=1):
        assert found.took(seq, consumer_seq, 0)


def test_two_pulls_overlap_and_never_more_than_a_window_is_asked_for_or_in_hand() -> None:
    found = intake(window=64)
    assert len(found.pulls()) == 2
    assert found.pulls() == []
    deliver(found, *range(1, 33))
    assert found.pulls() == [], "half asked for, half in hand"
    found.done(range(1, 33))
    assert len(found.pulls()) == 1


def test_what_a_pull_left_may_be_asked_for_again() -> None:
    found = intake(window=64)
    found.pulls()
    found.pull_ended(32)
    assert len(found.pulls()) == 1


def test_a_pull_that_nobody_listened_for_is_asked_for_again_and_its_time_is_counted() -> None:
    found = intake(window=64)
    found.pulls()
    assert found.pull_unheard(7.0) == 0
    assert found.pull_unheard(9.5) == 2.5
    assert len(found.pulls()) == 2
    deliver(found, 1)
    assert found.pull_unheard(20.0) == 0, "somebody listened meanwhile"


def test_the_position_stays_below_the_oldest_report_that_is_not_done() -> None:
    found = intake(position=100)
    deliver(found, 105, 107, 110)
    found.done([107, 110])
    assert found.position == 104
    assert found.ack() == (b"$JS.ACK.SAMPLES.p3-e9.1.104.0.0.0", b"+ACK")
    found.done([105])
    assert found.position == 110
    assert found.ack() == (b"$JS.ACK.SAMPLES.p3-e9.1.110.3.0.0", b"+ACK")
    assert found.ack() is None, "nothing new"


def test_a_report_that_is_in_hand_or_done_is_not_taken_twice() -> None:
    found = intake(position=10)
    deliver(found, 11, 12)
    assert not found.took(11, 3, 0)
    found.done([11, 12])
    assert not found.took(12, 4, 0)
    assert not found.took(9, 5, 0)


def test_the_lag_is_what_the_server_still_has() -> None:
    found = intake()
    found.took(1, 1, 41)
    assert found.lag == 41


def test_a_smaller_share_asks_for_no_more_until_what_is_asked_for_has_come() -> None:
    """As partitions come, each one's share of what a worker holds shrinks; as they go, it grows."""
    found = intake(window=128)
    assert len(found.pulls()) == 2
    found.resize(32)
    deliver(found, *range(1, 65))
    found.done(range(1, 65))
    assert found.pulls() == [], "64 of the second pull are still to come"
    deliver(found, *range(65, 129))
    found.done(range(65, 129))
    small = found.pulls()
    assert len(small) == 2
    assert b'"batch":16' in small[0]
