"""What ``status`` and ``where`` show of a snapshot: rows, headings, trouble."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import msgspec
import pytest
from rich.console import Console, RenderableType
from sights import NOW, beat, claim, layout, owned, snapshot

from runtime.cli.fleet import partition_rows
from runtime.cli.snapshot import Key, backlogs, laid_out
from runtime.cli.status import as_tree, problems_of, rendered
from runtime.cli.where import where_lines, whereabouts
from runtime.config import Settings
from runtime.errors import SettingsError
from runtime.fleet_snapshot import Backlog, Owned
from runtime.membership import Load, State
from runtime.names import partition_of
from runtime.ownership_record import Record
from runtime.ownership_record import State as Ownership
from runtime.records import Frozen, RingRecord, Tracks


def text_of(shown: RenderableType, width: int = 100) -> str:
    """What a terminal of that width, without colour, shows."""
    console = Console(file=StringIO(), width=width, no_color=True, highlight=False)
    console.print(shown)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_every_partition_has_a_row_that_says_what_is_wrong_with_it() -> None:
    fleet = snapshot(
        layout=layout(2, partitions=6),
        partitions=6,
        owned={
            0: owned(0, "a", 5),
            1: owned(1, "b", 6),
            2: owned(0, "old", 3),
            3: owned(7, "x", 2, Ownership.RELEASED),
            4: owned(0, "a", 8, age_s=0.1),
        },
        backlogs={(0, 5): Backlog(100, 20), (1, 4): Backlog(9, 9), (2, 3): Backlog(1, 1)},
    )
    beats = {
        uid: msgspec.structs.replace(one, partitions=[0, 4] if uid == "uid-a" else [1])
        for uid, one in fleet.heartbeats.items()
    }
    rows = partition_rows(replace(fleet, heartbeats=beats, layout=None))
    assert [(row.owner, row.pod, row.epoch, row.waiting) for row in rows] == [
        ("defender-0", "a", 5, 100),
        ("defender-1", "b", 6, 0),
        ("defender-0", "uid-old", 3, 1),
        (None, "", 2, 0),
        ("defender-0", "a", 8, 0),
        (None, "", 0, 0),
    ]
    assert [row.remark for row in rows] == [
        "",
        "its consumer is missing",
        "its owner uid-old is gone",
        "nobody owns it",
        "its consumer is missing",
        "never owned",
    ]
    assert [row.partition for row in rows if row.is_trouble] == [2, 3, 5]


def test_a_partition_in_handoff_says_to_whom_it_goes() -> None:
    fleet = snapshot(backlogs={})
    vacated = replace(fleet, layout=layout(1, first=5))
    remarks = {row.remark for row in partition_rows(vacated)}
    assert remarks == {"the ring gives it to defender-5, which nobody holds: its owner goes on"}
    alone = replace(fleet, layout=layout(1))
    moving = [row for row in partition_rows(alone) if row.partition in alone.moving]
    assert {row.remark for row in moving} == {"moves to defender-0 at a"}
    assert not any(row.is_trouble for row in moving)


def test_status_fits_a_hundred_columns_and_names_ring_leader_freeze_members_and_standbys() -> None:
    fleet = snapshot(backlogs={}, frozen=Frozen("me", NOW, "moving racks"))
    pod = "defender-7c9f8d64b-x2k4q"
    standby = beat(pod, None, State.STANDBY, warm=True, standby="as many defenders as MAX_DEFENDERS hold one")
    fleet = replace(
        fleet,
        heartbeats={**fleet.heartbeats, standby.pod_uid: standby},
        ages_s={**fleet.ages_s, standby.pod_uid: 0.4},
        tracks=Tracks({"green": False}, {"canary": ["ETCH-1", "ETCH-2"]}),
    )
    text = text_of(rendered(fleet, partitions=False))
    for line in (
        "ring        version 7, 2 members, 0.0s ago: defender-1 in",
        "leader      a, term 5",
        "frozen      by me, 0.0s ago: moving racks",
        "track       green: out of the ring, by an operator's word",
        "track       canary: only the chambers ETCH-1, ETCH-2",
        "partitions  4 of 4 owned, 0 doubly",
        f"  {pod}: as many defenders as MAX_DEFENDERS hold one",
    ):
        assert line in [one.rstrip() for one in text.splitlines()], line
    (row,) = [line for line in text.splitlines() if line.startswith("defender-0 ")]
    assert (
        row.split()
        == "defender-0 active a stable r1 1.5s {} 0 2 25%".format(len(fleet.owned_by["uid-a"])).split()
    )
    (row,) = [line for line in text.splitlines() if line.startswith("- ")]
    assert row.split()[:4] == ["-", "standby", pod, "stable"], "no name is folded"


def test_what_is_wrong_comes_first_and_a_lag_above_the_limit_is_wrong() -> None:
    fleet = snapshot(backlogs={(0, 10): Backlog(30, 5)})
    assert problems_of(fleet) == problems_of(fleet, 35) == []
    assert problems_of(fleet, 34) == ["35 reports wait, more than 34"]
    text = text_of(rendered(replace(fleet, leader=None), partitions=True))
    assert text.splitlines()[0].rstrip() == "nobody leads: the ring does not change"
    assert len([line for line in text.splitlines() if " owned " in line]) == 4


def test_status_says_whose_history_is_down_and_how_many_chambers_are_still_read() -> None:
    fleet = snapshot(backlogs={})
    loads = {"a": Load(history_down=True), "b": Load(rebuild_left=37)}
    beats = {
        uid: msgspec.structs.replace(one, load=loads[one.pod_name]) for uid, one in fleet.heartbeats.items()
    }
    fleet = replace(fleet, heartbeats=beats)
    lines = [line.rstrip() for line in text_of(rendered(fleet, partitions=False)).splitlines()]
    assert lines[0] == "the history is down, reports wait: defender-0"
    assert "  defender-0: history is down" in lines
    assert "  defender-1: rebuilding: 37 chambers left" in lines
    assert problems_of(fleet) == [lines[0]], "status --check fails on it, and not on a rebuild"
    tree = msgspec.json.decode(msgspec.json.encode(as_tree(fleet)))
    told = [(row["history_down"], row["rebuild_left"]) for row in tree["defenders"]]
    assert told == [(True, 0), (False, 37)]
    assert tree["trouble"] == [lines[0]]


def test_names_from_outside_cannot_steer_the_terminal() -> None:
    evil = "\x1b[2Jx"
    fleet = snapshot(backlogs={}, frozen=Frozen(evil, NOW, evil))
    fleet = replace(fleet, claims={**fleet.claims, "defender-0": claim(0, evil)})
    assert "\x1b" not in text_of(rendered(fleet, partitions=True))


def test_status_for_machines_has_all_that_people_see() -> None:
    fleet = snapshot(backlogs={}, layout=layout(3))
    tree = msgspec.json.decode(msgspec.json.encode(as_tree(fleet)))
    assert tree["ring"]["version"] == 7
    assert tree["vacancies"] == ["defender-2"]
    assert tree["leader"]["pod_name"] == "a"
    assert [row["stable_id"] for row in tree["defenders"]] == ["defender-0", "defender-1", "defender-2"]
    assert len(tree["partitions"]) == 4
    assert tree["trouble"] == ["in the ring, and held by nobody: defender-2"]


def test_only_consumers_of_partitions_count_as_backlog() -> None:
    answers = [
        {"name": "p3-e17", "num_pending": 5, "num_ack_pending": 2},
        {"name": "somebody", "num_pending": 1, "num_ack_pending": 1},
    ]
    assert backlogs(answers) == {(3, 17): Backlog(5, 2)}
    assert backlogs(answers)[3, 17].lag == 7


def test_a_ring_of_another_number_of_partitions_is_an_error_that_names_the_setting() -> None:
    stored = Key(msgspec.json.encode(RingRecord(1, 128)), 1, 0.0)
    with pytest.raises(SettingsError) as raised:
        laid_out(stored, Settings(partitions=64))
    assert str(raised.value).startswith(
        "PARTITIONS: this command was given 64, the fleet's ring has 128: run it with PARTITIONS=128; "
    )
    assert laid_out(Key(b"{}", 1, 0.0), Settings())[0] is None
    unknown = msgspec.json.encode(RingRecord(1, 64, algorithm=99))
    assert "99" in laid_out(Key(unknown, 1, 0.0), Settings())[1]


def test_where_says_partition_ring_owner_consumer_and_the_last_verdict() -> None:
    fleet = snapshot(backlogs={(0, 10): Backlog(100, 20)})
    chamber = next(name for name in (f"E-{n}" for n in range(99)) if partition_of(name, 4) == 0)
    last = {
        "run": "r1",
        "at": 1_740_816_000_000_000_000,
        "epoch": 5,
        "seq": 9,
        "ordinal": 2,
        "defender": "defender-9",
    }
    found = whereabouts(fleet, Settings(partitions=4), chamber, last)
    assert (found.partition, found.consumer, found.ring_version) == (0, "p0-e10", 7)
    assert found.owner_by_ring == found.row.owner
    text = "\n".join(where_lines(found))
    assert f"ring       {found.owner_by_ring} by version 7, held by {found.holder}" in text
    assert "takes it" in found.ring[-1]
    assert "100 reports wait, 20 in hand" in text
    assert "verdict of run r1 at 2025-03-01 08:00:00.000, epoch 5, by defender-9" in text
    moving = replace(fleet, layout=layout(1, first=5), claims={**fleet.claims, "defender-5": claim(5, "z")})
    text = "\n".join(where_lines(whereabouts(moving, Settings(partitions=4), chamber, last)))
    assert "handoff    moves to defender-5 at z" in text


def test_where_tells_of_a_chamber_that_nobody_serves() -> None:
    empty = snapshot(claims={}, heartbeats={}, owned={}, layout=None, leader=None, backlogs={})
    text = "\n".join(where_lines(whereabouts(empty, Settings(partitions=4), "E-1", None)))
    assert "no ring is committed yet" in text
    assert "owner      nobody (vacant), epoch 0" in text
    assert "trouble    never owned" in text
    assert "no verdict of this chamber is stored" in text


def test_the_worker_that_serves_a_partition_is_told() -> None:
    record = Record(Ownership.OWNED, "defender-0", "uid-a", 5, worker=1)
    fleet = snapshot(owned={0: Owned(record, 5, 60.0)})
    assert partition_rows(fleet)[0].worker == 1
