"""``defender ring``: shares, the picture, and what a change would move."""

from __future__ import annotations

import re
from io import StringIO

import msgspec
import pytest
from rich.console import Console, RenderableType
from sights import claim, snapshot

from runtime.cli.ring import _changed, committed, letters, picture, plan_lines, planned, rendered, shares
from runtime.errors import InputError
from runtime.fleet_report import report
from runtime.records import Layout, Member, RingRecord


def text_of(shown: RenderableType, *, colour: bool = False) -> str:
    console = Console(file=StringIO(), width=100, no_color=not colour, force_terminal=colour, highlight=False)
    console.print(shown)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def ring_of(count: int, partitions: int, **more: object) -> Layout:
    usual = RingRecord(3, partitions, {f"defender-{n}": Member("stable") for n in range(count)})
    return Layout(msgspec.structs.replace(usual, **more))


def test_the_picture_has_a_letter_a_partition_sixty_four_a_line_and_signs_below() -> None:
    layout = ring_of(3, 130)
    lines = text_of(picture(layout, {1: "!", 64: object(), 129: "2"})).splitlines()
    cells = "".join(line[6:].rstrip() for line in (lines[0], lines[2], lines[4]))
    assert len(cells) == 130
    marks = letters(layout.members)
    assert cells == "".join(marks[owner or ""][0] for owner in layout.owners)
    assert [line[:6] for line in (lines[0], lines[2], lines[4])] == ["    0 ", "   64 ", "  128 "]
    assert (lines[1][6:].rstrip(), lines[3][6:].rstrip(), lines[5][6:].rstrip()) == (" !", "^", " 2")
    assert lines[-1].split("   ") == ["", "", "^ moves", "! has no live owner", "2 has two owners"]


def test_members_have_two_letters_each_where_one_letter_would_not_tell_them_apart() -> None:
    for count in (1, 52, 53, 200):
        names = [f"defender-{n}" for n in range(count)]
        marks = [mark for mark, _ in letters(names).values()]
        assert len(set(marks)) == count
        assert {len(mark) for mark in marks} == {1 if count <= 52 else 2}
    lines = text_of(picture(ring_of(60, 64), {5: "^"})).splitlines()
    assert [len(line.rstrip()) for line in (lines[0], lines[2])] == [6 + 64, 6 + 64]
    assert lines[1].index("^") == 6 + 10


def test_colour_is_an_extra_that_changes_no_letter() -> None:
    layout = ring_of(3, 64)
    plain, coloured = text_of(picture(layout, {3: "!"})), text_of(picture(layout, {3: "!"}), colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_shares_count_partitions_against_the_mean_of_the_weights_and_the_cap() -> None:
    layout = ring_of(2, 64, members={"defender-0": Member("stable", 3.0), "defender-1": Member("stable")})
    fleet = snapshot(layout=layout, partitions=64)
    one, two = shares(fleet, layout)
    assert one.partitions + two.partitions == 64
    assert one.of_mean == pytest.approx(one.partitions / 48)
    assert (one.cap, two.cap) == (53, 18)
    for share in (one, two):
        assert share.partitions <= share.cap
        steps = [step for p in range(64) for step in layout.explain(p) if step.member == share.stable_id]
        assert {step.cap for step in steps} == {share.cap}, "as the ring has it"
    assert (one.pod, two.pod) == ("a", "b")


def test_a_pinned_track_has_its_share_of_its_own_partitions() -> None:
    members = {"defender-0": Member("stable"), "defender-9": Member("canary")}
    layout = ring_of(2, 64, members=members, pins={"canary": [3, 7]})
    stable, canary = shares(snapshot(layout=layout, partitions=64), layout)
    assert (stable.partitions, stable.of_mean) == (62, 1.0)
    assert (canary.partitions, canary.of_mean, canary.pod) == (2, 1.0, "")


def test_a_plan_names_exactly_the_partitions_whose_owner_changes() -> None:
    layout = ring_of(3, 64)
    fleet = snapshot(layout=layout, partitions=64)
    plan = planned(layout, _changed(fleet, layout, ["defender-1"], ["defender-7"]))
    assert (plan.joins, plan.leaves) == (["defender-7"], ["defender-1"])
    assert plan.members == ["defender-0", "defender-2", "defender-7"]
    gone = [p for p, owner in enumerate(layout.owners) if owner == "defender-1"]
    assert set(gone) <= set(plan.moves)
    assert all(one == layout.owners[p] for p, (one, _) in plan.moves.items())
    lines = [str(line) for line in plan_lines(plan)]
    assert lines[:4] == [
        "members  3 after the change",
        "enter    defender-7",
        "leave    defender-1",
        f"moves    {len(plan.moves)} partitions",
    ]


def test_a_joining_id_brings_the_track_and_the_weight_of_its_claim() -> None:
    layout = ring_of(1, 8)
    claims = {"defender-30": claim(30, "g", track="green", weight=2.5)}
    record = _changed(snapshot(layout=layout, partitions=8, claims=claims), layout, [], ["defender-30"])
    assert record.members["defender-30"] == Member("green", 2.5)


def test_an_id_that_is_not_there_or_already_there_is_an_error_that_names_the_members() -> None:
    layout = ring_of(2, 8)
    with pytest.raises(InputError, match="not in the ring; its members are defender-0, defender-1"):
        _changed(snapshot(), layout, ["defender-5"], [])
    with pytest.raises(InputError, match="in the ring already"):
        _changed(snapshot(), layout, [], ["defender-1"])
    with pytest.raises(InputError, match="no ring is committed yet"):
        committed(snapshot(layout=None))


def test_the_table_names_every_member_and_marks_vacancies() -> None:
    layout = ring_of(3, 64)
    fleet = snapshot(layout=layout, partitions=64)
    text = text_of(rendered(fleet, layout, report(fleet)))
    assert text.splitlines()[0] == "version 3, 3 members, 64 partitions, algorithm 1"
    (row,) = [line for line in text.splitlines() if line.startswith("c  defender-2")]
    assert row.split()[-1] == "vacant"
