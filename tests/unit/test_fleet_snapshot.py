"""What a snapshot says of the fleet: who lives, which partition has no owner, two, or moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from sights import NOW, Sight, ViewOfFleet, beat, claim, layout, owned, snapshot

from runtime import fleet_report
from runtime.fleet_report import numbers
from runtime.fleet_snapshot import LeaderSeen, Since, Snapshot, leader_seen, of_view
from runtime.membership import Load, State
from runtime.ownership_record import Record
from runtime.ownership_record import State as Ownership
from runtime.records import Frozen, Tracks


def test_a_sound_fleet_has_no_trouble() -> None:
    fleet = snapshot()
    assert fleet_report.trouble(fleet) == []
    assert (fleet.unowned, fleet.unserved, fleet.doubly_owned, fleet.moving) == ([], [], [], [])
    assert [row.stable_id for row in fleet_report.members(fleet)] == ["defender-0", "defender-1"]


def test_a_partition_is_unowned_when_it_is_released_or_its_owner_silent_or_gone() -> None:
    fleet = snapshot()
    released = {**fleet.owned, 0: owned(0, "a", 9, Ownership.RELEASED)}
    assert replace(fleet, owned=released).unowned == [0]
    mine = [p for p, one in fleet.owned.items() if one.record.pod_uid == "uid-a"]
    assert replace(fleet, ages_s={**fleet.ages_s, "uid-a": 6.1}).unowned == mine
    beats = {uid: one for uid, one in fleet.heartbeats.items() if uid != "uid-a"}
    assert replace(fleet, heartbeats=beats).unowned == mine
    assert replace(fleet, owned={}).unowned == [0, 1, 2, 3]


def test_a_pod_that_passed_its_id_on_owns_its_partitions_until_they_are_taken() -> None:
    fleet = snapshot()
    fleet = replace(fleet, claims={**fleet.claims, "defender-0": claim(0, "c")})
    fleet = replace(fleet, heartbeats={**fleet.heartbeats, "uid-c": beat("c", 0)})
    fleet = replace(fleet, ages_s={**fleet.ages_s, "uid-c": 0.1})
    assert fleet.unowned == []
    assert fleet.moving == [p for p, one in fleet.owned.items() if one.record.pod_uid == "uid-a"]


def test_two_pods_that_list_a_partition_own_it_doubly_unless_one_beat_before_the_record_changed() -> None:
    fleet = snapshot()
    partition = next(p for p, one in fleet.owned.items() if one.record.pod_uid == "uid-a")
    other = fleet.heartbeats["uid-b"]
    both = msgspec.structs.replace(other, partitions=sorted([*other.partitions, partition]))
    fleet = replace(fleet, heartbeats={**fleet.heartbeats, "uid-b": both})
    assert fleet.doubly_owned == [partition]
    assert f"partition {partition} is served by a and b" in fleet_report.trouble(fleet)[0]
    fresh = replace(fleet, owned={**fleet.owned, partition: owned(0, "a", 50, age_s=0.2)})
    assert fresh.doubly_owned == [], "both heartbeats are older than the acquisition"
    assert fresh.unserved == []
    silent = replace(fleet, ages_s={**fleet.ages_s, "uid-b": 7.0})
    assert silent.doubly_owned == []


def test_an_owner_that_lives_and_does_not_list_a_partition_does_not_serve_it() -> None:
    fleet = snapshot()
    lazy = msgspec.structs.replace(fleet.heartbeats["uid-a"], partitions=[])
    fleet = replace(fleet, heartbeats={**fleet.heartbeats, "uid-a": lazy})
    assert fleet.unserved == [p for p, one in fleet.owned.items() if one.record.pod_uid == "uid-a"]
    assert fleet.unowned == []
    assert fleet_report.trouble(fleet) == [
        f"owned, but not served by their owners: {numbers(fleet.unserved)}"
    ]


def test_a_partition_moves_while_its_owner_is_not_the_one_that_the_ring_names() -> None:
    fleet = snapshot()
    alone = replace(fleet, layout=layout(1))
    theirs = [p for p, one in fleet.owned.items() if one.record.owner == "defender-1"]
    assert theirs
    assert alone.moving == theirs
    assert replace(alone, layout=None).moving == []


def test_vacancies_silent_holders_and_a_missing_leader_are_trouble_and_a_freeze_is_none() -> None:
    fleet = snapshot()
    vacant = replace(fleet, layout=layout(3))
    assert vacant.vacancies == ["defender-2"]
    assert fleet_report.trouble(vacant) == ["in the ring, and held by nobody: defender-2"]
    (row,) = [row for row in fleet_report.members(vacant) if row.state == "vacant"]
    assert (row.stable_id, row.pod) == ("defender-2", "")
    silent = replace(fleet, ages_s={**fleet.ages_s, "uid-b": 8.0})
    assert "holders that are silent: defender-1" in fleet_report.trouble(silent)
    assert fleet_report.trouble(replace(fleet, leader=None)) == ["nobody leads: the ring does not change"]
    lost = replace(fleet, leader=LeaderSeen(mass_loss=True))
    assert "too many holders are silent" in fleet_report.trouble(lost)[0]
    assert fleet_report.trouble(replace(fleet, frozen=Frozen("me", NOW))) == []
    broken = replace(fleet, layout=None, ring_problem="no JSON")
    assert fleet_report.trouble(broken) == ["the ring's record cannot be used: no JSON"]


def test_a_history_that_is_down_is_trouble_and_one_that_is_being_read_is_a_remark() -> None:
    fleet = snapshot()

    def with_loads(**loads: Load) -> Snapshot:
        """The loads by pod."""
        changed = {
            uid: msgspec.structs.replace(one, load=loads.get(one.pod_name, one.load))
            for uid, one in fleet.heartbeats.items()
        }
        return replace(fleet, heartbeats=changed)

    both = with_loads(a=Load(history_down=True, rebuild_left=1234), b=Load(rebuild_left=1))
    assert fleet_report.trouble(both) == ["the history is down, reports wait: defender-0"]
    first, second = fleet_report.members(both)
    assert (first.history_down, first.rebuild_left) == (True, 1234)
    assert first.remark == "history is down; rebuilding: 1,234 chambers left"
    assert (second.history_down, second.rebuild_left) == (False, 1)
    assert second.remark == "rebuilding: 1 chamber left"
    every = with_loads(a=Load(history_down=True), b=Load(history_down=True))
    assert fleet_report.trouble(every) == ["the history is down, reports wait: defender-0, defender-1"]
    silent = replace(every, ages_s={**fleet.ages_s, "uid-a": 9.0})
    assert "the history is down, reports wait: defender-1" in fleet_report.trouble(silent)
    row = fleet_report.members(silent)[0]
    assert (row.history_down, row.remark) == (False, "silent for longer than 6 s"), "what it said is old"


def test_a_holder_outside_the_ring_says_why() -> None:
    fleet = snapshot()
    green = claim(30, "g", track="green", joins=False)
    fleet = replace(
        fleet,
        claims={**fleet.claims, "defender-30": green},
        heartbeats={**fleet.heartbeats, "uid-g": beat("g", 30, track="green")},
        ages_s={**fleet.ages_s, "uid-g": 0.5},
    )

    def remark(**changes: Any) -> str:
        (row,) = [
            row for row in fleet_report.members(replace(fleet, **changes)) if row.stable_id == "defender-30"
        ]
        return row.remark

    assert remark() == "outside the ring: RING_JOIN=manual"
    assert remark(tracks=Tracks(in_ring={"green": False})) == "outside the ring, by an operator's word"
    assert remark(tracks=Tracks(in_ring={"green": True})) == "joins with the next change of the ring"
    leaving = beat("g", 30, State.LEAVING, track="green")
    assert remark(heartbeats={**fleet.heartbeats, "uid-g": leaving}) == "leaves the ring"


def test_standbys_are_the_living_pods_without_an_id_and_say_why() -> None:
    fleet = snapshot()
    idle = beat("c", None, State.STANDBY, standby="none is free", warm=True)
    fleet = replace(fleet, heartbeats={**fleet.heartbeats, "uid-c": idle})
    assert fleet_report.standbys(fleet) == [], "its heartbeats do not arrive any more"
    fleet = replace(fleet, ages_s={**fleet.ages_s, "uid-c": 1.0})
    (row,) = fleet_report.standbys(fleet)
    assert (row.pod, row.state, row.warm, row.remark) == ("c", "standby", True, "none is free")
    cold = msgspec.structs.replace(idle, warm=False)
    (row,) = fleet_report.standbys(replace(fleet, heartbeats={**fleet.heartbeats, "uid-c": cold}))
    assert row.remark == "none is free; not warm yet"


def test_of_a_view_ages_count_from_the_arrivals_here_and_epochs_from_the_revisions() -> None:
    view = ViewOfFleet(
        claims={"defender-0": Sight(claim(0, "a"), 3, 90.0)},
        beats={"uid-a": Sight(beat("a", 0), 8, 98.5)},
        records={
            1: Sight(Record(Ownership.OWNED, "defender-0", "uid-a"), 41, 95.0),
            2: Sight(Record(Ownership.RELEASED, "defender-0", "uid-a", epoch=12), 44, 95.0),
        },
        leader=Sight(b'{"pod_name": "a", "term": 7, "new": 1}', 7, 99.0),
    )
    fleet = of_view(view, partitions=4, silence_s=6.0, now=NOW, now_s=100.0)
    assert (fleet.age_s("uid-a"), fleet.lives("uid-a")) == (1.5, True)
    assert (fleet.owned[1].epoch, fleet.owned[2].epoch, fleet.owned[1].age_s) == (41, 12, 5.0)
    assert fleet.leader == LeaderSeen(pod_name="a", term=7)
    view.layout = layout(2, partitions=8)
    assert of_view(view, partitions=4, silence_s=6.0, now=NOW, now_s=100.0).partitions == 8


def test_a_leader_whose_record_cannot_be_read_leads_all_the_same() -> None:
    assert leader_seen(None) is None
    broken = leader_seen(b"?")
    assert broken is not None
    assert broken.remarks == ["its record cannot be read"]


def test_numbers_name_runs_and_count_the_rest() -> None:
    assert numbers([3, 0, 1, 2, 9]) == "0-3, 9"
    assert numbers([]) == ""
    assert numbers(range(0, 20, 2), most=3) == "0, 2, 4 and 7 more"


def test_since_when_a_partition_is_in_trouble_begins_anew_after_it_was_well() -> None:
    since = Since()
    since.note([1], 10.0)
    since.note([1, 2], 15.0)
    assert since.longest_s(20.0) == 10.0
    since.note([2], 21.0)
    assert since.longest_s(22.0) == 7.0
    since.note([1, 2], 23.0)
    since.note([1], 24.0)
    assert since.longest_s(24.0) == 1.0
    since.note([], 25.0)
    assert since.longest_s(26.0) == 0.0
