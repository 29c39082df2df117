"""What the lab counts of verdicts, gaps and owners is right: on messages, waits and records made up."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest

from bench.lab import gaps
from bench.lab.doubles import Beat, Doubles, Held
from bench.lab.histogram import Histogram
from bench.lab.observer import Change, Observer, Ownership, Seen
from bench.lab.result import Owned
from bench.lab.tally import BLOCK_BITS, Followed, Marks, Tally, Waits
from runtime.config import Settings
from runtime.names import Names

MS, S = 1_000_000, 1_000_000_000


# --- the tally ------------------------------------------------------------------------------------


class Streams:
    """Gives a tally messages as the streams would."""

    def __init__(self, partitions: int = 4, kept_max: int = 1_000) -> None:
        self.tally = Tally(Names(partitions=partitions), kept_max)

    def report(self, seq: int, at_ns: int) -> None:
        self.tally.report(b"t.in.1.C", seq, at_ns, b"", None)

    def verdict(self, seq: int, epoch: int = 1, *, at: int = 0, stored: int = 0, on: str = "1.C") -> None:
        payload = msgspec.msgpack.encode({"seq": seq, "epoch": epoch, "at": at, "charts": ["a"], "u": [0.1]})
        self.tally.verdict(f"t.verdict.{on}".encode(), 1, stored, payload, None)

    def rejection(self, seq: int, partition: int = 1) -> None:
        headers = f"NATS/1.0\r\nTfdc-Partition:{partition}\r\nTfdc-Seq:{seq}\r\n\r\n".encode()
        self.tally.rejection(b"t.rejected.C", 1, 0, b"", headers)

    def followed(self, now_ns: int = 0) -> Followed:
        self.tally.settle()
        return self.tally.followed(now_ns)


def test_a_wait_is_from_when_a_report_was_due_to_its_first_verdict() -> None:
    """A second verdict of the report is doubled, and no wait."""
    streams = Streams()
    streams.report(1, 12 * MS)
    streams.verdict(1, at=10 * MS, stored=50 * MS)
    streams.verdict(1, at=10 * MS, stored=90 * MS)
    followed = streams.followed()
    assert (followed.reports, followed.verdicts, followed.doubled, followed.waiting) == (1, 2, 1, 0)
    at, stored, partition, came = (column.tolist() for column in streams.tally.columns())
    assert (at, stored, partition, came) == ([10 * MS], [50 * MS], [1], [12 * MS])
    assert streams.tally.latency.quantiles_ms([1.0]) == pytest.approx([40.0], rel=1e-3)


def test_stale_and_out_of_order_are_told_by_partition_and_by_chamber() -> None:
    """An older epoch after a newer one of its partition; an earlier report after a later of its chamber."""
    streams = Streams()
    streams.verdict(5, 7, on="1.C")
    streams.verdict(4, 7, on="1.D")
    streams.verdict(3, 7, on="1.C")
    streams.verdict(6, 6, on="1.D")
    streams.verdict(8, 2, on="2.E")
    followed = streams.followed()
    assert (followed.stale, followed.out_of_order, followed.doubled) == (1, 1, 0)


def test_a_report_that_was_rejected_does_not_wait_and_one_judged_in_part_counts_once() -> None:
    """Whichever of its verdict and its rejection comes first."""
    streams = Streams()
    for seq in (1, 2, 3, 4):
        streams.report(seq, 0)
    streams.rejection(1)
    streams.verdict(2)
    streams.rejection(2)
    streams.rejection(3)
    streams.verdict(3)
    followed = streams.followed()
    assert (followed.rejected, followed.verdicts, followed.waiting, followed.doubled) == (3, 2, 1, 0)


def test_sequences_of_two_shards_are_not_taken_for_one_another() -> None:
    """Each shard's stream counts for itself."""
    streams = Streams(partitions=128)
    streams.verdict(1, on="3.C")
    streams.verdict(1, on="100.D")
    assert streams.followed().doubled == 0
    streams.verdict(1, on="100.D")
    streams.rejection(1, partition=100)
    assert (streams.followed().doubled, streams.tally.settled) == (1, 2)


