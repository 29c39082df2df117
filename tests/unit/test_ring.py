"""The ring: even, stable, bounded, the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime
from runtime.identity import stable_id
from runtime.ring import ALGORITHM, Ring

PINNED = [1, 0, 1, 1, 2, 0, 0, 0, 1, 3, 2, 2, 2, 4, 3, 4]
members_of = st.sets(st.integers(0, 400), min_size=1, max_size=60).map(
    lambda ids: [stable_id(i) for i in ids]
)


def defenders(count: int) -> list[str]:
    return [stable_id(number) for number in range(count)]


@settings(max_examples=60, deadline=None)
@given(members_of, st.integers(1, 512))
def test_every_partition_has_one_owner_and_no_member_is_above_the_cap(
    members: list[str], partitions: int
) -> None:
    ring = Ring(members, partitions)
    held = [ring.partitions_of(member) for member in ring.members]
    assert sorted(partition for some in held for partition in some) == list(range(partitions))
    exact_cap = -(-11 * partitions // (10 * len(members)))
    assert max(map(len, held)) <= ring.cap == exact_cap


@settings(max_examples=30, deadline=None)
@given(members_of, st.integers(1, 256), st.randoms(use_true_random=False))
def test_the_order_of_the_members_does_not_matter(
    members: list[str], partitions: int, random: Random
) -> None:
    shuffled = [*members, members[0]]
    random.shuffle(shuffled)
    one, other = Ring(members, partitions), Ring(shuffled, partitions)
    assert one == other
    assert hash(one) == hash(other)
    assert one.moved(other) == []


def test_the_ring_is_the_same_in_a_process_with_another_hash_seed() -> None:
    code = (
        "from runtime.ring import Ring; from runtime.identity import stable_id;"
        "r = Ring([stable_id(i) for i in range(30)], 256); print([r.owner(p) for p in range(256)])"
    )
    root = Path(runtime.__file__).parent.parent
    shown = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    ring = Ring(defenders(30), 256)
    assert shown == {f"{[ring.owner(partition) for partition in range(256)]}\n"}


def test_algorithm_1_never_changes() -> None:
    ring = Ring(defenders(5), 16)
    owners = [int(str(ring.owner(partition)).rpartition("-")[2]) for partition in range(16)]
    assert owners == PINNED


@pytest.mark.parametrize(("before", "after"), [(30, 31), (30, 29), (30, 45)])
def test_a_change_of_members_moves_little_more_than_it_must(before: int, after: int) -> None:
    ring, changed = Ring(defenders(before), 1024), Ring(defenders(after), 1024)
    least = 1024 * abs(after - before) / max(before, after)
    assert len(ring.moved(changed)) <= 1.5 * least + 5


def test_a_member_that_comes_back_gets_back_what_it_had() -> None:
    ring = Ring(defenders(30), 256)
    without = Ring(defenders(29), 256)
    assert ring.moved(without)
    assert ring.moved(Ring((*without.members, "defender-29"), 256)) == []


def test_the_explanation_leads_to_the_owner() -> None:
    ring = Ring(defenders(7), 128)
    for partition in range(128):
        steps = ring.explain(partition)
        assert steps[-1].member == ring.owner(partition)
        assert [step.taken for step in steps] == [False] * (len(steps) - 1) + [True]


def test_a_ring_of_one_has_everything_and_an_empty_one_nothing() -> None:
    assert Ring(["defender-3"], 64).partitions_of("defender-3") == list(range(64))
    empty = Ring([], 64)
    assert (empty.owner(5), empty.explain(5), empty.cap) == (None, [], 0)


def test_what_cannot_be_a_ring_is_refused() -> None:
    with pytest.raises(ValueError, match="algorithm 2"):
        Ring(["a"], 8, algorithm=ALGORITHM + 1)
    with pytest.raises(ValueError, match="0 partitions"):
        Ring(["a"], 0)
    with pytest.raises(ValueError, match="partition 8"):
        Ring(["a"], 8).owner(8)


def test_a_large_ring_is_made_in_a_blink() -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        Ring(defenders(200), 1024).owner(0)
        times.append(time.perf_counter() - started)
    # 25-45 ms measured; the bound leaves room for a busy machine.
    assert min(times) < 0.25
