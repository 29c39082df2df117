"""A partition's ownership record: its states, its legal changes, its epoch. Pure.

    vacant ──acquire──► owned ──release──► released ──acquire──► owned
                         │ ▲
                         └─┘ acquire: a takeover, its owner died, was fenced or passed its ID on

To own is to have written the record by compare-and-set on its revision; the revision of that write is the
**epoch**. That a handoff is under way is not a state of the record: the ring and the record then name
different owners, which cannot be left behind by a crash.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from runtime.errors import Fenced, IllegalTransition


class State(StrEnum):
    """Where a partition is between its owners."""

    VACANT = "vacant"
    OWNED = "owned"
    RELEASED = "released"


LEGAL: Final[Mapping[State, frozenset[State]]] = {
    State.VACANT: frozenset({State.OWNED}),
    State.OWNED: frozenset({State.OWNED, State.RELEASED}),
    State.RELEASED: frozenset({State.OWNED}),
}
"""Every legal change."""


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A partition's ownership. *epoch* is 0 in the write of an acquisition: its revision is the epoch."""

    state: State = State.VACANT
    owner: str = ""
    pod_uid: str = ""
    epoch: int = 0
    position: int = 0
    next: str = ""
    """The stable ID that a released partition was handed to."""
    worker: int = -1
    """The owner's worker that serves it, for people; -1 when it was not told."""


class Owner(NamedTuple):
    """Who acquires: the stable ID, and the pod that holds it."""

    stable_id: str
    pod_uid: str


def key(partition: int) -> str:
    return f"partition.{partition}"


def partition_of_key(name: str) -> int | None:
    """The partition of a record's key; None for another key."""
    head, _, number = name.partition(".")
    return int(number) if head == "partition" and number.isdecimal() else None


def decode(value: bytes | None) -> Record:
    """The record of a key's value; a vacant one when there is none. Raises msgspec.MsgspecError."""
    return Record() if value is None else msgspec.json.decode(value, type=Record)


def changed(record: Record, state: State, **fields: Any) -> Record:
    """The record in its next state. Raises IllegalTransition."""
    if state not in LEGAL[record.state]:
        raise IllegalTransition("partition", record.state, state)
    return msgspec.structs.replace(record, state=state, **fields)


def acquire(record: Record, me: Owner, worker: int = -1) -> Record:
    """The record with *me* as its owner, from any state."""
    return changed(
        record, State.OWNED, owner=me.stable_id, pod_uid=me.pod_uid, epoch=0, next="", worker=worker
    )


def require_new(partition: int, epoch: int, given: Collection[int]) -> None:
    """Of *given*, the epochs that the partition is known to have had, ours must be none: whoever had it pulls
    from the very consumer that would be ours. A bucket that was made anew counts from 1 again and comes to it
    once more; the next acquisition has another. Raises Fenced."""
    if epoch in given:
        raise Fenced(
            f"partition {partition}: epoch {epoch} was given before, by a bucket that is gone; acquired "
            "once more, it gets one of its own"
        )


def release(record: Record, epoch: int, position: int, heir: str = "") -> Record:
    """The record given back, with the position for the next owner. Raises IllegalTransition."""
    return changed(record, State.RELEASED, epoch=epoch, position=max(position, record.position), next=heir)