def test_what_cannot_be_read_is_counted() -> None:
    """No verdict, a partition that is none, a rejection without its headers."""
    streams = Streams()
    streams.tally.verdict(b"t.verdict.1.C", 1, 0, b"\xc1", None)
    streams.verdict(1, on="99.C")
    streams.tally.rejection(b"t.rejected.C", 1, 0, b"", b"NATS/1.0\r\n\r\n")
    assert streams.followed().unreadable == 3


def test_beyond_its_limit_waits_are_counted_but_not_kept() -> None:
    """And it says so."""
    streams = Streams(kept_max=3)
    for seq in (1, 2, 3):
        streams.verdict(seq, at=1, stored=2)
    assert streams.followed().kept_all
    streams.verdict(4, at=1, stored=2)
    assert not streams.followed().kept_all
    assert len(streams.tally.columns()[0]) == 3
    assert len(streams.tally.latency) == 4


def test_the_latency_of_the_moment_is_that_of_the_last_second() -> None:
    """What was stored before does not count."""
    streams = Streams()
    streams.verdict(1, at=0, stored=900 * MS)
    streams.followed()
    streams.verdict(2, at=1_990 * MS, stored=2 * S)
    followed = streams.followed(2 * S + 500 * MS)
    assert (followed.latency_ms_p99, followed.latency_ms_max) == (10.0, 10.0)
    assert streams.followed(4 * S).latency_ms_max == 0.0


def test_marks_of_reports_that_all_have_verdicts_take_no_memory() -> None:
    """And such a report is known to have one for ever."""
    marks, block = Marks(), 1 << BLOCK_BITS
    assert [marks.mark(seq, 1) for seq in range(1, block + 1)] == [0] * block
    assert marks.blocks == 0
    assert marks.mark(17, 1) & 1
    assert marks.mark(block + 1, 2) == 0
    assert marks.mark(block + 1, 1) == 2


def test_a_histogram_is_right_to_a_tenth_of_a_percent() -> None:
    """Of times from microseconds to minutes, as the times themselves have it."""
    times = np.random.default_rng(3).lognormal(1.0, 3.0, 50_000)
    histogram = Histogram()
    for block in np.array_split(times, 7):
        histogram.record(block)
    shares = [0.01, 0.5, 0.99, 0.9999]
    exact = np.quantile(times, shares, method="inverted_cdf").tolist()
    assert histogram.quantiles_ms(shares) == pytest.approx(exact, rel=1e-3, abs=1e-3)
    assert Histogram().quantiles_ms([0.5]) == [0.0]


# --- gaps -----------------------------------------------------------------------------------------


def waits_of(*rows: tuple[int, float, int]) -> Waits:
    """Of (due in ms, wait in ms, partition)."""
    at = np.array([row[0] for row in rows], np.int64) * MS
    wait_ms = np.array([row[1] for row in rows], np.float32)
    partition = np.array([row[2] for row in rows], np.uint16)
    stored = at + (wait_ms * MS).astype(np.int64)
    return Waits(at, stored, wait_ms, partition, at + MS, Histogram(), Followed())


def change(partition: int, free_ms: int, at_ms: int, before: str = "a", after: str = "b") -> Change:
    one, other = Ownership("owned", "d-0", before), Ownership("owned", "d-0", after)
    return Change(partition, free_ms * MS, at_ms * MS, one, other)


def test_the_gap_of_a_handoff_is_the_longest_wait_around_it() -> None:
    """Of its own partition alone, and only where the pod changed."""
    waits = waits_of((100, 5, 1), (900, 40, 1), (1_000, 30, 1), (1_000, 99, 2), (5_000, 77, 1))
    assert gaps.handoff_gaps_ms([change(1, 1_000, 1_010)], waits) == [40]
    assert gaps.handoff_gaps_ms([change(1, 1_000, 1_010, after="a")], waits) == []
    assert gaps.handoff_gaps_ms([change(3, 1_000, 1_010)], waits) == []
    assert gaps.handoff_gaps_ms([change(1, 1_000, 1_010), change(2, 900, 990)], waits) == [40, 99]


