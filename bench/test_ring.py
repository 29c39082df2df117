"""The ring beside two others: the plain sketch of bounded loads, and uhashring.

Moves are in units of what must move: partitions x members changed / members. Promised: the hottest member
has at most ceil(1.1 x mean); a join and a leave move at most 1.6 on average, and less than the sketch where
all draws are even; 1,024 partitions and 200 members in at most 50 ms, as the first ring of a process.

The members are ``defender-0`` ... ``defender-<N-1>``. Joins: the next number, for each N of a span. Leaves:
any member of each of those rings, drawn with SEED. The checksum is CRC-32 over all owners.

- *sketch* (Mirrokni, Thorup and Zadimoghaddam, 2018, as most libraries have it): partitions in order, each to
  the first of 128 virtual nodes clockwise whose member has room; the same bound.
- *uhashring*: a ketama circle without bounds, 160 virtual nodes a member; the partitions are its keys.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from random import Random
from statistics import mean
from typing import Any

import pytest
from figures import QUICK, figure
from uhashring import HashRing

from runtime import ring as module
from runtime.identity import stable_id
from runtime.ring import Ring

SEED = 20240611
MOVES_MAX = 1.6
BUILD_MS_MAX = 50.0

Owners = list[Any]
Build = Callable[[list[str], int], Owners]


def ours(members: list[str], partitions: int) -> Owners:
    ring = Ring(members, partitions)
    return [ring.owner(partition) for partition in range(partitions)]


def ketama(members: list[str], partitions: int) -> Owners:
    ring = HashRing(nodes=members)
    return [ring.get_node(f"partition-{partition}") for partition in range(partitions)]


def point(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def sketch(members: list[str], partitions: int) -> Owners:
    circle = sorted((point(f"{member}#{i}"), member) for member in members for i in range(128))
    points = [at for at, _ in circle]
    loads = dict.fromkeys(members, 0)
    cap = bound(partitions, len(members))
    owners = []
    for partition in range(partitions):
        at = bisect_left(points, point(f"partition-{partition}")) % len(circle)
        while loads[circle[at][1]] >= cap:
            at = (at + 1) % len(circle)
        loads[circle[at][1]] += 1
        owners.append(circle[at][1])
    return owners


def bound(partitions: int, count: int) -> int:
    """ceil(1.1 x mean)."""
    return -(-11 * partitions // (10 * count))


def defenders(count: int) -> list[str]:
    return [stable_id(number) for number in range(count)]


def moved(before: Owners, after: Owners) -> int:
    return sum(one != other for one, other in zip(before, after, strict=True))


def moves(build: Build, partitions: int, counts: list[int]) -> tuple[float, float, float]:
    """Joins and leaves over what must move; the hottest over the bound. Means, and the worst."""
    random = Random(SEED)
    joins, leaves, hottest = [], [], 0.0
    for count in counts:
        members = defenders(count)
        ring = build(members, partitions)
        joins.append(moved(ring, build(defenders(count + 1), partitions)) * (count + 1) / partitions)
        for gone in random.sample(members, min(count, 2 if QUICK else 8)):
            without = build([member for member in members if member != gone], partitions)
            leaves.append(moved(ring, without) * count / partitions)
        hottest = max(hottest, max(Counter(ring).values()) / bound(partitions, count))
    return mean(joins), mean(leaves), hottest


@pytest.mark.parametrize(
    ("partitions", "counts"),
    [
        (64, [2, 3, 4, 5]),
        (64, [6, 7, 8, 9, 10]),
        (256, [28, 29, 30, 31, 32]),
        (1024, [199, 200, 201]),
    ],
    ids=["64-few", "64-8", "256-30", "1024-200"],
)
def test_moves(benchmark: Any, partitions: int, counts: list[int]) -> None:
    """One join, one leave; the hottest member."""

    def run() -> list[tuple[float, float, float]]:
        return [moves(build, partitions, counts) for build in (ours, sketch, ketama)]

    mine, plain, unbounded = benchmark.pedantic(run, rounds=1)
    owners = ours(defenders(counts[-1]), partitions)
    checksum = f"{zlib.crc32(','.join(map(str, owners)).encode()):08x}"
    benchmark.extra_info.update(checksum=checksum, seed=SEED)
    what = f"ring: {partitions} partitions, {counts[0]}-{counts[-1]} members"
    less = counts[-1] <= module.EVEN_MAX
    for kind, index in (("join", 0), ("leave", 1)):
        figure(
            f"{what}, a {kind} (seed {SEED}, checksum {checksum})",
            f"{mine[index]:.2f} of P/N",
            target=f"{MOVES_MAX}{', less than the sketch' if less else ''}",
            baseline=f"sketch {plain[index]:.2f}, uhashring {unbounded[index]:.2f}",
            met=mine[index] <= MOVES_MAX and (mine[index] < plain[index] or not less),
            is_ratio=True,
        )
    figure(
        f"{what}, hottest",
        f"{mine[2]:.2f} of the bound",
        target="1: ceil(1.1 x mean)",
        baseline=f"sketch {plain[2]:.2f}, uhashring {unbounded[2]:.2f}",
        met=mine[2] <= 1,
        is_ratio=True,
    )


@pytest.mark.parametrize(("before", "after"), [(30, 45), (30, 20), (4, 8), (8, 5)])
def test_many_at_once(benchmark: Any, before: int, after: int) -> None:
    """Joins of the next numbers; leaves of any."""
    partitions = 256
    members = defenders(before)
    left = sorted(Random(SEED).sample(members, min(after, before)))
    changed = defenders(after) if after > before else left
    least = partitions * abs(after - before) / max(before, after)

    def run() -> list[float]:
        return [
            moved(build(members, partitions), build(changed, partitions)) / least
            for build in (ours, sketch, ketama)
        ]

    mine, plain, unbounded = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(seed=SEED)
    figure(
        f"ring: {partitions} partitions, {before} → {after} members (seed {SEED})",
        f"{mine:.2f} of what must move",
        target=f"{MOVES_MAX}",
        baseline=f"sketch {plain:.2f}, uhashring {unbounded:.2f}",
        met=mine <= MOVES_MAX,
        is_ratio=True,
    )


def best_ms(run: Callable[[], object]) -> float:
    """The best of some rounds, in milliseconds of this process: others use the machine too."""
    taken = []
    for _ in range(3 if QUICK else 20):
        started = time.process_time()
        run()
        taken.append(time.process_time() - started)
    return min(taken) * 1e3


def forget_draws() -> None:
    """As in a process that has not made a ring yet."""
    module._even_draws.cache_clear()
    module._plain_draws.cache_clear()


def test_build(benchmark: Any) -> None:
    """1,024 partitions, 200 members: the first ring of a process, then the next one."""
    members, partitions = defenders(200), 1024

    def first() -> None:
        forget_draws()
        ours(members, partitions)

    def run() -> tuple[float, float, float, float]:
        first_ms = best_ms(first)
        return first_ms, *(best_ms(lambda build=build: build(members, partitions)) for build in ALL)

    first_ms, next_ms, sketch_ms, ketama_ms = benchmark.pedantic(run, rounds=1)
    figure(
        "ring: 1,024 partitions, 200 members, the first of a process",
        f"{first_ms:.0f} ms",
        target=f"{BUILD_MS_MAX:.0f} ms",
        baseline=f"sketch {sketch_ms:.0f} ms, uhashring {ketama_ms:.0f} ms",
        met=first_ms <= BUILD_MS_MAX,
    )
    figure("ring: 1,024 partitions, 200 members, the next", f"{next_ms:.0f} ms")


ALL: tuple[Build, ...] = (ours, sketch, ketama)
