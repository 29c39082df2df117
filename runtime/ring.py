"""The ring: which member (stable ID) has which partition. Pure, immutable, the same in every process.

**Algorithm 1, frozen**: rendezvous hashing with even draws and bounded loads. A change of any assignment is
a new number in `ALGORITHM`; members that know different numbers would disagree.

1. *Draws*: each member draws a number for each partition, out of a hash of its name; the lowest, divided by
   the member's weight, has the partition (rendezvous hashing: Thaler and Ravishankar, 1998). So a partition
   moves only to a member that joins or from one that leaves. For up to 256 partitions a member's draws are
   stratified, one in each 1/partitions of the range, which halves the variance of what it wins.
2. *Even draws*: the stable IDs ``defender-0``, ``defender-1``, ... are filled from below, so the rings that
   occur are mostly the first N of them, or those with a few missing. Their draws are corrected in order of
   their numbers: each wins of the lower ones just what keeps the ring of the first N even (all loads
   floor or ceil of the mean), by the fewest corrections, each drawn anew on the other side of the best draw
   so far. With one missing, or others beside them, they are draws like any.
3. *Bounded loads* (the bound of Mirrokni, Thorup and Zadimoghaddam, 2018): nobody has more than
   ceil(1.1 x its share by weight). A full member keeps those partitions that it drew lowest for; the others
   go on to their next lowest member. This is deferred acceptance (Gale and Shapley, 1962): the result does
   not depend on any order, unlike the walk round a circle in the order of partitions.

Partitions moved by a join or a leave, over partitions x members changed / members, on average, beside the
same bound on a circle of 128 virtual nodes (bench/test_ring.py):

    =====================================  ==========  ==========  ===========  ============
    partitions, members                    64, 8       256, 30     1,024, 200   256, 30 → 45
    =====================================  ==========  ==========  ===========  ============
    this ring                              FIGURES
    circle with bounded loads
    =====================================  ==========  ==========  ===========  ============
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from heapq import heapify, heappush, heappushpop
from itertools import compress
from operator import lt
from threading import Lock
from typing import Final, NamedTuple

ALGORITHM: Final = 1
LOAD_PERCENT_MAX: Final = 110
STRATIFIED_MAX: Final = 256  # partitions; above it the sorting costs more than it brings: 40 ms at 1,024 x 200
EVEN_MAX: Final = 256  # members whose draws are even
DRAWS: Final = 1 << 32
_NUMBERED: Final = re.compile(r"defender-(0|[1-9][0-9]{0,3})")


class Step(NamedTuple):
    """One member that was asked for a partition; *load* counts the others that it has."""

    member: str
    draw: int
    load: int
    cap: int

    @property
    def taken(self) -> bool:
        return self.load < self.cap

    @property
    def remark(self) -> str:
        """Why it has the partition, or has not."""
        if self.taken:
            return f"takes it, beside {self.load} others of at most {self.cap}"
        return f"full: it drew lower for each of its {self.load}"


class Ring:
    """The assignment of *partitions* to *members*, by name or with a weight each; their order is nothing.

    *only*: the ring assigns just these partitions, and the bounds are of them; the others have no owner.
    Raises ValueError.
    """

    def __init__(
        self,
        members: Iterable[str] | Mapping[str, float],
        partitions: int,
        *,
        only: Sequence[int] | None = None,
        algorithm: int = ALGORITHM,
    ) -> None:
        if algorithm != ALGORITHM:
            raise ValueError(f"ring algorithm {algorithm} is not known; this version knows {ALGORITHM}")
        if partitions < 1:
            raise ValueError(f"a ring of {partitions} partitions has nothing to assign")
        weights = members if isinstance(members, Mapping) else dict.fromkeys(members, 1.0)
        self.members = tuple(sorted(weights))
        self.partitions = partitions
        self.algorithm = algorithm
        self._weights = tuple(_thousandths(member, weights[member]) for member in self.members)
        self._only = tuple(sorted(set(range(partitions) if only is None else only)))
        for partition in self._only[:1] + self._only[-1:]:
            self._require(partition)

    def cap_of(self, member: str) -> int:
        """The most partitions that the member gets: ceil(1.1 x its share), in whole numbers."""
        return self._caps[self._index_of(member)]

    def owner(self, partition: int) -> str | None:
        """The member that has the partition; None without members, or when it is not the ring's."""
        self._require(partition)
        index = self._matched.get(partition)
        return None if index is None else self.members[index]

    def partitions_of(self, member: str) -> list[int]:
        """The member's partitions, ascending."""
        return [partition for partition in self._only if self.owner(partition) == member]

    def explain(self, partition: int) -> list[Step]:
        """Who was asked for the partition, lowest draw first; the last one has it."""
        self._require(partition)
        if partition not in self._matched:
            return []
        owner = self._matched[partition]
        loads = [0] * len(self.members)
        for index in self._matched.values():
            loads[index] += 1
        loads[owner] -= 1
        steps: list[Step] = []
        for index in self._preference(partition):
            draw = _draws(self.members[index], self.partitions)[partition]
            steps.append(Step(self.members[index], draw, loads[index], self._caps[index]))
            if index == owner:
                break
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
    def _identity(self) -> tuple[object, ...]:
        return self.members, self._weights, self.partitions, self._only, self.algorithm

    def _require(self, partition: int) -> None:
        if not 0 <= partition < self.partitions:
            raise ValueError(f"partition {partition} is not in 0 ... {self.partitions - 1}")

    def _index_of(self, member: str) -> int:
        if member not in self.members:
            raise ValueError(f"{member!r} is not a member of the ring")
        return self.members.index(member)

    @cached_property
    def _caps(self) -> list[int]:
        most, total = len(self._only) * LOAD_PERCENT_MAX, 100 * sum(self._weights)
        return [-(-most * weight // total) for weight in self._weights]

    @cached_property
    def _costs(self) -> list[Sequence[float]]:
        """By member, then partition: what the lowest of has the partition."""
        draws = [_draws(member, self.partitions) for member in self.members]
        if len(set(self._weights)) < 2:
            return list(draws)
        return [_raced(column, weight) for column, weight in zip(draws, self._weights, strict=True)]

    def _preference(self, partition: int) -> list[int]:
        """Indices of the members in the order in which the partition asks them."""
        costs = [column[partition] for column in self._costs]
        return sorted(range(len(costs)), key=costs.__getitem__)

    @cached_property
    def _matched(self) -> dict[int, int]:
        """The index of the owner of each partition."""
        if not self.members:
            return {}
        costs, caps = self._costs, self._caps
        owners = _lowest(costs)
        held: list[list[int]] = [[] for _ in self.members]
        for partition in self._only:
            held[owners[partition]].append(partition)
        refused: list[int] = []
        for index, mine in enumerate(held):
            if len(mine) > caps[index]:
                mine.sort(key=lambda p, column=costs[index]: (column[p], p))  # type: ignore[misc]
                refused += mine[caps[index] :]
                del mine[caps[index] :]
        if refused:
            self._settle(refused, held)
        return {partition: index for index, mine in enumerate(held) for partition in mine}

    def _settle(self, refused: list[int], held: list[list[int]]) -> None:
        """Deferred acceptance: each of *refused* asks on, until all are held."""
        costs, caps = self._costs, self._caps
        heaps: dict[int, list[tuple[float, int]]] = {}
        asked = {partition: iter(self._preference(partition)[1:]) for partition in refused}
        while refused:
            partition = refused.pop()
            if partition not in asked:
                asked[partition] = iter(self._preference(partition)[1:])
            index = next(asked[partition])
            heap = heaps.get(index)
            if heap is None:
                heap = heaps[index] = [(-costs[index][p], -p) for p in held[index]]
                heapify(heap)
            entry = (-costs[index][partition], -partition)
            if len(heap) < caps[index]:
                heappush(heap, entry)
            else:
                refused.append(-heappushpop(heap, entry)[1])
        for index, heap in heaps.items():
            held[index] = [-negative for _, negative in heap]


def _lowest(costs: list[Sequence[float]]) -> list[int]:
    """The first member with the lowest cost, of each partition."""
    return [row.index(min(row)) for row in zip(*costs, strict=True)]


def _thousandths(member: str, weight: float) -> int:
    """The weight as a whole number: the same arithmetic everywhere."""
    if not (math.isfinite(weight) and weight >= 0.001):
        raise ValueError(f"weight {weight} of {member!r} is not a number from 0.001")
    return round(weight * 1000)


def _raced(draws: Sequence[int], weight: int) -> list[float]:
    """-ln(1 - draw) / weight, which is lowest with a chance in proportion to the weight.

    By a Padé approximant (0.7 % off at 0.5): a library's logarithm may differ in its last bit.
    """
    parts = [draw / DRAWS for draw in draws]
    return [x * (6.0 - x) / ((6.0 - 4.0 * x) * weight) for x in parts]


def _hashed(name: str, partitions: int) -> array[int]:
    """Uniform whole numbers below DRAWS, one a partition."""
    numbers = array("I", hashlib.shake_128(name.encode()).digest(4 * partitions))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


@lru_cache(maxsize=1024)
def _plain_draws(name: str, partitions: int) -> array[int]:
    numbers = _hashed(name, partitions)
    if partitions > STRATIFIED_MAX:
        return numbers
    order = sorted(range(partitions), key=numbers.__getitem__)
    for stratum, partition in enumerate(order):
        numbers[partition] = (stratum * DRAWS + numbers[partition]) // partitions
    return numbers


def _draws(member: str, partitions: int) -> Sequence[int]:
    """A member's number for each partition."""
    numbered = _NUMBERED.fullmatch(member)
    number = int(numbered[1]) if numbered else EVEN_MAX
    if number < min(EVEN_MAX, partitions):
        return _even_draws(partitions).of(number)
    return _plain_draws(member, partitions)


@lru_cache(maxsize=4)
def _even_draws(partitions: int) -> EvenDraws:
    return EvenDraws(partitions)


class EvenDraws:
    """The draws of the numbered members, made as far as they are asked for and kept for the next ring."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        first = _plain_draws("defender-0", partitions)
        self._draws = [first]
        self._best = array("I", first)
        self._owner = [0] * partitions
        self._held = [list(range(partitions))]
        self._lock = Lock()

    def of(self, number: int) -> Sequence[int]:
        """The draws of ``defender-<number>``."""
        with self._lock:
            while len(self._draws) <= number:
                self._join()
        return self._draws[number]

    def _join(self) -> None:
        """The next member draws; who gives it how many is corrected to what keeps all even."""
        number, best = len(self._draws), self._best
        name = f"defender-{number}"
        draws = array("I", _plain_draws(name, self._partitions))
        wins: list[list[int]] = [[] for _ in range(number)]
        for partition in compress(range(self._partitions), map(lt, draws, best)):
            wins[self._owner[partition]].append(partition)
        anew: Sequence[int] = ()
        joined: list[int] = []
        for giver, gives in enumerate(self._gives([len(won) for won in wins])):
            won = wins[giver]
            if len(won) != gives:
                anew = anew or _hashed(f"{name} anew", self._partitions)
                won = self._correct(draws, anew, won, self._held[giver], gives)
            if won:
                left = set(won)
                self._held[giver] = [p for p in self._held[giver] if p not in left]
                joined += won
        for partition in joined:
            best[partition] = draws[partition]
            self._owner[partition] = number
        self._held.append(joined)
        self._draws.append(draws)

    def _gives(self, won: list[int]) -> list[int]:
        """How many each member gives: as near to what was won of it as leaves all loads even."""
        count = len(won) + 1
        share, rest = divmod(self._partitions, count)
        most = share + (rest > 0)
        loads = [len(held) for held in self._held]
        gives = [min(max(n, load - most), load - share) for n, load in zip(won, loads, strict=True)]
        missing = share - sum(gives)
        giver = count * 7919 % len(won)  # not always the lowest numbers first
        while missing:
            if missing > 0 and gives[giver] < loads[giver] - share:
                gives[giver] += 1
                missing -= 1
            elif missing < 0 and gives[giver] > loads[giver] - most:
                gives[giver] -= 1
                missing += 1
            giver = (giver + 1) % len(won)
        return gives

    def _correct(
        self, draws: array[int], anew: Sequence[int], won: list[int], held: list[int], gives: int
    ) -> list[int]:
        """Makes the newcomer win *gives* of *held*; the draws nearest to the best ones so far change."""
        best = self._best

        def nearness(partition: int) -> tuple[float, int]:
            return draws[partition] / (best[partition] + 1), partition

        if len(won) > gives:
            won = sorted(won, key=nearness)
            for p in won[gives:]:
                draws[p] = best[p] + ((DRAWS - best[p]) * anew[p] >> 32)
            return won[:gives]
        lost = sorted(set(held).difference(won), key=nearness)[: gives - len(won)]
        for p in lost:
            draws[p] = best[p] * anew[p] >> 32
        return won + lost
