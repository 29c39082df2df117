"""The records of the whole fleet, beside the partitions' own: the ring, the tracks, an operator's freeze.

They are keys of the bucket of assignments. Only the leader writes ``ring``; operators write ``tracks``,
``frozen`` and ``forget.<stable id>``, and the leader obeys. Readers ignore fields that they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from runtime.names import Names
from runtime.ring import ALGORITHM, Ring, Step

RING_KEY: Final = "ring"
TRACKS_KEY: Final = "tracks"
FROZEN_KEY: Final = "frozen"
FORGET_PREFIX: Final = "forget."
WEIGHT_MIN, WEIGHT_MAX = 0.1, 100.0

Weight = Annotated[float, Meta(ge=WEIGHT_MIN, le=WEIGHT_MAX)]


class Member(msgspec.Struct, frozen=True):
    """A stable ID in the ring; *weight* is its share relative to the others'."""

    track: str
    weight: Weight = 1.0


class RingRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value of the key ``ring``. *version* rises with each commit.

    *pins*: partitions by track that only this track's members get; such a track has no others.
    """

    version: int
    partitions: Annotated[int, Meta(ge=1, le=4096)]
    members: dict[str, Member] = {}
    pins: dict[str, list[int]] = {}
    algorithm: int = ALGORITHM
    reason: str = ""
    leader: str = ""
    committed_at: datetime | None = None


class Tracks(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value of the key ``tracks``: what operators said of tracks.

    *in_ring* overrules the pods' RING_JOIN; *chambers* gives a track these chambers and no others.
    """

    in_ring: dict[str, bool] = {}
    chambers: dict[str, list[str]] = {}

    def pins(self, names: Names) -> dict[str, list[int]]:
        """The partitions of the named chambers, by track; of a partition named twice the first track's."""
        taken: set[int] = set()
        pins: dict[str, list[int]] = {}
        for track, chambers in sorted(self.chambers.items()):
            found = {names.partition_of(chamber) for chamber in chambers} - taken
            taken |= found
            pins[track] = sorted(found)
        return pins


class Frozen(msgspec.Struct, frozen=True):
    """The value of the key ``frozen``, while an operator forbids changes of the ring."""

    by: str
    at: datetime
    reason: str = ""


class Layout:
    """Who has which partition by a ring record: its main ring, and a ring of its own for each pinned track.

    Pinned partitions whose track has no member belong to the main ring. Raises ValueError for an
    algorithm that this version does not know.
    """

    def __init__(self, record: RingRecord) -> None:
        self.record = record
        pinned = {track: parts for track, parts in record.pins.items() if parts}
        main = {name: m.weight for name, m in record.members.items() if m.track not in pinned}
        self._rings: dict[int, Ring] = {}
        for track, partitions in pinned.items():
            members = {name: m.weight for name, m in record.members.items() if m.track == track}
            if members:
                ring = Ring(members, record.partitions, only=partitions, algorithm=record.algorithm)
                self._rings.update(dict.fromkeys(partitions, ring))
        rest = [p for p in range(record.partitions) if p not in self._rings]
        only = rest if self._rings else None
        self._main = Ring(main, record.partitions, only=only, algorithm=record.algorithm)

    @property
    def version(self) -> int:
        return self.record.version

    @property
    def members(self) -> Mapping[str, Member]:
        return self.record.members

    @property
    def partitions(self) -> int:
        return self.record.partitions

    def owner(self, partition: int) -> str | None:
        """The stable ID that the partition belongs to; None in a ring without members."""
        return self._rings.get(partition, self._main).owner(partition)

    def explain(self, partition: int) -> list[Step]:
        """The partition's way to its owner."""
        return self._rings.get(partition, self._main).explain(partition)

    @cached_property
    def owners(self) -> list[str | None]:
        """The owner of each partition."""
        return [self.owner(partition) for partition in range(self.partitions)]

    def partitions_of(self, stable_id: str) -> list[int]:
        """The partitions of a stable ID, ascending."""
        return [partition for partition, owner in enumerate(self.owners) if owner == stable_id]

    def moved(self, other: Layout) -> list[int]:
        """The partitions that another stable ID has in *other*."""
        return [p for p, (one, two) in enumerate(zip(self.owners, other.owners, strict=True)) if one != two]