def test_a_report_that_waited_since_its_pod_died_is_in_the_gap() -> None:
    """Though it was due long before another pod took its partition over."""
    waits = waits_of((1_000, 7_200, 1), (4_000, 4_200, 1))
    assert gaps.handoff_gaps_ms([change(1, 8_000, 8_000)], waits) == [7_200]


def test_a_timeline_has_each_second_with_the_waits_of_what_was_due_in_it() -> None:
    """Reports and verdicts count where they were stored; a second without reports has zeros."""
    waits = waits_of((1_100, 10, 0), (3_999, 30, 0), (1_500, 2_700, 1), (9_000, 1, 0))
    seconds = gaps.timeline(waits, 1 * S, 4 * S + S // 2)
    assert [tuple(one) for one in seconds] == [
        (1 * S, 2, 1, 10, 2_700, 2_700),
        (2 * S, 0, 0, 0, 0, 0),
        (3 * S, 0, 0, 30, 30, 30),
        (4 * S, 1, 2, 0, 0, 0),
    ]
    assert gaps.timeline(waits, S, S) == []
    assert gaps.longest_gaps_ms(waits, 1 * S, 4 * S) == {0: 30, 1: 2_700}
    assert gaps.longest_gaps_ms(waits, 20 * S, 40 * S) == {}


# --- owners ---------------------------------------------------------------------------------------


def observed(*written: tuple[int, int, str, str, str], partitions: int = 1) -> Observer:
    """An observer that saw (time in ms, partition, state, owner, pod) being written."""
    observer = Observer(None, Settings(partitions=partitions))  # type: ignore[arg-type]
    for at_ms, partition, state, owner, pod in written:
        observer.history[partition].append(Seen(at_ms * MS, Ownership(state, owner, pod)))
    return observer


def test_a_stretch_lasts_until_the_partition_has_no_or_another_owner() -> None:
    """A record that its owner writes anew (with its epoch) goes on with the stretch."""
    observer = observed(
        (0, 0, "owned", "d-0", "a"),
        (1, 0, "owned", "d-0", "a"),
        (50, 0, "released", "d-0", "a"),
        (60, 0, "owned", "d-0", "b"),
        (80, 0, "owned", "d-1", "c"),
    )
    assert observer.owned(100 * MS, {"a": "pod-a", "b": "pod-b"}) == [
        Owned(0, "d-0", "pod-a", 0, 50 * MS),
        Owned(0, "d-0", "pod-b", 60 * MS, 80 * MS),
        Owned(0, "d-1", "c", 80 * MS, 100 * MS),
    ]


def test_a_partition_is_unowned_while_its_owner_is_dead_or_its_record_says_so() -> None:
    """The longest such time within the window."""
    observer = observed(
        (0, 0, "owned", "d-0", "a"),
        (400, 0, "released", "d-0", "a"),
        (430, 0, "owned", "d-0", "b"),
        (1_900, 0, "owned", "d-0", "c"),
        partitions=2,
    )
    always: Callable[[str, int], bool] = lambda uid, at_ns: True  # noqa: E731
    assert observer.unowned_ms(0, 3 * S, always) == {0: 30, 1: 3_000}
    # b dies at 700 ms and is taken over at 1900 ms.
    dying: Callable[[str, int], bool] = lambda uid, at_ns: uid != "b" or at_ns < 700 * MS  # noqa: E731
    assert observer.unowned_ms(0, 3 * S, dying)[0] == pytest.approx(1_200, abs=2)
    # b's container is dead for 300 ms only, and goes on in its place.
    again: Callable[[str, int], bool] = lambda uid, at_ns: not 700 * MS < at_ns < 1 * S  # noqa: E731
    assert observer.unowned_ms(0, 3 * S, again)[0] == pytest.approx(300, abs=2)
    assert observer.unowned_ms(1_950 * MS, 3 * S, always)[0] == 0


# --- doubles --------------------------------------------------------------------------------------


class Pods:
    """Says what pods say, a heartbeat every 2 s."""

    def __init__(self) -> None:
        self.doubles = Doubles(2.0)

    def beat(self, uid: str, at_s: float, *partitions: int, **fields: Any) -> None:
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=at_s)
        fields = {"state": "active", "pod_name": f"pod-{uid}", **fields}
        self.doubles.beaten(Beat(uid, at=at, partitions=list(partitions), **fields))

    def claim(self, stable_id: str, uid: str | None, at_s: float, session: str = "s") -> None:
        claim = Held(uid, session=session) if uid is not None else None
        self.doubles.claimed(stable_id, claim, int(at_s * S))


