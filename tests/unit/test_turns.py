"""One report of a chamber at a time, in order, and the others go on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.judge import Sample
from runtime.turns import Turns


def sample(chamber: str, seq: int) -> Sample:
    return Sample(chamber, 0, seq, 0, b"")


def arrived(*chambers: str) -> Turns:
    turns = Turns()
    for seq, chamber in enumerate(chambers, start=1):
        turns.arrive(sample(chamber, seq))
    return turns


def test_the_next_report_of_a_chamber_waits_until_the_one_before_is_over() -> None:
    turns = arrived("A", "A", "B", "A")
    first = turns.take(9)
    assert [(one.chamber, one.seq) for one in first] == [("A", 1), ("B", 3)]
    assert turns.take(9) == []
    assert (len(turns), turns.may_take) == (2, False)
    turns.over(first)
    assert [one.seq for one in turns.take(9)] == [2]
    turns.over([sample("A", 2)])
    assert [one.seq for one in turns.take(9)] == [4]
    turns.over([sample("A", 4)])
    assert len(turns) == 0
    turns.arrive(sample("A", 5))
    assert [one.seq for one in turns.take(9)] == [5]


def test_reports_that_were_put_back_come_first_and_keep_their_turn() -> None:
    turns = arrived("A", "B", "A", "C")
    taken = turns.take(2)
    turns.put_back(taken)
    assert [one.seq for one in turns.take(3)] == [1, 2, 4]


def test_a_partition_that_leaves_takes_what_was_not_let_through_and_no_other_report() -> None:
    """What was taken keeps its turn until it is over; then nothing of the partition is left."""
    turns = Turns()
    theirs = [Sample(name, 1, seq, 0, b"") for seq, name in enumerate("XYXYZY", start=1)]
    ours = [sample("A", 1), sample("A", 2)]
    for one in [*theirs[:4], *ours, *theirs[4:]]:
        turns.arrive(one)
    flying = turns.take(3)
    assert flying == [theirs[0], theirs[1], ours[0]]
    turns.put_back([theirs[1]])  # with another report of its chamber behind it
    turns.drop(1)
    assert len(turns) == 1
    turns.over([theirs[0], ours[0]])
    assert turns.take(9) == [ours[1]]
    turns.over([ours[1]])
    assert (len(turns), turns.may_take) == (0, False)
    for one in theirs:
        turns.arrive(one)
    assert turns.take(9) == [theirs[0], theirs[1], theirs[4]], "as if it had never been here"


@given(st.lists(st.sampled_from("ABC"), max_size=30), st.lists(st.tuples(st.integers(0, 4), st.booleans())))
def test_every_report_has_its_turn_once_and_in_order(
    chambers: list[str], steps: list[tuple[int, bool]]
) -> None:
    """Whatever is taken, put back or over in between."""
    turns, out, done = arrived(*chambers), [], []
    for most, put_back in [*steps, *[(9, False)] * 2 * len(chambers)]:
        taken = turns.take(most)
        assert len({one.chamber for one in [*out, *taken]}) == len(out) + len(taken)
        if put_back:
            turns.put_back(taken)
        else:
            out += taken
            turns.over(out)
            done += out
            out = []
    assert len(turns) == 0
    for chamber in "ABC":
        seqs = [one.seq for one in done if one.chamber == chamber]
        assert seqs == [seq for seq, name in enumerate(chambers, start=1) if name == chamber]
