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
   floor or ceil of the mean); where it does not, it draws anew above or below the best draw so far. With some
   missing, or with others beside them, they are draws like any.
3. *Bounded loads* (the bound of Mirrokni, Thorup and Zadimoghaddam, 2018): nobody has more than
   ceil(1.1 x its share by weight). A full member keeps those partitions that it drew lowest for; the others
   go on to their next lowest member. This is deferred acceptance (Gale and Shapley, 1962): the result does
   not depend on any order, unlike the walk round a circle in the order of partitions.

What a join (of the next number) and a leave (of any) move on average, in units of partitions x members
changed / members, beside the same bound on a circle of 128 virtual nodes (bench/test_ring.py):

    =====================  ============  ============  =============  ==============  ==============
    partitions, members    64, 2-5       64, 6-10      256, 28-32     256, 30 → 45    1,024, 200
    =====================  ============  ============  =============  ==============  ==============
    this ring              0.96, 1.01    0.95, 1.00    0.94, 1.01     0.98            1.11, 1.40
    circle                 1.05, 1.07    1.31, 1.39    1.77, 1.73     1.11            1.64, 1.45
    =====================  ============  ============  =============  ==============  ==============

Beside even draws (other names, numbers that start at 30, mixed weights) it is 1.0-1.4, and a newcomer gets
90-105 % of its share. The first ring of 1,024 partitions and 200 members takes 34-46 ms, the next one 13.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from heapq import heapify, heappush, heappushpop
from itertools import compress
from operator import lt
from typing import Final, NamedTuple

