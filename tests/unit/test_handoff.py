"""The plan of handoffs, step by step: what a pod does with one partition, given what it sees."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from runtime.handoff import (
    ASKS_MAX,
    REFRESH_S,
    RETRY_S,
    UNSEEN_S,
    VACANT,
    Abandon,
    Acquire,
    Ask,
    Copy,
    Disown,
    Forget,
    Handoffs,
    Phase,
    Restore,
    Standing,
    Yield,
)
from runtime.ownership_record import Owner, Record, acquire, release
from runtime.records import Layout, Member, RingRecord

ME, OTHER = Owner("defender-0", "uid-0"), Owner("defender-1", "uid-1")
HANDOFF_S = 20.0


@dataclass
class Seen:
    """A fleet as one pod sees it."""

    members: dict[str, Member]
    partitions: int = 1
    standings: dict[int, Standing] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    prospect: Layout | None = None

    @property
    def layout(self) -> Layout | None:
        return Layout(RingRecord(1, self.partitions, self.members)) if self.members else None

    def standing(self, partition: int) -> Standing:
        return self.standings.get(partition, VACANT)

    def holder(self, stable_id: str) -> str | None:
        return self.holders.get(stable_id)

    def is_gone(self, pod_uid: str) -> bool:
        return pod_uid in self.gone

    def holds_claim(self, pod_uid: str) -> bool:
        return pod_uid in self.holders.values()


def ours(partitions: int = 1) -> Seen:
    """A fleet whose ring gives everything to us."""
    seen = Seen({ME.stable_id: Member("t")}, partitions)
    seen.holders = {ME.stable_id: ME.pod_uid, OTHER.stable_id: OTHER.pod_uid}
    return seen


def theirs(partitions: int = 1) -> Seen:
    """A fleet whose ring gives everything to another."""
    seen = ours(partitions)
    seen.members = {OTHER.stable_id: Member("t")}
    return seen


def handoffs(workers: int = 1) -> Handoffs:
    made = Handoffs(ME, workers, HANDOFF_S)
    for worker in range(workers):
        made.worker_ready(worker)
    return made


def owned(owner: Owner, revision: int = 5) -> Standing:
    return Standing(acquire(Record(position=70), owner), revision)


def serving(seen: Seen, made: Handoffs | None = None) -> Handoffs:
    """Handoffs that serve every partition, with our record seen."""
    made = made or handoffs()
    wanted = ours(seen.partitions)
    for deed in made.plan(wanted, 0.0):
        assert isinstance(deed, Acquire)
        made.acquired(deed.partition, 9)
        made.parts[deed.partition].assigned = True
        seen.standings[deed.partition] = owned(ME, 9)
    made.plan(Seen(wanted.members, seen.partitions, seen.standings, wanted.holders), 0.0)
    return made


def test_a_free_partition_of_ours_is_acquired_at_once_by_its_revision() -> None:
    for standing in (VACANT, Standing(release(acquire(Record(), OTHER), 4, 33), 6), owned(ME, 7)):
        seen = ours()
        seen.standings[0] = standing
        made = handoffs()
        assert made.plan(seen, 0.0) == [Acquire(0, 0, standing, warm=False)]
        assert made.plan(seen, 0.0) == []
        assert made.acquired(0, 8) == 0
        assert made.parts[0].phase is Phase.SERVING


def test_what_a_living_pod_owns_is_copied_then_asked_for_then_acquired() -> None:
    seen, made = ours(), handoffs()
    seen.standings[0] = owned(OTHER)
    assert made.plan(seen, 0.0) == [Copy(0, 0)]
    assert made.plan(seen, 0.0) == []
    made.copied(0)
    assert made.plan(seen, 1.0) == [Ask(0, OTHER.pod_uid)]
    assert made.plan(seen, 1.0) == []
    released = Standing(release(seen.standings[0].record, 5, 80, ME.stable_id), 6)
    assert made.yielded(0, released) == Acquire(0, 0, released, warm=True)
    assert made.yielded(0, released) is None


def test_a_refusal_and_a_silence_are_tried_again_after_a_moment() -> None:
    seen, made = ours(), handoffs()
    seen.standings[0] = owned(OTHER)
    made.plan(seen, 0.0)
    made.copied(0)
    made.plan(seen, 1.0)
    made.refused(0, 1.0)
    assert made.plan(seen, 1.0 + RETRY_S / 2) == []
    assert made.plan(seen, 1.0 + RETRY_S) == [Ask(0, OTHER.pod_uid)]


def test_an_owner_without_a_claim_that_does_not_listen_is_gone() -> None:
    seen, made = ours(), handoffs()
    seen.standings[0] = owned(OTHER)
    made.plan(seen, 0.0)
    made.copied(0)
    made.plan(seen, 1.0)
    made.unreachable(0, OTHER.pod_uid, 1.0)
    assert made.plan(seen, 1.0) == []  # it holds a claim: it may only be connecting again
    del seen.holders[OTHER.stable_id]
    assert made.plan(seen, 1.05) == [Acquire(0, 0, seen.standings[0], warm=True)]


def test_a_partition_whose_owner_dies_while_it_is_copied_is_acquired() -> None:
    seen, made = ours(), handoffs()
    seen.standings[0] = owned(OTHER)
    made.plan(seen, 0.0)
    seen.gone.add(OTHER.pod_uid)
    assert made.plan(seen, 0.1) == [Acquire(0, 0, seen.standings[0], warm=False)]


def test_only_some_are_asked_for_at_the_same_time() -> None:
    seen, made = ours(12), handoffs()
    seen.standings = {p: owned(OTHER) for p in range(12)}
    assert len(made.plan(seen, 0.0)) == 12
    for partition in range(12):
        made.copied(partition)
    asked = made.plan(seen, 0.0)
    assert [type(deed) for deed in asked] == [Ask] * ASKS_MAX
    made.yielded(asked[0].partition, owned(OTHER))
    assert made.plan(seen, 0.0) == []
    made.acquired(asked[0].partition, 9)
    assert made.plan(seen, 0.0) == []  # it is ours, and its worker does not serve it yet
    made.served(asked[0].partition)
    assert len(made.plan(seen, 0.0)) == 1


def test_an_owner_serves_on_until_it_is_asked_or_the_next_one_had_its_time() -> None:
    seen = theirs()
    made = serving(seen)
    assert made.plan(seen, 100.0) == []
    assert made.plan(seen, 100.0 + HANDOFF_S - 0.1) == []
    assert made.refuses(0, OTHER.stable_id, seen) == ""
    assert made.plan(seen, 100.0 + HANDOFF_S) == [Yield(0, 0)]
    assert "yielding" in made.refuses(0, OTHER.stable_id, seen)
    made.released(0)
    assert made.parts == {}


def test_an_owner_serves_on_while_nobody_holds_the_id_that_the_ring_names() -> None:
    seen = theirs()
    made = serving(seen)
    made.plan(seen, 100.0)
    del seen.holders[OTHER.stable_id]
    assert made.plan(seen, 200.0) == []
    seen.holders[OTHER.stable_id] = OTHER.pod_uid
    assert made.plan(seen, 300.0) == []  # its time begins now
    assert made.plan(seen, 300.0 + HANDOFF_S) == [Yield(0, 0)]


def test_a_partition_is_refused_to_whom_the_ring_does_not_give_it() -> None:
    made = serving(ours())
    assert "gives partition 0 to defender-0" in made.refuses(0, OTHER.stable_id, ours())
    assert made.refuses(3, OTHER.stable_id, ours())
    assert made.refuses(0, OTHER.stable_id, Seen({}))


def test_the_successor_of_our_own_id_gets_what_we_served() -> None:
    seen = ours()
    made = serving(seen)
    assert made.refuses(0, ME.stable_id, seen)
    made.holding = False
    seen.holders[ME.stable_id] = "uid-2"
    assert made.refuses(0, ME.stable_id, seen) == ""
    assert made.plan(seen, 1.0) == []
    assert made.yielding(0) == 0


def test_a_copy_that_is_not_wanted_any_more_is_forgotten() -> None:
    seen, made = ours(), handoffs()
    seen.standings[0] = owned(OTHER)
    made.plan(seen, 0.0)
    assert made.plan(theirs(), 1.0) == [Forget(0, 0)]
    made.copied(0)
    assert made.parts == {}


def test_a_record_that_names_us_though_we_neither_serve_nor_want_it_is_released() -> None:
    seen, made = theirs(), handoffs()
    seen.standings[0] = owned(ME)
    assert made.plan(seen, 0.0) == [Disown(0, seen.standings[0])]
    assert made.plan(seen, RETRY_S / 2) == []


@pytest.mark.parametrize("standing", [VACANT, Standing(Record(), 12), Standing(Record(), 9)])
def test_a_lost_or_overwritten_record_of_what_we_serve_is_restored(standing: Standing) -> None:
    seen = ours()
    made = serving(seen)
    seen.standings[0] = standing
    assert made.plan(seen, 1.0) == [Restore(0, standing.revision)]
    made.restored(0, 14)
    assert made.plan(seen, 1.0) == []


def test_a_record_that_does_not_show_our_write_yet_is_left_alone() -> None:
    seen, made = ours(), handoffs()
    made.plan(seen, 0.0)
    made.acquired(0, 9)
    assert made.plan(seen, 1.0) == []
    seen.standings[0] = owned(OTHER, 8)
    assert made.plan(seen, 1.0) == []


def test_a_record_that_never_shows_our_write_is_restored_after_the_views_next_reading() -> None:
    seen, made = ours(), handoffs()
    made.plan(seen, 0.0)
    made.acquired(0, 9)
    assert made.plan(seen, 1.0) == []
    assert made.plan(seen, 1.0 + UNSEEN_S) == []
    assert made.plan(seen, 1.1 + UNSEEN_S) == [Restore(0, 0)]


def test_a_partition_that_a_living_pod_took_from_us_is_left_to_it() -> None:
    for seen in (ours(), theirs()):
        made = serving(seen)
        seen.standings[0] = owned(OTHER, 12)
        assert made.plan(seen, 1.0) == [Abandon(0, 0)]
        assert made.plan(seen, 1.0) == []
        assert "yielding" in made.refuses(0, OTHER.stable_id, theirs())


def test_a_partition_that_another_acquired_at_our_revision_of_a_bucket_made_anew_is_left_to_it() -> None:
    for seen in (ours(), theirs()):
        made = serving(seen)
        assert made.parts[0].revision == 9
        seen.standings[0] = owned(OTHER, 9)
        assert made.plan(seen, 1.0) == [Abandon(0, 0)]


def test_our_own_record_at_its_revision_is_left_alone() -> None:
    for seen in (ours(), theirs()):
        made = serving(seen)
        assert made.plan(seen, 1.0) == []


def test_a_record_that_names_a_ghost_costs_us_the_partition_and_is_acquired_anew() -> None:
    seen = ours()
    made = serving(seen)
    seen.standings[0] = owned(Owner("defender-7", "ghost"), 12)
    seen.gone.add("ghost")
    assert made.plan(seen, 1.0) == [Abandon(0, 0)]
    made.released(0)
    assert made.plan(seen, 1.0) == [Acquire(0, 0, seen.standings[0], warm=False)]


def test_what_a_worker_had_is_planned_anew_and_what_it_finished_is_released_as_it_is() -> None:
    seen = ours(4)
    made = serving(seen, handoffs(workers=2))
    assert {part.worker for part in made.parts.values()} == {0, 1}
    mine = [p for p, part in made.parts.items() if part.worker == 0]
    made.yielding(mine[0])
    assert made.worker_lost(0) == [mine[0]]
    again = made.plan(seen, 1.0)
    assert again == [Acquire(mine[1], 0, seen.standings[mine[1]], warm=False)]
    made.acquired(mine[1], 10)
    assert made.worker_ready(0) == [mine[1]]


def test_what_will_be_ours_after_a_cutover_is_copied_and_kept_fresh_but_not_asked_for() -> None:
    seen, made = theirs(), handoffs()
    seen.standings[0] = owned(OTHER)
    seen.prospect = ours().layout
    assert made.plan(seen, 0.0) == [Copy(0, 0)]
    made.copied(0)
    assert made.plan(seen, REFRESH_S) == []
    assert made.plan(seen, REFRESH_S + 0.1) == [Copy(0, 0)]
    seen.members = ours().members
    assert made.plan(seen, REFRESH_S + 0.2) == [Ask(0, OTHER.pod_uid)]


def test_new_partitions_go_to_the_worker_with_the_fewest_and_return_to_the_one_they_had() -> None:
    seen, made = ours(5), handoffs(workers=2)
    made.plan(seen, 0.0)
    workers = {p: part.worker for p, part in made.parts.items()}
    assert sorted(workers.values()) == [0, 0, 0, 1, 1]
    made.lost(3, 0.0)
    assert next(deed for deed in made.plan(seen, RETRY_S) if deed.partition == 3).worker == workers[3]


def test_a_partition_acquired_too_late_is_told_so() -> None:
    seen, made = ours(), handoffs()
    made.plan(seen, 0.0)
    made.lost(0, 0.0)
    assert made.acquired(0, 9) is None
