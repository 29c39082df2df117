"""The states of a partition and its record, without a server."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from runtime.bucket import Entry
from runtime.errors import Fenced, IllegalTransition
from runtime.ownership import decode_records
from runtime.ownership_record import (
    LEGAL,
    Owner,
    Record,
    State,
    acquire,
    changed,
    decode,
    release,
    require_new,
)

ME = Owner("defender-0", "uid-0")


def test_only_the_changes_of_the_table_are_legal() -> None:
    for before, after in itertools.product(State, State):
        record = Record(state=before)
        if after in LEGAL[before]:
            assert changed(record, after).state is after
        else:
            with pytest.raises(IllegalTransition, match=f"{before} -> {after}"):
                changed(record, after)


@pytest.mark.parametrize("state", State)
def test_a_partition_can_be_acquired_from_every_state(state: State) -> None:
    before = Record(state, owner="defender-9", pod_uid="uid-9", epoch=4, position=77, next="defender-5")
    assert acquire(before, ME) == Record(State.OWNED, "defender-0", "uid-0", epoch=0, position=77)


def test_a_release_carries_the_position_and_never_lowers_it() -> None:
    owned = acquire(Record(position=50), ME)
    assert release(owned, 7, 60) == Record(State.RELEASED, "defender-0", "uid-0", 7, 60)
    assert release(owned, 7, 40).position == 50


def test_what_is_released_cannot_be_released_again() -> None:
    released = release(acquire(Record(), ME), 7, 60)
    with pytest.raises(IllegalTransition):
        release(released, 7, 60)


def test_an_epoch_that_was_given_before_is_not_taken() -> None:
    """Also one that is lower than those before, as those of a bucket made anew are."""
    for given in ([8], [0, 5, 8], [8, 11]):
        with pytest.raises(Fenced, match="epoch 8 was given before"):
            require_new(5, 8, given)
    for given in ([], [0], [7, 9]):
        require_new(5, 8, given)


def test_a_key_that_was_never_written_is_vacant() -> None:
    assert decode(None).state is State.VACANT


def test_a_reader_ignores_fields_that_it_does_not_know() -> None:
    assert decode(b'{"state":"owned","owner":"defender-1","colour":"red"}').owner == "defender-1"


def test_the_epoch_of_a_record_is_its_revision_until_it_says_otherwise() -> None:
    owned, released = acquire(Record(), ME), release(acquire(Record(), ME), 12, 3)
    entries = {
        "partition.3": Entry("partition.3", msgspec.json.encode(owned), 41),
        "partition.4": Entry("partition.4", msgspec.json.encode(released), 42),
        "ring": Entry("ring", b"{}", 43),
        "partition.x": Entry("partition.x", b"{}", 44),
    }
    assert decode_records(entries) == {3: (owned, 41), 4: (released, 12)}
