"""What the leader does about the ring, on a clock that the tests turn."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from runtime.names import Names
from runtime.policy import Commit, Depose, Forgotten, Holder, Limits, Order, OutageWatch, Policy, Situation
from runtime.records import Layout, Member, RingRecord, Tracks

NAMES = Names(partitions=16)
TICK_S = 0.25


def named(*numbers: int) -> list[str]:
    return [f"defender-{number}" for number in numbers]


class Fleet:
    """Holders, a ring and a leader; commits, depositions and forgotten words take effect at once."""

    def __init__(self, *numbers: int, settled: bool = False, **limits: Any) -> None:
        self.now_s = 1000.0
        self.limits = Limits(**limits)
        self.policy = Policy(NAMES, self.limits)
        self.situation = Situation(self.now_s, {})
        self.orders: list[tuple[float, Order]] = []
        self.claim(*numbers)
        if settled:
            members = {name: Member("stable") for name in named(*numbers)}
            self.see(ring=RingRecord(1, NAMES.partitions, members))
            self.step()

    def see(self, **changes: Any) -> None:
        self.situation = self.situation._replace(**changes)

    def claim(self, *numbers: int, **fields: Any) -> None:
        added = {
            name: Holder(name, f"uid-{name}", claim_revision=index + 1, **fields)
            for index, name in enumerate(named(*numbers))
        }
        self.see(holders={**self.situation.holders, **added})

    def change(self, *numbers: int, **fields: Any) -> None:
        changed = {name: self.situation.holders[name]._replace(**fields) for name in named(*numbers)}
        self.see(holders={**self.situation.holders, **changed})

    def lose(self, *numbers: int) -> None:
        gone = named(*numbers)
        self.see(holders={name: one for name, one in self.situation.holders.items() if name not in gone})

    def step(self) -> list[Order]:
        self.see(now_s=self.now_s)
        orders = self.policy.step(self.situation)
        for order in orders:
            self.orders.append((self.now_s, order))
            match order:
                case Commit():
                    self.see(ring=order.record, is_stored=True)
                case Depose():
                    self.lose(int(order.stable_id.rpartition("-")[2]))
                case Forgotten():
                    self.see(forget=frozenset(self.situation.forget) - {order.stable_id})
        return orders

    def run(self, seconds: float) -> list[Order]:
        """The orders of the next *seconds*, a step each 0.25 s. Whoever is silent gets more so."""
        found: list[Order] = []
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            holders = self.situation.holders
            silent = [name for name, one in holders.items() if one.silent_s > 0]
            self.change(*(int(name.rpartition("-")[2]) for name in silent))
            self.see(
                holders={
                    name: one._replace(silent_s=one.silent_s + TICK_S if one.silent_s else 0.0)
                    for name, one in holders.items()
                }
            )
            found += self.step()
        return found

    def commits(self) -> list[tuple[float, RingRecord]]:
        return [(when_s - 1000.0, o.record) for when_s, o in self.orders if isinstance(o, Commit)]

    @property
    def members(self) -> list[str]:
        ring = self.situation.ring
        return sorted(ring.members) if ring is not None else []

    @property
    def remark(self) -> str:
        return " | ".join(self.policy.remarks)


def test_the_first_ring_waits_until_no_more_come_and_is_one_version() -> None:
    fleet = Fleet(0)
    fleet.step()
    for number in (1, 2):
        fleet.run(0.5)
        fleet.claim(number)
    fleet.run(5)
    assert [(when_s, len(record.members)) for when_s, record in fleet.commits()] == [(2.25, 3)]
    assert fleet.commits()[0][1].version == 1


def test_the_last_holder_of_max_defenders_ends_the_waiting() -> None:
    fleet = Fleet(0, 1, holders_max=3)
    fleet.step()
    assert fleet.run(0.5) == []
    fleet.claim(2)
    fleet.run(TICK_S)
    assert fleet.members == named(0, 1, 2)


def test_newcomers_prolong_the_waiting_to_three_times_its_length_and_no_more() -> None:
    fleet = Fleet(0, settled=True)
    for number in range(1, 20):
        fleet.claim(number)
        fleet.run(0.5)
    first_s, first = fleet.commits()[0]
    assert first_s == pytest.approx(3.25)
    assert len(first.members) == 8


def test_fifteen_that_join_are_one_version() -> None:
    fleet = Fleet(*range(30), settled=True)
    fleet.claim(*range(30, 45))
    fleet.run(5)
    assert [len(record.members) for _, record in fleet.commits()] == [45]
    assert fleet.commits()[0][1].reason.startswith("defender-30, defender-31")


def test_ten_that_leave_together_are_one_version_and_wait_less() -> None:
    fleet = Fleet(*range(30), settled=True)
    fleet.change(*range(20, 25), leaving=True)
    fleet.run(TICK_S)
    fleet.change(*range(25, 30), leaving=True)
    fleet.run(5)
    assert [(when_s, len(record.members)) for when_s, record in fleet.commits()] == [(1.0, 20)]


def test_what_is_due_takes_along_who_waits() -> None:
    fleet = Fleet(0, 1, 2, settled=True)
    fleet.claim(3)
    fleet.change(0, leaving=True)
    fleet.run(5)
    assert [sorted(record.members) for _, record in fleet.commits()] == [named(1, 2, 3)]


def test_a_vacancy_stays_for_the_hold_down_and_then_leaves() -> None:
    fleet = Fleet(0, 1, 2, settled=True)
    fleet.lose(1)
    fleet.run(10)
    assert fleet.commits() == []
    fleet.run(1)
    assert fleet.members == named(0, 2)
    assert fleet.commits()[0][1].version == 2


def test_a_vacancy_that_is_claimed_in_time_changes_nothing_and_its_clock_starts_anew() -> None:
    fleet = Fleet(0, 1, 2, settled=True)
    fleet.lose(1)
    fleet.run(9)
    fleet.claim(1)
    fleet.run(1)
    fleet.lose(1)
    fleet.run(9)
    assert fleet.commits() == []


def test_a_vacancy_of_one_that_was_leaving_goes_at_once() -> None:
    fleet = Fleet(0, 1, 2, settled=True)
    fleet.change(1, leaving=True)
    fleet.step()
    fleet.lose(1)
    fleet.run(1)
    assert fleet.members == named(0, 2)


def test_a_forgotten_vacancy_goes_at_once_and_the_word_after_it() -> None:
    fleet = Fleet(0, 1, 2, settled=True)
    fleet.lose(1)
    fleet.see(forget=frozenset(named(1)))
    fleet.run(1)
    assert fleet.members == named(0, 2)
    assert fleet.situation.forget == frozenset()


def test_a_word_to_forget_an_id_that_lives_on_is_dropped_after_a_while() -> None:
    fleet = Fleet(0, 1, settled=True)
    fleet.see(forget=frozenset(named(1)))
    fleet.run(9)
    assert fleet.situation.forget
    fleet.run(2)
    assert not fleet.situation.forget
    assert fleet.members == named(0, 1)


def test_a_paused_leader_does_not_count_its_pause_as_vacancy() -> None:
    fleet = Fleet(0, 1, 2, settled=True)
    fleet.lose(1)
    fleet.run(1)
    fleet.now_s += 3600
    fleet.run(2)
    assert fleet.commits() == []


def test_never_is_an_empty_ring_written() -> None:
    fleet = Fleet(0, 1, settled=True)
    fleet.change(0, 1, leaving=True)
    fleet.run(1)
    fleet.lose(0, 1)
    fleet.run(60)
    assert fleet.commits() == []
    assert "stays as it is" in fleet.remark


def test_who_comes_back_to_a_dead_fleet_finds_the_ring_as_it_was() -> None:
    fleet = Fleet(0, 1, 2, settled=True)
    fleet.lose(0, 1, 2)
    fleet.run(60)
    fleet.claim(1)
    fleet.run(9)
    fleet.claim(0)
    assert fleet.commits() == []
    fleet.run(5)
    assert fleet.members == named(0, 1)


def test_a_silent_holder_is_deposed_and_then_a_vacancy() -> None:
    fleet = Fleet(0, 1, 2, settled=True)
    fleet.run(20)
    fleet.change(2, silent_s=TICK_S)
    fleet.run(5.5)
    assert fleet.orders == []
    (order,) = fleet.run(0.25)
    assert order == Depose("defender-2", "uid-defender-2", 3, 6.0)
    fleet.run(11)
    assert fleet.members == named(0, 1)


def test_of_two_holders_the_silent_one_is_deposed() -> None:
    fleet = Fleet(0, 1, settled=True)
    fleet.run(20)
    fleet.change(1, silent_s=TICK_S)
    assert [type(order) for order in fleet.run(7)] == [Depose]


def test_a_new_leader_waits_as_long_as_if_all_had_spoken_when_it_began() -> None:
    fleet = Fleet(0, 1, 2, settled=True)
    fleet.change(2, silent_s=math.inf)
    assert fleet.run(5.75) == []
    assert [type(order) for order in fleet.run(TICK_S)] == [Depose]


@pytest.mark.parametrize(("lost", "holders"), [(2, 5), (4, 11), (2, 2), (8, 8)])
def test_many_that_fall_silent_within_a_heartbeat_are_not_deposed_one_by_one(lost: int, holders: int) -> None:
    fleet = Fleet(*range(holders), settled=True)
    fleet.run(20)
    for number in range(lost):
        fleet.change(number, silent_s=0.01 + 2 * number / lost)
    assert fleet.run(30) == []
    assert fleet.policy.mass_loss
    assert f"{lost} of {holders}" in fleet.remark
    fleet.change(*range(lost), silent_s=0.0)
    fleet.run(1)
    assert not fleet.policy.mass_loss
    assert fleet.orders == []


def test_a_third_that_falls_silent_is_deposed() -> None:
    fleet = Fleet(*range(9), settled=True)
    fleet.run(20)
    fleet.change(0, 1, 2, silent_s=0.01)
    assert len(fleet.run(6.5)) == 3


def test_in_a_mass_loss_nothing_is_committed_and_vacancies_do_not_age() -> None:
    fleet = Fleet(*range(6), settled=True)
    fleet.run(20)
    fleet.lose(5)
    fleet.run(4)
    fleet.change(0, 1, 2, silent_s=5.75)
    fleet.claim(7)
    assert fleet.run(20) == []
    fleet.change(0, 1, 2, silent_s=0.0)
    fleet.run(2)
    assert fleet.members == named(*range(6), 7)
    fleet.run(5)
    assert fleet.members == named(*range(5), 7)


def test_after_a_mass_loss_those_whose_claims_expired_leave_after_the_hold_down() -> None:
    fleet = Fleet(*range(4), settled=True)
    fleet.run(20)
    fleet.change(2, 3, silent_s=5.75)
    fleet.run(24)
    fleet.lose(2, 3)
    fleet.run(10)
    assert fleet.commits() == []
    fleet.run(1)
    assert fleet.members == named(0, 1)


def test_while_frozen_nothing_is_written_and_afterwards_all_at_once() -> None:
    fleet = Fleet(0, 1, 2, 3, settled=True)
    fleet.run(20)
    fleet.see(frozen="ann: inventory", forget=frozenset(named(3)))
    fleet.lose(3)
    fleet.claim(4)
    fleet.change(0, leaving=True)
    fleet.change(1, silent_s=5.0)
    assert fleet.run(30) == []
    assert "ann: inventory" in fleet.remark
    fleet.change(1, silent_s=0.0)
    fleet.see(frozen="")
    fleet.run(1)
    assert fleet.members == named(1, 2, 4)


def test_in_an_outage_nothing_is_written() -> None:
    fleet = Fleet(0, 1, 2, settled=True)
    fleet.run(20)
    fleet.see(outage=True)
    fleet.lose(2)
    fleet.claim(3)
    fleet.change(1, silent_s=5.0)
    assert fleet.run(30) == []
    assert "outage" in fleet.remark


def test_who_fell_silent_when_our_own_heartbeat_was_missing_is_given_silence_s_anew() -> None:
    """Writes were refused for 2.6 s: that cost us one heartbeat, another pod two, and it lives."""
    fleet = Fleet(0, 1, 2, settled=True)
    fleet.run(20)
    fleet.change(1, silent_s=5.0)
    fleet.see(steady_s=5.75)
    assert fleet.run(2) == []
    assert "a heartbeat of our own was missing" in fleet.remark
    fleet.see(steady_s=6.0)
    assert [type(order) for order in fleet.run(TICK_S)] == [Depose]


def test_after_an_outage_nobody_is_declared_dead_but_who_comes_is_let_in() -> None:
    fleet = Fleet(0, 1, 2, settled=True)
    fleet.run(20)
    fleet.see(aftermath=True)
    fleet.lose(2)
    fleet.claim(3)
    fleet.change(1, silent_s=5.0)
    fleet.run(25)
    assert [type(order) for _, order in fleet.orders] == [Commit]
    assert fleet.members == named(0, 1, 2, 3)
    assert "after an outage" in fleet.remark
    fleet.see(aftermath=False)
    fleet.run(0.25)
    assert isinstance(fleet.orders[-1][1], Depose)


def green(fleet: Fleet, *numbers: int) -> None:
    fleet.claim(*numbers, track="green", joins=False)


def cutover(to: str, away: str) -> Tracks:
    return Tracks(in_ring={to: True, away: False})


def test_a_track_with_ring_join_manual_stays_out_until_the_cutover_which_is_one_version_at_once() -> None:
    fleet = Fleet(0, 1, settled=True)
    green(fleet, 30, 31, 32)
    assert fleet.run(30) == []
    fleet.see(tracks=cutover("green", "stable"))
    fleet.run(TICK_S)
    assert fleet.members == named(30, 31, 32)
    fleet.see(tracks=cutover("stable", "green"))
    fleet.run(TICK_S)
    assert fleet.members == named(0, 1)
    assert [record.version for _, record in fleet.commits()] == [2, 3]


def test_a_cutover_takes_out_vacancies_of_the_old_track_too() -> None:
    fleet = Fleet(0, 1, settled=True)
    green(fleet, 30)
    fleet.lose(1)
    fleet.see(tracks=cutover("green", "stable"))
    fleet.run(TICK_S)
    assert fleet.members == named(30)


def test_a_cutover_to_a_track_without_holders_is_refused_and_the_ring_goes_on() -> None:
    fleet = Fleet(0, 1, 2, settled=True)
    fleet.see(tracks=cutover("green", "stable"))
    fleet.run(5)
    assert fleet.commits() == []
    assert "cutover refused: nobody of track green" in fleet.remark
    fleet.change(2, leaving=True)
    fleet.run(1)
    assert fleet.members == named(0, 1)


def test_a_refused_cutover_waits_for_the_pods_to_settle_when_they_come() -> None:
    fleet = Fleet(0, 1, settled=True)
    fleet.see(tracks=cutover("green", "stable"))
    fleet.run(5)
    green(fleet, 30)
    fleet.run(0.75)
    green(fleet, 31)
    fleet.run(5)
    assert [sorted(record.members) for _, record in fleet.commits()] == [named(30, 31)]


def test_a_new_leader_finishes_a_cutover() -> None:
    fleet = Fleet(0, 1, settled=True)
    green(fleet, 30, 31)
    fleet.policy = Policy(NAMES, fleet.limits)
    fleet.see(tracks=cutover("green", "stable"))
    fleet.run(2)
    assert [sorted(record.members) for _, record in fleet.commits()] == [named(30, 31)]


def test_a_new_leader_takes_a_track_out_that_its_predecessor_left_in() -> None:
    fleet = Fleet(0, settled=True)
    fleet.claim(60, track="canary")
    fleet.run(5)
    assert fleet.members == named(0, 60)
    fleet.policy = Policy(NAMES, fleet.limits)
    fleet.see(tracks=Tracks(in_ring={"canary": False}))
    fleet.run(2)
    assert fleet.members == named(0)


def test_a_canary_gets_the_named_chambers_and_others_stay_where_they_are() -> None:
    fleet = Fleet(0, 1, settled=True)
    fleet.claim(60, track="canary", joins=False)
    fleet.run(5)
    before = fleet.situation.ring
    fleet.see(tracks=Tracks(chambers={"canary": ["ETCH-01", "ETCH-02"]}))
    fleet.run(TICK_S)
    after = fleet.situation.ring
    assert before is not None
    assert after is not None
    pinned = {NAMES.partition_of("ETCH-01"), NAMES.partition_of("ETCH-02")}
    assert Layout(after).partitions_of("defender-60") == sorted(pinned)
    fleet.see(tracks=Tracks())
    fleet.run(TICK_S)
    assert fleet.members == named(0, 1)
    assert fleet.situation.ring is not None
    assert fleet.situation.ring.pins == {}


def test_a_canary_alone_makes_no_ring() -> None:
    fleet = Fleet()
    fleet.claim(60, track="canary")
    fleet.see(tracks=Tracks(chambers={"canary": ["ETCH-01"]}))
    assert fleet.run(20) == []
    assert "chambers of their own" in fleet.remark


def test_members_with_chambers_of_their_own_do_not_replace_the_others() -> None:
    fleet = Fleet(0, settled=True)
    fleet.claim(60, track="canary")
    fleet.see(tracks=Tracks(chambers={"canary": ["ETCH-01"]}))
    fleet.run(5)
    fleet.lose(0)
    fleet.run(30)
    fleet.claim(61, track="canary")
    fleet.run(30)
    assert fleet.members == named(0, 60, 61)


def test_a_changed_weight_is_committed() -> None:
    fleet = Fleet(0, 1, settled=True)
    fleet.change(1, weight=2.0)
    fleet.run(2)
    assert fleet.situation.ring is not None
    assert fleet.situation.ring.members["defender-1"] == Member("stable", 2.0)


def test_a_record_that_vanished_is_written_again_with_the_next_version() -> None:
    fleet = Fleet(0, 1, 2, settled=True)
    fleet.lose(2)
    fleet.run(9)
    fleet.see(is_stored=False)
    fleet.run(TICK_S)
    ((_, record),) = fleet.commits()
    assert (record.version, sorted(record.members)) == (2, named(0, 1, 2))
    fleet.run(9)
    assert len(fleet.commits()) == 1


@pytest.mark.parametrize(
    ("wrong", "named_"), [({"algorithm": 99}, "algorithm is 99"), ({"partitions": 32}, "PARTITIONS: is 16")]
)
def test_a_ring_of_another_kind_is_never_overwritten(wrong: dict[str, int], named_: str) -> None:
    fleet = Fleet(0, 1, settled=True)
    assert fleet.situation.ring is not None
    fleet.see(ring=msgspec.structs.replace(fleet.situation.ring, **wrong))
    fleet.claim(2)
    assert fleet.run(30) == []
    assert named_ in fleet.remark


def test_an_order_comes_again_until_its_effect_is_seen() -> None:
    fleet = Fleet(0, 1, settled=True)
    fleet.claim(2)
    fleet.step()
    situation = fleet.situation
    first = fleet.policy.step(situation._replace(now_s=fleet.now_s + 2))
    again = fleet.policy.step(situation._replace(now_s=fleet.now_s + 2.25))
    assert first == again
    assert isinstance(first[0], Commit)


def test_an_outage_is_when_the_own_heartbeat_does_not_come_back_and_has_an_aftermath() -> None:
    watch = OutageWatch(missed_s=3, limit_s=5, after_s=30)
    watch.step(100, math.inf)
    watch.step(104, math.inf)
    assert not watch.outage
    watch.step(106, math.inf)
    assert watch.outage
    watch.step(107, 0.5)
    assert (watch.outage, watch.aftermath) == (False, True)
    watch.step(135.9, 1)
    assert watch.aftermath
    watch.step(136.5, 1)
    assert not watch.aftermath


def test_a_heartbeat_of_our_own_that_was_missing_is_known_until_it_is_long_ago() -> None:
    watch = OutageWatch(missed_s=3, limit_s=5, after_s=30)
    watch.step(100, 0.5)
    watch.step(102.5, 3.0)
    assert watch.steady_s == math.inf
    watch.step(102.75, 3.25)
    assert watch.steady_s == 0
    watch.step(104, 0.5)
    assert watch.steady_s == 0.5
    watch.step(106, 0.25)
    watch.step(108, 0.25)
    assert (watch.steady_s, watch.outage, watch.aftermath) == (4.5, False, False)


def test_a_heartbeat_that_was_missing_between_two_looks_is_noticed() -> None:
    watch = OutageWatch(missed_s=3, limit_s=5, after_s=30)
    watch.step(100, 0.0)
    watch.step(104.25, 0.25)
    assert watch.steady_s == 0.25


def test_a_start_is_no_outage() -> None:
    watch = OutageWatch(missed_s=3, limit_s=5, after_s=30)
    watch.step(100, math.inf)
    watch.step(101, 0.0)
    assert not watch.outage
    assert not watch.aftermath
