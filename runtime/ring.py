"""The ring: which member (stable ID) has which partition. Pure, immutable, the same in every process.

Consistent hashing with virtual nodes and bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2018): each
member stands on a circle of 2^64 points 128 times; a partition goes to the first member clockwise that
has room, and no member has more than ceil(1.1 x mean). The bound is needed: 128 virtual nodes alone
leave the hottest of 30 members 22-44 % above the mean.

A change of the algorithm is a new number in `ALGORITHM`: members with different numbers would disagree.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable
from functools import cached_property
from typing import Final, NamedTuple

ALGORITHM: Final = 1
VIRTUAL_NODES: Final = 128
LOAD_PERCENT_MAX: Final = 110


class Step(NamedTuple):
    """One member that was asked on a partition's way round the circle."""

    member: str
    point: int
    load: int
    cap: int

    @property
    def taken(self) -> bool:
        return self.load < self.cap


class Ring:
    """The assignment of *partitions* to *members*, whose order does not matter. Raises ValueError."""

    def __init__(self, members: Iterable[str], partitions: int, algorithm: int = ALGORITHM) -> None:
        if algorithm != ALGORITHM:
            raise ValueError(f"ring algorithm {algorithm} is not known; this version knows {ALGORITHM}")
        if partitions < 1:
            raise ValueError(f"a ring of {partitions} partitions has nothing to assign")
        self.members = tuple(sorted(set(members)))
        self.partitions = partitions
        self.algorithm = algorithm

    @property
    def cap(self) -> int:
        """The most partitions of one member: ceil(1.1 x mean), in whole numbers."""
        if not self.members:
            return 0
        return -(-self.partitions * LOAD_PERCENT_MAX // (100 * len(self.members)))

    def owner(self, partition: int) -> str | None:
        """The member that has the partition; None in a ring without members."""
        self._require(partition)
        if len(self.members) < 2:
            return self.members[0] if self.members else None
        return self._owners[partition]

    def partitions_of(self, member: str) -> list[int]:
        """The member's partitions, ascending."""
        return [partition for partition in range(self.partitions) if self.owner(partition) == member]

    def explain(self, partition: int) -> list[Step]:
        """A partition's way round the circle: who was asked, how full they were; the last one took it."""
        self._require(partition)
        if not self.members:
            return []
        steps: list[Step] = []
        self._assign(partition, steps)
        return steps

    def moved(self, other: Ring) -> list[int]:
        """The partitions that another owner has in *other*."""
        return [p for p in range(self.partitions) if self.owner(p) != other.owner(p)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ring) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return f"Ring({len(self.members)} members, {self.partitions} partitions, algorithm {self.algorithm})"

    @property
    def _identity(self) -> tuple[tuple[str, ...], int, int]:
        return self.members, self.partitions, self.algorithm

    def _require(self, partition: int) -> None:
        if not 0 <= partition < self.partitions:
            raise ValueError(f"partition {partition} is not in 0 ... {self.partitions - 1}")

    @cached_property
    def _circle(self) -> tuple[list[int], list[str]]:
        """Points in ascending order, and the member that stands on each."""
        standing = sorted((point, member) for member in self.members for point in _points(member))
        return [point for point, _ in standing], [member for _, member in standing]

    @cached_property
    def _owners(self) -> list[str]:
        return self._assign(self.partitions - 1, [])

    def _assign(self, last: int, steps: list[Step]) -> list[str]:
        """Owners of the partitions 0 ... *last*; *steps* gets the way of the last one."""
        points, standing = self._circle
        loads = dict.fromkeys(self.members, 0)
        cap, count = self.cap, len(points)
        owners: list[str] = []
        for partition in range(last + 1):
            at = bisect_left(points, _point(b"partition", b"%d" % partition)) % count
            while True:
                member = standing[at]
                if partition == last:
                    steps.append(Step(member, points[at], loads[member], cap))
                if loads[member] < cap:
                    break
                at = (at + 1) % count
            loads[member] += 1
            owners.append(member)
        return owners


def _point(kind: bytes, name: bytes) -> int:
    """A place on the circle. blake2b: even for names that differ in one digit, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8, person=kind).digest(), "big")


def _points(member: str) -> list[int]:
    """The virtual nodes of a member: 8 points a digest, 16 digests."""
    points: list[int] = []
    for number in range(VIRTUAL_NODES // 8):
        digest = hashlib.blake2b(f"{member}#{number}".encode(), digest_size=64, person=b"member").digest()
        points += [int.from_bytes(digest[i : i + 8], "big") for i in range(0, 64, 8)]
    return points
