"""Who holds what: rows of defenders and partitions, and what of it is trouble."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from runtime.cli.fleet import Backlog, Owned, Snapshot, backlogs, defender_rows, partition_rows, trouble
from runtime.cli.status import where_lines, whereabouts
from runtime.config import Settings
from runtime.identity import Claim
from runtime.membership import Heartbeat, Load
from runtime.membership import State as Doing
from runtime.names import partition_of
from runtime.ownership import Record, State

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


def claim(number: int, pod: str) -> Claim:
    return Claim(f"defender-{number}", f"uid-{pod}", pod, "stable", "r1", NOW, "s")


def beat(pod: str, doing: Doing = Doing.ACTIVE, stable_id: str | None = None, standby: str = "") -> Heartbeat:
    load = Load(workers=2, samples=1000, slots_used=50, slots_total=200)
    return Heartbeat(
        f"uid-{pod}", pod, "stable", "r1", doing, NOW - timedelta(seconds=1.5), stable_id, standby, load=load
    )


def owned(number: int, pod: str, epoch: int, state: State = State.OWNED) -> Owned:
    return Owned(Record(state, f"defender-{number}", f"uid-{pod}", epoch, position=77), epoch)


SNAPSHOT = Snapshot(
    now=NOW,
    partitions=4,
    claims={"defender-10": claim(10, "b"), "defender-9": claim(9, "a")},
    heartbeats={
        "uid-a": beat("a", stable_id="defender-9"),
        "uid-c": beat("c", Doing.STANDBY, standby="none is free"),
    },
    owned={
        0: owned(9, "a", 5),
        1: owned(10, "b", 6),
        2: owned(9, "old", 3),
        3: owned(7, "x", 2, State.RELEASED),
    },
    backlogs={(0, 5): Backlog(100, 20), (1, 4): Backlog(9, 9), (2, 3): Backlog(1, 1)},
)


def test_holders_come_first_in_the_order_of_their_numbers_then_standbys() -> None:
    rows = defender_rows(SNAPSHOT)
    assert [(row.stable_id, row.pod, row.state) for row in rows] == [
        ("defender-9", "a", "active"),
        ("defender-10", "b", "silent"),
        (None, "c", "standby"),
    ]
    first = rows[0]
    assert (first.heartbeat_age_s, first.workers, first.partitions, first.lag, first.cache_used) == (
        1.5,
        2,
        2,
        122,
        0.25,
    )
    assert rows[1].heartbeat_age_s is None
    assert "no heartbeat" in rows[1].remark
    assert rows[2].remark == "none is free"


def test_every_partition_has_a_row_that_says_what_is_wrong_with_it() -> None:
    rows = partition_rows(SNAPSHOT)
    assert [(row.partition, row.owner, row.epoch, row.waiting) for row in rows] == [
        (0, "defender-9", 5, 100),
        (1, "defender-10", 6, 0),
        (2, "defender-9", 3, 1),
        (3, None, 2, 0),
    ]
    remarks = [row.remark for row in rows]
    assert remarks == [
        "",
        "its consumer is missing",
        "its owner's ID is held by another pod, which has not acquired it yet",
        "nobody owns it",
    ]


def test_partitions_without_a_live_owner_are_named_first() -> None:
    assert trouble(SNAPSHOT) == ["2 of 4 partitions have no live owner: 2, 3"]
    sound = msgspec.structs.replace(SNAPSHOT, partitions=2)
    assert trouble(sound) == []
    nobody = msgspec.structs.replace(SNAPSHOT, claims={})
    assert trouble(nobody)[0] == "no defender holds an ID: nothing is judged"


def test_only_consumers_of_partitions_count_as_backlog() -> None:
    answers = [
        {"name": "p3-e17", "num_pending": 5, "num_ack_pending": 2},
        {"name": "somebody", "num_pending": 1, "num_ack_pending": 1},
    ]
    assert backlogs(answers) == {(3, 17): Backlog(5, 2)}
    assert backlogs(answers)[3, 17].lag == 7


def test_where_says_partition_ring_owner_consumer_and_the_last_verdict() -> None:
    settings = Settings(partitions=4)
    chamber = next(name for name in (f"E-{n}" for n in range(99)) if partition_of(name, 4) == 0)
    last = {
        "run": "r1",
        "at": 1_740_816_000_000_000_000,
        "epoch": 5,
        "seq": 9,
        "ordinal": 2,
        "defender": "defender-9",
    }
    found = whereabouts(SNAPSHOT, settings, chamber, last)
    assert (found.partition, found.consumer, found.row.pod) == (0, "p0-e5", "a")
    text = "\n".join(where_lines(found))
    assert f"defender-{'9' if found.owner_by_ring == 'defender-9' else '10'}" in text
    assert "takes it" in found.ring[-1]
    assert "100 reports wait, 20 in hand" in text
    assert "verdict of run r1 at 2025-03-01 08:00:00.000, epoch 5, by defender-9" in text


def test_where_tells_of_a_chamber_that_nobody_serves() -> None:
    empty = Snapshot(now=NOW, partitions=4)
    text = "\n".join(where_lines(whereabouts(empty, Settings(partitions=4), "E-1", None)))
    assert "no member: nobody holds an ID" in text
    assert "owner      nobody (vacant), epoch 0" in text
    assert "no verdict of this chamber is stored" in text
