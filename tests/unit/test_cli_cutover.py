"""What a cutover and a canary would do, and what speaks against it: the pure part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from sights import beat, claim, layout, owned, snapshot

from runtime.bucket import Entry
from runtime.cli.command import NotDone, Target, target
from runtime.cli.cutover import Gaps, _check_pins, future, left_for, objections, only
from runtime.cli.operate import require_heirs
from runtime.cli.ring import planned
from runtime.config import Settings
from runtime.errors import InputError
from runtime.fleet_snapshot import Snapshot
from runtime.membership import State
from runtime.ownership_record import Record
from runtime.ownership_record import State as Ownership
from runtime.records import Frozen, Tracks

NAMES = Settings(partitions=4).names


def with_green(count: int = 2, *, warm: bool = True, state: State = State.ACTIVE) -> Snapshot:
    """The small fleet, and *count* holders of track green outside of its ring."""
    fleet = snapshot()
    pods = {30 + n: f"g{n}" for n in range(count)}
    green = {f"defender-{n}": claim(n, pod, track="green", joins=False) for n, pod in pods.items()}
    beats = {f"uid-{pod}": beat(pod, n, state, track="green", warm=warm) for n, pod in pods.items()}
    return replace(
        fleet,
        claims={**fleet.claims, **green},
        heartbeats={**fleet.heartbeats, **beats},
        ages_s={**fleet.ages_s, **dict.fromkeys(beats, 0.5)},
    )


def test_nothing_speaks_against_a_track_with_as_many_warm_holders_as_the_ring_has_members() -> None:
    assert objections(with_green(2), "green") == []
    assert objections(with_green(3), "green") == []
    assert objections(with_green(0), "stable") == [], "who is in the ring need not be called warm"


@pytest.mark.parametrize(
    ("fleet", "words"),
    [
        (with_green(0), "no living defender of track green holds an ID"),
        (replace(with_green(2), ages_s={"uid-a": 1.0}), "no living defender of track green"),
        (with_green(1), "1 of track green hold an ID, 1 of them warm; the ring has 2 members"),
        (with_green(2, warm=False), "2 of track green hold an ID, 0 of them warm"),
        (with_green(2, state=State.DRAINING), "0 of them warm"),
    ],
)
def test_a_cutover_to_too_few_is_refused_with_the_figures(fleet: Snapshot, words: str) -> None:
    (problem,) = objections(fleet, "green")
    assert words in problem


def test_a_frozen_ring_is_named_with_its_remedy() -> None:
    frozen = replace(with_green(), frozen=Frozen("me", snapshot().now))
    assert objections(frozen, "green") == ["the ring is frozen by me: defender unfreeze"]


def test_a_cutover_lets_one_track_in_and_every_other_known_one_out() -> None:
    fleet = replace(with_green(), tracks=Tracks({"old": True}, {"canary": ["E-1"]}))
    tracks = only(fleet, "green")
    assert tracks == Tracks({"canary": False, "green": True, "old": False, "stable": False})
    record = future(fleet, tracks, NAMES)
    assert sorted(record.members) == ["defender-30", "defender-31"]
    plan = planned(layout(2), record)
    assert len(plan.moves) == 4
    assert (plan.joins, plan.leaves) == (["defender-30", "defender-31"], ["defender-0", "defender-1"])


def test_holders_that_leave_are_not_in_the_ring_to_come() -> None:
    fleet = with_green(2, state=State.LEAVING)
    assert future(fleet, only(fleet, "green"), NAMES).members == {}


def test_a_cutover_is_done_when_the_ring_and_every_record_have_the_track() -> None:
    fleet = with_green()
    assert left_for(fleet, "green") == "the leader has not committed the ring yet"
    green = layout(2, track="green", first=30)
    fleet = replace(fleet, layout=green)
    assert left_for(fleet, "green") == "4 of 4 partitions left"
    pods = {"defender-30": (30, "g0"), "defender-31": (31, "g1")}
    taken = {p: owned(*pods[owner or ""], epoch=20 + p) for p, owner in enumerate(green.owners)}
    assert left_for(replace(fleet, owned={**taken, 2: fleet.owned[2]}), "green") == "1 of 4 partitions left"
    assert left_for(replace(fleet, owned=taken), "green") == ""


def entry(partition: int, state: Ownership) -> Entry:
    return Entry(f"partition.{partition}", msgspec.json.encode(Record(state, "defender-0", "u")), 1)


def test_gaps_are_measured_from_release_to_acquisition_and_takeovers_have_none() -> None:
    gaps = Gaps()
    for seen in (
        entry(1, Ownership.OWNED),
        entry(2, Ownership.RELEASED),
        Entry("partition.3", b"?", 1),
        Entry("ring", b"{}", 1),
        entry(2, Ownership.OWNED),
        entry(2, Ownership.OWNED),
    ):
        gaps.note(seen)
    assert len(gaps.closed_ms) == 1
    assert 0 <= gaps.closed_ms[0] < 1000


def test_a_partition_that_another_track_has_by_name_cannot_be_pinned_again() -> None:
    taken = NAMES.partition_of("E-1")
    tracks = Tracks(chambers={"canary": ["E-1"]})
    with pytest.raises(InputError, match=f"partition {taken} goes to track canary"):
        _check_pins(tracks, "green", [taken], NAMES)
    _check_pins(tracks, "canary", [taken], NAMES)


def test_a_pod_is_found_by_its_id_its_name_or_its_uid() -> None:
    fleet = snapshot()
    expected = Target("uid-a", "a", "stable", "defender-0")
    assert [target(fleet, whom) for whom in ("defender-0", "a", "uid-a")] == [expected] * 3
    idle = beat("c", None, State.STANDBY)
    fleet = replace(fleet, heartbeats={**fleet.heartbeats, "uid-c": idle})
    assert target(fleet, "c").stable_id is None


def test_whom_nobody_knows_is_an_error_that_lists_who_is_there() -> None:
    with pytest.raises(InputError, match="there are defender-0, defender-1"):
        target(snapshot(), "x")
    with pytest.raises(InputError, match="to take it out: defender forget defender-2"):
        target(snapshot(layout=layout(3)), "defender-2")
    twins = {**snapshot().claims, "defender-7": msgspec.structs.replace(claim(7, "a"), pod_uid="uid-2")}
    with pytest.raises(InputError, match=r"2 pods are called a: name one by its UID \(uid-a, uid-2\)"):
        target(snapshot(claims=twins), "a")


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, False),
        ({"ages_s": {"uid-a": 1.0, "uid-b": 9.0}}, True),
        ({"tracks": Tracks({"stable": False})}, True),
    ],
)
def test_the_last_one_that_could_serve_is_not_drained(changes: dict[str, Any], refused: bool) -> None:
    fleet = snapshot(**changes)
    pod = target(fleet, "defender-0")
    if refused:
        with pytest.raises(NotDone, match="nobody could take over; start another defender first"):
            require_heirs(fleet, pod)
        standby = beat("c", None, State.STANDBY)
        fleet = replace(fleet, heartbeats={**fleet.heartbeats, "uid-c": standby})
        fleet = replace(fleet, ages_s={**fleet.ages_s, "uid-c": 0.1})
    require_heirs(fleet, pod)