def test_two_pods_that_go_on_saying_that_they_serve_a_partition_are_two_owners() -> None:
    """One line, however long it goes on."""
    pods = Pods()
    for at_s in range(0, 20, 2):
        pods.beat("a", at_s, 3, 4)
        pods.beat("b", at_s + 1, *((4,) if at_s > 6 else ()))
    (line,) = pods.doubles.found()
    assert "00:00:09.000 partition 4: both pod-a and pod-b" in line
    assert "9.0 s" in line


def test_a_handoff_and_a_frozen_pod_that_says_once_what_it_served_are_no_doubles() -> None:
    """A healthy pod that was frozen is fenced before it says it again."""
    pods = Pods()
    for at_s in (0, 2, 4):
        pods.beat("a", at_s, 3)
    for at_s in (5, 7, 9, 11, 13, 15):
        pods.beat("b", at_s, 3)
    pods.beat("a", 14, 3)
    assert pods.doubles.found() == []
    pods.beat("a", 16, 3)
    pods.beat("b", 17, 3)
    assert len(pods.doubles.found()) == 1


def test_a_draining_pod_may_still_say_the_id_that_its_successor_has() -> None:
    """Two active ones may not."""
    pods = Pods()
    for at_s in range(0, 10, 2):
        pods.beat("a", at_s, stable_id="d-0", state="draining")
        pods.beat("b", at_s, stable_id="d-0")
    assert pods.doubles.found() == []
    for at_s in range(10, 14, 2):
        pods.beat("c", at_s, stable_id="d-0")
        pods.beat("b", at_s, stable_id="d-0")
    (line,) = pods.doubles.found()
    assert "d-0: both pod-b and pod-c" in line


def test_a_claim_that_is_written_over_its_successors_is_a_double() -> None:
    """Passing on, expiring and a restarted container's new session are not."""
    pods = Pods()
    for stable_id, uid, session in (
        *(("d-0", "a", "s"), ("d-0", "a", "s"), ("d-0", "b", "s"), ("d-0", None, ""), ("d-0", "a", "s")),
        *(("d-1", "c", "s"), ("d-1", "c", "t"), ("d-1", "d", "s"), ("d-1", "c", "u")),
    ):
        pods.claim(stable_id, uid, 1, session)
    assert pods.doubles.found() == []
    pods.claim("d-1", "d", 2)
    (line,) = pods.doubles.found()
    assert "d-1: claimed again by d over c's claim" in line


def test_a_pod_that_holds_two_ids_for_a_renewal_is_a_double() -> None:
    """Whether it still does at the end or not."""
    pods = Pods()
    pods.claim("d-0", "a", 1)
    pods.claim("d-1", "a", 2)
    pods.claim("d-1", "b", 3)
    assert pods.doubles.found() == []
    pods.claim("d-2", "a", 4)
    pods.claim("d-2", None, 7)
    (line,) = pods.doubles.found()
    assert "a holds d-0 and d-2, for 3.0 s" in line