ALGORITHM: Final = 1
LOAD_PERCENT_MAX: Final = 110
STRATIFIED_MAX: Final = 256  # partitions; at 1,024 and 200 members the sorting would take 40 ms
EVEN_MAX: Final = 128  # members whose draws are even; with 200 of 1,024 partitions it would be 15 ms more
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
    """The assignment of *partitions* to *members*: names, or names with weights. Their order is nothing.

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
        loads = Counter(self._matched.values())
        loads[owner] -= 1
        asked = _preference(self._costs(), partition)
        steps: list[Step] = []
        for index in asked[: asked.index(owner) + 1]:
            member = self.members[index]
            draw = _draws(member, self.partitions)[partition]
            steps.append(Step(member, draw, loads[index], self._caps[index]))
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

    def _costs(self) -> list[Sequence[float]]:
        """By member, then partition: the lowest has the partition."""
        draws = [_draws(member, self.partitions) for member in self.members]
        if len(set(self._weights)) < 2:
            return list(draws)
        return [_raced(column, weight) for column, weight in zip(draws, self._weights, strict=True)]

    @cached_property
    def _matched(self) -> dict[int, int]:
        """The index of the owner of each partition."""
        if not self.members:
            return {}
        costs = self._costs()
        lowest = [row.index(min(row)) for row in zip(*costs, strict=True)]
        held: list[list[int]] = [[] for _ in self.members]
        for partition in self._only:
            held[lowest[partition]].append(partition)
        refused: list[int] = []
        for mine, cost, cap in zip(held, costs, self._caps, strict=True):
            if len(mine) > cap:
                mine.sort(key=cost.__getitem__)
                refused += mine[cap:]
                del mine[cap:]
        if refused:
            self._settle(refused, held, costs)
        return {partition: index for index, mine in enumerate(held) for partition in mine}

    def _settle(self, refused: list[int], held: list[list[int]], costs: list[Sequence[float]]) -> None:
        """Deferred acceptance: each of *refused* asks on, until all are held."""
        heaps: dict[int, list[tuple[float, int]]] = {}  # its dearest partition first
        asking: dict[int, Iterator[int]] = {}
        while refused:
            partition = refused.pop()
            if partition not in asking:
                asking[partition] = iter(_preference(costs, partition)[1:])
            index = next(asking[partition])
            cost = costs[index]
            if index not in heaps:
                heaps[index] = [(-cost[p], -p) for p in held[index]]
                heapify(heaps[index])
            if len(heaps[index]) < self._caps[index]:
                heappush(heaps[index], (-cost[partition], -partition))
            else:
                refused.append(-heappushpop(heaps[index], (-cost[partition], -partition))[1])
        for index, heap in heaps.items():
            held[index] = [-negative for _, negative in heap]


def _preference(costs: list[Sequence[float]], partition: int) -> list[int]:
    """Indices of the members in the order in which the partition asks them."""
    return sorted(range(len(costs)), key=[cost[partition] for cost in costs].__getitem__)


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


def _drawn(name: str, partitions: int) -> array[int]:
    """Uniform draws, stratified if partitions are few."""
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


_plain_draws = lru_cache(maxsize=1024)(_drawn)


@lru_cache(maxsize=4)
def _even_draws(partitions: int) -> _EvenDraws:
    return _EvenDraws(partitions)


class _EvenDraws:
    """The draws of the numbered members, made as far as they are asked for and kept for the next ring.

    Not for several threads at once: a process makes its rings in one.
    """

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._draws = [_drawn("defender-0", partitions)]
        self._best = list(self._draws[0])
        self._owner = [0] * partitions
        self._held = [set(range(partitions))]

    def of(self, number: int) -> Sequence[int]:
        """The draws of ``defender-<number>``."""
        while len(self._draws) <= number:
            self._join()
        return self._draws[number]

    def _join(self) -> None:
        """The next member draws; who gives it how many is corrected to what keeps all even."""
        number, best, owner = len(self._draws), self._best, self._owner
        name = f"defender-{number}"
        draws = _drawn(name, self._partitions)
        wins: dict[int, list[int]] = {}
        for partition in compress(range(self._partitions), map(lt, draws, best)):
            wins.setdefault(owner[partition], []).append(partition)
        gives = self._gives(wins)
        anew: Sequence[int] = ()
        joined: list[int] = []
        for giver in sorted(wins.keys() | gives.keys()):
            won, count = wins.get(giver, []), gives.get(giver, 0)
            if len(won) != count:
                anew = anew or _hashed(f"{name} anew", self._partitions)
                won = self._correct(draws, anew, won, self._held[giver], count)
            self._held[giver].difference_update(won)
            joined += won
        for partition in joined:
            best[partition] = draws[partition]
            owner[partition] = number
        self._held.append(set(joined))
        self._draws.append(draws)

    def _gives(self, wins: Mapping[int, Sequence[int]]) -> dict[int, int]:
        """How many each member gives: as near to what was won of it as leaves all loads even."""
        loads = list(map(len, self._held))
        share, rest = divmod(self._partitions, len(loads) + 1)
        most = share + (rest > 0)
        gives: dict[int, int] = {}
        for giver in [giver for giver, load in enumerate(loads) if load > most or giver in wins]:
            load = loads[giver]
            gives[giver] = max(min(max(len(wins.get(giver, ())), load - most), load - share), 0)
        missing = share - sum(gives.values())
        givers = [giver for giver, load in enumerate(loads) if load > share] if missing else []
        turn = len(loads) * 7919  # not always the lowest numbers first
        while missing:
            turn += 1
            giver = givers[turn % len(givers)]
            count, load = gives.get(giver, 0), loads[giver]
            if missing > 0 and count < load - share:
                gives[giver] = count + 1
                missing -= 1
            elif missing < 0 and count > max(load - most, 0):
                gives[giver] = count - 1
                missing += 1
        return gives

    def _correct(
        self, draws: array[int], anew: Sequence[int], won: list[int], held: set[int], gives: int
    ) -> list[int]:
        """Makes the newcomer win *gives* of *held*; what it then wins.

        If it won too many, it loses any of them, not those that it nearly lost: its draws would be too low
        beside the others'. If it won too few, it wins what it nearly won.
        """
        best = self._best
        if len(won) > gives:
            won.sort(key=anew.__getitem__)
            for p in won[gives:]:
                draws[p] = best[p] + ((DRAWS - best[p]) * anew[p] >> 32)
            return won[:gives]
        missing = gives - len(won)
        lost = sorted(sorted(held.difference(won)), key=draws.__getitem__)[: 3 * missing + 5]
        near = sorted((draws[p] / (best[p] + 1), p) for p in lost)[:missing]
        for _, p in near:
            draws[p] = best[p] * anew[p] >> 32
            won.append(p)
        return won
